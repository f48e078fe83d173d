"""Coinbase Advanced Trade's words on a WebSocket: frames -> their sequence, trades as columns, Diff, Snapshot.

Not a venue yet (its REST history is too thin to repair a hole from); what is here is held to recorded frames.
- `sequence_num` counts all frames of a connection from 0, acknowledgements too: one gap poisons every channel.
- A trade's `side` is the maker's, the opposite of OKX; inside a frame the newest comes first.
- A book's snapshot is the whole book: over 45,000 levels and 5 MB in one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from adapters.exchanges.rows import trade_columns
from app.errors import ExchangeError
from models.market import Array, Level
from models.order_book import Diff, Snapshot


class _Trade(msgspec.Struct, kw_only=True, gc=False):  # its first fields as rows.TRADE_FIELDS has them
    id: int = msgspec.field(name="trade_id")
    ts: int = 0
    price: float
    size: float
    first: int = 0
    last: int = 0
    buyer_is_maker: bool = False
    side: Literal["BUY", "SELL"]  # the maker's
    symbol: str = msgspec.field(name="product_id")
    time: datetime

    def __post_init__(self) -> None:
        self.first = self.last = self.id
        self.ts = int(self.time.timestamp() * 1000)
        self.buyer_is_maker = self.side == "BUY"


class _Update(msgspec.Struct, gc=False):
    side: Literal["bid", "offer"]
    price: float = msgspec.field(name="price_level")
    size: float = msgspec.field(name="new_quantity")


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    symbol: str = msgspec.field(name="product_id", default="")
    trades: list[_Trade] = []
    updates: list[_Update] = []


class _Frame(msgspec.Struct, gc=False):
    channel: str
    timestamp: datetime
    number: int = msgspec.field(name="sequence_num")
    events: list[_Event] = []


class _Number(msgspec.Struct, gc=False):
    number: int = msgspec.field(name="sequence_num")


_frame = msgspec.json.Decoder(_Frame, strict=False)
_number = msgspec.json.Decoder(_Number)


class FrameCount:
    """The count of one connection's frames."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, frame: bytes) -> int:
        """How many frames lack in front of this one; every channel of the connection then has to begin anew.

        Raises ExchangeError for a frame without a number.
        """
        try:
            number = _number.decode(frame).number
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ExchangeError(f"a frame without sequence_num: {error}") from error
        lacking, self._next = number - self._next, number + 1
        return lacking


def read_trades(frames: Sequence[bytes], symbol: str) -> dict[str, Array]:
    """Trades of `market_trades` frames, in order of id, each once. Raises ExchangeError."""
    found = [trade for frame in frames for event in _read(frame).events for trade in event.trades]
    return trade_columns([trade for trade in found if trade.symbol == symbol])


def read_book(frame: bytes) -> Diff | Snapshot:
    """A frame of `l2_data` says itself what it is. Raises ExchangeError."""
    said = _read(frame)
    if said.channel != "l2_data" or len(said.events) != 1 or said.events[0].type not in ("snapshot", "update"):
        raise ExchangeError(f"a frame of {said.channel!r} with {len(said.events)} events is not one of a book")
    sides: dict[str, list[Level]] = {"bid": [], "offer": []}
    for update in said.events[0].updates:
        sides[update.side].append((update.price, update.size))
    ts_ms = int(said.timestamp.timestamp() * 1000)
    if said.events[0].type == "update":
        return Diff(said.number, ts_ms, sides["bid"], sides["offer"])
    return Snapshot(said.number, sides["bid"], sides["offer"], True, True, ts_ms)


def _read(frame: bytes) -> _Frame:
    try:
        return _frame.decode(frame)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise ExchangeError(f"not a frame of Coinbase: {error}") from error
