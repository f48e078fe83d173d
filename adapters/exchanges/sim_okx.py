"""The simulated exchange in OKX's words, beside Binance's: the same market, clock and faults.

    GET /api/v5/{public/time,public/instruments,market/history-trades,market/history-candles,market/books}
    /ws/v5/public (books)   /ws/v5/business (trades-all, candle<bar>)

Rows and frames come from the same source in Binance's words and are turned here, behind the faults; so a fault's
`endpoint` of a stream is Binance's (`trade`, `kline`, `depth`), of a request the last word of its path. A trade here is
a single trade there, `seqId` is an update id, `BTC-USDT` is BTCUSDT.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from adapters.exchanges.behaviours import lacked, without
from adapters.exchanges.okx_frames import BARS, BUSINESS, PUBLIC
from adapters.exchanges.sim_faults import Out
from adapters.exchanges.sim_sockets import Connection, Sockets
from adapters.exchanges.sim_stage import Stage
from adapters.exchanges.sources import Rows, Source

_IDLE_S = 30.0  # a connection on which nothing was said for so long ends
_LEVELS = 400
_TICK_MS = 2_000  # a busy book has changed within it
_LIMITS = {"history-trades": 20, "history-candles": 20, "books": 40, "time": 10, "instruments": 20}  # in 2 s
_WINDOW_S = 2.0
_INTERVALS = {bar: interval for interval, bar in BARS.items()}
_UPGRADE = '{"event":"notice","code":"64008","msg":"The connection will soon be closed for a service upgrade."}'

Json = dict[str, Any]
Disturb = Callable[[str, str, web.Request], Awaitable[web.Response | None]]


class _Refusal(Exception):
    """An error of the exchange: code and words."""


class Okx:
    """The exchange's other face."""

    def __init__(self, stage: Stage, source: Source, sockets: Sockets, disturb: Disturb) -> None:
        self.stage, self.source, self._sockets, self._disturb = stage, source, sockets, disturb
        named = (said for said in source.symbols() if "baseAsset" in said)
        self.instruments = {f"{said['baseAsset']}-{said['quoteAsset']}": str(said["symbol"]) for said in named}
        self._asked: dict[str, deque[float]] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/v5/{group:public|market}/{endpoint}", self._answer)
        for path in (PUBLIC, BUSINESS):
            router.add_get(path, self._connect)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        return await self._sockets.handle(request, lambda *said: OkxConnection(self, *said))

    # -- requests --------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        endpoint, instrument = request.match_info["endpoint"], request.query.get("instId", "")
        symbol = self.instruments.get(instrument, "")
        if endpoint not in _ENDPOINTS:
            raise web.HTTPNotFound(text="<html>404</html>", content_type="text/html")
        if self._is_too_many(endpoint):
            return _envelope([], "50011", "Too Many Requests", 429)
        disturbed = await self._disturb(endpoint, symbol, request)
        if disturbed is not None:
            return disturbed
        try:
            answer = _envelope(_ENDPOINTS[endpoint](self, request.query))
        except _Refusal as refusal:
            return _envelope([], *refusal.args)
        if self.stage.is_due("cut_json", endpoint, symbol) and isinstance(answer.body, bytes):
            answer.body = answer.body[: len(answer.body) // 2]
        return answer

    def _is_too_many(self, endpoint: str) -> bool:
        asked, now = self._asked.setdefault(endpoint, deque()), time.monotonic()
        while asked and now - asked[0] >= _WINDOW_S:
            asked.popleft()
        asked.append(now)
        return len(asked) > _LIMITS[endpoint]

    def symbol(self, query: Mapping[str, str]) -> str:
        instrument = query.get("instId", "")
        symbol = self.instruments.get(instrument, "")
        if not symbol or self.stage.unknown(symbol):
            raise _Refusal("51001", f"Instrument ID, {instrument}, doesn't exist.")
        return symbol

    def _time(self, _query: Mapping[str, str]) -> list[Json]:
        return [{"ts": str(self.stage.clock.now_ms())}]

    def _listed(self, query: Mapping[str, str]) -> list[Json]:
        names = [*self.instruments]
        if "instId" in query:
            self.symbol(query)
            names = [query["instId"]]
        return [
            {"instType": "SPOT", "instId": name, "baseCcy": base, "quoteCcy": quote, "state": "live"}
            for name in names
            for base, quote in [name.split("-")]
        ]

    def _trades(self, query: Mapping[str, str]) -> list[Json]:
        """Older than an id (type 1) or a time (type 2), newest first; without `after` the newest."""
        symbol, limit, now_ms = self.symbol(query), _limit(query, 100), self.stage.clock.now_ms()
        after = int(query.get("after") or 2**53)
        if query.get("type") == "2":
            rows = self.source.singles_until(symbol, min(after - 1, now_ms), limit)
        else:
            rows = self.source.singles_from(symbol, max(after - limit, 1), limit, now_ms)
            if len(rows) < limit:
                rows = self.source.singles_until(symbol, now_ms, limit)
            rows = rows.take(i for i, key in enumerate(rows.keys) if key < after)
        return [_trade(query["instId"], orjson.loads(text)) for text in self._left(rows, "history-trades", symbol)]

    def _candles(self, query: Mapping[str, str]) -> list[list[str]]:
        symbol, limit, now_ms = self.symbol(query), _limit(query, 300), self.stage.clock.now_ms()
        interval, after = _INTERVALS.get(query.get("bar", "1m")), int(query.get("after") or now_ms + 1)
        if interval is None:
            raise _Refusal("51000", "Parameter bar error")
        rows = self.source.candles_until(symbol, interval, min(after - 1, now_ms), limit, now_ms)
        return [_candle(orjson.loads(text), now_ms) for text in self._left(rows, "history-candles", symbol)]

    def _left(self, rows: Rows, endpoint: str, symbol: str) -> list[str]:
        """What the exchange does not lack, newest first."""
        return without(rows, lacked(self.stage.active, endpoint, symbol)).texts[::-1]

    def _books(self, query: Mapping[str, str]) -> list[Json]:
        return [self.book(self.symbol(query), self.stage.clock.now_ms(), int(query.get("sz") or 1))]

    def book(self, symbol: str, at_ms: int, levels: int = _LEVELS) -> Json:
        text = self.source.depth(symbol, min(levels, _LEVELS), at_ms)
        if text is None:
            raise _Refusal("51001", "There is no order book of this instrument.")
        said = orjson.loads(text)
        sides = {name: [_level(*level) for level in said[name]] for name in ("asks", "bids")}
        return {**sides, "ts": str(at_ms), "seqId": said["lastUpdateId"]}


_ENDPOINTS: dict[str, Callable[[Okx, Mapping[str, str]], Any]] = {
    "time": Okx._time,
    "instruments": Okx._listed,
    "history-trades": Okx._trades,
    "history-candles": Okx._candles,
    "books": Okx._books,
}


class OkxConnection(Connection):
    """Subscribed by message; `streams` are Binance's names, turned on their way out."""

    def __init__(
        self, okx: Okx, sockets: Sockets, socket: web.WebSocketResponse, request: web.Request, name: str
    ) -> None:
        super().__init__(sockets, socket, request, name, combined=False)
        self._okx = okx
        self._arguments: dict[str, Json] = {}  # by Binance's name of the stream
        self._spoken_at = time.monotonic()
        self._spoken_ms = self._clock.now_ms()

    async def _send(self, out: Out) -> None:
        argument = self._arguments.get(out.stream)
        if argument is None:
            await self._socket.send_str(_UPGRADE)
            return
        self.sent += 1
        await self._socket.send_str(_turned(argument, out.text))

    async def _keep_alive(self) -> None:
        """The exchange does not ping: it wants to hear something."""
        while True:
            await self._clock.wait_until(self._spoken_ms + int(_IDLE_S * 1000))
            if time.monotonic() - self._spoken_at >= _IDLE_S and self._is_quiet():
                return await self.close(WSCloseCode.POLICY_VIOLATION, "No data received in 30s.")
            await self._clock.pause(1.0)

    def _is_quiet(self) -> bool:
        return self._clock.now_ms() - self._spoken_ms >= _IDLE_S * 1000

    async def _hear(self, message: WSMessage) -> None:
        self._spoken_at, self._spoken_ms = time.monotonic(), self._clock.now_ms()
        if message.type != WSMsgType.TEXT:
            return
        if message.data == "ping":
            await self._socket.send_str("pong")
            return
        number = None
        try:
            asked = orjson.loads(message.data)
            number = asked.get("id")
            operation, arguments = asked["op"], asked["args"]
        except (orjson.JSONDecodeError, KeyError, AttributeError):
            await self._say("error", number, code="60012", msg=f"Invalid request: {message.data}")
            return
        for argument in arguments:
            await self._follow(operation, argument, number)

    async def _follow(self, operation: str, argument: Json, number: str | None) -> None:
        stream = self._stream(argument)
        if stream is None:
            words = f"Wrong URL or channel:{argument.get('channel')},instId:{argument.get('instId')} doesn't exist."
            await self._say("error", number, code="60018", msg=words)
        elif operation == "unsubscribe":
            self.streams.pop(stream, None)
            await self._say("unsubscribe", number, arg=argument)
        else:
            self._arguments[stream] = argument
            await self._say("subscribe", number, arg=argument)
            self.streams.setdefault(stream, await self._begin_with(stream, argument))
            self._sockets.subscribed.set()

    def _stream(self, argument: Json) -> str | None:
        """Binance's name of what is asked for; None on the wrong path, and for what does not exist."""
        channel, symbol = str(argument.get("channel")), self._okx.instruments.get(str(argument.get("instId")))
        if symbol is None or self._stage.unknown(symbol):
            return None
        name = symbol.lower()
        if self.path == PUBLIC:
            return f"{name}@depth@100ms" if channel == "books" else None
        interval = _INTERVALS.get(channel.removeprefix("candle"))
        if channel.startswith("candle") and interval:
            return f"{name}@kline_{interval}"
        return f"{name}@trade" if channel == "trades-all" else None

    async def _begin_with(self, stream: str, argument: Json) -> int:
        """The last known trade, or the book where its chain goes on; and the time behind which frames follow."""
        now_ms, symbol = self._clock.now_ms(), self._okx.instruments[argument["instId"]]
        if stream.endswith("@trade"):
            data = [_trade(argument["instId"], orjson.loads(text))
                    for text in self._okx.source.singles_until(symbol, now_ms, 1).texts]  # fmt: skip
            if data:
                await self._say_data(argument, data)
        if stream.endswith("@depth@100ms"):
            before = self._okx.source.frames(stream, now_ms - _TICK_MS, now_ms)
            book = self._okx.book(symbol, before[-1][0] if before else now_ms)
            await self._say_data(argument, [{**book, "checksum": 0, "prevSeqId": -1}], action="snapshot")
        return now_ms

    async def _say(self, event: str, number: str | None, **said: Any) -> None:
        known = {"id": number} if number is not None else {}
        await self._socket.send_str(orjson.dumps({"event": event, **known, **said, "connId": self.name}).decode())

    async def _say_data(self, argument: Json, data: list[Json], **said: str) -> None:
        self.sent += 1
        await self._socket.send_str(orjson.dumps({"arg": argument, **said, "data": data}).decode())


def _turned(argument: Json, text: str) -> str:
    """An event of Binance in OKX's words; what a fault made unreadable goes out as it is."""
    try:
        event = orjson.loads(text)
        said = _TURN[event["e"]](argument, event)
    except (orjson.JSONDecodeError, KeyError):
        return text
    return orjson.dumps({"arg": argument, **said}).decode()


def _turned_book(_argument: Json, event: Json) -> Json:
    """Ids that do not rise by one are named by the one before; ours rise by one."""
    sides = {name: [_level(*level) for level in event[side]] for name, side in (("asks", "a"), ("bids", "b"))}
    ids = {"checksum": 0, "seqId": event["u"], "prevSeqId": event["U"] - 1}
    return {"action": "update", "data": [{**sides, "ts": str(event["E"]), **ids}]}


def _turned_candle(_argument: Json, event: Json) -> Json:
    k = event["k"]
    return {"data": [[str(k["t"]), *(_plain(k[name]) for name in "ohlcvqq"), "1" if k["x"] else "0"]]}


def _turned_trade(argument: Json, event: Json) -> Json:
    row = {"id": event["t"], "price": event["p"], "qty": event["q"], "isBuyerMaker": event["m"], "time": event["T"]}
    return {"data": [_trade(argument["instId"], row)]}


_TURN: dict[str, Callable[[Json, Json], Json]] = {
    "trade": _turned_trade, "kline": _turned_candle, "depthUpdate": _turned_book,
}  # fmt: skip


def _trade(instrument: str, row: Json) -> Json:
    """A row of historicalTrades."""
    return {
        "instId": instrument, "tradeId": str(row["id"]), "px": _plain(row["price"]), "sz": _plain(row["qty"]),
        "side": "sell" if row["isBuyerMaker"] else "buy", "ts": str(row["time"]),
    }  # fmt: skip


def _candle(row: list[Any], now_ms: int) -> list[str]:
    """A row of klines."""
    open_ms, o, h, low, close, volume, close_ms, quote = row[:8]
    numbers = [_plain(number) for number in (o, h, low, close, volume, quote, quote)]
    return [str(open_ms), *numbers, "1" if close_ms < now_ms else "0"]


def _level(price: str, size: str) -> list[str]:
    return [_plain(price), _plain(size), "0", "1"]


def _plain(number: Any) -> str:
    """Decimals are not padded here."""
    text = str(number)
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _limit(query: Mapping[str, str], most: int) -> int:
    return min(int(query.get("limit") or 100), most)


def _envelope(data: Any, code: str = "0", msg: str = "", status: int = 200) -> web.Response:
    body = orjson.dumps({"code": code, "msg": msg, "data": data})
    return web.Response(body=body, status=status, content_type="application/json")
