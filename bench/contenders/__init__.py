"""Who `bench.throughput` compares: one script a contender, each run in a process of its own.

A contender reads --frames from the first offset, keeps candles, sends normalized trades to --out, writes --store and
prints one JSON line: {"trades", "seconds", "cpu_seconds"}, from its first message to everything durable.
"""

from __future__ import annotations

import argparse
import json
import time

INTERVALS = {"1m": 60_000, "5m": 300_000}  # ms


def arguments(doc: str | None, *, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--bootstrap", "--frames", "--out", "--store"):
        parser.add_argument(name, required=True)
    for name in ("--messages", "--trades"):
        parser.add_argument(name, required=True, type=int)
    for name in flags:
        parser.add_argument(name, action="store_true")
    return parser.parse_args()


class Span:
    """From the first message to everything durable, in seconds of the clock and of this process's CPU."""

    def __init__(self) -> None:
        self.started: tuple[float, float] | None = None
        self.ended = (0.0, 0.0)

    def first_message(self) -> None:
        """Call it for every message, or for the first only."""
        if self.started is None:
            self.started = (time.perf_counter(), time.process_time())

    def durable(self) -> None:
        self.ended = (time.perf_counter(), time.process_time())

    def report(self, trades: int) -> None:
        if self.started is None:
            raise SystemExit("no message came: look whether --frames is the filled topic")
        seconds, cpu_seconds = (end - start for start, end in zip(self.started, self.ended, strict=True))
        print(json.dumps({"trades": trades, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)
