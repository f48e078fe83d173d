"""The broker as a command sees it, beside the worker: records to read, and a record to leave on a topic.

Brokers of KAFKA_BOOTSTRAP_SERVERS, or the embedded log, which another process may own: then what is left waits in its
inbox, and reaches its topic exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.embedded_log.reader import LogReader, leave_in_inbox
from adapters.records import RecordReader
from app.config import settings

Headers = Sequence[tuple[str, bytes]]


def open_reader() -> RecordReader:
    """A reader of every topic; close it. Raises SetupRefused (no log), LogDamaged, BrokerUnreachable."""
    if settings().on_kafka:
        from adapters.kafka.client import Connection
        from adapters.kafka.reader import KafkaReader

        return KafkaReader(Connection.of(settings()))
    return LogReader(settings().log_path)


def leave(topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
    """Durable when this returns. Raises LogDamaged, SetupRefused, BrokerUnreachable."""
    if settings().on_kafka:
        from adapters.kafka.client import Connection
        from adapters.kafka.reader import send_one

        send_one(Connection.of(settings()), topic, key, value, headers)
    else:
        leave_in_inbox(settings().log_path, topic, key, value, headers)
