"""Workers of every role on a broker that wants SCRAM over TLS and grants the documented rights, not one more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient
from confluent_kafka.admin import ResourcePatternType as Pattern
from confluent_kafka.admin import ResourceType as Kind

from adapters.kafka import admin
from adapters.kafka.client import Connection
from adapters.kafka.local import Cluster
from app import topics
from app.config import settings
from tests.end_to_end.test_load import CANDLES, begin
from tests.kafka import environment
from tests.machine import Stopwatch
from tests.processes import ROOT, Broker, Worker, wait_for

ROLES = [role for role in topics.AGENTS_OF_ROLE if role != "all"]


@pytest.fixture
def secured(kafka_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Every topic is there; the user of each role may do what docs/running-on-kafka.md says under Rights."""
    cluster = kafka_cluster(acls=True, users=ROLES)
    admin.apply(cluster.connection(), topics.specs(*ROLES), replication=1)
    client = AdminClient(cluster.connection().librdkafka())
    granted: list[AclBinding] = []

    def grant(role: str, kind: Kind, name: str, operation: AclOperation, pattern: Pattern = Pattern.LITERAL) -> None:
        granted.append(AclBinding(kind, name, pattern, f"User:{role}", "*", operation, AclPermissionType.ALLOW))

    try:
        for role in ROLES:
            monkeypatch.setenv("ROLE", role)
            monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", cluster.bootstrap)
            settings.cache_clear()
            group = settings().group
            reads, writes = topics.rights_of(role)
            for topic in {spec.name for spec in topics.specs(role)}:
                grant(role, Kind.TOPIC, topic, AclOperation.DESCRIBE)
                grant(role, Kind.TOPIC, topic, AclOperation.DESCRIBE_CONFIGS)
            for topic in reads:
                grant(role, Kind.TOPIC, topic, AclOperation.READ)
            for topic in writes:
                grant(role, Kind.TOPIC, topic, AclOperation.WRITE)
            grant(role, Kind.GROUP, group, AclOperation.READ)
            grant(role, Kind.GROUP, settings().app_id, AclOperation.DESCRIBE, Pattern.PREFIXED)
        for done in client.create_acls(granted).values():
            done.result(30)
        yield cluster
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_the_documented_rights_suffice_for_every_role(
    secured: Cluster, start_exchange: Callable[..., str], tmp_path: Path
) -> None:
    exchange, workers = start_exchange(), {}
    try:
        for role in ROLES:
            broker = Broker(tmp_path, secured.bootstrap, settings().app_id)
            own: dict[str, Any] = {**environment(secured.connection(role)), "ROLE": role}
            (folder := tmp_path / role).mkdir()
            workers[role] = Worker(
                folder, exchange, broker=broker, STORE_URL=f"sqlite:///{tmp_path / 'store.db'}", **own
            )
        for worker in workers.values():
            assert worker.get("/metrics")[0] == 200  # asks how far every group is
        web = workers["web"]
        begin(web, "job", stages=CANDLES)
        wait_for(
            lambda: (web.get("/queues/job")[1] or {}).get("state") == "finished",
            explain=lambda: str(web.get("/queues/job")) + "".join(worker.said()[-1500:] for worker in workers.values()),
        )
        for role, worker in workers.items():
            assert "uthoriz" not in worker.said(), role
            assert "cannot be measured" not in worker.said(), role
    finally:
        for worker in workers.values():
            worker.kill()


def test_a_wrong_password_is_one_line_and_exit_code_3(secured: Cluster, tmp_path: Path) -> None:
    wrong: Connection = replace(secured.connection("ingest"), password="guessed")
    watch = Stopwatch()
    done = subprocess.run(
        [sys.executable, "-m", "app", "worker", "--role", "ingest"], cwd=ROOT, capture_output=True, text=True,
        timeout=150, check=False, env={**environment(wrong), "DATA_DIR": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 3
    assert watch.took_s() < 15
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "KAFKA_PASSWORD_FILE" in done.stderr
    assert "guessed" not in done.stderr
