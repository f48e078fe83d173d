"""Diffs become order books: raw.books -> build_books -> market.books.

The book is held in memory by whoever has the symbol's partition. It is shown in sync or not at all: whoever has none
(after a start, a missing diff, a crossed book) says `stale` or `invalid` and asks the loader for a snapshot. A frame
that cannot be used goes to dead-letters with its bytes, the rest of its message goes on; if it was a diff, the chain
of update ids finds that it is missing.
At least once: a row remembers the last message it has applied, so a repeated one makes no second update. On brokers a
row can be durable before its update: that one is lost with a crash, and need not be sent again, for the next one says
it all and the new owner's first word is `stale`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from adapters.exchanges.venues import VENUES
from app import topics
from app.core import Message, app, assignment, consumes_together, dead_letter, put
from app.errors import ExchangeError
from app.telemetry import BOOKS_LOST, ROWS
from app.work import send_task
from models.book_features import FEATURES, BookFeatures
from models.control import ANY_ATTEMPT, Json, TaskMessage
from models.market import (
    BOOK_COLUMNS,
    BookUpdate,
    Frame,
    FramesInfo,
    decode_frames,
    decode_frames_info,
    encode_book_update,
    encode_frames,
)
from models.order_book import Book, BookSync, Snapshot
from tables.book_by_symbol import BookRow, book_by_symbol

ASK_EVERY_S = 2.0  # for a snapshot, a symbol: the loader has many to serve
RENEW_EVERY_S = 30.0  # the same for a live book that a newer snapshot would make deeper

_books: dict[str, KeptBook] = {}


@consumes_together(topics.raw_books)
async def build_books(messages: list[Message]) -> None:
    """Apply diffs and snapshots; say what the books look like now."""
    by_symbol: dict[bytes, list[Message]] = {}
    for message in messages:
        by_symbol.setdefault(message.key, []).append(message)
    for own in by_symbol.values():
        await build(own)


async def build(messages: list[Message]) -> None:
    """One symbol's messages into its book: an update for each onto its topic, then the row that remembers them."""
    last = messages[-1]
    key, place = last.key.decode(), f"{last.topic}-{last.partition}"
    row = book_by_symbol.get(key) or BookRow()
    done = row.at.get(place, -1)
    for message in messages:
        info = decode_frames_info(message.headers["frames"])
        if info.channel != "book":
            continue  # best prices on their own
        kept = _books.get(key) or _books.setdefault(key, KeptBook(info.venue))
        for frame, reason in kept.use(info.kind, decode_frames(message.value)):
            await dead_letter(message, reason, value=encode_frames([frame]))
        if kept.has_news(row, repeated=message.offset <= done):
            update = kept.update(info, row, message.place)
            await put(topics.market_for("book"), message.key, encode_book_update(update))
            row = _row_after(row, update)
        kept.rows.clear()
        if kept.asks(time.monotonic()):
            await _ask(info)
    row.at[place] = max(last.offset, done)
    book_by_symbol.put(key, row, of=last)


@app.on_rebalance_complete.connect
async def forget_books(*_: object, **__: object) -> None:
    """Books of partitions that went elsewhere: what their symbols do there is not seen here."""
    mine = {tp.partition for tp in assignment() if tp.topic == "raw.books"}
    for key in [key for key in _books if book_by_symbol.partition_of(key) not in mine]:
        del _books[key]


class KeptBook:
    """A symbol's book, and a row of features for each diff that was applied and not yet told of."""

    def __init__(self, venue: str) -> None:
        """Raises KeyError for a venue whose frames nobody here can read."""
        self._read, self.venue = VENUES[venue].read_book, venue
        self.sync = BookSync(VENUES[venue].chain, self._moved)
        self.rows: list[Sequence[float]] = []
        self._features, self._losses = BookFeatures(), 0
        self._asked_s = -math.inf

    def use(self, kind: str, frames: Sequence[Frame]) -> list[tuple[Frame, str]]:
        """Apply frames in order; those that cannot be used come back, with the reason."""
        rejected = []
        for frame in frames:
            try:
                found = self._read(kind, frame[1])
            except ExchangeError as error:
                rejected.append((frame, str(error)))
                continue
            if isinstance(found, Snapshot):
                self.sync.snapshot(found)
            else:
                self.sync.diff(found)
        return rejected

    def _moved(self, book: Book) -> None:
        if self.sync.losses > self._losses:
            self._features.forget()
            self._losses = self.sync.losses
        bids, asks = book.bids.top(), book.asks.top()
        features = self._features.features(bids, asks, (book.bids.whole, book.asks.whole))
        self.rows.append((book.ts_ms, book.at, *features))

    def has_news(self, before: BookRow, repeated: bool) -> bool:
        """True where the row does not say it all; `repeated` messages after a crash say nothing that was said."""
        if repeated:
            self.rows.clear()
        if (book := self.sync.book) is None:
            return bool(self.rows) or before.state != self.sync.state
        if repeated and book.at < before.update_id:
            return False
        return bool(self.rows) or (before.state, before.update_id) != (self.sync.state, book.at)

    def update(self, info: FramesInfo, before: BookRow, origin: tuple[str, int, int]) -> BookUpdate:
        """What there is to say now; of a book out of sync, when and where it was last in sync."""
        if before.state == "live" != self.sync.state:
            BOOKS_LOST.labels(self.venue, self.sync.state).inc()
        book, at = self.sync.book, (before.ts_ms, before.update_id)
        if book:
            at = (book.ts_ms, book.at)
        elif self.rows:
            at = (int(self.rows[-1][0]), int(self.rows[-1][1]))
        columns = dict(zip(BOOK_COLUMNS, zip(*self.rows, strict=True), strict=True)) if self.rows else {}
        ROWS.labels("build_books").inc(len(self.rows))
        return BookUpdate(
            venue=info.venue, symbol=info.symbol, source=info.source, run=info.run, ts_receipt_ms=info.ts_receipt_ms,
            origin=origin, state=self.sync.state,
            ts_ms=at[0], update_id=at[1],
            bids=tuple(book.bids.top()) if book else (), asks=tuple(book.asks.top()) if book else (),
            columns={name: np.array(values, BOOK_COLUMNS[name]).tobytes() for name, values in columns.items()},
        )  # fmt: skip

    def asks(self, now_s: float) -> bool:
        """True when it is time to ask for a snapshot."""
        every_s = ASK_EVERY_S if self.sync.book is None else RENEW_EVERY_S
        if not self.sync.wants_snapshot or now_s - self._asked_s < every_s:
            return False
        self._asked_s = now_s
        return True


async def _ask(info: FramesInfo) -> None:
    """Ask the task that these frames come from for a snapshot; a replay has none that could answer."""
    if info.task:
        wish: Json = {"snapshot": info.symbol}
        await send_task(
            TaskMessage(kind="tell", task_id=info.task, queue_id=info.run, attempt=ANY_ATTEMPT, command=wish)
        )


def _row_after(row: BookRow, update: BookUpdate) -> BookRow:
    """The row that shows an update; the features stay those of the last applied diff."""
    features = row.features
    if len(update):
        features = {name: float(update.array(name)[-1]) for name in FEATURES}
    return BookRow(
        state=update.state, source=update.source, ts_ms=update.ts_ms, update_id=update.update_id,
        ts_receipt_ms=update.ts_receipt_ms, bids=update.bids, asks=update.asks, features=features, at=row.at,
    )  # fmt: skip
