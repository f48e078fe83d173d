"""An exchange that speaks Binance's spot formats, from a seeded tape, recorded files or recorded frames.

    GET /api/v3/{ping,time,exchangeInfo,klines,aggTrades,trades,historicalTrades,depth,ticker/bookTicker}
    /ws/<streams>  /ws  /stream?streams=<streams>        live frames (adapters/exchanges/sim_sockets.py)
    /api/v5/...  /ws/v5/...                              the same market in OKX's words (adapters/exchanges/sim_okx.py)
    GET /data/spot/...                                   daily and monthly files (adapters/exchanges/sim_archive.py)
    GET /sim/{catalog,requests,sockets,log}   GET|POST|DELETE /sim/behaviours     for tests and demos, loopback only

What it serves is the truth of its source; misbehaviour comes only from the behaviours it is told to show
(`adapters/exchanges/behaviours.py`), so a test can compare what a loader delivered with the source.
Its clock is the computer's, unless it is set; nothing behind that clock is shown.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from adapters.exchanges.behaviours import (
    ALTERATIONS,
    Active,
    Behaviour,
    alter,
    checked,
    lacked,
    open_late,
    read_plan,
    read_plan_file,
    shorten,
    split_millisecond,
    without,
)
from adapters.exchanges.recorded import RecordedSource
from adapters.exchanges.sim_archive import Archive
from adapters.exchanges.sim_clock import Clock
from adapters.exchanges.sim_okx import Okx
from adapters.exchanges.sim_replay import ReplaySource
from adapters.exchanges.sim_sockets import Sockets
from adapters.exchanges.sim_stage import Stage
from adapters.exchanges.sources import NO_ROWS, Rows, Source, TapeSource
from adapters.exchanges.tape import LISTINGS, Tape, listings
from app.errors import SetupRefused
from models.market import INTERVAL_MS

# Weights change on the real exchange: this table is the only place that knows them.
WEIGHTS = {
    "ping": 1, "time": 1, "exchangeInfo": 20, "klines": 2, "aggTrades": 4, "trades": 25, "historicalTrades": 25,
}  # fmt: skip
_BEST_PRICES_WEIGHT = (2, 4)  # one symbol, more
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))  # (levels up to, weight)
_DEFAULT_WEIGHT_LIMIT = 6000
_TOLERATED_AFTER_429 = 10  # requests in the same window, then the address is banned
_BAN_S = 120
_MOST_ROWS, _DEFAULT_ROWS, _MOST_LEVELS = 1000, 500, 5000
_FIRST_TIME_MS = 1_483_228_800_000  # 2017-01-01: earlier start times are moved here
REPLAY_HOLD_S = 2.0  # between the first subscription and the first frame of a replay
_MICROSECONDS = 100_000_000_000_000  # values from here on are microseconds
_SYMBOL = re.compile(r"[A-Z0-9._-]{1,20}")
_NUMBER = re.compile(r"[0-9]{1,20}")
_PARAMETERS = {
    "ping": (),
    "time": (),
    "exchangeInfo": ("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"),
    "klines": ("symbol", "interval", "startTime", "endTime", "timeZone", "limit"),
    "aggTrades": ("symbol", "fromId", "startTime", "endTime", "limit"),
    "trades": ("symbol", "limit"),
    "historicalTrades": ("symbol", "fromId", "limit"),
    "depth": ("symbol", "limit", "symbolStatus"),
    "ticker/bookTicker": ("symbol", "symbols", "symbolStatus"),
}
_LETTER = {"SECOND": "S", "MINUTE": "M", "HOUR": "H", "DAY": "D"}


class _Refusal(Exception):
    """An answer in the exchange's own error shape."""

    def __init__(self, status: int, code: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


class SimulatedExchange:
    """The exchange behind the routes. One instance is one address' view: limits are not kept per client."""

    def __init__(self, source: Source, behaviours: Sequence[Behaviour] = (), clock: Clock | None = None) -> None:
        self.source = source
        self.clock = clock or Clock()
        self.stage = Stage(self.clock)
        self.sockets = Sockets(self.stage, source)
        self.requests: Counter[str] = Counter()  # "endpoint status" -> answers
        self.weight_used = 0
        self._window = -1
        self._after_429 = 0
        self._banned_until_ms = 0
        self._symbols = {symbol["symbol"]: symbol for symbol in source.symbols()}
        self.show(behaviours)

    def show(self, behaviours: Sequence[Behaviour]) -> None:
        """Switch behaviours on, beside those that are on already. Raises SetupRefused."""
        for behaviour in map(checked, behaviours):
            if behaviour.name == "crowded_millisecond":
                self.source.crowd(behaviour.symbol, behaviour.at or 0, behaviour.rows or 0)
            self.stage.show(behaviour)

    def show_none(self) -> None:
        """The clock goes on from where it is."""
        self.stage.show_none()
        self._banned_until_ms = 0

    def shown(self) -> list[dict[str, Any]]:
        return self.stage.shown()

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def application(self) -> web.Application:
        app = web.Application()
        for base in ("/api/v3", "/fapi/v1"):
            app.router.add_get(base + "/{endpoint:ticker/bookTicker|[^/]+}", self._answer)
        for route in ("", "/public", "/market"):
            for path in ("/ws", "/ws/{streams:.+}", "/stream"):
                app.router.add_get(route + path, self.sockets.handle)
        Okx(self.stage, self.source, self.sockets, self._disturbance).add_routes(app.router)
        app.router.add_get("/data/spot/{path:.+}", Archive(self.stage, self.source).handle)
        app.router.add_get("/sim/catalog", self._catalog)
        app.router.add_get("/sim/requests", self._requests)
        app.router.add_get("/sim/sockets", self._sockets_open)
        app.router.add_get("/sim/log", self._log)
        for method in ("GET", "POST", "DELETE"):
            app.router.add_route(method, "/sim/behaviours", self._behaviours)
        return app

    # -- one request ---------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        endpoint, symbol = request.match_info["endpoint"], request.query.get("symbol", "")
        if endpoint not in _PARAMETERS:
            raise web.HTTPNotFound(text="<html>404</html>", content_type="text/html")
        try:
            self._charge(endpoint, request)
            answer = await self._disturbance(endpoint, symbol, request)
            if answer is None:
                body = self._body(endpoint, dict(request.query))
                if self.stage.is_due("cut_json", endpoint, symbol):
                    body = body[: len(body) // 2]
                answer = web.Response(body=body, content_type="application/json", charset="utf-8")
        except _Refusal as refusal:
            answer = _refused(refusal)
        if answer.status == 418:  # a ban ends the sockets of the address too
            await self.sockets.close_all()
        self.requests[f"{endpoint} {answer.status}"] += 1
        answer.headers[f"X-MBX-USED-WEIGHT-{self._window_name()}"] = str(self.weight_used)
        return answer

    def _body(self, endpoint: str, query: dict[str, str]) -> bytes:
        _only_known(endpoint, query)
        match endpoint:
            case "ping":
                return b"{}"
            case "time":
                return b'{"serverTime":%d}' % self.now_ms()
            case "exchangeInfo":
                return orjson.dumps(self._exchange_info(query))
            case "depth":
                return self._depth(self._symbol(query), min(_whole(query, "limit") or 100, _MOST_LEVELS)).encode()
            case "ticker/bookTicker":
                return orjson.dumps(self._best_prices(query))
            case _:
                rows = _PAGES[endpoint](self, query)
                rows = self._misshape(endpoint, query, rows)
                return ("[" + ",".join(rows.texts) + "]").encode()

    def _depth(self, symbol: str, limit: int) -> str:
        shifted = self.stage.due("snapshot_shift", "depth", symbol)
        if shifted is not None:
            self.stage.note(shifted, "depth", symbol)
        offset_ms = (shifted.behaviour.offset_ms or 0) if shifted else 0
        levels = self.source.depth(symbol, limit, self.now_ms() + offset_ms)
        if levels is None:
            raise _Refusal(404, -1121, "Recorded files hold no order book.")
        return levels

    def _best_prices(self, query: dict[str, str]) -> Any:
        if "symbol" in query:
            return self._best_price(self._symbol(query))
        names = _names(query["symbols"]) if "symbols" in query else list(self._symbols)
        return [self._best_price(self._symbol({"symbol": name})) for name in names]

    def _best_price(self, symbol: str) -> dict[str, str]:
        book = orjson.loads(self._depth(symbol, 1))
        (bid, bid_size), (ask, ask_size) = ((*book[side], ["0.00000000"] * 2)[0] for side in ("bids", "asks"))
        return {"symbol": symbol, "bidPrice": bid, "bidQty": bid_size, "askPrice": ask, "askQty": ask_size}

    def _singles(self, query: dict[str, str]) -> Rows:
        """Pages by id; what the exchange lacks is left out, and the page is as much shorter."""
        symbol, limit, from_id, now_ms = self._symbol(query), _limit(query), _whole(query, "fromId"), self.now_ms()
        if from_id is None or self._forgot("historicalTrades", symbol, from_id):
            rows = self.source.singles_until(symbol, now_ms, limit)
        else:
            rows = self.source.singles_from(symbol, from_id, limit, now_ms)
        return without(rows, lacked(self.stage.active, "historicalTrades", symbol))

    def _trades(self, query: dict[str, str]) -> Rows:
        symbol, limit, now_ms = self._symbol(query), _limit(query), self.now_ms()
        from_id, (start_ms, end_ms) = _whole(query, "fromId"), _times(query)
        lacks = lacked(self.stage.active, "aggTrades", symbol)
        if from_id is not None and (start_ms, end_ms) != (None, None):
            raise _Refusal(400, -1128, "Combination of optional parameters invalid.")
        end_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        if from_id is not None and self._forgot("aggTrades", symbol, from_id):
            return self.source.trades_until(symbol, end_ms, limit)
        if from_id is not None:
            rows = self.source.trades_from(symbol, from_id, limit, now_ms)
        elif start_ms is not None:
            rows = self.source.trades_between(symbol, start_ms, end_ms, limit)
        else:
            return without(self.source.trades_until(symbol, end_ms, limit), lacks)
        kept = without(rows, lacks)
        while len(kept) < len(rows):  # the page goes on behind what the exchange lacks
            last_ms = rows.ts_ms[-1]
            lack_end_ms = max((end for start, end in lacks if start <= last_ms < end), default=None)
            if lack_end_ms is None:
                rows = self.source.trades_from(symbol, rows.keys[-1] + 1, limit - len(kept), now_ms)
            else:
                rows = self.source.trades_between(symbol, lack_end_ms, end_ms, limit - len(kept))
            if not len(rows):
                break
            more = without(rows, lacks)
            kept, rows = kept + more, kept + rows
        return kept

    def _forgot(self, endpoint: str, symbol: str, from_id: int) -> bool:
        """Whether the exchange has no such old trades any more; real ones then answer with the newest."""
        on = self.stage.due("forgets", endpoint, symbol)
        if on is None or from_id >= (on.behaviour.at or 0):
            return False
        self.stage.note(on, endpoint, symbol, id=from_id)
        return True

    def _candles(self, query: dict[str, str]) -> Rows:
        symbol, limit, now_ms = self._symbol(query), _limit(query), self.now_ms()
        interval, (start_ms, end_ms) = query.get("interval"), _times(query)
        if not interval:
            raise _Refusal(400, -1102, "Mandatory parameter 'interval' was not sent, was empty/null, or malformed.")
        if interval not in INTERVAL_MS:
            raise _Refusal(400, -1120, "Invalid interval.")
        end_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        if start_ms is None:
            rows = self.source.candles_until(symbol, interval, end_ms, limit, now_ms)
        else:
            rows = self.source.candles_between(symbol, interval, start_ms, end_ms, limit, now_ms)
        late = self.stage.due("unaligned", "klines", symbol)
        if late is not None:
            self.stage.note(late, "klines", symbol)
            rows = open_late(rows, late.behaviour, end_ms)
        return without(rows, lacked(self.stage.active, "klines", symbol))

    def _misshape(self, endpoint: str, query: dict[str, str], rows: Rows) -> Rows:
        symbol = query["symbol"]
        for on in self.stage.active:
            if on.behaviour.name in ALTERATIONS and on.due(on.behaviour.name, endpoint, symbol):
                rows = alter(rows, on.behaviour, endpoint)
        if len(rows) and self.stage.is_due("repeated_row", endpoint, symbol):
            rows = self._row_before(endpoint, query, rows) + rows.take(range(min(len(rows), _limit(query) - 1)))
        if on_split := self.stage.due("split_millisecond", endpoint, symbol):
            cut = split_millisecond(rows)
            if cut is not None:
                self.stage.note(on_split, endpoint, symbol)
                rows = cut
        if on_short := self.stage.due("short_page", endpoint, symbol):
            self.stage.note(on_short, endpoint, symbol)
            rows = shorten(rows, on_short.behaviour)
        return NO_ROWS if self.stage.is_due("empty_page", endpoint, symbol) else rows

    def _row_before(self, endpoint: str, query: dict[str, str], rows: Rows) -> Rows:
        symbol, key, now_ms = self._symbol(query), rows.keys[0], self.now_ms()
        if endpoint == "aggTrades":
            return self.source.trades_from(symbol, max(key - 1, 0), 1, now_ms)
        if endpoint != "klines":
            return self.source.singles_from(symbol, max(key - 1, 0), 1, now_ms)
        return self.source.candles_until(symbol, query["interval"], key - 1, 1, now_ms)

    def _symbol(self, query: dict[str, str]) -> str:
        symbol = query.get("symbol")
        if not symbol:
            raise _Refusal(400, -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
        if not _SYMBOL.fullmatch(symbol):
            legal = "Illegal characters found in parameter 'symbol'; legal range is '^[A-Z0-9-_.]{1,20}$'."
            raise _Refusal(400, -1100, legal)
        known = self.stage.source_name(symbol)
        if known not in self._symbols or self.stage.unknown(symbol):
            raise _Refusal(400, -1121, "Invalid symbol.")
        return known

    def _exchange_info(self, query: dict[str, str]) -> dict[str, Any]:
        if "symbol" in query:
            names = [self._symbol(query)]
        elif "symbols" in query:
            names = [self._symbol({"symbol": name}) for name in _names(query["symbols"])]
        else:
            called = {on.behaviour.symbol for on in self.stage.named("renamed")}
            names = [name for name in self._symbols if name in called or not self.stage.unknown(name)]
        limit, (interval, number) = self._weight_limit(), self._weight_interval()
        return {
            "timezone": "UTC",
            "serverTime": self.now_ms(),
            "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", "interval": interval, "intervalNum": number, "limit": limit},
                {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
            ],
            "exchangeFilters": [],
            "symbols": [self._listed(name) for name in names],
        }

    def _listed(self, name: str) -> dict[str, Any]:
        """A symbol of the source as exchangeInfo shows it."""
        called = next((on.behaviour.text for on in self.stage.named("renamed") if on.behaviour.symbol == name), name)
        told = (on.behaviour.text for on in self.stage.named("symbol_status") if on.behaviour.symbol == called)
        return {**self._symbols[name], "symbol": called, "status": next(told, "TRADING")}

    # -- limits --------------------------------------------------------------------------------------------

    def _limits(self) -> Behaviour | None:
        return next((on.behaviour for on in self.stage.active if on.behaviour.name == "limits"), None)

    def _weight_limit(self) -> int:
        told = self._limits()
        return _DEFAULT_WEIGHT_LIMIT if told is None or told.weight is None else told.weight

    def _weight_interval(self) -> tuple[str, int]:
        told = self._limits()
        return ("MINUTE", 1) if told is None or told.seconds is None else ("SECOND", int(told.seconds))

    def _window_name(self) -> str:
        interval, number = self._weight_interval()
        return f"{number}{_LETTER[interval]}"

    def _window_ms(self) -> int:
        interval, number = self._weight_interval()
        return number * (60_000 if interval == "MINUTE" else 1000)

    def _charge(self, endpoint: str, request: web.Request) -> None:
        """Calendar windows: the counter falls to zero when the minute turns."""
        now_ms, window_ms = self.now_ms(), self._window_ms()
        if now_ms // window_ms != self._window:
            self._window, self.weight_used, self._after_429 = now_ms // window_ms, 0, 0
        if self._banned_until_ms > now_ms:
            raise _banned(self._banned_until_ms, now_ms)
        symbol = request.query.get("symbol", "")
        jump = self.stage.due("weight_jump", endpoint, symbol)
        if jump is not None:
            self.stage.note(jump, endpoint, symbol)
            self.weight_used += jump.behaviour.weight or 0
        self.weight_used += _weight(endpoint, request.query)
        if self.weight_used > self._weight_limit():
            self._after_429 += 1
            if self._after_429 > _TOLERATED_AFTER_429:
                self._banned_until_ms = now_ms + _BAN_S * 1000
                raise _banned(self._banned_until_ms, now_ms)
            wait_s = -(-(window_ms - now_ms % window_ms) // 1000)
            text = f"Too much request weight used; current limit is {self._weight_limit()} request weight per window."
            raise _Refusal(429, -1003, text, retry_after_s=wait_s)

    # -- misbehaviour --------------------------------------------------------------------------------------

    async def _disturbance(self, endpoint: str, symbol: str, request: web.Request) -> web.Response | None:
        """The first behaviour that answers in place of the exchange."""
        for name, disturb in _DISTURBANCES.items():
            on = self.stage.due(name, endpoint, symbol)
            if on is None:
                continue
            answer = await disturb(self, on, request)
            if answer is not None:
                self.stage.note(on, endpoint, symbol)
                return answer
        return None

    async def _too_many(self, on: Active, _request: web.Request) -> web.Response:
        text = "Too much request weight used; please use the streams for live updates."
        return _refused(_Refusal(429, -1003, text, retry_after_s=int(on.behaviour.seconds or 1)))

    async def _ban(self, on: Active, _request: web.Request) -> web.Response:
        now_ms = self.now_ms()
        self._banned_until_ms = now_ms + int((on.behaviour.seconds or 1) * 1000)
        return _refused(_banned(self._banned_until_ms, now_ms))

    async def _html(self, on: Active, _request: web.Request) -> web.Response:
        page = "<html><head><title>Not for you</title></head><body>The firewall.</body></html>"
        return web.Response(status=on.behaviour.status or 403, text=page, content_type="text/html")

    async def _empty_error(self, on: Active, _request: web.Request) -> web.Response:
        return web.Response(status=on.behaviour.status or 500)

    async def _error_code(self, on: Active, _request: web.Request) -> web.Response:
        code = -(on.behaviour.at or 1007)
        return _refused(_Refusal(on.behaviour.status or 400, code, "An unexpected response was received."))

    async def _slow(self, on: Active, request: web.Request) -> web.Response | None:
        self.stage.note(on, request.match_info["endpoint"], request.query.get("symbol", ""))
        await asyncio.sleep(on.behaviour.seconds or 0)
        return None

    async def _reset(self, _on: Active, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=499)

    async def _down(self, on: Active, request: web.Request) -> web.Response | None:
        if self.now_ms() >= on.since_ms + (on.behaviour.seconds or 0) * 1000:
            return None
        if on.behaviour.status == 0:
            return await self._reset(on, request)
        return web.Response(status=on.behaviour.status or 503)

    # -- what tests and demos ask --------------------------------------------------------------------------

    async def _catalog(self, _request: web.Request) -> web.Response:
        streams = await asyncio.to_thread(self.source.catalog, self.now_ms())
        return _json(
            {
                "source": self.source.kind,
                "market": self.source.market,
                "seed": self.source.seed,
                "symbols": list(self._symbols),
                "streams": [asdict(stream) for stream in streams],
                "left_out": self.source.left_out(),
            }
        )

    async def _requests(self, _request: web.Request) -> web.Response:
        return _json({"answers": dict(self.requests), "weight_used": self.weight_used, "behaviours": self.shown()})

    async def _sockets_open(self, _request: web.Request) -> web.Response:
        return _json({"opened": self.sockets.opened, "open": self.sockets.listed()})

    async def _log(self, request: web.Request) -> web.Response:
        """What was shown, oldest first; `?name=drop` (any number of times) picks."""
        return _json(self.stage.lines(request.query.getall("name", [])))

    async def _behaviours(self, request: web.Request) -> web.Response:
        if request.remote not in ("127.0.0.1", "::1"):
            raise web.HTTPForbidden(text="behaviours are set from this computer only")
        if request.method == "DELETE":
            self.show_none()
        if request.method == "POST":
            try:
                self.show(read_plan(await request.read(), "the body"))
            except SetupRefused as error:
                return web.Response(status=422, text=str(error))
        return _json(self.shown())


_PAGES: dict[str, Callable[[SimulatedExchange, dict[str, str]], Rows]] = {
    "aggTrades": SimulatedExchange._trades,
    "klines": SimulatedExchange._candles,
    "trades": SimulatedExchange._singles,
    "historicalTrades": SimulatedExchange._singles,
}
_Disturb = Callable[[SimulatedExchange, Active, web.Request], Awaitable[web.Response | None]]
_DISTURBANCES: dict[str, _Disturb] = {
    "down": SimulatedExchange._down,
    "slow": SimulatedExchange._slow,
    "too_many_requests": SimulatedExchange._too_many,
    "banned": SimulatedExchange._ban,
    "html": SimulatedExchange._html,
    "empty_error": SimulatedExchange._empty_error,
    "error_code": SimulatedExchange._error_code,
    "reset": SimulatedExchange._reset,
}


class RunningExchange:
    """A simulated exchange that listens; `url` is what `BINANCE_API_URL` wants."""

    def __init__(self, exchange: SimulatedExchange, runner: web.AppRunner, url: str) -> None:
        self.exchange, self.url = exchange, url
        self._runner = runner

    @property
    def ws_url(self) -> str:
        """What `BINANCE_WS_URL` wants."""
        return self.url.replace("http://", "ws://")

    async def close(self) -> None:
        await self.exchange.sockets.close_all()
        await self._runner.cleanup()


async def serve(
    source: Source,
    host: str = "127.0.0.1",
    port: int = 0,
    behaviours: Sequence[Behaviour] = (),
    clock: Clock | None = None,
) -> RunningExchange:
    """Listen; port 0 takes a free one. Raises SetupRefused when the port is taken or a behaviour is unknown."""
    exchange = SimulatedExchange(source, behaviours, clock)
    runner = web.AppRunner(exchange.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise SetupRefused(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port") from error
    bound = runner.addresses[0]
    return RunningExchange(exchange, runner, f"http://{bound[0]}:{bound[1]}")


def open_source(
    seed: int, data: Path | None, replay: Path | None = None, symbols: int = len(LISTINGS), lively: float = 1.0
) -> Source:
    """Recorded frames, or recorded files, or the tape of a seed. Raises SetupRefused when there is nothing to serve."""
    if replay is not None:
        return ReplaySource(replay)
    return TapeSource(Tape(seed, listings(symbols, lively))) if data is None else RecordedSource(data)


async def main(source: Source, host: str, port: int, faults: Path | None, start_ms: int | None, speed: float) -> None:
    """Print one JSON line with the address when ready, then serve until SIGTERM or SIGINT."""
    clock = Clock(source.start_ms, 0) if isinstance(source, ReplaySource) else Clock(start_ms, speed)
    if isinstance(source, TapeSource):
        source.tape.reach(clock.now_ms())
    running = await serve(source, host, port, read_plan_file(faults) if faults else (), clock)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    ready: dict[str, Any] = {"url": running.url, "source": source.kind, "market": source.market, "seed": source.seed}
    ready |= {"ws_url": running.ws_url, "now_ms": clock.now_ms(), "speed": speed, "left_out": source.left_out()}
    sys.stdout.write(orjson.dumps(ready).decode() + "\n")
    sys.stdout.flush()
    playing = None
    if isinstance(source, ReplaySource):
        playing = asyncio.create_task(play_when_subscribed(running.exchange, speed))
    try:
        await stopped.wait()
    finally:
        if playing is not None:
            playing.cancel()
        await running.close()


async def play_when_subscribed(exchange: SimulatedExchange, speed: float, hold_s: float = REPLAY_HOLD_S) -> None:
    """Let the clock stand until somebody listens, and a moment more for the others, so that nobody misses the start."""
    await exchange.sockets.subscribed.wait()
    await asyncio.sleep(hold_s)
    exchange.clock.go(speed=speed)


def _json(content: Any) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")


def _refused(refusal: _Refusal) -> web.Response:
    answer = _json({"code": refusal.code, "msg": refusal.message})
    answer.set_status(refusal.status)
    if refusal.retry_after_s is not None:
        answer.headers["Retry-After"] = str(refusal.retry_after_s)
    return answer


def _banned(until_ms: int, now_ms: int) -> _Refusal:
    text = f"Way too much request weight used; IP banned until {until_ms}."
    return _Refusal(418, -1003, text, retry_after_s=-(-(until_ms - now_ms) // 1000))


def _weight(endpoint: str, query: Mapping[str, str]) -> int:
    if endpoint == "ticker/bookTicker":
        return _BEST_PRICES_WEIGHT["symbol" not in query]
    if endpoint != "depth":
        return WEIGHTS[endpoint]
    levels = int(query["limit"]) if _NUMBER.fullmatch(query.get("limit", "")) else 100
    return next((weight for most, weight in _DEPTH_WEIGHTS if levels <= most), _DEPTH_WEIGHTS[-1][1])


def _only_known(endpoint: str, query: dict[str, str]) -> None:
    known = [name for name in query if name in _PARAMETERS[endpoint]]
    if len(known) < len(query):
        text = f"Not all sent parameters were read; read '{len(known)}' parameter(s) but was sent '{len(query)}'."
        raise _Refusal(400, -1104, text)


def _whole(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if text == "":
        raise _Refusal(400, -1105, f"Parameter '{name}' was empty.")
    if not _NUMBER.fullmatch(text):
        raise _Refusal(400, -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def _limit(query: dict[str, str]) -> int:
    limit = _whole(query, "limit")
    if limit == 0:
        raise _Refusal(400, -1130, "Data sent for parameter 'limit' is not valid.")
    return min(_DEFAULT_ROWS if limit is None else limit, _MOST_ROWS)


def _times(query: dict[str, str]) -> tuple[int | None, int | None]:
    """startTime and endTime in ms; either may come in microseconds."""
    start, end = (_whole(query, name) for name in ("startTime", "endTime"))
    start, end = (t // 1000 if t is not None and t >= _MICROSECONDS else t for t in (start, end))
    return (None if start is None else max(start, _FIRST_TIME_MS)), end


def _names(text: str) -> list[str]:
    try:
        names = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Refusal(400, -1100, "Illegal characters found in parameter 'symbols'.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Refusal(400, -1130, "Data sent for parameter 'symbols' is not valid.")
    return names
