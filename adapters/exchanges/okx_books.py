"""OKX's order books: frames of the channel `books`, answers of GET market/books -> Diff, Snapshot.

A diff names the one before it (`prevSeqId`); recordings of before 2023 have no ids at all, and their time stands in.
The field `checksum` is dead since 2026-06 (always 0) and is not looked at. Sizes are in the exchange's own unit:
base currency on spot, contracts elsewhere.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from app.errors import ExchangeError
from models.market import Level
from models.order_book import Diff, Snapshot

_CUT_AT = 400  # levels a side in a full frame or answer; fewer are all there are
_INFINITY = float("inf")
_Id = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
_Row = tuple[float, float, msgspec.Raw, msgspec.Raw]  # price, size, a dead field, number of orders


class _Book(msgspec.Struct, gc=False):
    bids: list[_Row]
    asks: list[_Row]
    ts: int
    last: _Id | None = msgspec.field(name="seqId", default=None)
    previous: _Id | None = msgspec.field(name="prevSeqId", default=None)


class _Frame(msgspec.Struct, gc=False):
    data: list[_Book]
    action: str = "snapshot"  # REST does not say


_frame = msgspec.json.Decoder(_Frame, strict=False)


def read_book(_kind: str, frame: bytes) -> Diff | Snapshot:
    """A frame says itself what it is. Raises ExchangeError."""
    try:
        found = _frame.decode(frame)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise ExchangeError(f"not a frame of an order book: {error}") from error
    if len(found.data) != 1 or found.action not in ("snapshot", "update"):
        raise ExchangeError(f"{len(found.data)} books as {found.action!r}: one snapshot or update is expected")
    [book] = found.data
    bids, asks = _levels(book.bids), _levels(book.asks)
    last = book.ts if book.last is None else book.last
    if found.action == "update":
        return Diff(last, book.ts, bids, asks, previous=book.previous)
    return Snapshot(last, bids, asks, len(bids) < _CUT_AT, len(asks) < _CUT_AT, book.ts)


def _levels(rows: list[_Row]) -> list[Level]:
    levels = [(row[0], row[1]) for row in rows]
    for price, size in levels:
        if not (0 < price < _INFINITY and 0 <= size < _INFINITY):
            raise ExchangeError(f"{price} at a size of {size} is no level of a book")
    return levels
