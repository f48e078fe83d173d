"""The words of the market: channels, intervals, time ranges, raw pages and column batches.

A `Page` is what an exchange answered, bytes untouched. A `Batch` is what we made of it: one message with
many rows, kept as columns so that everything behind it works on arrays.
Times are UTC epoch milliseconds, ranges half-open `[start, end)`; prices in quote currency, sizes in base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Span = tuple[int, int]  # [start_ms, end_ms)

INTERVAL_MS: dict[str, int] = {
    "1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "30m": 1_800_000,
    "1h": 3_600_000, "2h": 7_200_000, "4h": 14_400_000, "6h": 21_600_000, "8h": 28_800_000, "12h": 43_200_000,
    "1d": 86_400_000,
}  # fmt: skip

# Columns of a batch, named as the fields of the stored document; dtypes are little-endian on the wire.
TRADE_COLUMNS: dict[str, str] = {
    "id": "<i8",  # the exchange's aggregate trade id
    "ts_ms": "<i8",
    "price": "<f8",
    "size": "<f8",
    "quote_size": "<f8",
    "buyer_is_maker": "|b1",  # true: the seller was the aggressor
    "trades": "<i8",  # single trades in this aggregate; a candle's count is their sum, not the number of rows
}
CANDLE_COLUMNS: dict[str, str] = {
    "ts": "<i8",  # open time, ms; the candle is visible at ts + interval, never before
    "open": "<f8", "high": "<f8", "low": "<f8", "close": "<f8",
    "volume": "<f8", "quote_volume": "<f8",
    "trades": "<i8",
    "taker_buy_volume": "<f8", "taker_buy_quote_volume": "<f8",
    "closed": "|b1",
}  # fmt: skip
BOOK_COLUMNS: dict[str, str] = {  # a row for each diff that was applied; NaN: not known
    "ts_ms": "<i8",
    "update_id": "<i8",  # the exchange's id of the book's state after the diff
    "bid": "<f8", "bid_size": "<f8", "ask": "<f8", "ask_size": "<f8",
    "spread": "<f8", "mid": "<f8", "microprice": "<f8",
    "imbalance_1": "<f8", "imbalance_5": "<f8", "imbalance_20": "<f8",  # -1 (all asks) to 1 (all bids)
    "ofi": "<f8",  # order-flow imbalance since the row before, base units
}  # fmt: skip

Level = tuple[float, float]  # (price, size)
BookState = Literal["live", "stale", "invalid"]  # in sync; not in sync (any more); crossed or locked, and thrown away


TRADE_CHANNELS = ("trades", "fills")  # aggregate trades; single trades, each of them a row with `trades` 1


class PageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a raw page comes from and what it settles; travels in the header `page` beside the page's bytes."""

    v: int = 1
    venue: str
    symbol: str
    channel: str  # "trades" or "candles_5m"
    run: str
    task: str = ""
    source: str = "history"
    ts_receipt_ms: int
    covers: Span  # after this page nothing in [start, end) is left to ask
    asked: Span | None = None  # the whole range of the load this page belongs to; None: the same as `covers`
    first_id: int | None = None  # trades: the id this page was asked from, and the largest it holds
    last_id: int | None = None
    unrecoverable: tuple[Span, ...] = ()  # the loader asked again and the exchange still has nothing here


class FramesInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a message of live frames is; travels in the header `frames` beside them (`encode_frames`).

    One message holds frames of one symbol and channel in the order they are to be used in.
    """

    v: int = 1
    venue: str
    symbol: str
    channel: str  # "trades", "fills", "candles_1m", "book" or "ticker"
    run: str
    task: str = ""
    source: str = "live"  # or "replay"
    kind: str = "frames"  # or "snapshot": one frame, the body of a depth snapshot over REST
    conn: str = ""  # the connection they came over
    ts_receipt_ms: int  # of the last frame
    covers: Span | None = None  # trades, fills, closed candles: [start, end) that these frames complete
    lacks: bool = False  # there are no frames: nothing of `covers` could be had in time


Frame = tuple[int, bytes]  # (receipt time in ns, the frame exactly as received)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one stream as columns; `covers` less `missing` less `unrecoverable` is what may be called stored."""

    v: int = 1
    venue: str
    symbol: str
    channel: str
    source: str  # live, history, replay; of candles made from trades one of MADE_OF_TRADES
    run: str
    ts_receipt_ms: int
    origin: tuple[str, int, int] | None = None  # topic, partition, offset this batch was made from
    covers: Span | None = None
    asked: Span | None = None  # the whole range of the load; what of it lies between stored spans is a hole
    missing: tuple[Span, ...] = ()  # asked and answered, but rows could not be read
    unrecoverable: tuple[Span, ...] = ()  # the exchange itself does not have it
    revision: int = 0  # candles made from trades: how often late trades have amended them
    columns: dict[str, bytes]

    def array(self, name: str) -> Array:
        """Column `name` as a read-only array of shape (rows,)."""
        return np.frombuffer(self.columns[name], dtype=_dtypes(self.channel)[name])

    def arrays(self) -> dict[str, Array]:
        return {name: self.array(name) for name in self.columns}

    @property
    def begins_a_load(self) -> bool:
        """True when nothing before this batch is needed to know the first millisecond it covers.

        Trades are paged by id: those of the millisecond in which a page ends may be on that page and on the next one.
        """
        return (
            self.channel not in TRADE_CHANNELS
            or self.covers is None
            or self.covers[0] == (self.asked or self.covers)[0]
        )

    def __len__(self) -> int:
        name, column = next(iter(self.columns.items()))
        return len(column) // np.dtype(_dtypes(self.channel)[name]).itemsize


# Candles made from trades: closed by a trade behind them; because nobody traded any more; over trades that the exchange
# cannot serve, so that they are not whole.
MADE_OF_TRADES = ("aggregated", "clock", "partial")
# The exchange's own candle outranks the one made from its trades; live ones lie between until history is loaded. A
# partial one yields to any other.
_RANKS = {"partial": 0, "aggregated": 1, "clock": 1, "live": 2, "replay": 2, "history": 3}
_RANK = 10**15  # a version stays below 2**53, so that every reader of JSON has it exactly


def versions_of(batch: Batch) -> Array:
    """The versions of a batch's candles, (rows,) int64: of two versions of a candle the higher is the better.

    Of candles made from trades the one with more trades knows more, whoever made it; where that is a tie (a flat candle
    that shows another price now) the revision decides.
    """
    versions = np.full(len(batch), _RANKS[batch.source] * _RANK, dtype=np.int64)
    if batch.source in MADE_OF_TRADES:
        versions += batch.array("trades") * 10_000 + min(batch.revision, 9_999)
    return versions


class BookUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol's order book after a message of diffs: its best levels now, and a row of features for each diff."""

    v: int = 1
    venue: str
    symbol: str
    source: str  # live or replay
    run: str
    ts_receipt_ms: int  # of the last frame
    origin: tuple[str, int, int] | None = None  # topic, partition, offset of the message
    state: BookState
    ts_ms: int = 0  # exchange time of the last diff that was applied, now or before; 0: none yet
    update_id: int = 0  # the exchange's id of the book after it
    bids: tuple[Level, ...] = ()  # best first, at most 20, no deeper than is known; empty unless live
    asks: tuple[Level, ...] = ()
    columns: dict[str, bytes] = {}

    def array(self, name: str) -> Array:
        """Column `name` as a read-only array of shape (diffs applied,)."""
        return np.frombuffer(self.columns[name], dtype=BOOK_COLUMNS[name])

    def __len__(self) -> int:
        return len(self.columns.get("update_id", b"")) // 8


def runs_of(batches: Sequence[Batch]) -> list[list[int]]:
    """Places of batches that can be worked on as one, in their order: each goes on where the one before it ends.

    Streams lie apart, the order within a stream stays.
    """
    runs: list[list[int]] = []
    newest: dict[tuple[str, str, str], list[int]] = {}
    for place, batch in enumerate(batches):
        stream = (batch.venue, batch.symbol, batch.channel)
        run = newest.get(stream)
        if run is None or not _goes_on(batches[run[-1]], batch):
            runs.append(run := [])
            newest[stream] = run
        run.append(place)
    return runs


def _goes_on(before: Batch, batch: Batch) -> bool:
    same = before.source == batch.source and before.run == batch.run and before.asked == batch.asked
    same = same and before.revision == batch.revision
    whole = not (before.missing or before.unrecoverable or batch.missing or batch.unrecoverable)
    return same and whole and (before.covers and before.covers[1]) == (batch.covers and batch.covers[0])


def joined(batches: Sequence[Batch]) -> Batch:
    """The batches of a run as one; its origin is the last one's."""
    if len(batches) == 1:
        return batches[0]
    first, last = batches[0], batches[-1]
    return msgspec.structs.replace(
        last,
        covers=first.covers and last.covers and (first.covers[0], last.covers[1]),
        columns={name: b"".join(batch.columns[name] for batch in batches) for name in last.columns},
    )


def rows_of(batch: Batch, places: Sequence[int]) -> Batch:
    """Some rows of a batch; they complete nothing."""
    columns = {name: column[list(places)].tobytes() for name, column in batch.arrays().items()}
    return msgspec.structs.replace(batch, columns=columns, covers=None, asked=None, missing=(), unrecoverable=())


def _dtypes(channel: str) -> dict[str, str]:
    if channel == "book":
        return BOOK_COLUMNS
    return TRADE_COLUMNS if channel in TRADE_CHANNELS else CANDLE_COLUMNS


def pack_columns(channel: str, arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """Arrays to wire bytes, in the declared order and dtype; a missing column is a KeyError."""
    return {name: np.ascontiguousarray(arrays[name], dtype=dtype).tobytes() for name, dtype in _dtypes(channel).items()}


def empty_columns(channel: str) -> dict[str, Array]:
    return {name: np.empty(0, dtype=dtype) for name, dtype in _dtypes(channel).items()}


def interval_of(channel: str) -> str:
    """`candles_5m` -> `5m`."""
    return channel.removeprefix("candles_")


def instant_ms(text: str) -> int:
    """An ISO date or instant as epoch milliseconds, UTC unless it says otherwise. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def instant_text(ms: int) -> str:
    """Epoch milliseconds as an ISO instant in UTC, to the second, or to the millisecond where it matters."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms % 1000:03d}Z" if ms % 1000 else "Z")


def stream_key(venue: str, symbol: str) -> bytes:
    """The Kafka key: one symbol's records stay in order on one partition."""
    return f"{venue}:{symbol}".encode()


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_book_decoder = msgspec.msgpack.Decoder(BookUpdate)
_page_decoder = msgspec.json.Decoder(PageInfo)
_frames_info_decoder = msgspec.json.Decoder(FramesInfo)
_frames_decoder = msgspec.msgpack.Decoder(list[Frame])

encode_batch = _encoder.encode
decode_batch = _batch_decoder.decode
encode_book_update = _encoder.encode
decode_book_update = _book_decoder.decode
encode_page_info = msgspec.json.encode
decode_page_info = _page_decoder.decode
encode_frames = _encoder.encode  # a list of Frame
decode_frames = _frames_decoder.decode
encode_frames_info = msgspec.json.encode
decode_frames_info = _frames_info_decoder.decode
