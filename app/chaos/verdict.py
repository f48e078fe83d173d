"""What an experiment showed: rows lost, doubled, late or out of order; how long each fault held the run up.

The simulated exchange's market is known by its seed, so what should be stored is known without asking anything that
took part. `verify` then compares exchange, topics and store value by value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from adapters.exchanges.tape import Tape
from adapters.records import RecordReader
from adapters.stores.base import Store
from app.chaos.plan import Plan
from app.errors import RunFailed, VerifyFailed
from app.outside import VENUE
from app.verify import Market, batch_head, collection_of, stored_rows
from app.verify_rows import once
from models.control import TERMINAL, parse_range
from models.market import Array, Span

Json = dict[str, Any]

STANDSTILL_S = 1.5  # steps report every 0.5 s; a longer silence means that a step stood still
MARKET = ("raw.trades", "raw.candles", "market.trades", "market.candles")


@dataclass
class Injected:
    """One fault as it was done. Times in seconds from the command on."""

    deed: str
    at_s: float
    over_s: float | None = None  # when what was broken was mended; None: it stays away
    ready_s: float | None = None  # when what was started again was ready
    recovered_s: float | None = None  # seconds from the fault until the run moved again
    taken_over_s: float | None = None  # seconds from the fault until a step went on from its checkpoint elsewhere

    def __str__(self) -> str:
        back = (
            "did not come back" if self.recovered_s is None else f"the run moved again after {self.recovered_s:.1f} s"
        )
        return f"{self.at_s:8.2f} s  {self.deed}: {back}"


@dataclass(frozen=True)
class Movement:
    """A step got further, or ended."""

    at_s: float
    task: str
    ended: bool


@dataclass
class Counts:
    """Rows of the run's streams: what the exchange has against what is stored."""

    expected: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    foreign: int = 0  # stored, but the exchange has no such row
    examples: list[str] = field(default_factory=list)

    def add(self, name: str, expected: Array, stored: Array, doubled: int) -> None:
        """`stored` has each key once; `doubled` counts the repeats that were there beside them."""
        lacking, foreign = np.setdiff1d(expected, stored), np.setdiff1d(stored, expected)
        self.expected += len(expected)
        self.stored += len(stored)
        self.lost += len(lacking)
        self.doubled += doubled
        self.foreign += len(foreign)
        self.examples += [f"{name} {key} is lost" for key in lacking[:5].tolist()]
        self.examples += [f"{name} {key} is stored, the exchange has none" for key in foreign[:5].tolist()]


@dataclass
class Verdict:
    """`late`: rows that were not stored yet when the run said it was finished; `differences` are those of `verify`."""

    queue_id: str
    state: str
    counts: Counts
    late: int
    disordered: int
    messages: int
    differences: int
    seconds: float
    restarts: int  # workers that ended by themselves and were started again
    faults: list[Injected]
    plan: str = ""
    seed: int = 0
    left_out: int = 0  # faults that did not come to it before the run's end

    @property
    def wrong(self) -> int:
        """Rows and records that are not as they have to be; 0: a clean experiment."""
        c = self.counts
        return c.lost + c.doubled + c.foreign + self.late + self.disordered + self.differences

    @property
    def recovery_s(self) -> float | None:
        """The slowest recovery."""
        return max((f.recovered_s for f in self.faults if f.recovered_s is not None), default=None)

    def document(self) -> Json:
        return {**asdict(self), "wrong": self.wrong, "recovery_s": self.recovery_s}

    def lines(self) -> Iterator[str]:
        yield "faults"
        yield from (f"  {fault}" for fault in self.faults)
        if self.left_out:
            yield f"  {self.left_out} more were not done: the run had ended, or nobody was there"
        counts = self.counts
        yield f"{counts.expected:,} rows expected, {counts.stored:,} stored, {self.messages:,} messages"
        yield f"lost {counts.lost}, doubled {counts.doubled}, foreign {counts.foreign}, late {self.late}, " + (
            f"out of order {self.disordered}, differences {self.differences}"
        )
        yield from (f"  {example}" for example in counts.examples[:10])
        if self.restarts:
            yield f"workers that ended by themselves and were started again: {self.restarts}"
        yield f"the run is {self.state} after {self.seconds:.1f} s: {'clean' if self.clean else 'NOT CLEAN'}"

    @property
    def clean(self) -> bool:
        return self.state == "finished" and not self.wrong

    def raise_if_not_clean(self) -> None:
        """Raises RunFailed for a run that is not finished, VerifyFailed for one that is not exact."""
        if self.state != "finished":
            raise RunFailed(f"the run {self.queue_id} is {self.state} after {self.seconds:.0f} s")
        if self.wrong:
            raise VerifyFailed(
                f"{self.queue_id}: lost {self.counts.lost}, doubled {self.counts.doubled}, foreign "
                f"{self.counts.foreign}, late {self.late}, out of order {self.disordered}, "
                f"differences {self.differences}"
            )


# --- rows -------------------------------------------------------------------------------------------------------------


def channels(plan: Plan) -> list[str]:
    """The streams of the plan's job."""
    wanted = {"candles": f"candles_{plan.job.interval}", "trades": "trades"}
    return [wanted[stage] for stage in plan.job.stages if stage in wanted]


def span_of(plan: Plan) -> Span:
    return parse_range(plan.job.range, np.inf)


def expected_keys(plan: Plan, channel: str) -> Array:
    """Trade ids, or open times, of what the simulated exchange has in the asked range."""
    tape, span = Tape(plan.setup.exchange_seed), span_of(plan)
    if channel == "trades":
        keys: Array = tape.trades(plan.job.symbol, *span).id
        return keys
    opens: Array = tape.candles(plan.job.symbol, channel.removeprefix("candles_"), *span).ts_ms
    return opens


def stored_keys(store: Store, plan: Plan, channel: str) -> tuple[Array, int]:
    """Keys as they are stored, each once, and how many were there twice."""
    key = "id" if channel == "trades" else "ts"
    rows, doubled, _ = once(stored_rows(store, Market(VENUE, plan.job.symbol), channel, span_of(plan)), key)
    return rows[key], doubled


def rows_stored(store: Store, plan: Plan) -> int:
    """Rows in the streams' collections, counted fast, candles made from trades included."""
    lo, hi = span_of(plan)
    eq = {"venue": VENUE, "symbol": plan.job.symbol}
    names = [name for channel in channels(plan) if (name := collection_of(channel)) in store.collections()]
    return sum(store.count(name, eq=eq, lo=lo, hi=hi) for name in names)


def count(store: Store, plan: Plan) -> Counts:
    counts = Counts()
    for channel in channels(plan):
        counts.add(channel, expected_keys(plan, channel), *stored_keys(store, plan, channel))
    return counts


# --- records ----------------------------------------------------------------------------------------------------------


def disordered(reader: RecordReader) -> int:
    """Batches of trades that begin behind a row that had not come yet: repeats are legal, leaving out is not."""
    last: dict[bytes | None, int] = {}
    found = 0
    for record in reader.records("market.trades"):
        ids = batch_head(record).arrays()["id"]
        if len(ids):
            before = last.get(record.key)
            found += before is not None and int(ids[0]) > before + 1
            last[record.key] = max(int(ids[-1]), before or 0)
    return found


def messages(reader: RecordReader) -> int:
    """Records that carried market rows."""
    return sum(end for (topic, _), end in reader.ends().items() if topic in MARKET)


def waiting(reader: RecordReader, topics: Sequence[str], app_id: str) -> int:
    """Records of these topics behind which a group of this application that reads them has not committed."""
    committed = {place: offset for place, offset in reader.committed().items() if place[0].startswith(app_id)}
    readers = {topic: {group for group, known, _ in committed if known == topic} for topic in topics}
    return sum(
        max(0, end - committed.get((group, topic, partition), 0))
        for (topic, partition), end in reader.ends().items()
        if topic in readers and end
        for group in readers[topic]
    )


# --- recovery ---------------------------------------------------------------------------------------------------------


def movements(events: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Movement]:
    """Where steps got further, and the run's end (its task is empty). `events`: (seconds, event)."""
    furthest: dict[str, tuple[float, float]] = {}
    found: list[Movement] = []
    for at_s, event in events:
        ended = event.get("status") in TERMINAL
        task = str((event.get("extra") or {}).get("task") or "")
        if not task:
            if ended and event.get("target") == "queue-manager":
                found.append(Movement(at_s, "", ended))
            continue
        reached = (_number(event.get("records_written")), _number(event.get("progress")))
        before = furthest.get(task, (-1.0, -1.0))
        if ended or reached[0] > before[0] or reached[1] > before[1]:
            found.append(Movement(at_s, task, ended))
        furthest[task] = (max(reached[0], before[0]), max(reached[1], before[1]))
    return found


def recoveries(faults: Sequence[Injected], moved: Sequence[Movement]) -> None:
    """Say for each fault when it and each step at work had moved again after the longest standstill.

    A standstill belongs to the last fault before it.
    """
    for fault, after in zip(faults, [*(f.at_s for f in faults[1:]), math.inf], strict=False):
        begun = {m.task for m in moved if m.at_s <= fault.at_s}
        ended = {m.task for m in moved if m.at_s <= fault.at_s and m.ended}
        times = [[m.at_s for m in moved if m.task == task] for task in begun - ended]
        back = [_back_s(of_one, fault.at_s, after) for of_one in [*times, [m.at_s for m in moved]]]
        fault.recovered_s = None if None in back else max(at_s for at_s in back if at_s is not None) - fault.at_s


def takeovers(faults: Sequence[Injected], events: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
    """Say for each fault when a step went on from its checkpoint, if one did before the next fault."""
    for fault, after in zip(faults, [*(f.at_s for f in faults[1:]), math.inf], strict=False):
        went_on = (at_s for at_s, event in events if fault.at_s < at_s < after and goes_on(event))
        first = next(went_on, None)
        fault.taken_over_s = None if first is None else first - fault.at_s


def goes_on(event: Mapping[str, Any]) -> bool:
    return event.get("status") == "loading" and event.get("message") == "goes on"


def _back_s(times: Sequence[float], fault_s: float, next_fault_s: float) -> float | None:
    """When a step moved again: the end of its longest standstill that began in this fault's time, or its next move."""
    later = [at_s for at_s in times if at_s > fault_s]
    if not later:
        return None
    starts = [fault_s, *later[:-1]]
    still = [(min(end, next_fault_s) - start, end) for start, end in zip(starts, later, strict=True)]
    longest, end = max(still)
    return end if longest > STANDSTILL_S else later[0]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else -1.0
