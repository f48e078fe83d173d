"""Holes become repair runs by themselves: the ledgers in the store -> find_holes -> queue-control (`start`).

A hole is what was asked for and lies, by id or by clock, between rows that are stored, or could not be read. Its run
has the hole's name, so a hole is one run however often it is seen; what the exchange does not have ends as
unrecoverable, what stays unreadable is left as missing after REPAIR_LIMIT runs. Both are shown by `coverage`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from app import outside
from app.config import settings
from app.core import app
from app.errors import StoreBusy
from app.telemetry import REPAIRS
from app.work import send_command
from models.control import CONNECTOR, LOADER, Json, Workflow
from models.coverage import Coverage
from models.market import INTERVAL_MS, Span, instant_text
from tables.workflows import workflows

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
HOUR_MS = 3_600_000
_seen_since: dict[str, float] = {}  # by the repair's name


@app.timer(interval=LOOK_EVERY_S)
async def find_holes() -> None:
    """Ask for a run for every hole that nobody is about to fill."""
    runs = {run.queue_id: run for run in workflows.values()}
    if not runs:
        return  # not the owner of the runs, or nothing was ever loaded
    try:
        ledgers = await asyncio.to_thread(outside.read_ledgers, outside.store())
    except StoreBusy:
        return
    found = {name: (stream, hole) for stream, ledger in ledgers.items() for name, hole in holes_of(stream, ledger)}
    now = time.time()
    for gone in _seen_since.keys() - found.keys():
        del _seen_since[gone]
    for name, (stream, hole) in found.items():
        since = _seen_since.setdefault(name, now)
        if is_due(name, stream, runs, now, since, hole[1]):
            log.warning("%s lacks %s .. %s: it is loaded again", stream, *map(instant_text, hole))
            REPAIRS.labels(stream).inc()
            await send_command(repair_command(name, stream, hole))


def holes_of(stream: str, ledger: Coverage) -> Iterable[tuple[str, Span]]:
    """Each hole with the name of its repair."""
    venue, symbol, channel = stream.split(":")
    for start, end in ledger.holes():
        yield f"repair-{venue}-{symbol}-{channel}-{start}-{end}".lower(), (start, end)


def is_due(
    name: str, stream: str, runs: Mapping[str, Workflow], now_s: float, since_s: float, hole_end_ms: int = 0
) -> bool:
    """True when nobody works on the stream, and the hole is old enough, or its last repair long enough ago."""
    wait_s = settings().repair_after_s
    if any(run.live and stream in streams_of(run) for run in runs.values()):
        return False
    known = runs.get(name)
    if known is None:
        return now_s - since_s >= wait_s and now_s * 1000 >= candles_closed_ms(hole_end_ms)
    tries = max(step.attempt for step in known.steps)
    failed = known.state == "error"  # one that was stopped is not wanted
    return failed and tries < settings().repair_limit and now_s - known.updated_at >= wait_s * 2**tries


def candles_closed_ms(hole_end_ms: int) -> int:
    """When the candles that hold the end of a hole have closed: what repairs it makes these too, whole."""
    sizes = (INTERVAL_MS[interval] for interval in settings().candle_intervals)
    step = max((size for size in sizes if size <= HOUR_MS), default=1)
    return hole_end_ms + -hole_end_ms % step


def streams_of(run: Workflow) -> set[str]:
    steps = (step for step in run.steps if step.target in (LOADER, CONNECTOR))
    return {f"{step.venue}:{step.symbol}:{step.channel}" for step in steps}


def repair_command(name: str, stream: str, hole: Span) -> Json:
    """Load and store what lacks in the full hours of the hole: so the candles over its edges are made too."""
    venue, symbol, channel = stream.split(":")
    kind = f"api_{channel}"
    start, end = hole[0] - hole[0] % HOUR_MS, min(hole[1] + -hole[1] % HOUR_MS, int(time.time() * 1000))
    return {
        "command": "start", "queue_id": name, "venue": venue, "symbol": symbol,
        "time_range": f"{instant_text(start)}:{instant_text(end)}",
        "requests": [{"target": LOADER, "type": kind}, {"target": CONNECTOR, "type": kind}],
    }  # fmt: skip
