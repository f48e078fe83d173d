"""A small exchange for tests of live connections: it does what a test tells it, and time passes when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from adapters.exchanges.streams import Clock


class VirtualClock(Clock):
    """Stands still until it is advanced; who sleeps wakes when their time has come."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._number), until))
        await until

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now_s:
            _, _, until = heapq.heappop(self._sleepers)
            if not until.done():
                until.set_result(None)

    async def run_until(self, condition: Callable[[], Any], step_s: float = 0.1, most_s: float = 1e6) -> None:
        """Advance in steps, with a little real time for the sockets between them, until it holds."""
        end = self.now_s + most_s
        while not condition():
            assert self.now_s < end, f"not within {most_s} virtual seconds"
            self.advance(step_s)
            await asyncio.sleep(0.002)
            await turns(10)


async def turns(count: int) -> None:
    """So many turns for both ends of the connections: they share this loop, so what one says the other hears next."""
    for _ in range(count):
        await asyncio.sleep(0)


class FakeFeed:
    """The exchange's side: who is connected, what they subscribed, and the frames it sends."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[ServerConnection] = []  # open ones, oldest first
        self.streams: dict[ServerConnection, set[str]] = {}
        self.asked: list[dict[str, Any]] = []
        self.connects = 0
        self.open_at_subscribe: list[int] = []
        self.deaf = False  # answers no subscription
        self.refuses = False
        self._server: Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await serve(self._handle, "127.0.0.1", port, process_request=self._admit)
        self.url = f"ws://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, _request: Any) -> Any:
        self.connects += 1
        return connection.respond(503, "closed\n") if self.refuses else None

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        self.streams[connection] = set()
        try:
            async for text in connection:
                asked = json.loads(text)
                self.asked.append(asked)
                self.open_at_subscribe.append(len(self.connections))
                change = self.streams[connection].update
                (change if asked["method"] == "SUBSCRIBE" else self.streams[connection].difference_update)(
                    asked["params"]
                )
                if not self.deaf:
                    await connection.send(json.dumps({"result": None, "id": asked["id"]}))
        except ConnectionClosed:
            pass
        finally:
            self.connections.remove(connection)

    async def say(self, stream: str, event: Any, to: ServerConnection | None = None) -> None:
        """An event to everyone who subscribed the stream, or to one of them."""
        for connection in [to] if to else [c for c in self.connections if stream in self.streams[c]]:
            with contextlib.suppress(ConnectionClosed):
                await connection.send(json.dumps({"stream": stream, "data": event}, separators=(",", ":")))

    async def say_raw(self, text: str) -> None:
        for connection in list(self.connections):
            await connection.send(text)

    async def cut(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()
            await connection.wait_closed()

    def subscribed(self, stream: str) -> int:
        """Open connections that carry the stream."""
        return sum(stream in self.streams[connection] for connection in self.connections)


@asynccontextmanager
async def fake_feed() -> AsyncIterator[FakeFeed]:
    feed = FakeFeed()
    await feed.start()
    try:
        yield feed
    finally:
        await feed.stop()


def agg_trade(number: int, ts_ms: int = 0, symbol: str = "ETHUSDT", **other: Any) -> dict[str, Any]:
    ts_ms = ts_ms or 1_700_000_000_000 + number
    return {
        "e": "aggTrade", "E": ts_ms + 1, "s": symbol, "a": number, "p": "100.5", "q": "2", "f": number, "l": number,
        "T": ts_ms, "m": True, "M": True, **other,
    }  # fmt: skip
