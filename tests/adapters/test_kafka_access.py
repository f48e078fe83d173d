"""What stands between a worker and its brokers is said in one line, before the worker starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from adapters.kafka.access import check
from adapters.kafka.client import Connection
from adapters.kafka.local import Cluster
from app.errors import BrokerUnreachable, SetupRefused
from tests.kafka import QUICK, READY_WITHIN_S, STEADY, environment
from tests.machine import Stopwatch
from tests.processes import ROOT, wait_for

APP_ID = "sums"
SOURCE, SINK, CHANGELOG, LEADER = "numbers", "totals", f"{APP_ID}-counts-changelog", f"{APP_ID}-__assignor-__leader"
NEEDS: dict[str, Any] = {
    "reads": [SOURCE, CHANGELOG, LEADER], "writes": [SINK, CHANGELOG, LEADER],
    "looks_at": [SOURCE, SINK, CHANGELOG, LEADER], "group": APP_ID,
}  # fmt: skip
# All that a worker has to be granted; to read or write something is to see it.
RIGHTS = {
    "source": [(ResourceType.TOPIC, SOURCE, ResourcePatternType.LITERAL, AclOperation.READ)],
    "sink": [(ResourceType.TOPIC, SINK, ResourcePatternType.LITERAL, AclOperation.WRITE)],
    "reading its own": [(ResourceType.TOPIC, f"{APP_ID}-", ResourcePatternType.PREFIXED, AclOperation.READ)],
    "writing its own": [(ResourceType.TOPIC, f"{APP_ID}-", ResourcePatternType.PREFIXED, AclOperation.WRITE)],
    "settings": [
        (ResourceType.TOPIC, name, pattern, AclOperation.DESCRIBE_CONFIGS)
        for name, pattern in (
            (SOURCE, ResourcePatternType.LITERAL),
            (SINK, ResourcePatternType.LITERAL),
            (f"{APP_ID}-", ResourcePatternType.PREFIXED),
        )
    ],
    "group": [(ResourceType.GROUP, APP_ID, ResourcePatternType.LITERAL, AclOperation.READ)],
}
WITHOUT = {right: f"without-{right.replace(' ', '-')}" for right in RIGHTS}


@pytest.fixture(scope="module")
def secured(kafka_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker with users who may do what RIGHTS says: `worker` all of it, the others all but one, `guest` nothing."""
    users = ["worker", "guest", *WITHOUT.values()]
    folder = tmp_path_factory.mktemp("secured")
    cluster = Cluster(folder, acls=True, users=users, jvm=QUICK, properties=STEADY, die_with_parent=True)
    try:
        cluster.start(READY_WITHIN_S)
        admin = AdminClient(cluster.connection().librdkafka())
        topics = [NewTopic(name, num_partitions=1) for name in (SOURCE, SINK, CHANGELOG, LEADER)]
        bindings = [
            AclBinding(kind, name, pattern, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
            for user in users
            for right, granted in RIGHTS.items()
            if user not in ("guest", WITHOUT[right])
            for kind, name, pattern, operation in granted
        ]
        for done in [*admin.create_topics(topics).values(), *admin.create_acls(bindings).values()]:
            done.result(30)
        yield cluster
    finally:
        cluster.kill()


def refused(connection: Connection, within_s: float = 150, **needs: Any) -> str:
    """The one line."""
    with pytest.raises(SetupRefused) as refusal:
        check(connection, **NEEDS | needs, within_s=within_s)
    said = str(refusal.value)
    assert "\n" not in said
    assert not connection.password or connection.password not in said
    return said


def test_who_has_the_documented_rights_may_start(secured: Cluster) -> None:
    check(secured.connection("worker"), **NEEDS, within_s=150)


def test_without_acls_everybody_may_start(kafka: Cluster) -> None:
    check(kafka.connection(), **NEEDS, within_s=150)  # none of these topics is there: that is not its question


@pytest.mark.parametrize(
    ("right", "named"),
    [
        ("source", f"READ on topic {SOURCE}"),
        ("sink", f"WRITE on topic {SINK}"),
        ("reading its own", f"READ on topic {CHANGELOG}, READ on topic {LEADER}"),
        ("writing its own", f"WRITE on topic {CHANGELOG}, WRITE on topic {LEADER}"),
        ("group", f"READ on group {APP_ID}"),
        ("settings", ", ".join(f"DESCRIBE_CONFIGS on topic {topic}" for topic in (SOURCE, SINK, CHANGELOG, LEADER))),
    ],
)
def test_a_missing_right_is_named(secured: Cluster, right: str, named: str) -> None:
    user = WITHOUT[right]
    assert refused(secured.connection(user)).startswith(f"User {user} lacks {named}: grant")


def test_who_may_do_nothing_is_told_everything(secured: Cluster) -> None:
    said = refused(secured.connection("guest"))
    assert all(f"READ on topic {topic}" in said for topic in NEEDS["reads"])
    assert all(f"WRITE on topic {topic}" in said for topic in NEEDS["writes"])
    assert f"READ on group {APP_ID}" in said


def test_a_wrong_password_is_one_line_at_once(
    secured: Cluster, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Stopwatch()
    said = refused(replace(secured.connection("worker"), password="guessed"))
    assert watch.took_s() < 5
    assert "do not accept user worker: check KAFKA_USERNAME, KAFKA_PASSWORD_FILE" in said
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_an_unknown_certificate_is_named(secured: Cluster) -> None:
    said = refused(replace(secured.connection("worker"), ca_file=""))
    assert "certificate" in said
    assert "KAFKA_CA_FILE" in said


def test_a_file_that_is_no_certificate_is_named(secured: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    said = refused(replace(secured.connection("worker"), ca_file=str(tmp_path / "ca.pem")))
    assert "ssl.ca.location" in said


def test_a_client_that_speaks_plainly_to_a_secured_port_is_told(
    secured: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(Connection(secured.bootstrap), within_s=4)
    assert "may not speak PLAINTEXT: check KAFKA_SECURITY_PROTOCOL" in said
    assert capfd.readouterr() == ("", "")


def test_a_client_that_speaks_tls_to_a_plain_port_is_told(kafka: Cluster, secured: Cluster) -> None:
    said = refused(replace(secured.connection("worker"), bootstrap=kafka.bootstrap), within_s=4)
    assert "may not speak SASL_SSL: check KAFKA_SECURITY_PROTOCOL" in said


def test_brokers_that_do_not_answer_are_named_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    watch = Stopwatch()
    with pytest.raises(BrokerUnreachable, match=r"no broker answers at 127\.0\.0\.1:9 within 1 s"):
        check(Connection("127.0.0.1:9"), **NEEDS, within_s=1)
    assert watch.took_s() < 4
    assert capfd.readouterr() == ("", "")


def test_the_documented_rights_suffice_for_an_app_with_a_table(secured: Cluster, tmp_path: Path) -> None:
    admin, records = secured.connection().librdkafka(), 20
    producer = Producer(admin)
    for number in range(records):
        producer.produce(SOURCE, str(number).encode(), b"key")
    assert producer.flush(30) == 0
    consumer = Consumer(admin | {"group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe([SINK, CHANGELOG])
    seen: dict[str, int] = {SINK: 0, CHANGELOG: 0}

    def all_arrived() -> bool:
        for message in consumer.consume(100, timeout=0.1):
            seen[str(message.topic())] += message.error() is None
        assert worker.poll() is None, said.read_text()
        return seen == {SINK: records, CHANGELOG: records}

    said = tmp_path / "worker.out"
    with said.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.adapters.secured_app", APP_ID, SOURCE, SINK, "worker"], cwd=ROOT,
            env={**os.environ, **environment(secured.connection("worker"))}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(all_arrived, explain=said.read_text)
    finally:
        worker.kill()
        worker.wait()
        consumer.close()
    assert "Authorization" not in said.read_text()
