"""Rows of any exchange's trades and candles as columns: what is unreadable, and what is not there.

An exchange's own module decodes a page into structs with the fields of `TRADE_FIELDS` or `CANDLE_FIELDS` (`RowReader`)
in one pass (over a million trades a second); only a page with a bad row is read row by row.
Promise: every readable row comes out once and in order, every unreadable one with its bytes and the reason, and a
hole is named, never closed. Shapes: every column (rows,).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from adapters.exchanges.base import Parsed, Rejected
from app.errors import ExchangeError
from models.market import Array, PageInfo, Span
from models.spans import clip, subtract, union

Ints = npt.NDArray[np.int64]
T = TypeVar("T")

_MICROSECONDS = 100_000_000_000_000  # times from here on are microseconds
_YEAR_2100_MS = 4_102_444_800_000
_QUOTE_PLACES = 8  # decimals of quote sizes: the exchange's own precision, and exact in float64 up to 9e7


_raw_rows = msgspec.json.Decoder(list[msgspec.Raw])

Rejections = list[tuple[int, Rejected]]  # (number of readable rows in front of it, row)
_Gap = tuple[int | None, int]  # [start_ms, end_ms); None: since the page's own start


@dataclass(frozen=True)
class Defects:
    """Spans a page of trades does not hold, their neighbours' milliseconds included."""

    missing: list[_Gap]  # unreadable rows
    jumps: list[_Gap]  # ids that are not there

    def touch(self, ts_ms: int) -> bool:
        """Whether the millisecond is one of a defect's far edges."""
        return any(after == ts_ms + 1 for _, after in (*self.missing, *self.jumps))


def defects(read: Read, first_id: int | None) -> Defects:
    """Where rows lack in front of, or between, readable rows."""
    ids, ts = read.columns["id"], read.columns["ts_ms"]
    lost = np.diff(ids, prepend=ids[:1] - 1 if first_id is None else first_id - 1) - 1
    bad = np.bincount([before for before, _ in read.rejected], minlength=len(ids) + 1)[: len(ids)]

    def spans(gaps: Ints) -> list[_Gap]:
        return [(int(ts[gap - 1]) if gap else None, int(ts[gap]) + 1) for gap in gaps]

    return Defects(missing=spans(np.flatnonzero(bad)), jumps=spans(np.flatnonzero(lost > bad)))


@dataclass(frozen=True)
class Read:
    """A page's readable rows as columns in order of key, each once, and its unreadable ones.

    `rejected`: (number of readable rows in front of it, row).
    """

    columns: dict[str, Array]
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)

    @staticmethod
    def nothing(fields: Mapping[str, str]) -> Read:
        return Read({name: np.empty(0, dtype) for name, dtype in fields.items()})

    def __len__(self) -> int:
        return len(self.columns[next(iter(self.columns))])

    @property
    def rows(self) -> int:
        """Readable or not."""
        return len(self) + len(self.rejected)

    def since(self, key: int) -> Read:
        """Without the rows before `key`: an exchange may repeat the last row of the page before."""
        keys = self.columns[next(iter(self.columns))]
        first = int(np.searchsorted(keys, key))
        if first == 0:
            return self
        kept = {name: column[first:] for name, column in self.columns.items()}
        return Read(kept, [(before - first, row) for before, row in self.rejected if before >= first])


TRADE_FIELDS = {
    "id": "<i8", "ts_ms": "<i8", "price": "<f8", "size": "<f8", "first": "<i8", "last": "<i8", "buyer_is_maker": "|b1",
}  # fmt: skip
_TRADE_ROW = np.dtype(list(TRADE_FIELDS.items()))
CANDLE_FIELDS = {
    "ts": "<i8", "open": "<f8", "high": "<f8", "low": "<f8", "close": "<f8", "volume": "<f8", "quote_volume": "<f8",
    "trades": "<i8", "taker_buy_volume": "<f8", "taker_buy_quote_volume": "<f8",
}  # fmt: skip


class RowReader(Generic[T]):
    """Reads pages of one kind; fields nobody has heard of are ignored, decimals and numbers may be strings.

    `row`: the struct of a row. `columns` makes a Read of structs: `trades_of` or `candles_of`.
    """

    def __init__(
        self, row: type[T], columns: Callable[[Sequence[Any], Rejections], Read], *, newest_first: bool = False
    ) -> None:
        # strict=False reads the exchange's decimal strings as numbers, in one pass and correctly rounded.
        self._page: msgspec.json.Decoder[list[T]] = msgspec.json.Decoder(list[row], strict=False)  # type: ignore[valid-type]
        self._row: msgspec.json.Decoder[T] = msgspec.json.Decoder(row, strict=False)
        self._columns, self._order = columns, -1 if newest_first else 1

    def read(self, rows: bytes | msgspec.Raw) -> Read:
        """Raises ExchangeError when they are no JSON list."""
        try:
            return self._columns(self._page.decode(rows)[:: self._order], [])
        except (msgspec.DecodeError, ValueError, OverflowError):
            return self._columns(*self._row_by_row(rows))

    def _row_by_row(self, body: bytes | msgspec.Raw) -> tuple[list[T], Rejections]:
        """The slow way, for a page with a bad row: the bad ones are put aside, the others go on."""
        try:
            raw_rows = _raw_rows.decode(body)
        except msgspec.DecodeError as error:
            raise ExchangeError(f"the answer is no JSON list: {error}") from error
        rows: list[T] = []
        rejected: Rejections = []
        for raw in raw_rows[:: self._order]:
            try:
                row = self._row.decode(raw)
                self._columns([row], [])
                rows.append(row)
            except (msgspec.DecodeError, ValueError, OverflowError) as error:
                rejected.append((len(rows), Rejected(bytes(raw), str(error))))
        return rows, rejected


def trades_of(rows: Sequence[Any], rejected: Rejections) -> Read:
    """Raises ValueError when a number makes no sense."""
    table = np.frombuffer(_packed(rows), _TRADE_ROW)
    columns = {name: np.ascontiguousarray(table[name]) for name in TRADE_FIELDS}
    columns["ts_ms"] = _all_milliseconds(columns["ts_ms"])
    _must_be_positive(columns, ("price",))
    _must_be_finite(columns, ("size",))
    if (columns["id"] < 0).any():
        raise ValueError("a trade's id is negative")
    if (columns["last"] < columns["first"]).any():
        raise ValueError("a trade ends before it begins (l < f)")
    return _in_order(columns, rejected)


def _packed(rows: Sequence[Any]) -> bytes:
    """The rows' first fields as TRADE_FIELDS, one after another; half the time of an array for each field."""
    values = map(msgspec.structs.astuple, rows)
    if rows and len(rows[0].__struct_fields__) > len(TRADE_FIELDS):  # what the venue says beside them
        values = map(itemgetter(slice(len(TRADE_FIELDS))), values)
    try:
        return _trade_format(len(rows)).pack(*chain.from_iterable(values))
    except struct.error as error:
        raise ValueError(f"a number of a trade has more than 64 bits: {error}") from error


@lru_cache(maxsize=256)
def _trade_format(rows: int) -> struct.Struct:
    return struct.Struct("<" + "qqddqq?" * rows)


_VOLUMES = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")


def candles_of(rows: Sequence[Any], rejected: Rejections, said: Sequence[str] = ("trades", *_VOLUMES)) -> Read:
    """`said`: what the venue says beside its prices; a volume it does not say is NaN, a number of trades -1.

    Raises ValueError when a number makes no sense.
    """
    prices, volumes = ("open", "high", "low", "close"), [name for name in _VOLUMES if name in said]
    columns = {name: np.full(len(rows), np.nan) for name in _VOLUMES}
    columns |= {name: np.array([getattr(row, name) for row in rows], np.float64) for name in (*prices, *volumes)}
    columns["ts"] = _all_milliseconds(np.array([row.ts for row in rows], np.int64))
    columns["trades"] = np.array([row.trades if "trades" in said else -1 for row in rows], np.int64)
    _must_be_positive(columns, prices)
    _must_be_finite(columns, volumes)
    if (columns["high"] < columns["low"]).any():
        raise ValueError("a candle's high lies below its low")
    return _in_order({name: columns[name] for name in CANDLE_FIELDS}, rejected)


def _must_be_positive(columns: Mapping[str, Array], names: Sequence[str]) -> None:
    for name in names:
        if not ((columns[name] > 0) & np.isfinite(columns[name])).all():
            raise ValueError(f"{name} is no positive number")


def _must_be_finite(columns: Mapping[str, Array], names: Sequence[str]) -> None:
    for name in names:
        if not ((columns[name] >= 0) & np.isfinite(columns[name])).all():
            raise ValueError(f"{name} is negative or no number")


def _in_order(columns: dict[str, Array], rejected: Rejections) -> Read:
    """Sorted by the first column, each key once: the last row of a key wins."""
    keys = columns[next(iter(columns))]
    if len(keys) < 2 or (np.diff(keys) > 0).all():
        return Read(columns, rejected)
    order = np.argsort(keys, kind="stable")
    order = order[np.append(np.diff(keys[order]) > 0, True)]
    behind = np.searchsorted(keys[order], keys, side="right")  # of each row: its place in the sorted page, plus one
    places = [(int(behind[before - 1]) if before else 0, row) for before, row in rejected]
    return Read({name: column[order] for name, column in columns.items()}, sorted(places, key=lambda place: place[0]))


def parse_trades(info: PageInfo, read: Read) -> Parsed:
    """Quote sizes are price times size, rounded to eight places."""
    if info.first_id is not None:
        read = read.since(info.first_id)
    asked_start, asked_end = info.asked or info.covers
    start, end = info.covers
    columns, rejected = read.columns, read.rejected
    ts = columns["ts_ms"]
    if len(read) and end < asked_end:  # the next page begins with unreadable rows behind the last readable one
        rejected = [(before, row) for before, row in rejected if before < len(read)]
    rejected = [(before, row) for before, row in rejected if before == 0 or ts[before - 1] < asked_end]
    found = defects(read, info.first_id)
    missing = [(start if a is None else a, b) for a, b in found.missing]
    if any(before == len(read) for before, _ in rejected):
        missing.append((int(ts[-1]) if len(read) else start, end))
    jumps = [(start if a is None else a, b) for a, b in found.jumps]
    inside = (ts >= asked_start) & (ts < asked_end)
    if not inside.all():
        columns = {name: column[inside] for name, column in columns.items()}
    return Parsed(
        columns=_as_trades(columns),
        rejected=[row for _, row in rejected],
        missing=tuple(clip(missing, start, end)),
        unrecoverable=tuple(clip(union(jumps, info.unrecoverable), start, end)),
    )


def trade_columns(rows: Sequence[Any]) -> dict[str, Array]:
    """Events or rows with the fields of a trade as TRADE_COLUMNS. Raises ValueError when a number makes no sense."""
    return _as_trades(trades_of(rows, []).columns)


def candle_columns(rows: Sequence[Any]) -> dict[str, Array]:
    """Events or rows with the fields of a candle, without `closed`. Raises ValueError when a number makes no sense."""
    return candles_of(rows, []).columns


def _as_trades(columns: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "id": columns["id"],
        "ts_ms": columns["ts_ms"],
        "price": columns["price"],
        "size": columns["size"],
        "quote_size": np.round(columns["price"] * columns["size"], _QUOTE_PLACES),
        "buyer_is_maker": columns["buyer_is_maker"],
        "trades": columns["last"] - columns["first"] + 1,
    }


def parse_candles(info: PageInfo, read: Read, step_ms: int) -> Parsed:
    """Rows that open inside `info.covers`, times as the exchange gave them, off its grid or not."""
    start, end = info.covers
    ts = read.columns["ts"]
    inside = (ts >= start) & (ts < end)
    columns = {name: column[inside] for name, column in read.columns.items()}
    holes = grid_holes(ts, info.covers, step_ms)
    edges = np.concatenate([[start], ts, [end]])
    torn = [(int(edges[before]), int(edges[before + 1])) for before, _ in read.rejected]
    missing = [(a, b) for a, b in holes if any(torn_a <= a < torn_b for torn_a, torn_b in torn)]
    return Parsed(
        columns={**columns, "closed": np.ones(len(columns["ts"]), np.bool_)},
        rejected=[row for _, row in read.rejected],
        missing=tuple(union(missing)),
        unrecoverable=tuple(union(subtract(holes, missing), info.unrecoverable)),
    )


def grid_holes(opens: Ints, span: Span, step_ms: int) -> list[Span]:
    """Slots of the interval's grid that open inside `span` and hold no row, one span each, cut to `span`.

    A row that opens off the grid fills the slot it opens in; one that closes early fills its whole slot.
    """
    first = -(-span[0] // step_ms) * step_ms
    slots = np.arange(first, span[1], step_ms)
    empty = slots[~np.isin(slots, opens - opens % step_ms)]
    return [(slot, min(slot + step_ms, span[1])) for slot in empty.tolist()]


def reached(read: Read, span: Span, step_ms: int) -> int:
    """How far an answer settles its window: behind its last row, or all of it when it is empty."""
    opens = read.columns["ts"]
    opens = opens[(opens >= span[0]) & (opens < span[1])]
    if not len(opens):
        return span[1]
    behind = sum(before == len(read) for before, _ in read.rejected)
    last = int(opens[-1])
    return min(last - last % step_ms + step_ms * (1 + behind), span[1])


def first_at_or_after(read: Read, ts_ms: int) -> int | None:
    ts = read.columns["ts_ms"]
    later = ts[ts >= ts_ms]
    return int(later[0]) if len(later) else None


def _all_milliseconds(times: Ints) -> Ints:
    """Raises ValueError for a time that is neither in ms nor in us: it would end a range that has not ended."""
    ts = np.where(times >= _MICROSECONDS, times // 1000, times)
    if ((ts < 0) | (ts >= _YEAR_2100_MS)).any():
        raise ValueError("a time is neither in milliseconds nor in microseconds")
    return ts


def milliseconds(ts: int) -> int:
    return ts // 1000 if ts >= _MICROSECONDS else ts
