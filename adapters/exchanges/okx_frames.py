"""OKX's words on a WebSocket: frames of trades-all, candle<bar>, books --> marks, columns.

A stream is called `<channel>:<instrument>` here (`trades-all:BTC-USDT`). Trades come one by one, as REST has them; the
channel `trades` puts those of one taker together, and its numbers would not be REST's. Candles and single trades have a
path of their own. The keep-alive is text in both directions, and `pong` is not JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from adapters.exchanges.base import ParsedFrames
from adapters.exchanges.frames import closed_columns, parse
from adapters.exchanges.rows import candles_of
from adapters.exchanges.streams import Notice
from models.market import INTERVAL_MS, TRADE_CHANNELS, Array, Frame, interval_of
from models.ordering import Mark

LARGEST_ID = 2**53  # as on every venue: a number above it has lost its last digits elsewhere
BARS = {
    "1m": "1m", "3m": "3m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "1H", "2h": "2H", "4h": "4H",
    "6h": "6Hutc", "12h": "12Hutc", "1d": "1Dutc",  # without `utc` they open at UTC+8
}  # fmt: skip
PUBLIC, BUSINESS = "/ws/v5/public", "/ws/v5/business"
_CHANNELS = {"trades": "trades-all", "book": "books"}
SAID = ("volume", "quote_volume")  # of a candle, beside its prices


class Trade(msgspec.Struct, kw_only=True, gc=False):  # its first fields as rows.TRADE_FIELDS has them
    """A single trade: first and last of it are itself."""

    id: int = msgspec.field(name="tradeId")
    ts: int
    price: float = msgspec.field(name="px")
    size: float = msgspec.field(name="sz")
    first: int = 0
    last: int = 0
    buyer_is_maker: bool = False
    side: Literal["buy", "sell"]  # the taker's

    def __post_init__(self) -> None:
        self.first = self.last = self.id
        self.buyer_is_maker = self.side == "sell"


class Candle(msgspec.Struct, array_like=True, gc=False):
    """A row of REST and of frames; it does not say how many trades it has, nor what takers bought."""

    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    _in_quote: float
    quote_volume: float
    confirm: Literal["0", "1"]


class _Trades(msgspec.Struct, gc=False):
    data: list[Trade]


class _Candles(msgspec.Struct, gc=False):
    data: list[Candle]


class _TradeMark(msgspec.Struct, gc=False):
    id: int = msgspec.field(name="tradeId")
    ts: int


class _BookMark(msgspec.Struct, gc=False):
    ts: int
    last: int = msgspec.field(name="seqId")
    before: int = msgspec.field(name="prevSeqId")


class _TradeMarks(msgspec.Struct, gc=False):
    data: list[_TradeMark]


class _BookMarks(msgspec.Struct, gc=False):
    data: list[_BookMark]
    action: str


class _Argument(msgspec.Struct, frozen=True):
    channel: str = ""
    symbol: str = msgspec.field(name="instId", default="")

    @property
    def stream(self) -> str:
        return f"{self.channel}:{self.symbol}" if self.symbol else ""


class _Control(msgspec.Struct):
    """Everything that is no data of a known stream."""

    event: str = ""
    arg: _Argument = _Argument()
    id: str = ""
    code: str = ""
    msg: str = ""


_MANY: dict[bool, Any] = {
    True: msgspec.json.Decoder(list[_Trades], strict=False), False: msgspec.json.Decoder(list[_Candles], strict=False),
}  # fmt: skip
_trade_marks = msgspec.json.Decoder(_TradeMarks, strict=False)
_candle_marks = msgspec.json.Decoder(_Candles, strict=False)
_book_marks = msgspec.json.Decoder(_BookMarks, strict=False)
_control = msgspec.json.Decoder(_Control)


class OkxWire:
    """`streams.Wire` for OKX."""

    venue = "okx"
    ping = "ping"

    def path_of(self, name: str) -> str:
        return BUSINESS if name.startswith(("trades-all:", "candle")) else PUBLIC

    def subscribe(self, names: Sequence[str], number: int) -> str:
        return _request("subscribe", names, number)

    def unsubscribe(self, names: Sequence[str], number: int) -> str:
        return _request("unsubscribe", names, number)

    def stream_of(self, frame: bytes) -> str | None:
        try:
            said = _control.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return None if said.event else said.arg.stream or None

    def notice(self, frame: bytes) -> Notice:
        """A confirmation names its stream; the number of the request comes back where the exchange is new enough."""
        if frame == b"pong":
            return Notice("pong")
        try:
            said = _control.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Notice("unreadable")
        number = int(said.id) if said.id.isdecimal() else None
        match said.event:
            case "subscribe" | "unsubscribe":
                return Notice("confirmed", number, "", said.arg.stream)
            case "error":
                return Notice("refused", number, f"{said.code} {said.msg}")
            case "notice":  # a minute before it ends the connection
                return Notice("shutdown")
        return Notice("unknown", number)


def stream_name(channel: str, symbol: str) -> str:
    """`candles_1h`, `BTC-USDT` -> `candle1H:BTC-USDT`. Raises KeyError for an interval that OKX does not have."""
    kind = _CHANNELS.get(channel) or f"candle{BARS[interval_of(channel)]}"
    return f"{kind}:{symbol}"


def mark(channel: str, frame: bytes) -> Mark | None:
    """A frame's place in its stream; None when it has none, or none that can be read.

    A snapshot of a book has none: it begins a chain. Candles count by open time.
    """
    try:
        found = _mark(channel, frame)
    except (msgspec.DecodeError, OverflowError, UnicodeDecodeError, IndexError):
        return None
    return found if found and 0 <= found.last < LARGEST_ID else None


def _mark(channel: str, frame: bytes) -> Mark | None:
    if channel in TRADE_CHANNELS:
        trades = sorted(_trade_marks.decode(frame).data, key=lambda trade: trade.id)
        return Mark(trades[0].id, trades[-1].id, trades[0].ts + 1, trades[-1].ts)
    if channel == "book":
        said = _book_marks.decode(frame)
        [book] = said.data
        return None if said.action == "snapshot" else Mark(book.last, book.last, book.ts, book.ts, before=book.before)
    candle, step = _candle_marks.decode(frame).data[-1], INTERVAL_MS[interval_of(channel)]
    return Mark(candle.ts // step, candle.ts // step, candle.ts, candle.ts + step, done=candle.confirm == "1")


def parse_frames(channel: str, frames: Sequence[Frame]) -> ParsedFrames:
    """Frames of trades or candles as columns in order, each key once; of candles only the closed ones."""
    many = _MANY[channel in TRADE_CHANNELS]

    def decode(texts: Sequence[bytes]) -> list[Any]:
        return [event for frame in many.decode(b"[" + b",".join(texts) + b"]") for event in frame.data]

    return parse(channel, frames, decode, mark, _candle_columns)


def _candle_columns(candles: Sequence[Any]) -> dict[str, Array]:
    closed = [candle for candle in candles if candle.confirm == "1"]
    return closed_columns(candles_of(closed, [], SAID).columns)


def _request(method: str, names: Sequence[str], number: int) -> str:
    arguments = [dict(zip(("channel", "instId"), name.split(":", 1), strict=True)) for name in names]
    return msgspec.json.encode({"id": str(number), "op": method, "args": arguments}).decode()
