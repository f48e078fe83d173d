"""Binance's words on a WebSocket: frames of aggTrade, trade, kline, depth, bookTicker --> marks, columns.

Combined frames (`{"stream":..,"data":..}`) and bare events are both read; unknown fields are ignored, times come in
ms or us. A frame that cannot be read comes out with its bytes and the reason; its neighbours are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from adapters.exchanges.base import ParsedFrames
from adapters.exchanges.binance_rows import AggTrade
from adapters.exchanges.frames import parse
from adapters.exchanges.rows import milliseconds
from adapters.exchanges.streams import Notice
from models.market import INTERVAL_MS, TRADE_CHANNELS, Frame, interval_of
from models.ordering import Mark

LARGEST_ID = (
    2**53
)  # a number above it cannot be one in a sequence: other readers of JSON would have lost its last digits
_STREAMS = {"trades": "aggTrade", "fills": "trade", "book": "depth@100ms", "ticker": "bookTicker"}
_BOOK_STREAMS = ("depth", "bookTicker")
UM_PATHS = ("/public/stream", "/market/stream")
_PREFIX = b'{"stream":"'
_SHUTDOWN = "serverShutdown"


class _Fill(msgspec.Struct, kw_only=True, gc=False):  # its fields as TRADE_FIELDS has them
    """A single trade: first and last of it are itself."""

    id: int = msgspec.field(name="t")
    ts: int = msgspec.field(name="T")
    price: float = msgspec.field(name="p")
    size: float = msgspec.field(name="q")
    first: int = 0
    last: int = 0
    buyer_is_maker: bool = msgspec.field(name="m")

    def __post_init__(self) -> None:
        self.first = self.last = self.id


class _Candle(msgspec.Struct, gc=False):
    ts: int = msgspec.field(name="t")
    open: float = msgspec.field(name="o")
    high: float = msgspec.field(name="h")
    low: float = msgspec.field(name="l")
    close: float = msgspec.field(name="c")
    volume: float = msgspec.field(name="v")
    quote_volume: float = msgspec.field(name="q")
    trades: int = msgspec.field(name="n")
    taker_buy_volume: float = msgspec.field(name="V")
    taker_buy_quote_volume: float = msgspec.field(name="Q")
    closed: bool = msgspec.field(name="x")


class _CandleEvent(msgspec.Struct, gc=False):
    candle: _Candle = msgspec.field(name="k")


class _TradeMark(msgspec.Struct, gc=False):
    id: int = msgspec.field(name="a")
    ts: int = msgspec.field(name="T")


class _FillMark(msgspec.Struct, gc=False):
    id: int = msgspec.field(name="t")
    ts: int = msgspec.field(name="T")


class _CandleTimes(msgspec.Struct, gc=False):
    ts: int = msgspec.field(name="t")
    closed: bool = msgspec.field(name="x")


class _CandleMark(msgspec.Struct, gc=False):
    candle: _CandleTimes = msgspec.field(name="k")


class _DepthMark(msgspec.Struct, gc=False):
    first: int = msgspec.field(name="U")
    last: int = msgspec.field(name="u")
    before: int | None = msgspec.field(name="pu", default=None)
    ts: int = msgspec.field(name="E", default=0)


class _TickerMark(msgspec.Struct, gc=False):
    last: int = msgspec.field(name="u")
    ts: int = msgspec.field(name="E", default=0)


class _Error(msgspec.Struct):
    code: int | None = None
    msg: str = ""


class _Control(msgspec.Struct):
    """Everything that is no data of a known stream."""

    e: str = ""
    stream: str = ""
    id: int | str | None = None
    code: int | None = None
    msg: str = ""
    error: _Error | None = None
    result: Any = msgspec.UNSET


class _Reader:
    """Decodes events of one type, combined or bare. strict=False reads decimal strings as numbers."""

    def __init__(self, event: type) -> None:
        combined: Any = msgspec.defstruct("Combined", [("data", event)], gc=False)
        self._combined: Any = msgspec.json.Decoder(combined, strict=False)
        self._bare: Any = msgspec.json.Decoder(event, strict=False)
        self._many: Any = msgspec.json.Decoder(list[combined], strict=False)

    def one(self, frame: bytes) -> Any:
        """Raises msgspec.DecodeError."""
        if frame.startswith(_PREFIX):
            return self._combined.decode(frame).data
        try:
            return self._bare.decode(frame)
        except msgspec.ValidationError:
            return self._combined.decode(frame).data

    def many(self, frames: Sequence[bytes]) -> list[Any]:
        """All of them in one pass. Raises msgspec.DecodeError when one of them is not combined or not readable."""
        return [combined.data for combined in self._many.decode(b"[" + b",".join(frames) + b"]")]


_EVENTS = {"trades": _Reader(AggTrade), "fills": _Reader(_Fill), "candles": _Reader(_CandleEvent)}
_MARKS = {
    "trades": _Reader(_TradeMark), "fills": _Reader(_FillMark), "candles": _Reader(_CandleMark),
    "book": _Reader(_DepthMark), "ticker": _Reader(_TickerMark),
}  # fmt: skip
_control = msgspec.json.Decoder(_Control)


class BinanceWire:
    """`streams.Wire` for Binance: combined streams, subscribed by message. Futures have two paths."""

    ping = ""  # the exchange pings, with frames that are answered below us

    def __init__(self, venue: str = "binance", paths: tuple[str, str] = ("/stream", "/stream")) -> None:
        """`paths`: of the books and best prices, of everything else."""
        self.venue, self._paths = venue, paths

    def path_of(self, name: str) -> str:
        return self._paths[not name.partition("@")[2].startswith(_BOOK_STREAMS)]

    def subscribe(self, names: Sequence[str], number: int) -> str:
        return _request("SUBSCRIBE", names, number)

    def unsubscribe(self, names: Sequence[str], number: int) -> str:
        return _request("UNSUBSCRIBE", names, number)

    def stream_of(self, frame: bytes) -> str | None:
        if frame.startswith(_PREFIX) and (end := frame.find(b'"', len(_PREFIX))) > 0:
            return frame[len(_PREFIX) : end].decode(errors="replace")
        try:
            return _control.decode(frame).stream or None
        except msgspec.DecodeError:
            return None

    def notice(self, frame: bytes) -> Notice:
        """Errors come flat or nested; an answer may have no number."""
        try:
            said = _control.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Notice("unreadable")
        number = said.id if isinstance(said.id, int) else None
        if _SHUTDOWN in (said.e, said.stream.removeprefix("!")):
            return Notice("shutdown")
        if said.error is not None or said.code is not None:
            error = said.error or _Error(said.code, said.msg)
            return Notice("refused", number, f"{error.code} {error.msg}")
        return Notice("unknown" if said.result is msgspec.UNSET else "confirmed", number)


def stream_name(channel: str, symbol: str) -> str:
    """`trades`, `ETHUSDT` -> `ethusdt@aggTrade`."""
    kind = _STREAMS.get(channel) or f"kline_{interval_of(channel)}"
    return f"{symbol.lower()}@{kind}"


def mark(channel: str, frame: bytes) -> Mark | None:
    """A frame's place in its stream; None when it has none, or none that can be read.

    Candles count by open time: a closed one is whole from its open to its close, a running one completes nothing.
    """
    try:
        said = _MARKS[_kind(channel)].one(frame)
        found = _mark(channel, said)
    except (msgspec.DecodeError, OverflowError, UnicodeDecodeError):
        return None
    return found if 0 <= found.last < LARGEST_ID else None


def _mark(channel: str, said: Any) -> Mark:
    if channel in TRADE_CHANNELS:
        ts = milliseconds(said.ts)
        return Mark(said.id, said.id, ts + 1, ts)
    if isinstance(said, _CandleMark):
        step, ts = INTERVAL_MS[interval_of(channel)], milliseconds(said.candle.ts)
        return Mark(ts // step, ts // step, ts, ts + step, done=said.candle.closed)
    ts = milliseconds(said.ts)
    if isinstance(said, _DepthMark):
        return Mark(said.first, said.last, ts, ts, before=said.before)
    return Mark(said.last, said.last, ts, ts)


def parse_frames(channel: str, frames: Sequence[Frame]) -> ParsedFrames:
    """Frames of trades, fills or candles as columns in order, each key once; of candles only the closed ones."""
    reader, of_candles = _EVENTS[_kind(channel)], channel not in TRADE_CHANNELS

    def decode(texts: Sequence[bytes]) -> list[Any]:
        events = [reader.one(texts[0])] if len(texts) == 1 else reader.many(texts)
        return [event.candle for event in events] if of_candles else events

    return parse(channel, frames, decode, mark)


def _kind(channel: str) -> str:
    return "candles" if channel.startswith("candles_") else channel


def _request(method: str, names: Sequence[str], number: int) -> str:
    return msgspec.json.encode({"method": method, "params": [*names], "id": number}).decode()
