"""Before a worker starts: do the brokers answer, do they know us, and may we do what the flow needs?

Connection, topics, group -> check -> nothing, or one sentence that says what to do

Without this a worker that lacks a right stays up, says nothing and never gets a partition; one that may not write its
changelog goes on and loses rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from adapters.kafka.client import Connection
from app.errors import BrokerUnreachable, SetupRefused, StreamForgeError

ANSWER_WITHIN_S = 10.0
TRY_S = 0.5
_NOT_THERE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)
_DENIED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
# A cluster that has just started, or sees its first group, has nobody yet who looks after groups.
_SOON = (
    KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)  # fmt: skip
Operations = set[AclOperation] | None  # None: nothing is there yet, so nobody can say


def check(
    connection: Connection, *, reads: Iterable[str], writes: Iterable[str], group: str,
    looks_at: Iterable[str] = (), within_s: float = ANSWER_WITHIN_S,
) -> None:  # fmt: skip
    """Returns when a worker of this group may read and write these topics. Blocks; call it before the event loop.

    A table's changelog and the group's leader topic are both read and written; of the topics that are looked at, the
    settings are compared. A topic that is not there is passed over: whether all are there is another question.

    Raises BrokerUnreachable when none answers in time; SetupRefused for a password, a certificate or a protocol that
    the brokers do not take, and for rights that are missing, each by its name.
    """
    admin = connect(connection, within_s)
    wanted = [(topic, AclOperation.READ) for topic in reads] + [(topic, AclOperation.WRITE) for topic in writes]
    used, looked_at = {topic for topic, _ in wanted}, dict.fromkeys(looks_at)
    allowed = _on_topics(admin, used | looked_at.keys(), within_s)
    # Of a topic that is hidden from us, nothing more can be known.
    wanted += [(topic, AclOperation.DESCRIBE_CONFIGS) for topic in looked_at if allowed[topic] or topic not in used]
    missing = [f"{right.name} on topic {topic}" for topic, right in wanted if _lacks(allowed[topic], right)]
    if _lacks(_in_group(admin, group, within_s), AclOperation.READ):
        missing.append(f"READ on group {group}")
    if missing:
        who = f"User {connection.username}" if connection.username else "This client"
        raise SetupRefused(f"{who} lacks {', '.join(missing)}: grant what is named in the brokers' ACLs")


def connect(connection: Connection, within_s: float = ANSWER_WITHIN_S) -> AdminClient:
    """A client that the brokers have answered. Raises BrokerUnreachable, SetupRefused."""
    errors: list[KafkaError] = []
    lines = _Lines()
    logger = logging.Logger("librdkafka")  # noqa: LOG001 (nobody's child: what is said on each try is said once, by us)
    logger.addHandler(lines)
    try:
        hears = {"error_cb": errors.append, "log_level": 6}  # that a connection was closed is no more than information
        admin = AdminClient(connection.librdkafka() | hears, logger=logger)
    except KafkaException as error:  # a file of certificates that cannot be used
        raise SetupRefused(f"the settings of Kafka cannot be used: {error.args[0].str()}") from None
    give_up_s = time.monotonic() + within_s
    while not _answers(admin):
        admin.poll(0.05)  # brings what was heard meanwhile
        for heard in errors:
            if sentence := _refusal(connection, heard):
                raise SetupRefused(sentence)
        if time.monotonic() > give_up_s:
            raise _no_answer(connection, lines.heard, within_s)
    return admin


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=TRY_S).brokers)
    except KafkaException:
        return False


class _Lines(logging.Handler):
    """Keeps what librdkafka logs: some of it is told nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def _no_answer(connection: Connection, lines: list[str], within_s: float) -> StreamForgeError:
    if any("Disconnected" in line for line in lines):
        return SetupRefused(
            f"{connection.bootstrap} takes connections and closes them again, so it may not speak "
            f"{connection.protocol}: check KAFKA_SECURITY_PROTOCOL and the port in KAFKA_BOOTSTRAP_SERVERS"
        )
    return BrokerUnreachable(
        f"no broker answers at {connection.bootstrap} within {within_s:g} s: "
        "start it, or correct KAFKA_BOOTSTRAP_SERVERS"
    )


def _refusal(connection: Connection, error: KafkaError) -> str | None:
    """What to tell about an error that trying again does not mend."""
    where, said = connection.bootstrap, error.str()
    if error.code() == KafkaError._AUTHENTICATION:
        return (
            f"the brokers at {where} do not accept user {connection.username}: "
            "check KAFKA_USERNAME, KAFKA_PASSWORD_FILE and KAFKA_SASL_MECHANISM"
        )
    if error.code() == KafkaError._SSL and "certificate" in said:
        return (
            f"the certificate of the brokers at {where} is signed by nobody we know, or is for another host: "
            "set KAFKA_CA_FILE to the file with their authority's certificate"
        )
    if error.code() == KafkaError._SSL:
        return f"the brokers at {where} and this client cannot agree on TLS: {said}"
    return None


def _on_topics(admin: AdminClient, topics: set[str], within_s: float) -> dict[str, Operations]:
    if not topics:
        return {}
    asked = admin.describe_topics(
        TopicCollection(sorted(topics)), include_authorized_operations=True, request_timeout=within_s
    )
    return {topic: _operations(answer, within_s) for topic, answer in asked.items()}


def _in_group(admin: AdminClient, group: str, within_s: float) -> Operations:
    give_up_s = time.monotonic() + within_s
    while True:
        asked = admin.describe_consumer_groups([group], include_authorized_operations=True, request_timeout=within_s)
        answer = asked[group]
        error = answer.exception(within_s)
        soon = isinstance(error, KafkaException) and error.args[0].code() in _SOON
        if not soon or time.monotonic() > give_up_s:
            return _operations(answer, within_s)
        time.sleep(0.1)


def _operations(answer: Future[Any], within_s: float) -> Operations:
    """What we may do there. Raises SetupRefused when the brokers do not say."""
    try:
        return set(answer.result(within_s).authorized_operations or ())
    except KafkaException as error:
        code = error.args[0].code()
        if code in _DENIED:
            return set()
        if code in _NOT_THERE:
            return None
        raise SetupRefused(f"the brokers do not say what this client may do: {error.args[0]}") from None


def _lacks(allowed: Operations, right: AclOperation) -> bool:
    return allowed is not None and right not in allowed
