"""The same work by this application and by others on one local broker: `python -m bench.throughput`.

frames on a topic -> parse -> normalized trades on a topic -> candles of 1m and 5m in the contender's own state
                          -> trades and candles in SQLite, through apsw for all
Every run is checked to be exact: distinct trades and their sizes by symbol, every candle's volume. Measured from a
contender's first message until everything is stored, sent and committed: trades a second, and the CPU seconds of its
one process for a million trades; of the broker's nothing. The contenders take turns, the median of the repeats counts.

Ours is `python -m app worker` as it is, crash safety and all, on pages of 500 frames; the store it writes is its own
(a column a block), those of the others are plain tables. Contenders with one frame a message get the first frames only.
Ours commits once a second, so its end comes up to a second after its last row; `until stored` is the time to that row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import apsw
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from adapters.kafka.admin import TopicSpec, apply
from adapters.kafka.client import Connection
from adapters.kafka.lag import Backlog
from adapters.kafka.local import Cluster
from adapters.kafka.session import Session
from adapters.stores import collections
from adapters.stores.sqlite import SqliteStore
from app.children import Child, free_port
from app.client import Worker
from app.errors import BrokerUnreachable, RunFailed, WorkerUnreachable
from bench.contenders import INTERVALS
from bench.frames import (
    PARTITIONS,
    FrameMessage,
    Stream,
    Truth,
    balanced,
    difference,
    first_frames,
    messages,
    page_headers,
    read_streams,
    truth_of,
)
from bench.measure import report
from models.candles import CandleState
from models.folding import Folding, Segment
from models.market import stream_key

ROOT = Path(__file__).parent.parent
THEIR_PYTHON = ROOT / ".tools" / "contenders" / "bin" / "python"
SINGLE, HUNDREDS, PAGES = "frames.1", "frames.100", "frames.500"
SIZES = {SINGLE: 1, HUNDREDS: 100, PAGES: 500}
RAW, MARKET = "raw.trades", ("market.trades", "market.candles")
POLL_S, WITHIN_S = 0.05, 900.0
SCALES_FROM_CORES = 4  # two workers and a broker
TABLE_ROWS = 100_000


@dataclass(frozen=True)
class Contender:
    """A script of `bench.contenders`; `goal`: how many times as fast ours has to be."""

    says: str
    script: str
    frames: str
    goal: float | None = None
    flags: tuple[str, ...] = ()
    python: Path = Path(sys.executable)


CONTENDERS = {
    "b": Contender("plain Faust, its defaults, a frame a message", "plain_faust", SINGLE, 100),
    "b2": Contender("plain Faust, tuned, a frame a message", "plain_faust", SINGLE, 50, ("--tuned",)),
    "c": Contender("Quix Streams' windows, a frame a message", "quix_windowed", SINGLE, 10, python=THEIR_PYTHON),
    "c-state": Contender("Quix Streams' state, a frame a message", "quix_stateful", SINGLE, 10, python=THEIR_PYTHON),
    "c2": Contender("Quix Streams' state, 500 frames a message", "quix_batches", PAGES, 1.5, python=THEIR_PYTHON),
    "d": Contender("Bytewax, 500 frames a message", "bytewax_batches", PAGES, 1.3, python=THEIR_PYTHON),
    "e-100": Contender("a plain loop, 100 frames a message", "plain_loop", HUNDREDS),
    "e": Contender("a plain loop, 500 frames a message", "plain_loop", PAGES, 0.6),
    "f": Contender("a loop that only decodes, 500 frames a message", "decode_only", PAGES),
}
OURS, SCALING, RECOVERY = "a", "workers", "recovery"
EVERYBODY = (OURS, *CONTENDERS, SCALING, RECOVERY)


@dataclass(frozen=True)
class Run:
    trades: int
    seconds: float
    cpu_seconds: float
    until_stored_s: float = 0.0

    @property
    def per_second(self) -> float:
        return self.trades / self.seconds

    @property
    def cpu_per_million(self) -> float:
        return self.cpu_seconds / self.trades * 1e6


def main() -> int:
    said = arguments()
    streams = read_streams(said.data)
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "kafka", die_with_parent=True) as cluster:
        bench = Bench(Path(name), cluster.connection(), streams, said.single)
        for number in range(said.repeats):  # in turns, so that all meet the same machine
            for key in said.only:
                for part, run in bench.run(key).items():
                    runs.setdefault(part, []).append(run)
                    print(
                        f"repeat {number + 1}: {part:10} {run.per_second:12,.0f} trades/s {run.cpu_per_million:8.2f} "
                        f"CPU s/million {run.seconds:7.2f} s for {run.trades:,} trades",
                        flush=True,
                    )
        if RECOVERY in said.only:
            report_recovery(bench, said.repeats)
    return not report_all(runs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with recorded aggTrades; without it a tape of the same size")
    parser.add_argument("--only", type=parts, default=EVERYBODY, help=f"some of {','.join(EVERYBODY)}")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument("--single", type=int, default=60_000, help="frames for who gets one a message")
    return parser.parse_args()


def parts(text: str) -> tuple[str, ...]:
    wanted = tuple(text.split(","))
    if unknown := set(wanted) - set(EVERYBODY):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(EVERYBODY)}")
    return wanted


class Bench:
    """The broker with its input, filled when it is first asked for, and a folder for what the runs write."""

    def __init__(self, folder: Path, connection: Connection, streams: Sequence[Stream], single: int) -> None:
        self._folder, self._connection, self._streams = folder, connection, streams
        self._cut = first_frames(streams, single)
        self._session, self._backlog = Session(connection), Backlog(connection)
        self._truths: dict[str, Truth] = {}
        self._filled: dict[str, list[FrameMessage]] = {}
        self._count = 0

    def run(self, key: str) -> dict[str, Run]:
        if key == RECOVERY:
            return {}
        if key == SCALING:
            return {f"{count} worker{'s' * (count > 1)}": self._scaled(count) for count in (1, 2)}
        return {key: self._ours() if key == OURS else self._theirs(CONTENDERS[key])}

    # --- the contenders

    def _theirs(self, contender: Contender) -> Run:
        if not contender.python.exists():
            raise RunFailed(f"{contender.says}: {contender.python} is not there; `make bench-throughput` makes it")
        made = self._fill(contender.frames)
        trades, name = sum(message.frames for message in made), self._name()
        self._make_topics([f"out.{name}"])
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "store.db"
            command = [
                contender.python, "-m", f"bench.contenders.{contender.script}", "--bootstrap",
                self._connection.bootstrap, "--frames", contender.frames, "--out", f"out.{name}", "--store", path,
                "--messages", str(len(made)), "--trades", str(trades), *contender.flags,
            ]  # fmt: skip
            ran = subprocess.run(
                [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False
            )
            lines = [line for line in ran.stdout.splitlines() if line.startswith('{"trades"')]
            if not lines:
                raise RunFailed(f"{contender.says}: exit code {ran.returncode}: {ran.stderr[-2000:]}")
            found = json.loads(lines[-1])
            if contender.script != "decode_only":
                self._check(contender.says, self._truth(contender.frames), read_tables(path))
        self._drop_topics([f"out.{name}"])
        if found["trades"] != trades:
            raise RunFailed(f"{contender.says}: {found['trades']} trades, not {trades}")
        return Run(trades, found["seconds"], found["cpu_seconds"])

    # --- ours

    def _ours(self) -> Run:
        """The worker finds its pages on the topic; from its first batch on the next topic to everything committed."""
        if RAW not in self._filled:
            self._make_our_topics(self._name())
            self._send_pages(self._streams)
        self._drop_topics(MARKET)
        app_id = self._name()
        self._make_our_topics(app_id)
        with self._workers(app_id, 1) as workers:
            workers.start()
            run = self._follow(app_id, workers)
            self._check("ours", self._truth(PAGES), workers.stored())
        return run

    def _scaled(self, count: int) -> Run:
        """Workers that are ready before the first page comes, on trades spread evenly over the partitions."""
        self._drop_topics([RAW, *MARKET])
        app_id = self._name()
        self._make_our_topics(app_id)
        streams = balanced(self._streams)
        with self._workers(app_id, count) as workers:
            workers.start()
            workers.wait_until_ready()
            self._send_pages(streams)
            run = self._follow(app_id, workers)
            self._check(f"{count} workers", truth_of(streams), workers.stored())
        self._drop_topics([RAW])
        return run

    def _follow(self, app_id: str, workers: Workers) -> Run:
        pages = len(self._filled[RAW])
        samples: list[tuple[float, float]] = []  # clock, CPU seconds until then
        give_up_s = time.monotonic() + WITHIN_S
        while True:
            samples.append((time.time(), workers.cpu_seconds()))
            if self._is_done(app_id, pages):
                break
            workers.check()
            if time.monotonic() > give_up_s:
                raise RunFailed(f"ours was not done within {WITHIN_S:g} s")
            time.sleep(POLL_S)
        ended, cpu_at_end = samples[-1]
        started = self._first_ms(MARKET[0]) / 1000
        cpu_at_start = max((cpu for at, cpu in samples if at <= started), default=samples[0][1])
        trades = sum(message.frames for message in self._filled[RAW])
        return Run(trades, ended - started, cpu_at_end - cpu_at_start, workers.last_stored_s() - started)

    def _is_done(self, app_id: str, pages: int) -> bool:
        """Every page and every batch is committed; an offset is committed after its effects."""
        try:
            waiting = self._backlog.measure({app_id: (RAW, *MARKET)})
        except BrokerUnreachable:  # the topics are new, and what was known of the old ones is not forgotten yet
            return False
        ends = {topic: sum(end for (_, t, _), (_, end) in waiting.items() if t == topic) for topic in (RAW, *MARKET)}
        return ends[RAW] == pages and all(position == end for position, end in waiting.values())

    def _first_ms(self, topic: str) -> int:
        """When the first record of the topic was made."""
        own = {"group.id": "bench", "enable.auto.commit": False, "enable.partition.eof": True}
        with closing(Consumer({**self._connection.librdkafka(), **own})) as consumer:
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
            waiting, times = set(range(PARTITIONS)), []
            while waiting:
                record = consumer.poll(1.0)
                if record is not None and record.partition() in waiting:
                    waiting.discard(record.partition())
                    if record.error() is None:
                        times.append(int(record.timestamp()[1]))
        return min(times)

    def recovery_s(self, store: str) -> tuple[float, float, float]:
        """Seconds until a worker is ready: without rows, with the rows to read, and started again."""
        app_id = self._name()
        self._make_our_topics(app_id)
        rows = {f"binance:COIN{number}USDT": a_row(number) for number in range(TABLE_ROWS)}
        with self._workers(self._name(), 1, TABLE_STORE=store) as empty:
            self._make_our_topics(empty.app_id)
            without = empty.seconds_to_ready()
        self._send(f"{app_id}-candles_by_symbol-changelog", ((key.encode(), row, None) for key, row in rows.items()))
        with self._workers(app_id, 1, TABLE_STORE=store) as workers:
            first = workers.seconds_to_ready()
            workers.stop()
            return without, first, workers.seconds_to_ready()

    @contextmanager
    def _workers(self, app_id: str, count: int, **own: str) -> Iterator[Workers]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            workers = Workers(Path(folder), self._environment(app_id) | own, app_id, count)
            try:
                yield workers
            finally:
                workers.stop()

    def _environment(self, app_id: str) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self._connection.bootstrap, "APP_ID": app_id, "PARTITIONS": str(PARTITIONS),
            "CANDLE_INTERVALS": ",".join(INTERVALS), "WEB_BIND": "127.0.0.1", "BINANCE_API_URL": "",
        }  # fmt: skip

    # --- topics

    def _name(self) -> str:
        self._count += 1
        return f"throughput-{self._count}"

    def _make_our_topics(self, app_id: str) -> None:
        child = Child(
            "topics", ["topics", "apply"], self._environment(app_id), self._folder / "topics.log", ends_with_us=False
        )
        child.start()
        child.wait(WITHIN_S)
        if child.exit_code:
            raise RunFailed(f"the topics cannot be made: {child.last_line()}")

    def _make_topics(self, names: Iterable[str]) -> None:
        apply(self._connection, [TopicSpec(name, PARTITIONS, compact=False) for name in names])

    def _drop_topics(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if name in self._session.topics()]
        if wanted:
            self._session.answers(self._session.client.delete_topics(wanted))
        while set(wanted) & self._session.topics().keys():
            time.sleep(POLL_S)
        for name in wanted:
            self._filled.pop(name, None)

    def _fill(self, topic: str) -> list[FrameMessage]:
        if topic not in self._filled:
            self._make_topics([topic])
            made = messages(self._cut if topic == SINGLE else self._streams, SIZES[topic])
            self._send(topic, ((message.symbol.encode(), message.value, None) for message in made))
            self._filled[topic] = made
        return self._filled[topic]

    def _send_pages(self, streams: Sequence[Stream]) -> None:
        made = messages(streams, SIZES[PAGES])
        headers = page_headers(streams, made)
        keys = (stream_key("binance", message.symbol) for message in made)
        self._filled[RAW] = made
        self._send(RAW, ((k, m.value, {"page": h}) for k, m, h in zip(keys, made, headers, strict=True)))

    def _send(self, topic: str, records: Iterable[tuple[bytes, bytes, Mapping[str, bytes] | None]]) -> None:
        own = {"acks": "all", "linger.ms": 20, "partitioner": "murmur2_random", "enable.idempotence": True}
        producer = Producer({**self._connection.librdkafka(), **own})
        for key, value, headers in records:
            while True:
                try:
                    producer.produce(topic, value, key, headers=dict(headers or {}))
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(WITHIN_S):
            raise RunFailed(f"{topic} was not filled within {WITHIN_S:g} s")

    def _truth(self, topic: str) -> Truth:
        cut = topic == SINGLE
        name = SINGLE if cut else PAGES
        if name not in self._truths:
            self._truths[name] = truth_of(self._cut if cut else self._streams)
        return self._truths[name]

    @staticmethod
    def _check(who: str, truth: Truth, found: Truth) -> None:
        if wrong := difference(truth, found):
            raise RunFailed(f"{who} is not exact: {wrong}")


class Workers:
    """`python -m app worker`, one or more of one group, each with a folder and a store of its own."""

    def __init__(self, folder: Path, environment: Mapping[str, str], app_id: str, count: int) -> None:
        self.app_id = app_id
        self._folders = [folder / str(number) for number in range(count)]
        self._children: list[Child] = []
        self._clients: list[Worker] = []
        for number, own in enumerate(self._folders):
            own.mkdir()
            port = free_port(7_100 + number)
            settings = {**environment, "DATA_DIR": str(own), "STORE_URL": "", "WEB_PORT": str(port)}
            self._children.append(Child(f"worker-{number}", ["worker"], settings, own / "worker.log"))
            self._clients.append(Worker(f"http://127.0.0.1:{port}"))

    def start(self) -> None:
        for child in self._children:
            child.start()

    def stop(self) -> None:
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.wait()

    def check(self) -> None:
        for child in self._children:
            if child.exit_code is not None:
                raise RunFailed(f"{child.name} ended with exit code {child.exit_code}: {child.last_line()}")

    def wait_until_ready(self) -> None:
        wait_for(lambda: all(map(is_ready, self._clients)), self.check)

    def seconds_to_ready(self) -> float:
        started = time.perf_counter()
        self.start()
        self.wait_until_ready()
        return time.perf_counter() - started

    def cpu_seconds(self) -> float:
        """Of all threads of the living workers."""
        return sum(cpu_seconds(child.process.pid) for child in self._children if child.process)

    def stored(self) -> Truth:
        found = [read_store(folder / "store.db") for folder in self._folders]
        return Truth(
            {symbol: sums for part in found for symbol, sums in part.trades.items()},
            {place: volume for part in found for place, volume in part.candles.items()},
        )

    def last_stored_s(self) -> float:
        """The clock at which the last batch of trades was stored."""
        ledgers = []
        for folder in self._folders:
            with closing(SqliteStore(folder / "store.db", read_only=True)) as store:
                ledgers += [ms for batch in store.scan("coverage") for ms in batch.column("updated_ms").to_pylist()]
        return float(max(ledgers)) / 1000


def is_ready(worker: Worker) -> bool:
    try:
        return worker.ready()
    except WorkerUnreachable:
        return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(condition: Callable[[], bool], check: Callable[[], None]) -> None:
    give_up_s = time.monotonic() + WITHIN_S
    while not condition():
        check()
        if time.monotonic() > give_up_s:
            raise RunFailed(f"not within {WITHIN_S:g} s")
        time.sleep(POLL_S)


def read_tables(path: Path) -> Truth:
    """What a contender wrote."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        trades = connection.execute(
            "SELECT symbol, count(*), sum(CAST(round(size * 1e8) AS INTEGER)) FROM trades GROUP BY symbol"
        )
        candles = connection.execute(
            "SELECT symbol, interval, ts, CAST(round(volume * 1e8) AS INTEGER) FROM candles WHERE trades > 0"
        )
        return Truth({s: (n, size) for s, n, size in trades}, {(s, i, ts): volume for s, i, ts, volume in candles})


def read_store(path: Path) -> Truth:
    """What a worker of ours wrote."""
    trades: dict[str, tuple[int, int]] = {}
    candles: dict[tuple[str, str, int], int] = {}
    with closing(SqliteStore(path, read_only=True)) as store:
        for batch in store.scan("trades", columns=["symbol", "size"]):
            rows = zip(batch.column("symbol").to_pylist(), batch.column("size").to_pylist(), strict=True)
            for symbol, size in rows:
                count, total = trades.get(symbol, (0, 0))
                trades[symbol] = count + 1, total + round(size * 1e8)
        for interval in INTERVALS:
            for batch in store.scan(collections.candles(interval).name, columns=["symbol", "ts", "volume", "trades"]):
                columns = (batch.column(name).to_pylist() for name in ("symbol", "ts", "volume", "trades"))
                for symbol, ts, volume, count in zip(*columns, strict=True):
                    if count:
                        candles[symbol, interval, ts] = round(volume * 1e8)
    return Truth(trades, candles)


def a_row(number: int) -> bytes:
    """A row of candles_by_symbol as a running worker leaves it."""
    states = {
        name: CandleState(interval_ms=length, last_id=number, ts=number * length, traded=True, volume=str(number))
        for name, length in INTERVALS.items()
    }
    folding = Folding(segments={"load": Segment(covered=(0, number), states=states)}, at={"market.trades-0": number})
    return msgspec.json.encode(folding)


def report_recovery(bench: Bench, repeats: int) -> None:
    for store in ("memory", "rocksdb"):
        runs = [bench.recovery_s(store) for _ in range(repeats)]
        without, first, again = (median(seconds) for seconds in zip(*runs, strict=True))
        report(f"start of a worker with empty tables, {store}", without, "s")
        report(f"recovery of a table of {TABLE_ROWS} rows, {store}", max(first - without, 0.0), "s")
        report(f"the same when the worker starts again, {store}", max(again - without, 0.0), "s")


def report_all(runs: Mapping[str, Sequence[Run]]) -> bool:
    names = {OURS: "ours, 500 frames a message", **{key: contender.says for key, contender in CONTENDERS.items()}}
    speed = {key: median(run.per_second for run in found) for key, found in runs.items()}
    reached = True
    for key, found in runs.items():
        name = names.get(key, f"ours, {key}")
        report(name, speed[key], "trades/s")
        report(f"{name}: CPU", median(run.cpu_per_million for run in found), "s per million trades")
        if key not in CONTENDERS:
            report(f"{name}: until stored", median(run.trades / run.until_stored_s for run in found), "trades/s")
    if OURS in speed:
        for key, contender in CONTENDERS.items():
            if key in speed:
                ratio = speed[OURS] / speed[key]
                reached &= report(f"ours against {contender.says}", ratio, "times", ratio=ratio, goal=contender.goal)
    if "2 workers" in speed:
        ratio, cores = speed["2 workers"] / speed["1 worker"], os.cpu_count() or 1
        goal = 1.6 if cores >= SCALES_FROM_CORES else None
        reached &= report(f"two workers against one, on {cores} cores", ratio, "times", ratio=ratio, goal=goal)
    return reached


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
