"""Real processes for end-to-end tests: a worker, a simulated exchange, each on free ports and in its own folder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient

from adapters.embedded_log.file import Record
from adapters.embedded_log.reader import LogReader, leave_in_inbox
from adapters.kafka import admin
from adapters.kafka.client import Connection
from adapters.kafka.reader import KafkaReader, send_one
from app import topics
from app.children import hold_port
from app.config import settings

ROOT = Path(__file__).parents[1]
POLL_S = 0.05
PATIENCE_S = 300.0  # no rule: what has not come by then will not come, however busy the machine is

_held: list[socket.socket] = []  # ports of this process


def free_port() -> int:
    """A port that nobody else is given while this process lives, whether something listens there or not."""
    port, holder = hold_port()
    _held.append(holder)
    return port


class Process:
    """A child of the test; its output lies in a file, its end is always seen."""

    program = ("-m", "app")

    def __init__(self, name: str, arguments: list[str], folder: Path, env: dict[str, str]) -> None:
        self.output = folder / f"{name}.out"
        with self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *self.program, *arguments], cwd=ROOT, env={**os.environ, **env},
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(PATIENCE_S)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


class Broker:
    """Where a test's workers meet: the embedded log in `folder`, or brokers."""

    def __init__(self, folder: Path, bootstrap: str = "", app_id: str = "") -> None:
        self.bootstrap, self.app_id, self._log_path = bootstrap, app_id, folder / "log.db"
        self.env = (
            {"KAFKA_BOOTSTRAP_SERVERS": bootstrap, "KAFKA_SESSION_TIMEOUT_S": "6", "APP_ID": app_id}
            if bootstrap
            else {}
        )

    def records(self, topic: str) -> Iterator[Record]:
        with KafkaReader(Connection(self.bootstrap)) if self.bootstrap else LogReader(self._log_path) as reader:
            yield from reader.records(topic)

    def leave(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """A record from another process, the worker running or not."""
        if self.bootstrap:
            send_one(Connection(self.bootstrap), topic, key, value, headers)
        else:
            leave_in_inbox(self._log_path, topic, key, value, headers)


class Worker(Process):
    """`python -m app worker` with its data in `folder`."""

    def __init__(self, folder: Path, exchange_url: str = "", *, broker: Broker | None = None, **env: str) -> None:
        self.folder, port = folder, free_port()
        self.broker = broker or Broker(folder)
        self.url = f"http://127.0.0.1:{port}"
        own = {
            "DATA_DIR": str(folder), "WEB_PORT": str(port), "BINANCE_API_URL": exchange_url,
            "HEAL_AFTER_S": "120",  # who is not heard of because the machine is busy does not begin again
        }  # fmt: skip
        self.env = {**own, **self.broker.env, **env}
        super().__init__("worker", ["worker"], folder, self.env)
        self.wait_until_ready()

    def start_again(self) -> None:
        """After it has ended, with the same folder and address."""
        Process.__init__(self, "worker", ["worker"], self.folder, self.env)
        self.wait_until_ready()

    def wait_until_ready(self, timeout_s: float = PATIENCE_S) -> None:
        def ready() -> bool:
            if self.popen.poll() is not None:
                raise AssertionError(f"the worker ended with {self.popen.returncode}: {self.said()[-2000:]}")
            try:
                return self.get("/health/ready")[0] == 200
            except urllib.error.URLError:
                return False

        wait_for(ready, timeout_s, self.said)

    def get(self, path: str) -> tuple[int, Any]:
        return call("GET", self.url + path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return call("POST", self.url + path, body)

    def events(self, queue_id: str | None = None) -> list[dict[str, Any]]:
        """Every event on the topic, in order."""
        events = [json.loads(record.value or b"{}") for record in self.broker.records("queue-events")]
        return [event for event in events if queue_id is None or event.get("queue_id") == queue_id]

    def wait_for_end(self, queue_id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The run's last word."""
        found: list[dict[str, Any]] = []

        def ended() -> bool:
            found[:] = [e for e in self.events(queue_id) if e.get("target") == "queue-manager" and e["finished"]]
            return bool(found)

        wait_for(ended, timeout_s, self.said)
        return found[-1]


def call(method: str, url: str, body: Any = None) -> tuple[int, Any]:
    """Status and decoded body of a JSON call."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        text, status = error.read(), error.code
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors="replace")


def wait_for(
    condition: Callable[[], Any], timeout_s: float = PATIENCE_S, explain: Callable[[], str] = lambda: ""
) -> None:
    """Until the condition holds; what another process does can only be looked at."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"not within {timeout_s} s\n{explain()[-3000:]}"
        time.sleep(POLL_S)


def remove_topics(bootstrap: str) -> None:
    """Everything that other tests have left on the brokers."""
    client = AdminClient(Connection(bootstrap).librdkafka())
    if old := [name for name in client.list_topics(timeout=60).topics if not name.startswith("__")]:
        for deleted in client.delete_topics(old).values():
            deleted.result()


def empty_broker(bootstrap: str, folder: Path) -> Broker:
    """Brokers as `topics apply` leaves empty ones; the app id is new, so no killed worker is still a member."""
    connection, app_id = Connection(bootstrap), f"test-{uuid4().hex[:8]}"
    remove_topics(bootstrap)
    ours = settings().app_id
    specs = [replace(spec, name=re.sub(f"^{ours}", app_id, spec.name)) for spec in topics.specs(*topics.TABLES_OF_ROLE)]
    admin.apply(connection, specs, replication=1)
    return Broker(folder, bootstrap, app_id)


# For what no broker has a part in, or what another test promises of the other one.
on_the_embedded_log = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
on_kafka = pytest.mark.parametrize("broker", ["kafka"], indirect=True)


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Broker:
    """The same test on both: the embedded log, and a real broker with nothing on it."""
    if request.param == "embedded":
        return Broker(tmp_path)
    return empty_broker(request.getfixturevalue("kafka").bootstrap, tmp_path)


@pytest.fixture
def start_worker(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start workers; whatever still runs at the end of the test is killed."""
    started: list[Worker] = []

    def start(exchange_url: str = "", **env: str) -> Worker:
        started.append(Worker(tmp_path, exchange_url, broker=broker, **env))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def start_exchange(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start simulated exchanges; gives their addresses."""
    started: list[Process] = []

    def start(*arguments: str) -> str:
        port = free_port()
        exchange = Process(f"exchange-{port}", ["exchange", "--port", str(port), *arguments], tmp_path, {})
        started.append(exchange)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert exchange.popen.poll() is None, exchange.said()
            try:
                return call("GET", f"{url}/api/v3/ping")[0] == 200
            except urllib.error.URLError:
                return False

        wait_for(answers, explain=exchange.said)
        return url

    yield start
    for exchange in started:
        exchange.kill()
