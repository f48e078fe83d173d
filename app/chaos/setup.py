"""The ground of an experiment: brokers, a simulated exchange and workers on this machine, each to be broken.

A plan -> processes on loopback, their data in one folder -> what can be done to them. Everything ends with it.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import apsw
import msgspec

from adapters.embedded_log.reader import LogReader, leave_in_inbox
from adapters.exchanges.behaviours import Behaviour
from adapters.kafka.client import Connection
from adapters.kafka.follower import Follower
from adapters.kafka.local import Cluster
from adapters.kafka.reader import KafkaReader, send_one
from adapters.records import RecordReader
from adapters.stores.sqlite import SqliteStore
from app.chaos.plan import Plan
from app.children import READY_WITHIN_S, Child, Children, hold_port
from app.client import Worker
from app.errors import RunFailed, WorkerUnreachable

Json = dict[str, Any]

SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)  # a broker of a few minutes is not worth optimizing
LOCK_WITHIN_MS = 10_000
LOOK_EVERY_S = 0.1
METRICS_WITHIN_S = 1.0

Heard = Callable[[Json], None]


@dataclass
class LocalWorker:
    """A worker of the experiment, which may be away."""

    number: int
    role: str
    child: Child
    client: Worker
    paused: bool = False

    def at_work_on(self, target: str) -> bool:
        """Whether a task of this target runs in it."""
        try:
            with urllib.request.urlopen(f"{self.client.url}/metrics", timeout=METRICS_WITHIN_S) as answer:
                text = answer.read().decode()
        except OSError:
            return False
        return any(
            line.startswith(f'streamforge_tasks{{target="{target}"}}') and float(line.split()[-1]) > 0
            for line in text.splitlines()
        )


class Ground:
    """`with Ground(plan, folder) as ground`: everything is ready. Raises RunFailed, SetupRefused when it cannot be.

    `bootstrap` names empty brokers that are there already, instead of brokers of its own; `app_id` then tells its
    groups from older ones.
    """

    def __init__(self, plan: Plan, folder: Path, bootstrap: str = "", app_id: str = "streamforge") -> None:
        self.plan, self.folder = plan, folder
        self.workers: list[LocalWorker] = []
        self.cluster: Cluster | None = None
        self.exchange: Child | None = None
        self.exchange_url = ""
        self._bootstrap, self.app_id = bootstrap, app_id
        self._children = Children(folder)
        self._ends = ExitStack()
        self._lock: apsw.Connection | None = None
        self._stopping: dict[int, threading.Thread] = {}

    def __enter__(self) -> Self:
        try:
            self._ends.callback(self._end_brokers)
            self._ends.enter_context(self._children)
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Workers, then the exchange, then the brokers; what is locked is let go first."""
        self.unlock_store()
        self._ends.close()

    # --- what is there

    @property
    def store_path(self) -> Path:
        return self.folder / "store.db"

    @property
    def connection(self) -> Connection:
        return Connection(self._bootstrap)

    def open_store(self) -> SqliteStore:
        return SqliteStore(self.store_path, read_only=True)

    def open_reader(self) -> RecordReader:
        return KafkaReader(self.connection) if self.plan.on_kafka else LogReader(self._log_path)

    def send(self, command: Json) -> None:
        """A command on its topic, as any client writes it."""
        value = json.dumps(command).encode()
        if self.plan.on_kafka:
            send_one(self.connection, "queue-control", None, value)
        else:
            leave_in_inbox(self._log_path, "queue-control", None, value)

    def follow_events(self, heard: Heard) -> None:
        """Call `heard` with every event of `queue-events`, in a thread, until the end."""
        if self.plan.on_kafka:
            follower = Follower(
                self.connection, ["queue-events"], lambda _topic, _key, value: _hear(value, heard),
                from_start=True, name="chaos-events",
            )  # fmt: skip
            self._ends.callback(follower.close)
            return
        over = threading.Event()
        thread = threading.Thread(target=self._follow_log, args=(over, heard), daemon=True)
        thread.start()
        self._ends.callback(thread.join, 5)
        self._ends.callback(over.set)

    def owner_of(self, target: str) -> int | None:
        """The worker in which a task of this target runs."""
        able = (worker for worker in self.workers if worker.child.lives and not worker.paused)
        return next((worker.number for worker in able if worker.at_work_on(target)), None)

    def ended_by_itself(self) -> list[LocalWorker]:
        """Workers that went although nobody asked them to."""
        return [w for w in self.workers if w.child.exit_code not in (None, 0, -signal.SIGKILL, -signal.SIGTERM)]

    # --- workers

    def add_worker(self, role: str) -> LocalWorker:
        """One more, started; it is not ready yet."""
        number, port = len(self.workers), self._port()
        name = f"worker-{number}"
        own = {
            **{setting: str(value) for setting, value in self.plan.setup.settings.items()},
            "DATA_DIR": str(self.folder if not self.plan.on_kafka else self.folder / name),
            "APP_ID": self.app_id, "ROLE": role, "PARTITIONS": str(self.plan.setup.partitions),
            "KAFKA_BOOTSTRAP_SERVERS": self._bootstrap, "STORE_URL": f"sqlite:///{self.store_path}",
            "BINANCE_API_URL": self.exchange_url, "WEB_BIND": "127.0.0.1", "WEB_PORT": str(port),
        }  # fmt: skip
        child = self._children.make(name, ["worker"], own)
        self.workers.append(LocalWorker(number, role, child, Worker(f"http://127.0.0.1:{port}")))
        child.start()
        return self.workers[-1]

    def is_ready(self, worker: LocalWorker) -> bool:
        with suppress(WorkerUnreachable):
            return worker.client.ready()
        return False

    def wait_until_ready(self) -> None:
        """Every worker that lives. Raises RunFailed."""
        give_up_s = time.monotonic() + READY_WITHIN_S
        for worker in self.workers:
            while worker.child.lives and not self.is_ready(worker):
                if time.monotonic() > give_up_s:
                    raise RunFailed(
                        f"the {worker.child.name} was not ready in {READY_WITHIN_S:g} s: {worker.child.log}"
                    )
                time.sleep(LOOK_EVERY_S)
        for worker in self.ended_by_itself():
            child = worker.child
            raise RunFailed(f"the {child.name} ended with {child.exit_code}: {child.last_line()} ({child.log})")

    # --- brokers, counted from 0 as everything in a plan

    def break_broker(self, number: int, what: str) -> None:
        """`kill`, `pause`, or `stop`, which takes its time beside us."""
        assert self.cluster is not None
        if what == "pause":
            self.cluster.pause(number + 1)
        elif what == "kill":
            self.cluster.kill_node(number + 1)
        else:
            stop = threading.Thread(target=self.cluster.kill_node, args=(number + 1, signal.SIGTERM), daemon=True)
            stop.start()
            self._stopping[number] = stop

    def mend_broker(self, number: int, what: str) -> None:
        assert self.cluster is not None
        if what == "pause":
            self.cluster.resume(number + 1)
            return
        if stopping := self._stopping.pop(number, None):
            stopping.join()
        self.cluster.start_node(number + 1)

    # --- exchange and store

    def behave(self, behaviour: Behaviour) -> None:
        """Raises RunFailed when the exchange does not take it."""
        body = msgspec.json.encode([behaviour])
        request = urllib.request.Request(f"{self.exchange_url}/sim/behaviours", body, method="POST")
        try:
            urllib.request.urlopen(request, timeout=READY_WITHIN_S).close()
        except OSError as error:
            raise RunFailed(f"the exchange does not show {behaviour.name}: {error}") from None

    def behave_well(self) -> None:
        """The exchange shows nothing but the market again."""
        request = urllib.request.Request(f"{self.exchange_url}/sim/behaviours", method="DELETE")
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=READY_WITHIN_S).close()

    def lock_store(self) -> None:
        """Hold the store's write lock, as a slow or stuck writer would: short, writers wait; long, they fail."""
        if self._lock is None:
            self._lock = apsw.Connection(str(self.store_path))
            self._lock.set_busy_timeout(LOCK_WITHIN_MS)
            self._lock.execute("BEGIN IMMEDIATE")

    def unlock_store(self) -> None:
        if self._lock is not None:
            self._lock.execute("ROLLBACK")
            self._lock.close()
            self._lock = None

    # --- start and end

    @property
    def _log_path(self) -> Path:
        return self.folder / "log.db"

    def _start(self) -> None:
        if self.plan.on_kafka and not self._bootstrap:
            self.cluster = Cluster(
                self.folder / "kafka", int(self.plan.setup.brokers), jvm=SHORT_LIVED, die_with_parent=True
            )
            self._bootstrap = self.cluster.start()
        applying = self._apply_topics() if self.plan.on_kafka else None
        self.exchange_url = self._children.start_exchange(None, self.plan.setup.exchange_seed, self._port())
        self.exchange = self._children.child("exchange")
        if applying is not None:
            applying.wait(READY_WITHIN_S)
            if applying.exit_code:
                raise RunFailed(f"the topics could not be made: {applying.last_line()} ({applying.log})")
        for role in self.plan.setup.workers:
            self.add_worker(role)
        self.wait_until_ready()

    def _port(self) -> int:
        """Ours as long as the ground stands: also while a killed worker is away."""
        port, holder = hold_port()
        self._ends.callback(holder.close)
        return port

    def _apply_topics(self) -> Child:
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": self._bootstrap, "APP_ID": self.app_id,
            "PARTITIONS": str(self.plan.setup.partitions), "DATA_DIR": str(self.folder), "ROLE": "all",
        }  # fmt: skip
        child = Child("topics", ["topics", "apply"], own, self._children.log_of("topics"), ends_with_us=False)
        child.start()
        self._ends.callback(child.kill)
        return child

    def _end_brokers(self) -> None:
        for stopping in self._stopping.values():
            stopping.join()
        if self.cluster is not None:
            self.cluster.kill()  # their data ends with them

    def _follow_log(self, over: threading.Event, heard: Heard) -> None:
        seen = -1
        with closing(self.open_reader()) as reader:
            while not over.wait(LOOK_EVERY_S):
                for record in reader.records("queue-events", 0, seen + 1):
                    seen = record.offset
                    _hear(record.value, heard)


def _hear(value: bytes | None, heard: Heard) -> None:
    with suppress(ValueError):
        said = json.loads(value or b"")
        if isinstance(said, dict):
            heard(said)
