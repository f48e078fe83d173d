"""Records on brokers as any process may read them, beside every consumer group; and one record to leave there.

broker -> KafkaReader -> Record, with the interface of the embedded log's reader. Nothing is committed, no group joined.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from time import monotonic, sleep
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as Place

from adapters.embedded_log.file import Record
from adapters.kafka.client import Connection
from adapters.kafka.session import MAX_RECORD_BYTES, PATIENCE_S, QUIET, Session, producer_settings, sentence
from app.errors import BrokerUnreachable, SetupRefused

SLICE_RECORDS = 1_000
LOOK_S = 1.0
AGAIN_S = 0.1
_LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]


class KafkaReader:
    """Read-only view of the brokers' topics. Raises BrokerUnreachable, SetupRefused (not let in, unknown topic)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session = Session(connection)
        self._idle: list[Consumer] = []  # one per `records` at work, kept for the next

    def topics(self) -> dict[str, int]:
        """Partition count by topic name."""
        return self._session.topics()

    def ends(self) -> dict[tuple[str, int], int]:
        """Next offset by (topic, partition)."""
        return self._session.offsets([(name, p) for name, count in self.topics().items() for p in range(count)])

    def committed(self) -> dict[tuple[str, str, int], int]:
        """Committed offset (the next one to process) by (group, topic, partition), of every group."""
        with self._session.as_sentence():
            listed = self._session.client.list_consumer_groups(request_timeout=PATIENCE_S).result(PATIENCE_S * 2)
        if listed.errors:
            raise sentence(listed.errors[0], self._connection, "listing the groups")
        return {
            (group, *place): offset
            for group in sorted(found.group_id for found in listed.valid)
            for place, offset in self._session.committed(group).items()
        }

    def records(self, topic: str, partition: int | None = None, start: int | None = None) -> Iterator[Record]:
        """Records kept now, partition by partition, in order of offset; `start` counts in each partition.

        Stops at the end that was there when the partition's turn came. Raises SetupRefused for an unknown topic.
        """
        numbers = self._partitions(topic, partition)
        consumer = self._idle.pop() if self._idle else self._consumer()
        try:
            for number in numbers:
                yield from self._partition(consumer, topic, number, start)
        finally:
            consumer.unassign()
            self._idle.append(consumer)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _partitions(self, topic: str, partition: int | None) -> list[int]:
        known = self.topics()
        if topic not in known:
            raise SetupRefused(
                f"the brokers at {self._connection.bootstrap} have no topic {topic!r};"
                f" they have: {', '.join(known) or 'none'}"
            )
        if partition is None:
            return list(range(known[topic]))
        if not 0 <= partition < known[topic]:
            raise SetupRefused(f"topic {topic} has no partition {partition}; it has 0 to {known[topic] - 1}")
        return [partition]

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                **self._connection.librdkafka(),
                **QUIET,
                "group.id": "streamforge-reader",  # librdkafka wants one; partitions are assigned by hand
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",  # where retention was faster than we
                "fetch.wait.max.ms": 10,
                "fetch.queue.backoff.ms": 10,
                "max.partition.fetch.bytes": MAX_RECORD_BYTES,
                "queued.max.messages.kbytes": 32 << 10,
            },
            logger=log,
        )

    def _partition(self, consumer: Consumer, topic: str, partition: int, start: int | None) -> Iterator[Record]:
        """Offsets have holes (compaction, markers of transactions), so the end is where the broker says it is."""
        first, end = self._ends(consumer, Place(topic, partition))
        position = first if start is None else max(start, first)
        if position >= end:
            return
        consumer.assign([Place(topic, partition, position)])
        heard_s = monotonic()
        while True:
            first_one = consumer.poll(LOOK_S)  # `consume` waits for a full slice
            if first_one is None:
                if monotonic() - heard_s > PATIENCE_S:
                    raise BrokerUnreachable(
                        f"topic {topic}[{partition}]: no broker at {self._connection.bootstrap} answered for"
                        f" {PATIENCE_S:g} s: check that the brokers run"
                    )
                continue
            heard_s = monotonic()
            for message in chain([first_one], consumer.consume(SLICE_RECORDS, 0)):
                error = message.error()
                if error is None:
                    offset = message.offset() or 0
                    if offset < end:
                        yield _record(message, topic, partition, offset)
                    if offset >= end - 1:
                        return
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not _passing(error):
                    raise sentence(error, self._connection, f"reading {topic}[{partition}]")

    def _ends(self, consumer: Consumer, place: Place) -> tuple[int, int]:
        """First offset that is kept, and the next one. A topic that is new has for a moment nobody who knows them."""
        give_up_s = monotonic() + PATIENCE_S
        while True:
            with self._session.as_sentence():
                try:
                    first, end = consumer.get_watermark_offsets(place, timeout=PATIENCE_S)
                except KafkaException as error:
                    if error.args[0].code() not in _LEADERLESS or monotonic() > give_up_s:
                        raise
                else:
                    return first, end
            sleep(AGAIN_S)


def send_one(connection: Connection, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
    """Leave one record on a topic; durable when this returns.

    Raises SetupRefused (unknown topic, refused), BrokerUnreachable: then it may or may not have been written.
    """
    known = Session(connection).topics()
    if topic not in known:
        raise SetupRefused(
            f"the brokers at {connection.bootstrap} have no topic {topic!r}: run `python -m app topics apply`"
        )
    answers: list[KafkaError | None] = []
    producer = Producer({**producer_settings(connection), "delivery.timeout.ms": int(PATIENCE_S * 1000)}, logger=log)
    try:
        producer.produce(
            topic, value=value, key=key, headers=list(headers), on_delivery=lambda error, _: answers.append(error)
        )
        producer.flush()
    except KafkaException as error:
        raise sentence(error, connection, f"a record for {topic}") from None
    if answers[0] is not None:
        raise sentence(answers[0], connection, f"a record for {topic}")


def _passing(error: KafkaError) -> bool:
    """librdkafka tries again by itself; of a group we need no rights."""
    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
        return True
    return bool(error.retriable()) or isinstance(sentence(error, Connection("")), BrokerUnreachable)


def _record(message: Message, topic: str, partition: int, offset: int) -> Record:
    pairs: Any = message.headers() or ()
    headers = tuple((name, value or b"") for name, value in pairs)
    return Record(
        topic, partition, offset, message.timestamp()[1], _bytes(message.key()), _bytes(message.value()), headers
    )


def _bytes(said: bytes | str | None) -> bytes | None:
    return said.encode() if isinstance(said, str) else said
