"""The order book of one symbol, from a snapshot and the diffs around it: Diff, Snapshot -> BookSync -> Book.

What makes a diff the next one is the venue's chain of update ids (`CHAINS`). Quantities are absolute, so a diff that
overlaps what the book holds may be applied, and removing a level that the book does not hold is normal.
Promise: a book that is not proven to be in sync is never shown (`book` is None then): not before its snapshot has met
the diffs, not after a diff is missing, not once its best prices meet or cross. Prices in quote currency, sizes in base;
prices are compared as the float64 their text reads as: the same text is the same number.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Literal

import msgspec

from models.market import BookState, Level

DEPTH = 20  # levels a side that are shown
MOST_LEVELS = 10_000  # kept a side when it is tidied: twice the deepest snapshot
OLD_WITHIN_MS = 5_000  # how much later than the book an old diff may say it is: connections differ by milliseconds
MOST_WAITING = 2_000  # diffs kept while a snapshot is awaited: over three minutes of a 100 ms stream


class Diff(msgspec.Struct, frozen=True, gc=False):
    """What changed from update `first` to update `last`: levels with their new sizes, 0 removes."""

    last: int
    ts_ms: int  # exchange time
    bids: Sequence[Level]
    asks: Sequence[Level]
    first: int | None = None  # where ids are without gaps
    previous: int | None = None  # `last` of the diff before, where the venue says it


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The book as it was after update `last`, best first; `whole`: the exchange has no deeper levels on that side."""

    last: int
    bids: Sequence[Level]
    asks: Sequence[Level]
    bids_whole: bool = False
    asks_whole: bool = False
    ts_ms: int = 0  # exchange time; 0 where the venue does not say


# --- which diff is the next one ---------------------------------------------------------------------------------------

Place = Literal["old", "next", "gap"]
Chain = Callable[
    [Diff, int, int], Place
]  # of a diff to a book after update `at`, at exchange time `ts_ms` (0: unknown)


def spot_chain(diff: Diff, at: int, ts_ms: int) -> Place:
    """Ids without gaps: the next diff begins at `at + 1`, or overlaps what the book holds."""
    if diff.last <= at:
        return _behind(diff, ts_ms)
    return "gap" if diff.first is None or diff.first > at + 1 else "next"


def um_chain(diff: Diff, at: int, ts_ms: int) -> Place:
    """Ids shared by all symbols, so that gaps in them are normal: a diff names the one before it."""
    if diff.last <= at:
        return _behind(diff, ts_ms)
    return "gap" if diff.previous is None or diff.previous > at else "next"


def okx_chain(diff: Diff, at: int, ts_ms: int) -> Place:
    """A diff names the one before it; ids may stand still (keep-alive) or start again lower (maintenance).

    Frames of before 2023 name none: then the order of receipt is all there is.
    """
    if diff.previous is None or diff.previous == at:
        return "next"
    return um_chain(diff, at, ts_ms)


def _behind(diff: Diff, ts_ms: int) -> Place:
    """A lower id is old; long after the book's time it is not: ids have begun anew, or the book's is wrong."""
    return "gap" if ts_ms and diff.ts_ms > ts_ms + OLD_WITHIN_MS else "old"


CHAINS: Mapping[str, Chain] = {"binance": spot_chain, "binance_um": um_chain, "okx": okx_chain}


# --- the book ---------------------------------------------------------------------------------------------------------


class Side:
    """One side by price. Levels behind the snapshot's last one are heard of only when they change.

    A level that goes stays as a price with size 0, for most come back: so a diff goes in as a whole, and only prices
    never seen are sorted in. When as many are gone as are there, those that are gone are dropped.
    """

    def __init__(self, sign: int, levels: Sequence[Level], whole: bool) -> None:
        """`sign`: 1 for bids, -1 for asks: the best price times sign is the greatest."""
        self._sign = sign
        self._sizes = {price: size for price, size in levels if size}
        self._keys = sorted(sign * price for price in self._sizes)  # the best last
        self._edge = -math.inf if whole or not self._keys else self._keys[0]
        self._tidy_at = 2 * len(self._keys) + DEPTH
        self._top: list[Level] | None = None

    def apply(self, levels: Sequence[Level]) -> None:
        sizes, held = self._sizes, len(self._sizes)
        sizes.update(levels)
        for price in islice(reversed(sizes), len(sizes) - held):  # a dict keeps the order in which they came
            insort(self._keys, self._sign * price)
        self._top = None
        if len(sizes) > self._tidy_at:
            self._tidy()

    def _tidy(self) -> None:
        """Drop the prices without a level, and of too many levels the farthest: all behind the rest is not known."""
        sizes, sign = self._sizes, self._sign
        self._keys = [key for key in self._keys if sizes[sign * key]]
        if len(self._keys) > MOST_LEVELS:
            self._keys = self._keys[-MOST_LEVELS * 9 // 10 :]  # not one by one
            self._edge = max(self._edge, self._keys[0])
        self._sizes = {sign * key: sizes[sign * key] for key in self._keys}
        self._tidy_at = 2 * len(self._keys) + DEPTH

    def top(self) -> list[Level]:
        """At most DEPTH levels, best first, none behind the last that all are known to; but always the best.

        What trades reach has changed, so the best price is known wherever the market goes.
        """
        if self._top is None:
            self._top = self._find_top()
        return self._top

    def _find_top(self) -> list[Level]:
        keys, sizes, sign = self._keys, self._sizes, self._sign
        while keys and not sizes[sign * keys[-1]]:
            del sizes[sign * keys.pop()]
        found: list[Level] = []
        for key in reversed(keys):
            if found and key < self._edge:
                break
            if size := sizes[sign * key]:
                found.append((sign * key, size))
                if len(found) == DEPTH:
                    break
        return found

    @property
    def whole(self) -> bool:
        """What is held is all there is."""
        return self._edge == -math.inf

    @property
    def thin(self) -> bool:
        """Fewer than DEPTH levels are known, and there may be more."""
        return not self.whole and len(self.top()) < DEPTH

    def __len__(self) -> int:
        return sum(size > 0 for size in self._sizes.values())


class Book:
    """A book in sync: after update `at`, at exchange time `ts_ms` (0: not known)."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.at, self.ts_ms = snapshot.last, snapshot.ts_ms
        self.bids = Side(1, snapshot.bids, snapshot.bids_whole)
        self.asks = Side(-1, snapshot.asks, snapshot.asks_whole)

    def apply(self, diff: Diff) -> None:
        """The next diff."""
        self.bids.apply(diff.bids)
        self.asks.apply(diff.asks)
        self.at, self.ts_ms = diff.last, diff.ts_ms

    @property
    def crossed(self) -> bool:
        """The best prices meet or cross: something was lost."""
        bids, asks = self.bids.top(), self.asks.top()
        return bool(bids and asks) and bids[0][0] >= asks[0][0]

    @property
    def thin(self) -> bool:
        """The market has come so close to the snapshot's edge that a newer snapshot would show more."""
        return self.bids.thin or self.asks.thin


def _nobody(_book: Book) -> None:
    pass


class BookSync:
    """A book and its way into sync: diffs wait, bounded, for a snapshot that they can go on from.

    `moved` is called with the book after each diff that was applied to a book in sync.
    """

    def __init__(self, chain: Chain, moved: Callable[[Book], None] = _nobody) -> None:
        self._chain, self._moved = chain, moved
        self._waiting: deque[Diff] = deque(maxlen=MOST_WAITING)
        self._snapshot: Snapshot | None = None
        self._fresh: BookSync | None = None  # takes the place of a book that has become thin
        self.book: Book | None = None
        self.state: BookState = "stale"
        self.losses = 0  # times it fell out of sync

    @property
    def wants_snapshot(self) -> bool:
        """Nothing goes on without a (newer) one; of a live book: it would show more."""
        if self.book is not None:
            return self._fresh is not None and self._fresh.wants_snapshot
        return self._snapshot is None

    def diff(self, diff: Diff) -> None:
        """Take a diff, in order of receipt."""
        if self.book is None:
            self._waiting.append(diff)
            self._join()
            return
        place = self._chain(diff, self.book.at, self.book.ts_ms)
        if place == "gap":
            self._lose("stale", diff)
        elif place == "next":
            self._move(self.book, diff)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot; a book that is in sync and deep enough does not need it."""
        if self.book is None:
            self._snapshot = snapshot
            self._join()
            return
        if self._fresh is not None:
            self._fresh.snapshot(snapshot)
            self._refresh(self.book)
        if snapshot.last > self.book.at:
            self._snapshot = snapshot  # perhaps because of a gap that is not here yet

    def _move(self, book: Book, diff: Diff) -> None:
        book.apply(diff)
        if book.crossed:
            self._lose("invalid", diff)
            return
        if self._snapshot and self._snapshot.last <= book.at:
            self._snapshot = None
        if self._fresh is not None:
            self._fresh.diff(diff)
            book = self._refresh(book)
        elif book.thin:
            self._fresh = BookSync(self._chain)
        self._moved(book)

    def _refresh(self, book: Book) -> Book:
        """The deeper book, once it is where this one is."""
        if self._fresh and self._fresh.book and self._fresh.book.at == book.at:
            self.book, self._fresh = self._fresh.book, None
            return self.book
        return book

    def _lose(self, state: BookState, diff: Diff) -> None:
        """Out of sync from this diff on; it and what follows wait for a snapshot."""
        self.book = self._fresh = None
        self.state = state
        self.losses += 1
        self._waiting.clear()
        self._waiting.append(diff)
        self._join()

    def _join(self) -> None:
        """Begin with the snapshot once the waiting diffs have met it: one ends where it ends, or goes on from it."""
        if self._snapshot is None:
            return
        snapshot, waiting, met = self._snapshot, self._waiting, None
        while waiting and self._chain(waiting[0], snapshot.last, snapshot.ts_ms) == "old":
            met = waiting.popleft()
        if waiting and self._chain(waiting[0], snapshot.last, snapshot.ts_ms) == "gap":
            self._snapshot = None  # too old: what lies between it and the first that waits is not here
        elif waiting or (met and met.last == snapshot.last):
            self._begin(Book(snapshot), met)

    def _begin(self, book: Book, met: Diff | None) -> None:
        diffs = list(self._waiting)
        self._waiting.clear()
        self._snapshot = None
        if book.crossed:
            self.state = "invalid"
            self._waiting.extend(diffs)
            return
        if met and met.last == book.at:
            book.ts_ms = met.ts_ms
        self.book, self.state = book, "live"
        for diff in diffs:
            self.diff(diff)
