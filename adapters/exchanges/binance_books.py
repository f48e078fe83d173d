"""Binance's order books: frames of depth and bookTicker, snapshots over REST -> Diff, Ticker, Snapshot.

Spot and futures. A frame may be bare or from a combined stream; fields nobody has heard of are ignored, times come in
ms or us, decimals as strings. What cannot be used raises ExchangeError with the reason.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypeVar

import msgspec

from adapters.exchanges.rows import milliseconds
from app.errors import ExchangeError
from models.market import Level
from models.order_book import Diff, Snapshot

# A side of a snapshot with exactly so many levels was cut there; with any other number it is all there is.
_LIMITS = frozenset((5, 10, 20, 50, 100, 500, 1000, 5000))
_INFINITY = float("inf")

T = TypeVar("T")
_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Ticker(NamedTuple):
    """The best prices after update `last`."""

    last: int
    bid: Level
    ask: Level


class _Diff(msgspec.Struct, gc=False):
    ts: _Whole = msgspec.field(name="E")
    first: _Whole = msgspec.field(name="U")
    last: _Whole = msgspec.field(name="u")
    bids: list[Level] = msgspec.field(name="b")
    asks: list[Level] = msgspec.field(name="a")
    previous: _Whole | None = msgspec.field(name="pu", default=None)  # futures


class _Ticker(msgspec.Struct, gc=False):
    last: _Whole = msgspec.field(name="u")
    bid: float = msgspec.field(name="b")
    bid_size: float = msgspec.field(name="B")
    ask: float = msgspec.field(name="a")
    ask_size: float = msgspec.field(name="A")


class _Snapshot(msgspec.Struct, gc=False):
    last: _Whole = msgspec.field(name="lastUpdateId")
    bids: list[Level]
    asks: list[Level]
    ts: _Whole = msgspec.field(name="E", default=0)  # futures


class _Combined(msgspec.Struct, gc=False):
    data: msgspec.Raw = msgspec.Raw()


# strict=False reads the exchange's decimal strings as numbers, correctly rounded.
_diff = msgspec.json.Decoder(_Diff, strict=False)
_ticker = msgspec.json.Decoder(_Ticker, strict=False)
_snapshot = msgspec.json.Decoder(_Snapshot, strict=False)
_combined = msgspec.json.Decoder(_Combined)


def read_book(kind: str, frame: bytes) -> Diff | Snapshot:
    """A frame of the depth stream, or with kind "snapshot" the answer of REST. Raises ExchangeError."""
    return read_snapshot(frame) if kind == "snapshot" else read_diff(frame)


def read_diff(frame: bytes) -> Diff:
    """Raises ExchangeError."""
    found = _read(_diff, _event(frame))
    _check(found.bids, found.asks)
    if found.first > found.last:
        raise ExchangeError("a diff ends before it begins (u < U)")
    return Diff(found.last, milliseconds(found.ts), found.bids, found.asks, found.first, found.previous)


def read_snapshot(body: bytes) -> Snapshot:
    """Raises ExchangeError."""
    found = _read(_snapshot, body)
    _check(found.bids, found.asks)
    return Snapshot(
        found.last, found.bids, found.asks, len(found.bids) not in _LIMITS, len(found.asks) not in _LIMITS,
        milliseconds(found.ts),
    )  # fmt: skip


def read_ticker(frame: bytes) -> Ticker:
    """Raises ExchangeError."""
    found = _read(_ticker, _event(frame))
    ticker = Ticker(found.last, (found.bid, found.bid_size), (found.ask, found.ask_size))
    _check([ticker.bid], [ticker.ask])
    return ticker


def _event(frame: bytes) -> bytes | msgspec.Raw:
    """The event itself, out of its combined stream if it came in one."""
    return _read(_combined, frame).data or frame


def _read(decoder: msgspec.json.Decoder[T], frame: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise ExchangeError(f"not a frame of an order book: {error}") from error


def _check(*sides: list[Level]) -> None:
    for side in sides:
        for price, size in side:
            if not (0 < price < _INFINITY and 0 <= size < _INFINITY):
                raise ExchangeError(f"{price} at a size of {size} is no level of a book")
