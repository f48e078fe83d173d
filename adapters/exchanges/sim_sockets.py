"""The WebSocket side of a simulated exchange: connections, subscriptions, keep-alive, limits.

    /ws/<a>[/<b>...]   /ws   /stream?streams=<a>/<b>/...     frames of the source, in order of the exchange's clock
    the same below /public and /market: futures, with `pu` in their depth events

What a stream carries comes from the source; what goes wrong on the way, from `adapters/exchanges/sim_faults.py`.
All times are the exchange's, so a day passes in minutes at speed; only the pong has a few real seconds at least.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from adapters.exchanges.sim_faults import Cut, Faults, Out, fragmented, in_microseconds
from adapters.exchanges.sim_feed import EMPTY_CANDLE, Frame, stream_name
from adapters.exchanges.sim_stage import Stage
from adapters.exchanges.sources import Source

_LOOK_S = 0.01  # how often a connection looks whether frames are due
_LONGEST_STEP_MS = 60_000  # frames of so much exchange time are sent between two looks at the clock
_FIRST_ID = re.compile(r'"U":(\d+)')  # of a depth event
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


@dataclass(frozen=True)
class SocketLimits:
    """The exchange's own numbers; seconds of its clock."""

    ping_s: float = 20
    pong_s: float = 60
    life_s: float = 86_400
    messages_per_s: int = 5
    connects: int = 300  # per address in `connects_s`
    connects_s: float = 300
    streams: int = 1024
    real_pong_s: float = 5  # of the computer's clock: the least time for a pong, whatever the speed


SOCKET_LIMITS = tuple(field.name for field in fields(SocketLimits))


class Refused(Exception):
    """An answer to a control message in the exchange's own error shape."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Sockets:
    """All connections of one exchange."""

    def __init__(self, stage: Stage, source: Source) -> None:
        self.stage, self.source = stage, source
        self.connections: dict[str, Connection] = {}
        self.opened = 0
        self.subscribed = asyncio.Event()  # somebody wants something
        self._connects: dict[str, deque[int]] = {}

    def limits(self) -> SocketLimits:
        told = {str(on.behaviour.text): on.behaviour.value for on in self.stage.named("socket_limit")}
        return replace(SocketLimits(), **told)

    async def handle(self, request: web.Request, make: Make | None = None) -> web.StreamResponse:
        """One connection to its end; `make` where another exchange's words are spoken on it."""
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        combined = request.path.endswith("/stream")
        names = [name for name in _asked(request, combined=combined) if name]
        compress = any(self.stage.named("deflate"))
        socket = web.WebSocketResponse(autoping=False, compress=compress, max_msg_size=64 * 1024)
        await socket.prepare(request)
        self.opened += 1
        name = f"c{self.opened}"
        connection = (
            make(self, socket, request, name) if make else Connection(self, socket, request, name, combined=combined)
        )
        self.connections[connection.name] = connection
        try:
            await connection.live(names)
        finally:
            del self.connections[connection.name]
        return socket

    def _refusal(self, request: web.Request) -> web.Response | None:
        address, now_ms, limits = request.remote or "", self.stage.clock.now_ms(), self.limits()
        since = self._connects.setdefault(address, deque())
        since.append(now_ms)
        while since[0] <= now_ms - limits.connects_s * 1000:
            since.popleft()
        if len(since) > limits.connects:
            return web.Response(status=429, text="Too many connection attempts.")
        for on in self.stage.named("cut"):  # a cut may say for how long nobody comes back
            if now_ms < on.until_ms:
                return web.Response(status=503)
        refusal = self.stage.due("refuse", "ws", "")
        if refusal is None or not refusal.lasts(now_ms):
            return None
        self.stage.note(refusal, "ws", "")
        if refusal.behaviour.status == 0 and request.transport:
            request.transport.abort()
        return web.Response(status=refusal.behaviour.status or 503)

    async def close_all(self, code: int = WSCloseCode.GOING_AWAY) -> None:
        for connection in list(self.connections.values()):
            await connection.close(code)

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"name": c.name, "since_ms": c.since_ms, "streams": list(c.streams), "sent": c.sent, "path": c.path}
            for c in self.connections.values()
        ]


Make = Callable[[Sockets, web.WebSocketResponse, web.Request, str], "Connection"]


class Connection:
    def __init__(
        self, sockets: Sockets, socket: web.WebSocketResponse, request: web.Request, name: str, *, combined: bool
    ) -> None:
        self.name, self.combined, self.path = name, combined, request.path
        self.streams: dict[str, int] = {}  # stream: what was sent of it, in ms of the exchange's clock
        self.sent = 0
        self._sockets, self._socket, self._request = sockets, socket, request
        self._stage, self._clock = sockets.stage, sockets.stage.clock
        self.since_ms = self._clock.now_ms()
        self._microseconds = request.query.get("timeUnit", "").upper() == "MICROSECOND"
        self._faults = Faults(self._stage, sockets.source, name)
        self._heard: deque[float] = deque()
        self._awaited: tuple[bytes, int, float] | None = None  # (ping's payload, exchange ms, real s it was sent at)
        self._random = random.Random(name)
        self._beside: list[asyncio.Task[None]] = []

    async def live(self, names: Sequence[str]) -> None:
        """Until either side closes. Frames and pings go out beside the reading."""
        try:
            self._subscribe(names)
        except Refused as refused:
            await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=refused.message.encode())
            return
        self._begin(self._send_frames())
        self._begin(self._keep_alive())
        try:
            async for message in self._socket:
                await self._hear(message)
        finally:
            for task in self._beside:
                task.cancel()
            await asyncio.gather(*self._beside, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Beside the reading; if it fails, the connection does not go on as if nothing were."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._done)
        self._beside.append(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            task.get_loop().call_exception_handler({"message": f"connection {self.name} failed", "exception": error})
            self.abort()

    async def close(self, code: int, reason: str = "") -> None:
        await self._socket.close(code=code, message=reason.encode(), drain=False)

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    # -- what goes out ---------------------------------------------------------------------------------------

    async def _send_frames(self) -> None:
        try:
            while not self._socket.closed:
                behind = await self._send_due()
                await (asyncio.sleep(0) if behind else self._clock.pause(_LOOK_S if self._clock.speed else None))
        except ConnectionError:
            return  # the client is gone; the reader ends the connection
        except Cut as cut:
            await self._end(cut)

    async def _send_due(self) -> bool:
        """Send what is due; whether more is."""
        now_ms = self._clock.now_ms()
        oldest_ms = min(self.streams.values(), default=now_ms)
        until_ms = min(now_ms, oldest_ms + _LONGEST_STEP_MS)
        due: list[tuple[int, str, str]] = []
        for stream, after_ms in self.streams.items():
            if after_ms < until_ms:
                due += [(ts_ms, stream, text) for ts_ms, text in self._frames(stream, after_ms, until_ms)]
                self.streams[stream] = until_ms
        due.sort(key=itemgetter(0))
        for out in self._faults.passed(due, until_ms):
            await self._send(out)
        return until_ms < now_ms

    def _frames(self, stream: str, after_ms: int, until_ms: int) -> Sequence[Frame]:
        """What the source has: under another name when the symbol was renamed, nothing on the wrong route."""
        symbol, _, rest = stream.partition("@")
        if self._stage.unknown(symbol.upper()) or not self._is_routed(rest):
            return ()
        known = self._stage.source_name(symbol.upper())
        frames: Sequence[Frame] = self._sockets.source.frames(f"{known.lower()}@{rest}", after_ms, until_ms)
        if rest.startswith("kline") and not any(self._stage.named("empty_candles")):
            frames = [frame for frame in frames if EMPTY_CANDLE not in frame[1]]
        if rest.startswith("depth") and self._is_futures() and self._sockets.source.market != "um":
            frames = [(ts_ms, _FIRST_ID.sub(_with_previous, text)) for ts_ms, text in frames]
        if known == symbol.upper():
            return frames
        return [(ts_ms, text.replace(f'"s":"{known}"', f'"s":"{symbol.upper()}"')) for ts_ms, text in frames]

    def _is_routed(self, rest: str) -> bool:
        """The futures exchange sends books on /public (or no route) and the rest on /market only."""
        if not self._is_futures():
            return True
        of_market = rest.startswith(("aggTrade", "kline"))
        return of_market == self.path.startswith("/market/")

    def _is_futures(self) -> bool:
        """A recording of futures is one on every path; a generated market is on the futures' own."""
        return self._sockets.source.market == "um" or self.path.startswith(("/public/", "/market/"))

    async def _send(self, out: Out) -> None:
        text = out.text
        if self._microseconds:
            text = in_microseconds(text)
        if self.combined:
            text = f'{{"stream":"{out.stream}","data":{text}}}'
        self.sent += 1
        if out.fragments > 1 and self._request.transport is not None:
            self._request.transport.write(fragmented(text.encode(), out.fragments))
        else:
            await self._socket.send_str(text)

    async def _end(self, cut: Cut) -> None:
        if cut.farewell:
            await self._send(Out("!serverShutdown", f'{{"e":"serverShutdown","E":{self._clock.now_ms()}}}'))
            await self._clock.wait_until(self._clock.now_ms() + int(cut.after_s * 1000))
        if cut.code:
            await self.close(cut.code)
        else:
            self.abort()

    async def _keep_alive(self) -> None:
        limits = self._sockets.limits()
        end_ms = self.since_ms + int(limits.life_s * 1000)
        next_ms = self.since_ms + int(limits.ping_s * 1000)
        while True:
            await self._clock.wait_until(min(end_ms, next_ms))
            now_ms = self._clock.now_ms()
            if now_ms >= end_ms:
                return await self.close(WSCloseCode.OK)
            if self._awaited and now_ms - self._awaited[1] >= limits.pong_s * 1000:
                left_s = self._awaited[2] + limits.real_pong_s - time.monotonic()
                if left_s <= 0:
                    return await self.close(WSCloseCode.POLICY_VIOLATION, "Pong timeout")
                await asyncio.sleep(left_s)
                continue
            if self._awaited is None and not self._stage.is_due("no_ping", "ws", "", conn=self.name):
                payload = str(now_ms * 1000 + self._random.randrange(1000)).encode()
                self._awaited = (payload, now_ms, time.monotonic())
                await self._socket.ping(payload)
            next_ms = now_ms + int(limits.ping_s * 1000)

    # -- what comes in ---------------------------------------------------------------------------------------

    async def _hear(self, message: WSMessage) -> None:
        now = self._clock.now_ms() / 1000
        self._heard.append(now)
        while self._heard[0] <= now - 1:
            self._heard.popleft()
        if len(self._heard) > self._sockets.limits().messages_per_s:
            await self.close(WSCloseCode.POLICY_VIOLATION, "Too many requests")
        elif message.type == WSMsgType.PING:
            await self._socket.pong(message.data)
        elif message.type == WSMsgType.PONG:
            if self._awaited is not None and bytes(message.data) == self._awaited[0]:
                self._awaited = None
        elif message.type == WSMsgType.TEXT:
            answer = self._answer(message.data)
            on = self._stage.due("late_answer", "ws", "")
            if on is None:
                await self._socket.send_str(answer.decode())
            else:
                self._stage.note(on, "ws", "", conn=self.name)
                self._begin(self._answer_late(answer, on.behaviour.seconds or 1))

    async def _answer_late(self, answer: bytes, seconds: float) -> None:
        await self._clock.wait_until(self._clock.now_ms() + int(seconds * 1000))
        if not self._socket.closed:
            await self._socket.send_str(answer.decode())

    def _answer(self, text: str) -> bytes:
        number: Any = None
        try:
            asked = _control(text)
            number = asked.get("id")
            result = self._control(asked["method"], asked.get("params"))
            return orjson.dumps({"result": result, "id": number})
        except Refused as refused:
            error = {"code": refused.code, "msg": refused.message}
            if self._stage.is_due("flat_errors", "ws", "", conn=self.name):
                return orjson.dumps({**error, "id": number} if number is not None else error)
            return orjson.dumps({"error": error, "id": number})

    def _control(self, method: str, params: Any) -> Any:
        if method == "LIST_SUBSCRIPTIONS":
            return list(self.streams)
        if not isinstance(params, list) or not params:
            raise Refused(2, "Invalid request: missing params")
        if method == "SUBSCRIBE":
            return self._subscribe(_strings(params))
        if method == "UNSUBSCRIBE":
            for name in _strings(params):
                self.streams.pop(name, None)
            return None
        if params[0] != "combined":
            raise Refused(0, f"Unknown property: {params[0]}")
        if method == "GET_PROPERTY":
            return self.combined
        if len(params) != 2 or not isinstance(params[1], bool):
            raise Refused(1, "Invalid value type: expected Boolean")
        self.combined = params[1]
        return None

    def _subscribe(self, names: Sequence[str]) -> None:
        """A well-formed name of an unknown symbol is taken and stays silent, as on the real exchange."""
        if any(stream_name(name) is None for name in names):
            raise Refused(2, "Invalid request: invalid stream")
        if len(self.streams.keys() | set(names)) > self._sockets.limits().streams:
            raise Refused(2, "Invalid request: too many streams")
        now_ms = self._clock.now_ms()
        for name in names:
            self.streams.setdefault(name, now_ms)
        if names:
            self._sockets.subscribed.set()


def _with_previous(first: re.Match[str]) -> str:
    """Futures name the event before; here ids are without gaps."""
    return f'{first[0]},"pu":{int(first[1]) - 1}'


def _asked(request: web.Request, *, combined: bool) -> list[str]:
    if combined:
        return request.query.get("streams", "").split("/")
    return request.match_info.get("streams", "").split("/")


def _control(text: str) -> dict[str, Any]:
    try:
        asked = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Refused(3, f"Invalid JSON: {error}") from error
    if not isinstance(asked, dict) or asked.get("method") not in _METHODS:
        raise Refused(2, "Invalid request: unknown method")
    number = asked.get("id")
    if not (number is None or type(number) is int or (isinstance(number, str) and len(number) <= 36)):
        raise Refused(2, "Invalid request: request ID must be an integer, a string of at most 36 characters or null")
    return asked


def _strings(params: list[Any]) -> list[str]:
    if not all(isinstance(name, str) for name in params):
        raise Refused(2, "Invalid request: params must be strings")
    return params
