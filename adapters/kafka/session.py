"""One client of the brokers for questions and changes, and librdkafka's errors as sentences.

Connection -> Session -> metadata, offsets, settings of topics; KafkaException -> BrokerUnreachable, SetupRefused
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from adapters.kafka.client import Connection
from app.errors import BrokerUnreachable, SetupRefused, StreamForgeError

PATIENCE_S = 15.0  # how long the brokers may take to answer a question
QUIET = {"log_level": 2}  # critical; what else goes wrong comes as an error
MAX_RECORD_BYTES = 8 << 20  # as large as Faust's producer, our topics and our readers take one

log = logging.getLogger(__name__)

_AWAY = {
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE,
    KafkaError._RESOLVE, KafkaError.REQUEST_TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NETWORK_EXCEPTION,
}  # fmt: skip
_REFUSED = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}  # fmt: skip

_Key = TypeVar("_Key")
_Answer = TypeVar("_Answer")


class Session:
    """An admin client that remembers why the brokers do not let it in: the calls themselves only time out then."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._heard: KafkaError | None = None
        with as_sentence(connection):
            own: dict[str, Any] = {"error_cb": self._hear, "socket.timeout.ms": int(PATIENCE_S * 1000)}
            self.client = AdminClient({**client_settings(connection), **own}, logger=log)

    def topics(self) -> dict[str, int]:
        """Partition count by topic name, without the brokers' own topics. Raises BrokerUnreachable, SetupRefused."""
        with self.as_sentence():
            found = self.client.list_topics(timeout=PATIENCE_S).topics
        return {name: len(topic.partitions) for name, topic in sorted(found.items()) if not name.startswith("__")}

    def answers(self, asked: Mapping[_Key, Future[_Answer]]) -> dict[_Key, _Answer]:
        """What an admin call's futures give. Raises BrokerUnreachable, SetupRefused."""
        with self.as_sentence():
            return {key: future.result(PATIENCE_S * 2) for key, future in asked.items()}

    def offsets(self, places: Iterable[tuple[str, int]], *, first: bool = False) -> dict[tuple[str, int], int]:
        """By (topic, partition): the next offset, or the first that is kept. Raises BrokerUnreachable, SetupRefused."""
        spec = cast(Any, OffsetSpec)  # its methods have no types
        wanted = spec.earliest() if first else spec.latest()
        asked = {TopicPartition(*place): wanted for place in places}
        if not asked:
            return {}
        found = self.answers(self.client.list_offsets(asked, request_timeout=PATIENCE_S))
        return {(place.topic, place.partition): at.offset for place, at in found.items()}

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """Committed offset by (topic, partition) of a group. Raises BrokerUnreachable, SetupRefused."""
        asked = self.client.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group)], request_timeout=PATIENCE_S
        )
        places = self.answers(asked)[group].topic_partitions or []
        return {(p.topic, p.partition): p.offset for p in places if p.error is None and p.offset >= 0}

    @contextmanager
    def as_sentence(self) -> Iterator[None]:
        try:
            yield
        except (KafkaException, TimeoutError) as error:
            self.client.poll(0)  # calls `_hear`
            raise sentence(error, self.connection, why=self._heard) from None

    def _hear(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN and (self._heard is None or self._heard.code() not in _REFUSED):
            self._heard = error


def client_settings(connection: Connection) -> dict[str, Any]:
    """`connection.librdkafka()` for what is not a consumer, and without a log line for every broken connection."""
    known = {name: value for name, value in connection.librdkafka().items() if name != "allow.auto.create.topics"}
    return {**known, **QUIET}


def producer_settings(connection: Connection) -> dict[str, Any]:
    """What every producer of ours has: in order, once, on the partition that Faust would choose, on every replica."""
    return {
        **client_settings(connection),
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "message.max.bytes": MAX_RECORD_BYTES,
    }


@contextmanager
def as_sentence(connection: Connection) -> Iterator[None]:
    """librdkafka's errors become ours."""
    try:
        yield
    except (KafkaException, TimeoutError) as error:
        raise sentence(error, connection) from None


def sentence(
    error: BaseException | KafkaError, connection: Connection, about: str = "", why: KafkaError | None = None
) -> StreamForgeError:
    """An error of librdkafka as one of ours, that says what to do.

    `about`: what was being done; `why`: what was heard of the brokers before, where the error is only that time is up.
    """
    found = error.args[0] if isinstance(error, KafkaException) and error.args else error
    code = found.code() if isinstance(found, KafkaError) else KafkaError._TIMED_OUT
    if code in _AWAY and why is not None:
        found, code = why, why.code()
    text = (found.str() if isinstance(found, KafkaError) else str(found)) or "no answer in time"
    begin = f"{about}: " if about else ""
    if code in _REFUSED:
        return SetupRefused(
            f"{begin}the brokers at {connection.bootstrap} do not let us in ({text}): check KAFKA_SECURITY_PROTOCOL, "
            "KAFKA_USERNAME, KAFKA_PASSWORD_FILE and the certificates"
        )
    if code in _FORBIDDEN:
        who = connection.username or "this client"
        return SetupRefused(f"{begin}the brokers forbid it to {who} ({text}): give it the right, or another user")
    if code in _AWAY or (isinstance(found, KafkaError) and found.retriable()):
        return BrokerUnreachable(
            f"{begin}no broker at {connection.bootstrap} answered ({text}): check KAFKA_BOOTSTRAP_SERVERS, "
            "and that the brokers run"
        )
    return SetupRefused(f"{begin}the brokers at {connection.bootstrap} refuse it: {text}")
