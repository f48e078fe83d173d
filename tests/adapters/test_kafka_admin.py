"""Topics on a real broker become what is declared, and every way in which they are not is named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Producer

from adapters.kafka import admin
from adapters.kafka.admin import TopicSpec
from adapters.kafka.client import Connection
from adapters.kafka.session import MAX_RECORD_BYTES, Session
from app.errors import BrokerUnreachable, SetupRefused
from tests.processes import free_port

HOUR_MS = 3_600_000


@pytest.fixture
def connection(kafka: Any) -> Connection:
    return Connection(kafka.bootstrap)


@pytest.fixture
def specs() -> list[TopicSpec]:
    """A topic with retention, a changelog, a topic for ever."""
    own = uuid4().hex[:8]
    return [
        TopicSpec(f"pages-{own}", 4, compact=False, retention_ms=HOUR_MS),
        TopicSpec(f"rows-{own}-changelog", 2, compact=True),
        TopicSpec(f"kept-{own}", 1, compact=False),
    ]


def test_applying_twice_changes_nothing_the_second_time(connection: Connection, specs: list[TopicSpec]) -> None:
    made = admin.apply(connection, specs)
    assert [(d.topic, d.what) for d in made] == [(spec.name, "missing") for spec in specs]
    assert admin.apply(connection, specs) == []
    assert admin.differences(connection, specs) == []
    admin.check(connection, specs)


def test_topics_are_made_with_the_settings_that_their_kind_needs(
    connection: Connection, specs: list[TopicSpec]
) -> None:
    admin.apply(connection, specs, replication=1)
    pages, rows, kept = admin.describe(connection, specs)
    assert [len(topic["partitions"]) for topic in (pages, rows, kept)] == [4, 2, 1]
    assert (pages["settings"]["cleanup.policy"], pages["settings"]["retention.ms"]) == ("delete", str(HOUR_MS))
    assert kept["settings"]["retention.ms"] == "-1"
    assert rows["settings"]["cleanup.policy"] == "compact"
    assert int(rows["settings"]["segment.bytes"]) <= 64 << 20  # the newest segment is never compacted
    assert {topic["settings"]["max.message.bytes"] for topic in (pages, rows, kept)} == {str(MAX_RECORD_BYTES)}
    assert {topic["settings"]["min.insync.replicas"] for topic in (pages, rows, kept)} == {"1"}
    part = pages["partitions"][0]
    assert (part["first"], part["end"], part["isr"]) == (0, 0, part["replicas"])


def test_every_difference_is_named_and_what_can_be_is_mended(connection: Connection, specs: list[TopicSpec]) -> None:
    pages, rows, kept = specs
    admin.apply(connection, [pages, rows])
    declared = [replace(pages, retention_ms=2 * HOUR_MS), replace(rows, compact=False), kept]
    found = {(d.topic, d.what): (d.found, d.declared) for d in admin.differences(connection, declared)}
    assert found == {
        (pages.name, "retention.ms"): (str(HOUR_MS), str(2 * HOUR_MS)),
        (rows.name, "cleanup.policy"): ("compact", "delete"),
        (rows.name, "retention.ms"): (str(7 * 24 * HOUR_MS), "-1"),  # the broker's own default
        (kept.name, "missing"): ("", ""),
    }
    assert len(admin.apply(connection, declared)) == len(found)
    assert admin.apply(connection, declared) == []
    assert admin.describe(connection, [pages])[0]["settings"]["retention.ms"] == str(2 * HOUR_MS)


def test_a_worker_is_refused_with_every_difference_that_would_starve_it(
    connection: Connection, specs: list[TopicSpec]
) -> None:
    pages, rows, kept = specs
    admin.apply(connection, [pages, rows])
    declared = [replace(pages, partitions=3), replace(rows, compact=False, retention_ms=5), kept]
    with pytest.raises(SetupRefused) as refused:
        admin.check(connection, declared)
    said = str(refused.value)
    assert f"{pages.name} has 4 partitions, 3 are declared" in said
    assert f"{rows.name} has cleanup.policy=compact, declared is delete" in said
    assert f"{kept.name} is missing" in said
    assert said.endswith("run `python -m app topics apply`")
    # Another retention loses nothing that a worker needs: `topics diff` tells, a worker runs.
    admin.check(connection, [replace(pages, retention_ms=HOUR_MS * 5)])


def test_a_number_of_partitions_is_never_changed_and_nothing_else_then(
    connection: Connection, specs: list[TopicSpec]
) -> None:
    pages, _, kept = specs
    admin.apply(connection, [pages])
    with pytest.raises(SetupRefused, match=rf"{pages.name} has 4 partitions, 8 are declared.*keys would move"):
        admin.apply(connection, [replace(pages, partitions=8), kept])
    assert kept.name not in Session(connection).topics()


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_what_any_client_compresses_can_be_read_by_a_worker(
    connection: Connection, specs: list[TopicSpec], codec: str
) -> None:
    topic = specs[2].name
    admin.apply(connection, specs)
    client = Producer({"bootstrap.servers": connection.bootstrap, "compression.type": codec})
    client.produce(topic, value=b"a command " * 100)
    client.flush(10)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=connection.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        assert (await asyncio.wait_for(consumer.getone(), 150)).value == b"a command " * 100
    finally:
        await consumer.stop()


def test_brokers_that_do_not_answer_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.kafka.session.PATIENCE_S", 0.5)
    nobody = Connection(f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnreachable, match=rf"no broker at {nobody.bootstrap} answered.*KAFKA_BOOTSTRAP_SERVERS"):
        admin.check(nobody, [])


def test_a_certificate_that_cannot_be_read_is_a_refusal(kafka: Any) -> None:
    with pytest.raises(SetupRefused, match="the brokers at"):
        admin.differences(Connection(kafka.bootstrap, protocol="SSL", ca_file="/does/not/exist.pem"), [])
