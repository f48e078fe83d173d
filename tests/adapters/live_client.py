"""A viewer of a simulated exchange whose clock stands until a test moves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from adapters.exchanges.behaviours import Behaviour
from adapters.exchanges.sim_clock import Clock
from adapters.exchanges.simulated import RunningExchange, serve
from adapters.exchanges.sources import Source, TapeSource
from adapters.exchanges.tape import DAY_MS, FIRST_DAY_MS, Tape, listings

NOON = FIRST_DAY_MS + 2 * DAY_MS + 12 * 3_600_000
TAPE = Tape(11, listings(5, lively=4))


class Viewer:
    """One exchange, its clock at `start_ms`, and any number of connections."""

    def __init__(self, running: RunningExchange, source: Source, session: aiohttp.ClientSession) -> None:
        self.running, self.exchange, self.source = running, running.exchange, source
        self._session = session

    async def connect(self, path: str, **options: Any) -> aiohttp.ClientWebSocketResponse:
        return await self._session.ws_connect(self.running.ws_url + path, max_msg_size=0, **options)

    async def get(self, path: str, **query: Any) -> Any:
        async with self._session.get(self.running.url + path, params=query) as answer:
            text = await answer.text()
            return json.loads(text) if text[:1] in ("[", "{") else text

    async def post(self, path: str, body: str) -> int:
        async with self._session.post(self.running.url + path, data=body) as answer:
            return answer.status

    def move(self, ms: int) -> None:
        """Put the clock `ms` ahead; what lies between is sent."""
        self.exchange.clock.go(ms, 0)

    def truth(self, stream: str, after_ms: int, until_ms: int) -> list[str]:
        return [text for _, text in self.source.frames(stream, after_ms, until_ms)]


@asynccontextmanager
async def viewer(
    *behaviours: Behaviour, source: Source | None = None, start_ms: int = NOON, speed: float = 0
) -> AsyncIterator[Viewer]:
    source = source or TapeSource(TAPE)
    running = await serve(source, behaviours=behaviours, clock=Clock(start_ms, speed))
    try:
        async with aiohttp.ClientSession() as session:
            yield Viewer(running, source, session)
    finally:
        await running.close()


async def texts(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[str]:
    """The next `count` frames; an AssertionError names what came instead."""
    found: list[str] = []
    async with asyncio.timeout(150):
        while len(found) < count:
            message = await socket.receive()
            assert message.type == aiohttp.WSMsgType.TEXT, f"{message} after {len(found)} of {count} frames"
            found.append(message.data)
    return found


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds`, at most half a minute."""
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


async def ends(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Wait for the end of the connection; its close code (1006: without a word)."""
    async with asyncio.timeout(150):
        while not socket.closed:
            await socket.receive()
    return socket.close_code


def rebuilt(snapshot: dict[str, Any], diffs: Sequence[dict[str, Any]]) -> tuple[int, dict[str, str], dict[str, str]]:
    """A local book by the exchange's rules, written as plainly as possible: update id, bids, asks."""
    update_id, bids, asks = snapshot["lastUpdateId"], dict(snapshot["bids"]), dict(snapshot["asks"])
    for diff in diffs:
        if diff["u"] <= update_id:
            continue
        assert diff["U"] <= update_id + 1 <= diff["u"], f"{update_id} is not followed by {diff['U']}..{diff['u']}"
        for levels, changes in ((bids, diff["b"]), (asks, diff["a"])):
            for price, size in changes:
                if float(size):
                    levels[price] = size
                else:
                    levels.pop(price, None)
        update_id = diff["u"]
    return update_id, bids, asks


def best(bids: dict[str, str], asks: dict[str, str]) -> tuple[str, str, str, str]:
    bid, ask = max(bids, key=float), min(asks, key=float)
    return bid, bids[bid], ask, asks[ask]
