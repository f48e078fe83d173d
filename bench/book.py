"""What one update of an order book costs: `python -m bench.book`.

A day of 100 ms diffs on a virtual clock, applied to a book of 5,000 levels a side as build_books does it: apply a
diff, take the best 20 levels and the features; reading the frame is counted apart. The first hour is compared with the
last. The reference is the plain way in the same run: a dict a side, sorted after every diff. What is measured is the
thread's own time: a machine that also does other things makes nothing slower here than it is.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
import numpy as np

from adapters.exchanges.binance_books import read_diff, read_snapshot
from agents.books import KeptBook
from app.run_worker import GC_AFTER
from bench.measure import report
from models.market import Array, Level
from models.order_book import DEPTH, Diff

LEVELS = 5_000
TICKS = 6_000  # a price moves over so many ticks a side: some levels come, some go, as many stay
DIFFS_PER_HOUR = 36_000
GOAL_P99_US = 200.0
Use = Callable[[Diff], object]


class Market:
    """Frames as large as BTCUSDT's were when it was busy: 22 levels in the median, 383 in one of a hundred."""

    def __init__(self, seed: int = 7) -> None:
        self._random = np.random.default_rng(seed)
        self._at = 1_000_000
        self._middle = 6_000_000  # ticks of 0.01
        levels = [f"{n + 1}.00000000" for n in range(LEVELS)]
        self.snapshot = msgspec.json.encode(
            {
                "lastUpdateId": self._at,
                "bids": [(self._text(self._middle - 1 - n), size) for n, size in enumerate(levels)],
                "asks": [(self._text(self._middle + 1 + n), size) for n, size in enumerate(levels)],
            }
        )

    def frames(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self._frame()

    def _frame(self) -> bytes:
        random = self._random
        levels = min(1_076, int(random.lognormal(np.log(22), 1.23)) + 1)
        first, self._at = self._at + 1, self._at + levels
        event = {
            "e": "depthUpdate", "E": 1_700_000_000_000 + self._at, "s": "BTCUSDT", "U": first, "u": self._at,
            "b": self._levels(-1, levels // 2), "a": self._levels(1, levels - levels // 2),
        }  # fmt: skip
        return msgspec.json.encode({"stream": "btcusdt@depth@100ms", "data": event})

    def _levels(self, sign: int, count: int) -> list[tuple[str, str]]:
        """Half of the changes within 500 ticks; one in six removes a level, so that as many are held as before."""
        random = self._random
        near = random.random(count) < 0.5
        ticks = np.unique(np.where(near, random.integers(1, 500, count), random.integers(1, TICKS, count)))
        sizes = np.where(random.random(len(ticks)) < 1 - LEVELS / TICKS, 0.0, random.exponential(2.0, len(ticks)))
        pairs = zip(ticks.tolist(), sizes.tolist(), strict=True)
        return [(self._text(self._middle + sign * tick), f"{size:.8f}") for tick, size in pairs]

    @staticmethod
    def _text(ticks: int) -> str:
        return f"{ticks // 100}.{ticks % 100:02d}000000"


class PlainBook:
    """A dict a side, sorted after every diff: what a first version looks like."""

    def __init__(self, snapshot: bytes) -> None:
        found = read_snapshot(snapshot)
        self._bids, self._asks = dict(found.bids), dict(found.asks)

    def use(self, diff: Diff) -> tuple[list[Level], list[Level]]:
        for levels, side in ((diff.bids, self._bids), (diff.asks, self._asks)):
            for price, size in levels:
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)
        return sorted(self._bids.items(), reverse=True)[:DEPTH], sorted(self._asks.items())[:DEPTH]


def our_book(snapshot: bytes) -> tuple[KeptBook, Use]:
    """In sync, as the agent has it."""
    kept = KeptBook("binance")
    found = read_snapshot(snapshot)
    kept.sync.diff(Diff(found.last, 0, [], [], first=found.last))
    kept.sync.snapshot(found)

    def use(diff: Diff) -> None:
        kept.sync.diff(diff)
        kept.rows.clear()

    return kept, use


def microseconds(use: Use, frames: Iterator[bytes]) -> Array:
    """What each frame took: reading it, using it. Shapes: (frames, 2)."""
    taken = []
    while chunk := list(islice(frames, 1_000)):  # made before the clock runs
        for frame in chunk:
            started = time.thread_time_ns()
            diff = read_diff(frame)
            read = time.thread_time_ns()
            use(diff)
            taken.append((read - started, time.thread_time_ns() - read))
    return np.array(taken) / 1_000


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hours", type=int, default=24, help="of the virtual day")
    options = arguments.parse_args()
    market = Market()
    plain, (kept, use) = PlainBook(market.snapshot), our_book(market.snapshot)
    frames = list(market.frames(2_000))
    gc.collect()
    gc.freeze()  # as a worker does
    gc.set_threshold(GC_AFTER)
    reference = microseconds(plain.use, iter(frames))[:, 1]
    microseconds(use, iter(frames))
    hours = [microseconds(use, market.frames(DIFFS_PER_HOUR)) for _ in range(options.hours)]
    assert kept.sync.book
    held = len(kept.sync.book.bids) + len(kept.sync.book.asks)
    report("levels held at the end, both sides", held, "levels")
    read, used = np.concatenate(hours).T
    report("p50 of reading a frame", percentile(read, 50), "us")
    report("p99 of reading a frame", percentile(read, 99), "us")
    report("p50 of one update", percentile(used, 50), "us", ratio=percentile(used, 50) / percentile(reference, 50))
    first, last = (percentile(hour[:, 1], 99) for hour in (hours[0], hours[-1]))
    flat = report("p99 of the last hour to that of the first", last / first, "times", goal=1.2, less=True)
    p99 = percentile(used, 99)
    fast = report(
        "p99 of one update at 5,000 levels a side", p99, "us", ratio=p99 / percentile(reference, 99), goal=GOAL_P99_US,
        less=True,
    )  # fmt: skip
    return 0 if flat and fast else 1


def percentile(taken: Array, part: float) -> float:
    return float(np.percentile(taken, part))


if __name__ == "__main__":
    sys.exit(main())
