"""A day of live trades through reconnects, and nothing lost: `make soak`, or `python -m bench.soak --hours 1`.

simulated exchange --WebSocket, REST--> the tasks of the live streams --> normalized, folded to candles, counted

200 symbols for 24 hours of the exchange's clock, every connection cut every 5 of its minutes. What is measured is what
a worker has between its sockets and its topics (connections, streams, repair over REST, normalizing, candles in the
making): their topics are a counter here, because 200 streams at a hundred times the pace of the clock are more than
one core takes through a whole worker. Proof that nothing is lost: each symbol's rows run on by id, and a checksum of
(id, time, price, size) equals that of the exchange's own history, asked for at the end over REST.

Timers are those of the computer's clock, so at speed 96 a back-off of half a second is 48 s of the market. The day is
some 680,000 trades (--lively 1: 3,000 a day of a quiet symbol, 39,000 of the liveliest) and takes 15 minutes at speed
96; with the exchange in a process of its own that needs about one core of two. --speed 48 --lively 1 takes 30 minutes
on a slower machine; a speed that the machine cannot keep shows as `trades that wait at the end`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import aiohttp
import numpy as np

from adapters.exchanges.binance import BinanceSpot
from adapters.exchanges.binance_frames import BinanceWire
from adapters.exchanges.streams import Hub, Limits
from agents import stream
from agents.normalize import normalize, normalize_frames
from app import outside
from app.children import Children
from app.errors import RunFailed
from app.outside import Live
from app.work import Finished, Job
from bench.measure import report
from models.control import Json, Step, Task
from models.folding import Folding, fold_batch
from models.market import Batch, FramesInfo, PageInfo, decode_frames, decode_frames_info, decode_page_info

START = "2025-08-05T00:00Z"
HOUR_MS = 3_600_000
WARM_UP_H = 4.0
LIFETIME_H = 23.5  # of a connection, as in a worker
SETTLED_MS = 5_000  # trades this old have long been sent
AHEAD_MS = 60_000  # the clock is stopped there: set back, it would hide trades that were sent already
LAST_WAIT_S = 60.0  # at the end, for what is still on its way
LOOK_S = 0.05
LOOKS = 3
GOAL_MB_PER_HOUR = 1.0
PASSING = ("Clock.sleep", "Event.wait", "Queue.get")  # tasks that wait for one moment and end
PUT_AT = ("soak", 0, 0)
Works = Sequence[asyncio.Future[Finished]]


@dataclass(frozen=True)
class Plan:
    hours: float = 24
    symbols: int = 200
    speed: float = 96
    cut_every_min: float = 5
    lively: float = 1


@dataclass
class Proof:
    """What came of one symbol, without keeping it."""

    first: int | None = None
    next: int = 0
    checksum: int = 0
    lost: int = 0
    doubled: int = 0
    folding: Folding = field(default_factory=Folding)

    def add(self, batch: Batch) -> None:
        ids = batch.array("id")
        if len(ids):
            self.first = int(ids[0]) if self.first is None else self.first
            steps = np.diff(ids, prepend=self.next - 1 if self.next else ids[0] - 1) - 1
            self.lost += int(steps[steps > 0].sum())
            self.doubled += int((steps < 0).sum())
            self.next, self.checksum = int(ids[-1]) + 1, checksum(batch, self.checksum)
        fold_batch(self.folding, batch, ("1m",))


def checksum(batch: Batch, so_far: int = 0, rows: int | None = None) -> int:
    """Of the (first) rows one after the other, so that it does not matter how they came to lie in batches."""
    columns = [batch.array(name)[:rows].astype("<f8") for name in ("id", "ts_ms", "price", "size")]
    return zlib.crc32(np.column_stack(columns).tobytes(), so_far)


class SoakJob(Job):
    """A live task of one symbol that tells nobody."""

    def __init__(self, symbol: str) -> None:
        step = Step(task_id=f"soak.{symbol}", target="loader-ws", type="ws_trades", symbol=symbol)
        super().__init__(Task(task_id=step.task_id, queue_id="soak", step=step, attempt=1))

    async def report(self, **_said: Any) -> None:
        """Nobody asks."""

    async def catch_up(self) -> None:
        """Nothing was written before."""

    async def checkpoint(self, cursor: Json) -> None:
        self.cursor = cursor


@dataclass(frozen=True)
class Sample:
    hours: float
    rss_mb: float
    lasting: int  # tasks of asyncio that go on
    passing: int  # and those that wait for one moment


@dataclass
class Found:
    trades: int = 0
    lost: int = 0
    doubled: int = 0
    differ: list[str] = field(default_factory=list)  # symbols whose rows are not the exchange's
    waiting: int = 0  # trades the exchange had long sent and nobody had at the end
    cuts: int = 0
    samples: list[Sample] = field(default_factory=list)

    @property
    def mb_per_hour(self) -> float:
        """Slope of the memory behind the warm-up."""
        kept = [sample for sample in self.samples if sample.hours >= WARM_UP_H]
        if len(kept) < 3:
            return float("nan")
        slope, _ = np.polyfit([s.hours for s in kept], [s.rss_mb for s in kept], 1)
        return float(slope)

    @property
    def lasting(self) -> tuple[int, int]:
        counts = [sample.lasting for sample in self.samples]
        return min(counts), max(counts)


class Soak:
    def __init__(self, plan: Plan, url: str, say: Callable[[str], object]) -> None:
        self.plan, self.url, self.say, self.found = plan, url, say, Found()
        self.exchange = BinanceSpot(url)
        limits = Limits(lifetime_s=LIFETIME_H * 3600 / plan.speed)
        self.hub = Hub(BinanceWire(), url.replace("http", "ws"), limits=limits)
        self.proofs: dict[str, Proof] = {}
        self.jobs: list[SoakJob] = []

    async def put(self, _topic: str, _key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]) -> Any:
        """In place of the topic: what the agents behind it would make of it."""
        info = dict(headers)
        if "page" in info:
            self._take(*normalize(self.exchange, decode_page_info(info["page"]), value, PUT_AT))
        else:
            told: FramesInfo = decode_frames_info(info["frames"])
            self._take(*normalize_frames(self.exchange, told, decode_frames(value), PUT_AT))
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    def _take(self, batch: Batch, rejected: Sequence[object]) -> None:
        if rejected:
            raise RunFailed(f"a row of {batch.symbol} could not be read: {rejected[0]}")
        self.proofs[batch.symbol].add(batch)

    async def run(self) -> Found:
        symbols = sorted(await self.exchange.symbols())[: self.plan.symbols]
        self.proofs = {symbol: Proof() for symbol in symbols}
        self.jobs = [SoakJob(symbol) for symbol in symbols]
        with patch.object(stream, "put", self.put), patch.object(outside, "live", self._live):
            works = [asyncio.ensure_future(stream.stream(job)) for job in self.jobs]
            try:
                async with aiohttp.ClientSession() as control:
                    end_ms = await self._days_work(control, works)
            finally:
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)
                await self.hub.close()
        try:
            await self._compare(end_ms - SETTLED_MS)
        finally:
            await self.exchange.close()
        return self.found

    def _live(self, *_args: object, **_said: object) -> Live:
        return Live(self.hub, self.exchange)

    async def _days_work(self, control: aiohttp.ClientSession, works: Works) -> int:
        """Cut and sample until the time is over; gives the moment at which the exchange's clock was stopped."""
        names = [self.exchange.stream_name("trades", symbol) for symbol in self.proofs]
        await self._until(lambda: all(map(self.hub.is_up, names)), works)
        start_ms = await self.exchange.server_time_ms()
        every_ms = round(self.plan.cut_every_min * 60_000)
        end_ms, cut_ms = start_ms + round(self.plan.hours * HOUR_MS), start_ms + every_ms
        cuts = math.ceil(self.plan.hours * 60 / self.plan.cut_every_min) - 1  # a slow machine takes longer for them
        while (now_ms := await self.exchange.server_time_ms()) < end_ms or self.found.cuts < cuts:
            self._check(works)
            if now_ms < cut_ms:
                await asyncio.sleep(LOOK_S)
                continue
            await self._sample((now_ms - start_ms) / HOUR_MS)  # just before a cut all is calm
            cut_ms += every_ms * (1 + (now_ms - cut_ms) // every_ms)
            await self._cut(control)
        end_ms = now_ms + AHEAD_MS
        await self._show(control, {"name": "clock", "at": end_ms, "speed": 0})
        give_up = asyncio.get_running_loop().time() + LAST_WAIT_S
        while await self._behind(end_ms - SETTLED_MS) and asyncio.get_running_loop().time() < give_up:
            self._check(works)
            await asyncio.sleep(1.0)
        return end_ms

    async def _cut(self, control: aiohttp.ClientSession) -> None:
        await self._show(control, {"name": "cut", "endpoint": "ws"})
        self.found.cuts += 1

    async def _show(self, control: aiohttp.ClientSession, behaviour: Json) -> None:
        """In place of the one before."""
        (await control.delete(f"{self.url}/sim/behaviours")).raise_for_status()
        (await control.post(f"{self.url}/sim/behaviours", json=[behaviour])).raise_for_status()

    async def _until(self, condition: Callable[[], bool], works: Works) -> None:
        async with asyncio.timeout(LAST_WAIT_S):
            while not condition():
                self._check(works)
                await asyncio.sleep(LOOK_S)

    @staticmethod
    def _check(works: Works) -> None:
        for work in works:
            if work.done():
                work.result()

    async def _sample(self, hours: float) -> None:
        """Of some looks the one with the fewest tasks: a request's connection in the making is one for a moment."""
        looks = [tasks()]
        while len(looks) < LOOKS:
            await asyncio.sleep(LOOK_S)
            looks.append(tasks())
        sample = Sample(hours, rss_mb(), *min(looks))
        self.found.samples.append(sample)
        if len(self.found.samples) % 12 == 1:
            trades = sum(proof.next - (proof.first or 0) for proof in self.proofs.values())
            self.say(
                f"{hours:5.2f} h: {trades:,} trades, {self.found.cuts} cuts, {sample.rss_mb:.1f} MB, "
                f"{sample.lasting} tasks and {sample.passing} that wait"
            )

    async def _behind(self, until_ms: int) -> int:
        """Trades of the exchange's history up to a moment that have not come."""
        waiting = 0
        for symbol, proof in self.proofs.items():
            if proof.first is not None:
                batch, _ = await self._history(symbol, proof.next)
                waiting += int((batch.array("ts_ms") < until_ms).sum())
        return waiting

    async def _history(self, symbol: str, from_id: int) -> tuple[Batch, bool]:
        """A page of what the exchange says was traded from an id on, and whether there is more."""
        page = await self.exchange.page_from("trades", symbol, from_id, 0)
        asked = (0, page.covers[1] + 1)  # the last millisecond's trades are rows of it
        info: PageInfo = page.info(venue="binance", symbol=symbol, channel="trades", asked=asked, run="soak")
        return normalize(self.exchange, info, page.body, PUT_AT)[0], page.more

    async def _compare(self, until_ms: int) -> None:
        """The rows that came with the exchange's own history of the same ids."""
        found = self.found
        found.waiting = await self._behind(until_ms)
        for symbol, proof in self.proofs.items():
            found.lost, found.doubled = found.lost + proof.lost, found.doubled + proof.doubled
            if proof.first is None:
                found.differ.append(symbol)
                continue
            found.trades += proof.next - proof.first
            if proof.checksum != await self._true_checksum(symbol, proof.first, proof.next):
                found.differ.append(symbol)

    async def _true_checksum(self, symbol: str, first: int, end: int) -> int:
        made, more = 0, True
        while more and first < end:
            batch, more = await self._history(symbol, first)
            kept = int((batch.array("id") < end).sum())
            made, first = checksum(batch, made, kept), first + kept
        return made


def tasks() -> tuple[int, int]:
    """Tasks of asyncio that go on, and those that wait for one moment."""
    kinds = Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
    passing = sum(kinds[kind] for kind in PASSING)
    return kinds.total() - passing, passing


def rss_mb() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextmanager
def simulated(plan: Plan) -> Iterator[str]:
    with TemporaryDirectory() as folder, Children(Path(folder)) as children:
        more = ("--symbols", str(plan.symbols), "--speed", str(plan.speed), "--lively", str(plan.lively))
        yield children.start_exchange(None, more=(*more, "--start", START))


def soak(plan: Plan, say: Callable[[str], object] = print) -> Found:
    with simulated(plan) as url:
        return asyncio.run(_soak(plan, url, say))


async def _soak(plan: Plan, url: str, say: Callable[[str], object]) -> Found:
    return await Soak(plan, url, say).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24, help="of the exchange's clock")
    parser.add_argument("--symbols", type=int, default=200)
    parser.add_argument("--speed", type=float, default=96, help="seconds of the exchange's clock in a second")
    parser.add_argument("--cut-every-min", type=float, default=5, help="minutes of the exchange's clock")
    parser.add_argument("--lively", type=float, default=1, help="times as many trades as usual")
    said = parser.parse_args()
    found = soak(Plan(**vars(said)), lambda line: print(line, flush=True))
    lost = found.lost + found.waiting
    least, most = found.lasting
    checks = [
        report("trades received", found.trades, "trades"),
        report("reconnects", found.cuts, "cuts"),
        report("trades received twice", found.doubled, "trades", goal=0, less=True),
        report("symbols whose rows are not the exchange's", len(found.differ), "symbols", goal=0, less=True),
        report("most tasks less fewest", most - least, "tasks", goal=0, less=True),
        report("memory an hour behind the warm-up", found.mb_per_hour, "MB/h", goal=GOAL_MB_PER_HOUR, less=True),
        report("trades lost in the soak", lost, "trades", goal=0, less=True),
    ]
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
