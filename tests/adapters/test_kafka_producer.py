"""Bulk records reach a real broker once and in order, and whoever sends waits while it cannot take them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from faust import App
from faust.transport.drivers.aiokafka import Producer as FaustProducer

from adapters.embedded_log.file import partition_of
from adapters.embedded_log.log import Appended
from adapters.kafka.client import Connection
from adapters.kafka.producer import KafkaBulkProducer
from adapters.kafka.reader import KafkaReader
from adapters.kafka.session import MAX_RECORD_BYTES, Session
from app.errors import SetupRefused
from tests.processes import wait_for

Start = Callable[..., KafkaBulkProducer]


@pytest.fixture
def connection(kafka: Any) -> Connection:
    return Connection(kafka.bootstrap)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Producers that are closed after the test."""
    started: list[KafkaBulkProducer] = []

    def make(connection: Connection, **how: Any) -> KafkaBulkProducer:
        started.append(KafkaBulkProducer(connection, **how))
        return started[-1]

    yield make
    for producer in started:
        await asyncio.to_thread(producer.close)


def new_topic(connection: Connection, partitions: int = 4, largest: int = MAX_RECORD_BYTES) -> str:
    name, client = f"bulk-{uuid4().hex[:8]}", AdminClient({"bootstrap.servers": connection.bootstrap})
    new = NewTopic(name, partitions, 1, config={"max.message.bytes": str(largest)})
    client.create_topics([new], operation_timeout=150)[name].result()
    wait_for(lambda: name in client.list_topics(timeout=150).topics)
    return name


def read(connection: Connection, topic: str) -> list[Any]:
    with KafkaReader(connection) as reader:
        return list(reader.records(topic))


async def test_a_record_is_on_the_broker_when_send_returns(connection: Connection, start: Start) -> None:
    topic, producer = new_topic(connection), start(connection)
    await producer.send(topic, b"key", b"value", [("run", b"r-1")])
    sent = await (await producer.send_soon(topic, None, None))
    first, second = sorted(read(connection, topic), key=lambda record: record.ts_ms)
    assert (first.key, first.value, first.headers) == (b"key", b"value", (("run", b"r-1"),))
    assert (second.key, second.value, second.headers) == (None, None, ())
    assert sent == Appended(topic, second.partition, second.offset, second.ts_ms)
    assert await producer.partitions(topic) == 4


async def test_a_key_has_the_partition_that_faust_and_the_embedded_log_give_it(
    connection: Connection, start: Start
) -> None:
    topic, producer = new_topic(connection), start(connection)
    keys = [f"binance:SYM{i}USDT".encode() for i in range(200)]
    ours = [await (await producer.send_soon(topic, key, b"ours")) for key in keys]
    app = App("partitions", broker=f"kafka://{connection.bootstrap}", producer_linger=0)
    faust = FaustProducer(app.transport)
    await faust.start()
    try:
        theirs = [await faust.send_and_wait(topic, key, b"faust", None, None, None) for key in keys]
    finally:
        await faust.stop()
    assert [place.partition for place in ours] == [place.partition for place in theirs]
    assert [place.partition for place in ours] == [partition_of(key, 4) for key in keys]


async def test_nothing_is_lost_or_moved_while_a_broker_hangs_and_the_sender_waits(
    kafka_cluster: Callable[..., Any], start: Start
) -> None:
    cluster = kafka_cluster()
    connection = Connection(cluster.bootstrap)
    topic = new_topic(connection)
    limit, size = 200_000, 1_000
    # Requests that get no answer are sent again after a second instead of a minute.
    producer = start(connection, max_in_flight_bytes=limit, settings={"socket.timeout.ms": 1000})
    await producer.send(topic, b"key-0", b"first")
    cluster.pause(1)
    sent, full = 0, asyncio.Event()

    async def send_all() -> None:
        nonlocal sent
        for number in range(2_000):
            if producer.in_flight_bytes >= limit:
                full.set()
            await producer.send_soon(topic, b"key-%d" % (number % 7), b"%06d" % number + bytes(size))
            sent = number + 1
            assert producer.in_flight_bytes <= limit + 2 * size

    sending = asyncio.create_task(send_all())
    await full.wait()
    held = sent
    flushing = asyncio.create_task(producer.flush())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(flushing), 4)  # several requests have timed out by now
    assert sent == held
    assert held * size <= limit
    cluster.resume(1)
    await asyncio.wait_for(sending, 150)
    await flushing
    await producer.flush()
    assert producer.in_flight_bytes == 0
    found = [record for record in read(connection, topic) if record.value != b"first"]
    assert len(found) == 2_000
    for key in {record.key for record in found}:
        numbers = [int(record.value[:6]) for record in found if record.key == key]
        assert numbers == sorted(set(numbers))


async def test_a_flush_waits_for_what_was_sent_before_it_and_for_nothing_else(
    connection: Connection, start: Start
) -> None:
    topic, producer = new_topic(connection), start(connection)
    over = asyncio.Event()

    async def send_on() -> None:
        while not over.is_set():
            await producer.send_soon(topic, b"other", bytes(1_000))
            await asyncio.sleep(0)

    others = asyncio.create_task(send_on())
    for _ in range(20):
        mine = [await producer.send_soon(topic, b"mine", b"x") for _ in range(10)]
        await asyncio.wait_for(producer.flush(), 150)
        assert all(future.done() for future in mine)
        assert producer.in_flight_bytes > 0  # the others are still sending
    over.set()
    await others
    await asyncio.gather(producer.flush(), producer.flush())
    await producer.flush()
    assert producer.in_flight_bytes == 0


async def test_senders_without_room_get_it_in_the_order_they_came(connection: Connection, start: Start) -> None:
    topic = new_topic(connection, 1)
    producer = start(connection, max_in_flight_bytes=2_000)
    await asyncio.gather(*(producer.send(topic, b"k", b"%d" % number + bytes(500)) for number in range(200)))
    assert [int(record.value.rstrip(b"\0")) for record in read(connection, topic)] == list(range(200))


async def test_an_unknown_topic_is_refused_at_once_and_ends_nothing(connection: Connection, start: Start) -> None:
    topic, producer = new_topic(connection), start(connection)
    with pytest.raises(SetupRefused, match=r"topic 'nowhere' is not on the brokers.*topics apply"):
        await asyncio.wait_for(producer.send("nowhere", b"k", b"v"), 150)
    with pytest.raises(SetupRefused, match="nowhere"):
        await producer.partitions("nowhere")
    await producer.send(topic, b"k", b"v")
    assert producer.failure is None
    assert "nowhere" not in Session(connection).topics()


@pytest.mark.parametrize("where", ["here", "broker"])
async def test_a_record_that_is_too_large_fails_and_so_does_everything_after_it(
    connection: Connection, start: Start, where: str
) -> None:
    topic = new_topic(connection, largest=1_000 if where == "broker" else MAX_RECORD_BYTES)
    producer = start(connection)
    size = MAX_RECORD_BYTES if where == "here" else 2_000
    future = await producer.send_soon(topic, b"k", bytes(size))
    flushing = asyncio.create_task(producer.flush())
    with pytest.raises(SetupRefused, match=rf"a record of {size + 1:,} bytes is too large for topic {topic}") as said:
        await future
    assert producer.failure is said.value
    with pytest.raises(SetupRefused):
        await flushing
    for call in (producer.send(topic, b"k", b"v"), producer.send_soon(topic, b"k", b"v"), producer.flush()):
        with pytest.raises(SetupRefused) as again:
            await call
        assert again.value is said.value
    assert read(connection, topic) == []


async def test_what_is_not_bytes_is_the_callers_mistake(connection: Connection, start: Start) -> None:
    topic, producer = new_topic(connection), start(connection)
    for value in (["a", "list"], 7):
        with pytest.raises(TypeError):
            await producer.send_soon(topic, b"k", value)  # type: ignore[arg-type]
    await producer.flush()
    assert producer.in_flight_bytes == 0


async def test_a_cancelled_wait_leaves_the_record_and_the_producer_whole(connection: Connection, start: Start) -> None:
    topic, producer = new_topic(connection), start(connection)
    future = await producer.send_soon(topic, b"k", b"sent all the same")
    future.cancel()
    await producer.flush()
    assert [record.value for record in read(connection, topic)] == [b"sent all the same"]
