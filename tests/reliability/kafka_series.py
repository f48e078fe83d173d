"""Workers on a real broker that are stopped, killed, joined by others and cut off. Judged by their tables' changelogs.

    Numbers(bootstrap, folder).prepare(16_000) -> worker(), worker(), ... -> finish() -> outcome("11 kills")

Every series is short as a test of the suite and full with CHAOS_REPEATS=20 (`make chaos`). REPAIR=0 runs Faust as it
is published: then nothing is asserted, only reported. CHAOS_REPORT names a file that gets each outcome's line.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.reliability.kafka_app import PARTITIONS, TABLES, Row, decode, encode

ROOT = Path(__file__).parents[2]
REPAIRED = os.environ.get("REPAIR", "1") == "1"
REPEATS = int(os.environ.get("CHAOS_REPEATS", "1"))
FULL = REPEATS > 1
KEYS = [b"key%d" % number for number in range(64)]
PATIENCE_S = 300.0
STUCK_S = 200.0  # without a record or a commit for so long, a worker will not get on any more
POLL_S = 0.05


def note(line: str) -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    if path := os.environ.get("CHAOS_REPORT"):
        with Path(path).open("a", encoding="utf-8") as report:
            report.write(line + "\n")


@dataclass
class Outcome:
    """What an experiment came to. `lost`: numbers that no row has; `doubled`: applied more than once."""

    experiment: str
    repetitions: int
    messages: int
    lost: int
    doubled: int
    duplicates: int
    committed: bool
    recovery_s: list[float] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return not self.lost and not self.doubled and self.committed

    def line(self) -> str:
        found = self.recovery_s or [0.0]
        return (
            f"{self.experiment} | {'repair' if REPAIRED else 'stock'} | {self.repetitions} times | "
            f"{self.messages} messages | {self.lost} lost | {self.doubled} doubled in effect | "
            f"{self.duplicates} duplicates seen | "
            f"{statistics.median(found):.1f} s to recover (at most {max(found):.1f})"
            f"{'' if self.committed else ' | never committed to the end'}"
        )

    def report(self) -> Outcome:
        note(self.line())
        return self

    def check(self) -> None:
        """Report, and hold the repaired driver to it."""
        self.report()
        assert self.exact or not REPAIRED, self.line()


@dataclass
class Worker:
    """A running worker of ours; its words lie in `output`."""

    popen: subprocess.Popen[bytes]
    output: Path

    def ready(self) -> Worker:
        self.ready_after_s()
        return self

    def ready_after_s(self) -> float:
        """Seconds from its start until its tables were recovered, by its own clock."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert b"ready after" in line, (line, self.said()[-3000:])
        return float(line.split(b"ready after")[1].split()[0])

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            if REPAIRED:
                raise
            self.kill()
            return -9

    def said(self) -> str:
        return self.output.read_text(errors="replace")


class Numbers:
    """An application of its own on a broker: its topics, its workers, and what its tables came to."""

    def __init__(self, bootstrap: str, folder: Path, *, store: str = "memory", replication: int = 1) -> None:
        self.bootstrap, self.folder, self.store = bootstrap, folder, store
        self.app_id = f"app-{uuid4().hex[:8]}"
        self.numbers, self.middle = f"{self.app_id}-numbers", f"{self.app_id}-middle"
        self.events = 0
        self.recovery_s: list[float] = []
        self._started = 0
        self._reader = Consumer(
            {
                "bootstrap.servers": bootstrap, "group.id": self.app_id, "enable.auto.commit": False,
                "auto.offset.reset": "earliest", "enable.partition.eof": False, "log_level": 0,
            }
        )  # fmt: skip
        compact = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": "2000"}
        topics = [NewTopic(name, PARTITIONS, replication) for name in (self.numbers, self.middle)]
        topics += [NewTopic(self.changelog(name), PARTITIONS, replication, config=compact) for name in TABLES]
        topics.append(NewTopic(f"{self.app_id}-__assignor-__leader", 1, replication))
        admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        for created in admin.create_topics(topics).values():
            created.result(30)

    def changelog(self, table: str) -> str:
        return f"{self.app_id}-{table}-changelog"

    # What goes in

    def prepare(self, events: int) -> Numbers:
        """Add so many numbers, spread evenly over KEYS."""
        with self.producing() as produce:
            for _ in range(events):
                produce()
        return self

    @contextmanager
    def producing(self) -> Iterator[Callable[[], None]]:
        """A call adds the next number; all are on the brokers when the context ends."""
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True,
                "acks": "all", "linger.ms": 5, "delivery.timeout.ms": 900_000, "log_level": 0,
            }
        )  # fmt: skip

        def produce() -> None:
            place, key = divmod(self.events, len(KEYS))
            while True:
                try:
                    producer.produce(self.numbers, b"%d" % place, KEYS[key])
                    break
                except BufferError:
                    producer.poll(0.1)
            self.events += 1
            producer.poll(0)

        yield produce
        assert producer.flush(PATIENCE_S) == 0

    def fill_table(self, table: str, rows: int) -> None:
        """Rows as a worker would have left them, with no source behind them."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "linger.ms": 50})
        value = encode(Row(last=1, applied=1))
        for number in range(rows):
            while True:
                try:
                    producer.produce(self.changelog(table), value, b"row%d" % number)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        assert producer.flush(PATIENCE_S) == 0

    # Workers

    @contextmanager
    def worker(self, name: str = "w1", **environment: str) -> Iterator[Worker]:
        """A worker with a volume of its own, by its name."""
        volume = self.folder / self.app_id / name
        volume.mkdir(parents=True, exist_ok=True)
        output = volume.with_suffix(".out")
        with output.open("ab") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.reliability.kafka_app"],
                cwd=ROOT,
                env={
                    **os.environ, "PYTHONPATH": str(ROOT), "APP_ID": self.app_id, "BOOTSTRAP": self.bootstrap,
                    "TABLE_STORE": self.store, "DATADIR": str(volume), **environment,
                },
                stdout=subprocess.PIPE,
                stderr=errors,
            )  # fmt: skip
        try:
            yield Worker(child, output)
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def until(self, condition: Callable[[], Any], *workers: Worker, patience_s: float = PATIENCE_S) -> None:
        """Other processes make it true; there is nothing to wait on but the broker."""
        give_up = time.monotonic() + patience_s
        while not condition():
            for worker in workers:
                assert worker.popen.poll() is None, f"a worker ended: {worker.said()[-3000:]}"
            assert time.monotonic() < give_up, f"waited {patience_s} s\n{[w.said()[-3000:] for w in workers]}"
            time.sleep(POLL_S)

    def until_advanced(self, step: int, *workers: Worker, since: float | None = None) -> None:
        """Until so many more numbers were passed on; the first of them ends a recovery that began at `since`."""
        begun = self.end(self.middle)
        if since is not None:
            self.until(lambda: self.end(self.middle) > begun, *workers)
            self.recovery_s.append(time.monotonic() - since)
        goal = min(begun + step, self.events)
        self.until(lambda: self.end(self.middle) >= goal, *workers)

    def finish(self, **environment: str) -> bool:
        """Let a worker do what is left, and stop it. False when it came to a standstill before the end."""
        with self.worker(**environment) as worker:
            worker.ready()
            done = self.until_done(worker)
            worker.stop()
        return done

    def until_done(self, *workers: Worker) -> bool:
        """Until everything is processed and committed; False when nothing moves any more."""
        seen: Any = None
        moved = time.monotonic()
        while True:
            ends = [self.end(topic) for topic in (self.numbers, self.middle)]
            committed = [self.committed(topic) for topic in (self.numbers, self.middle)]
            if ends == committed:
                return True
            if seen != (ends, committed):
                seen, moved = (ends, committed), time.monotonic()
            if time.monotonic() > moved + STUCK_S:
                return False
            for worker in workers:
                assert worker.popen.poll() is None, f"a worker ended: {worker.said()[-3000:]}"
            time.sleep(POLL_S)

    # What came out

    def end(self, topic: str) -> int:
        return sum(self._watermarks(topic, partition)[1] for partition in range(PARTITIONS))

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        while True:
            try:
                return self._reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=30) or (0, 0)
            except KafkaException:  # the broker is away, or chooses a leader
                time.sleep(POLL_S)

    def committed(self, topic: str) -> int:
        """Offsets committed, summed over partitions."""
        partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        while True:
            try:
                return sum(max(0, place.offset) for place in self._reader.committed(partitions, timeout=10))
            except KafkaException:
                time.sleep(POLL_S)

    def records(self, topic: str) -> Iterator[tuple[int, int, bytes, bytes | None]]:
        """(partition, offset, key, value) of every record that is there now, partition by partition."""
        for partition in range(PARTITIONS):
            low, high = self._watermarks(topic, partition)
            self._reader.assign([TopicPartition(topic, partition, low)])
            at = low
            while at < high:
                for message in self._reader.consume(10_000, timeout=0.5):
                    assert message.error() is None, message.error()
                    at = message.offset() + 1
                    if at <= high:
                        yield partition, message.offset(), message.key(), message.value()
                [place] = self._reader.position([TopicPartition(topic, partition)])
                at = max(at, place.offset)  # what compaction took leaves no message behind
        self._reader.unassign()

    def rows(self, table: str) -> dict[bytes, Row]:
        """A table as its changelog has it: what the next start would recover."""
        return {key: decode(value) for _, _, key, value in self.records(self.changelog(table)) if value}

    def outcome(self, experiment: str, repetitions: int, *, committed: bool = True) -> Outcome:
        lost = doubled = duplicates = 0
        for table in TABLES:
            rows = self.rows(table)
            for number, key in enumerate(KEYS):
                row = rows.get(key, Row())
                missing = len(range(number, self.events, len(KEYS))) - row.applied
                lost += max(0, missing)
                doubled += max(0, -missing)
                duplicates += row.repeats
        return Outcome(experiment, repetitions, self.events, lost, doubled, duplicates, committed, self.recovery_s)


# The series


def restarts(numbers: Numbers, times: int, step: int) -> Outcome:
    """A worker is stopped as Kubernetes stops it, again and again, with a backlog that never ends meanwhile."""
    numbers.prepare(2 * step * (times + 1))
    for _ in range(times):
        begun = time.monotonic()
        with numbers.worker(EVENT_S="0.001") as worker:
            numbers.until_advanced(step, worker, since=begun)
            code = worker.stop()
            assert code == 0 or not REPAIRED, worker.said()[-3000:]
    return numbers.outcome(f"graceful restarts, {numbers.store}", times, committed=numbers.finish())


def kills(numbers: Numbers, times: int, cycle_s: float, events: int, seed: int = 1) -> Outcome:
    """A worker is killed about `cycle_s` after its first number, again and again."""
    chance = random.Random(seed)
    numbers.prepare(events)
    for _ in range(times):
        begun = time.monotonic()
        with numbers.worker(EVENT_S="0.001") as worker:
            numbers.until_advanced(1, worker, since=begun)
            time.sleep(cycle_s * chance.uniform(0.6, 1.4))  # the moment of the kill is the point
            worker.kill()
    return numbers.outcome(f"kill -9, {numbers.store}", times, committed=numbers.finish())


def joins(numbers: Numbers, times: int, others: int, step: int, events: int) -> Outcome:
    """Others join a worker under load and leave it again."""
    numbers.prepare(events)
    with numbers.worker("w1", EVENT_S="0.001") as first:
        first.ready()
        for _ in range(times):
            numbers.until_advanced(step, first)
            with ExitStack() as stack:
                names = [f"w{number + 2}" for number in range(others)]
                joined = [stack.enter_context(numbers.worker(name, EVENT_S="0.001")) for name in names]
                begun = time.monotonic()
                for worker in joined:
                    worker.ready()
                numbers.recovery_s.append(time.monotonic() - begun)
                numbers.until_advanced(step, first, *joined)
                for worker in joined:
                    worker.stop()
        done = numbers.until_done(first)
        first.stop()
    return numbers.outcome(f"1 -> {1 + others} -> 1 workers, {numbers.store}", times, committed=done)
