"""What lies on a real broker is read whole, in order and to its end, whatever holes its offsets have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from adapters.embedded_log.file import partition_of
from adapters.kafka.client import Connection
from adapters.kafka.lag import Backlog
from adapters.kafka.reader import KafkaReader, send_one
from adapters.kafka.session import MAX_RECORD_BYTES
from app.errors import BrokerUnreachable, SetupRefused
from tests.processes import free_port, wait_for

Make = Callable[..., str]


@pytest.fixture
def connection(kafka: Any) -> Connection:
    return Connection(kafka.bootstrap)


@pytest.fixture
def topic(connection: Connection) -> Make:
    """Make a topic with a name of its own."""
    client = AdminClient({"bootstrap.servers": connection.bootstrap})

    def make(partitions: int = 1, **settings: str) -> str:
        name = f"read-{uuid4().hex[:8]}"
        config = {setting.replace("_", "."): value for setting, value in settings.items()}
        client.create_topics([NewTopic(name, partitions, 1, config=config)], operation_timeout=150)[name].result()
        wait_for(lambda: name in client.list_topics(timeout=150).topics)
        return name

    return make


@pytest.fixture
def reader(connection: Connection) -> Iterator[KafkaReader]:
    with KafkaReader(connection) as reader:
        yield reader


def produce(connection: Connection, topic: str, records: list[tuple[bytes | None, bytes | None]]) -> None:
    producer = Producer({"bootstrap.servers": connection.bootstrap, "acks": "all", "partitioner": "murmur2_random"})
    for key, value in records:
        producer.produce(topic, value=value, key=key)
    assert producer.flush(30) == 0


def test_a_record_comes_back_as_it_was_sent_with_nothing_empty_in_it(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic()
    headers = [("reason", b"why"), ("reason", b"again"), ("empty", b"")]
    send_one(connection, name, b"key", b"value", headers)
    send_one(connection, name, None, None)
    send_one(connection, name, b"", b"")
    whole, nothing, empty = reader.records(name)
    assert (whole.topic, whole.partition, whole.offset) == (name, 0, 0)
    assert (whole.key, whole.value, whole.headers) == (b"key", b"value", tuple(headers))
    assert whole.ts_ms > 1_700_000_000_000
    assert (nothing.key, nothing.value, nothing.headers) == (None, None, ())
    assert (empty.key, empty.value) == (b"", b"")


def test_a_partition_whose_leader_is_being_chosen_is_asked_again(
    connection: Connection, topic: Make, reader: KafkaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic()
    send_one(connection, name, b"key", b"value")
    asked: list[TopicPartition] = []

    class Early(Consumer):
        def get_watermark_offsets(self, place: TopicPartition, **how: Any) -> Any:
            asked.append(place)
            if len(asked) < 3:
                raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
            return super().get_watermark_offsets(place, **how)

    monkeypatch.setattr("adapters.kafka.reader.Consumer", Early)
    assert [record.value for record in reader.records(name)] == [b"value"]
    assert len(asked) == 3


def test_many_records_are_read_in_order_from_any_offset(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic(4)
    sent = [(b"key-%d" % (i % 50), b"%d" % i) for i in range(20_000)]
    produce(connection, name, sent)
    found = list(reader.records(name))
    assert sorted(int(record.value or b"") for record in found) == list(range(20_000))
    assert all(record.partition == partition_of(record.key or b"", 4) for record in found)
    for before, after in pairwise(found):
        assert (before.partition, before.offset) < (after.partition, after.offset)
    ends = {place: end for place, end in reader.ends().items() if place[0] == name}
    assert sum(ends.values()) == 20_000
    end = ends[name, 2]
    assert [record.offset for record in reader.records(name, 2, end - 3)] == [end - 3, end - 2, end - 1]
    assert list(reader.records(name, 2, end)) == []


def test_two_readings_at_once_do_not_disturb_each_other(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic()
    produce(connection, name, [(None, b"%d" % i) for i in range(3_000)])
    first, second = reader.records(name), reader.records(name, start=1_000)
    together = list(zip(first, second, strict=False))
    assert all(late.offset - early.offset == 1_000 for early, late in together)
    assert len(together) == 2_000


def test_a_compacted_topic_is_read_to_its_end_although_offsets_are_missing(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic(cleanup_policy="compact", segment_bytes="1048576", min_cleanable_dirty_ratio="0.01", segment_ms="1000")
    produce(connection, name, [(b"key-%d" % (i % 10), b"%06d" % i * 100) for i in range(5_000)])

    def compacted() -> bool:
        produce(connection, name, [(b"last", b"x")])  # closes the segment before it
        return len(list(reader.records(name))) < 4_000

    wait_for(compacted)
    found = list(reader.records(name))
    assert {record.key for record in found} == {b"key-%d" % i for i in range(10)} | {b"last"}
    newest = {record.key: record.offset for record in found}
    assert all(newest[b"key-%d" % i] == 4_990 + i for i in range(10))
    assert found[-1].offset == reader.ends()[name, 0] - 1


def test_markers_of_transactions_at_the_end_do_not_make_a_reader_wait(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic()
    producer = Producer({"bootstrap.servers": connection.bootstrap, "transactional.id": name})
    producer.init_transactions(30)
    for ends_well in (True, False):
        producer.begin_transaction()
        producer.produce(name, value=b"kept" if ends_well else b"taken back")
        producer.flush(30)
        if ends_well:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    assert [record.value for record in reader.records(name)] == [b"kept"]
    assert reader.ends()[name, 0] == 4  # two records, two markers


def test_what_retention_has_taken_is_no_longer_asked_for(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic()
    produce(connection, name, [(None, b"%d" % i) for i in range(100)])
    client = AdminClient({"bootstrap.servers": connection.bootstrap})
    for deleted in client.delete_records([TopicPartition(name, 0, 60)]).values():
        deleted.result()
    assert [record.offset for record in reader.records(name, start=10)] == list(range(60, 100))
    assert [record.offset for record in reader.records(name)] == list(range(60, 100))


def test_an_unknown_topic_is_refused_at_once(connection: Connection, topic: Make, reader: KafkaReader) -> None:
    name = topic()
    with pytest.raises(SetupRefused, match=r"have no topic 'nowhere'; they have: .*"):
        next(reader.records("nowhere"))
    with pytest.raises(SetupRefused, match=f"topic {name} has no partition 7"):
        next(reader.records(name, 7))
    with pytest.raises(SetupRefused, match="no topic 'nowhere': run `python -m app topics apply`"):
        send_one(connection, "nowhere", None, b"x")
    assert name in reader.topics()
    assert "nowhere" not in reader.topics()


def test_a_record_that_no_topic_takes_is_refused(connection: Connection, topic: Make) -> None:
    with pytest.raises(SetupRefused, match="too large"):
        send_one(connection, topic(), None, bytes(MAX_RECORD_BYTES + 1))
    with pytest.raises(SetupRefused, match="too large"):
        send_one(connection, topic(max_message_bytes="1000"), None, bytes(2_000))


def test_brokers_that_do_not_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.kafka.session.PATIENCE_S", 0.5)
    nobody = Connection(f"127.0.0.1:{free_port()}")
    with KafkaReader(nobody) as reader, pytest.raises(BrokerUnreachable, match=nobody.bootstrap):
        reader.topics()


def commit(connection: Connection, group: str, topic: str, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": connection.bootstrap, "group.id": group})

    def committed() -> bool:
        try:
            consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
        except KafkaException:  # the group's coordinator is being made
            return False
        return True

    wait_for(committed)
    consumer.close()


def test_committed_positions_are_told_of_every_group_or_of_one(
    connection: Connection, topic: Make, reader: KafkaReader
) -> None:
    name = topic()
    produce(connection, name, [(None, b"x")] * 10)
    mine, other = f"mine-{name}", f"other-{name}"
    commit(connection, mine, name, 3)
    commit(connection, other, name, 10)
    found = reader.committed()
    assert (found[mine, name, 0], found[other, name, 0]) == (3, 10)


def test_a_backlog_counts_from_the_commit_or_from_what_is_kept(connection: Connection, topic: Make) -> None:
    name = topic()
    produce(connection, name, [(None, b"x")] * 10)
    client = AdminClient({"bootstrap.servers": connection.bootstrap})
    for deleted in client.delete_records([TopicPartition(name, 0, 4)]).values():
        deleted.result()
    group, new = f"group-{name}", f"new-{name}"
    commit(connection, group, name, 7)
    backlog = Backlog(connection)
    try:
        assert backlog.of(group, name) > 0  # not measured yet: something may be waiting
        wait_for(lambda: backlog.of(group, name) == 3)
        wait_for(lambda: backlog.of(new, name) == 6)
        wanted = {group: [name], new: [name]}
        assert backlog.waiting(wanted) == {(group, name, 0): (7, 10), (new, name, 0): (4, 10)}
        commit(connection, group, name, 10)
        wait_for(lambda: backlog.of(group, name) == 0)
    finally:
        backlog.close()
