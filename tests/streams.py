"""The task of a live stream at work on a small exchange, and connections to it, for tests in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from adapters.exchanges.base import Page
from adapters.exchanges.binance import BinanceSpot
from adapters.exchanges.binance_frames import BinanceWire
from adapters.exchanges.streams import Hub, Limits, Subscription
from agents import stream
from agents.normalize import normalize, normalize_frames
from app.errors import ExchangeBusy
from app.outside import Live
from app.work import Job
from models.control import Json, Step, Task
from models.coverage import Coverage
from models.market import (
    Batch,
    decode_batch,
    decode_frames,
    decode_frames_info,
    decode_page_info,
    encode_batch,
)
from tests.feed import FakeFeed, VirtualClock, agg_trade, fake_feed

START_MS = 1_700_000_000_000
ETH = "ethusdt@aggTrade"


class Rest(BinanceSpot):
    """The REST side of a market with one trade a second: id n at START_MS + 1000 n, up to `newest`."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.newest, self.asked, self.away, self.now_ms = 0, 0, False, 0
        self.lost: set[int] = set()
        self.snapshots = 0

    async def page_from(self, channel: str, symbol: str, from_id: int, covered_to_ms: int) -> Page:
        self.asked += 1
        if self.away:
            raise ExchangeBusy("away")
        ids = [n for n in range(from_id, min(self.newest + 1, from_id + 1000)) if n not in self.lost]
        rows = [{key: value for key, value in agg_trade(n, at(n)).items() if key not in "eEs"} for n in ids]
        return Page(
            body=json.dumps(rows).encode(), ts_receipt_ms=0, rows=len(ids), cursor={}, more=len(ids) == 1000,
            covers=(covered_to_ms, at(ids[-1]) if ids else covered_to_ms),
            first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None,
        )  # fmt: skip

    async def server_time_ms(self) -> int:
        self.now_ms = max(self.now_ms, at(self.newest))
        return self.now_ms

    async def book_snapshot(self, symbol: str) -> tuple[int, bytes]:
        self.snapshots += 1
        return self.newest, json.dumps({"lastUpdateId": self.newest, "bids": [], "asks": []}).encode()


def at(number: int) -> int:
    return START_MS + 1000 * number


class FakeJob(Job):
    """Keeps what would be said."""

    def __init__(self, kind: str, cursor: Json | None = None) -> None:
        step = Step(task_id="r.0", target="loader-ws", type=kind, symbol="ETHUSDT", interval="1m")
        super().__init__(Task(task_id="r.0", queue_id="r", step=step, attempt=1, cursor=cursor))
        self.reports: list[Json] = []
        self.checkpoints: list[Json] = []

    async def report(self, **said: Any) -> None:
        self.reports.append(said)

    async def catch_up(self) -> None:
        """Nothing was written before."""

    async def checkpoint(self, cursor: Json) -> None:
        self.checkpoints.append(cursor)


@dataclass
class Case:
    feed: FakeFeed
    hub: Hub
    clock: VirtualClock
    rest: Rest
    job: FakeJob
    batches: list[Batch] = field(default_factory=list)
    rejected: list[Any] = field(default_factory=list)
    books: list[str] = field(default_factory=list)

    @property
    def said(self) -> Json:
        """The facts of the last report."""
        facts: Json = self.job.reports[-1]["extra"] if self.job.reports else {"state": ""}
        return facts

    @property
    def ids(self) -> list[int]:
        return [number for batch in self.batches for number in batch.array("id").tolist()]

    @property
    def ledger(self) -> Coverage:
        ledger = Coverage()
        for batch in self.batches:
            ledger.add(batch)
        return ledger

    async def say(self, *numbers: int, **other: Any) -> None:
        for number in numbers:
            self.rest.newest = max(self.rest.newest, number)
            await self.feed.say(ETH, agg_trade(number, at(number), **other))

    async def until(self, condition: Callable[[], Any], step_s: float = 0.05, most_s: float = 200) -> None:
        await self.clock.run_until(condition, step_s, most_s)


@asynccontextmanager
async def following(
    monkeypatch: pytest.MonkeyPatch, kind: str = "ws_trades", cursor: Json | None = None, **limits: Any
) -> AsyncIterator[Case]:
    """The task at work on a small exchange, what it writes normalized as the agent does."""
    clock, rest, job = VirtualClock(), Rest(), FakeJob(kind, cursor)
    monkeypatch.setattr(stream, "FILL_S", 0.3)
    monkeypatch.setattr(stream, "AGAIN_S", 0.01)
    monkeypatch.setattr(stream, "remembered", lambda job: job.cursor)
    async with fake_feed() as feed:
        hub = Hub(BinanceWire(), feed.url, limits=Limits(**limits), clock=clock)
        case = Case(feed, hub, clock, rest, job)

        async def put(topic: str, key: bytes, value: bytes, headers: Any) -> asyncio.Future[None]:
            place, info = (topic, 0, len(case.batches)), dict(headers)
            if job.step.channel == "book":
                case.books.append(decode_frames_info(info["frames"]).kind)
            elif "page" in info:
                batch, bad = normalize(rest, decode_page_info(info["page"]), value, place)
                case.batches.append(decode_batch(encode_batch(batch)))
                case.rejected += bad
            else:
                live, rejected = normalize_frames(rest, decode_frames_info(info["frames"]), decode_frames(value), place)
                case.batches.append(decode_batch(encode_batch(live)))
                case.rejected += rejected
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            sent.set_result(None)
            return sent

        monkeypatch.setattr(stream, "put", put)
        monkeypatch.setattr(stream.outside, "live", lambda *_args, **_said: Live(hub, rest))
        work = asyncio.create_task(stream.stream(job))  # type: ignore[arg-type]
        try:
            await case.until(lambda: feed.asked and all(hub.is_up(name) for name in feed.asked[0]["params"]))
            yield case
            if work.done():
                work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await hub.close()


def depth(first: int, last: int) -> Json:
    return {"e": "depthUpdate", "E": START_MS + last, "s": "ETHUSDT", "U": first, "u": last, "b": [], "a": []}


@asynccontextmanager
async def connected(**limits: Any) -> AsyncIterator[tuple[FakeFeed, Hub, VirtualClock]]:
    clock = VirtualClock()
    async with fake_feed() as feed:
        hub = Hub(BinanceWire(), feed.url, limits=Limits(**limits), clock=clock)
        try:
            yield feed, hub, clock
        finally:
            await hub.close()


def numbers(subscription: Subscription) -> list[int]:
    """Ids that have arrived and were not taken before."""
    taken = [subscription._queue.popleft() for _ in range(len(subscription._queue))]
    return [json.loads(received.frame)["data"]["a"] for received in taken]
