"""The Faust app, and the one way an agent of ours consumes.

Delivery: at least once on the wire, exactly once in effect. An offset is committed only after the agent's step
returned, every step is idempotent, and no exception leaves an agent's loop: an outage is retried for ever
(that is the back-pressure), a message that cannot be used goes to `dead-letters` with its bytes, and what can be
neither handled nor put aside ends the process before its offset is committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import faust
from faust.types import EventT

from adapters import faust_repair
from adapters.bulk import BulkProducer, EmbeddedBulkProducer
from adapters.embedded_log import transport
from adapters.embedded_log.log import Appended, Log
from app import auth
from app.config import settings
from app.errors import ExchangeBusy, LogDamaged, LogFull, SetupRefused, StoreBusy, StoreError
from app.telemetry import DEAD_LETTERS, MESSAGES, RETRIES, logging_config

log = logging.getLogger(__name__)

POISON_TRIES = 3
BACKOFF_MAX_S = 30.0
DEAD_LETTERS_TOPIC = "dead-letters"

Headers = Sequence[tuple[str, bytes]]
Handler = Callable[["Message"], Awaitable[None]]


def make_app() -> faust.App:
    """The application on the broker that the settings name."""
    config = settings()
    transport.register()
    faust_repair.register()
    return faust.App(
        config.app_id,
        broker=config.broker,
        store="memory://",
        TableManager=faust_repair.TableManager,
        Monitor=faust_repair.Monitor,
        key_type=bytes,
        value_type=bytes,
        topic_partitions=config.partitions,
        topic_allow_declare=True,
        table_standby_replicas=0,
        broker_commit_interval=1.0,
        broker_commit_every=500,
        stream_buffer_maxsize=64,  # messages, each with up to 1,000 rows
        producer_linger=0.02,
        web_bind=config.web_bind,
        web_port=config.web_port,
        web_host=config.web_bind,
        web_tables_enabled=False,
        web_router_enabled=False,
        web_stats_enabled=False,
        web_graph_enabled=False,
        web_application_options={"middlewares": [auth.require_token], "client_max_size": 1 << 20},
        worker_redirect_stdouts=False,
        logging_config=logging_config(config.log_level, config.log_format),
    )


app = make_app()


async def put(topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> asyncio.Future[Appended]:
    """Write a record with many rows; returns when there is room for it. The future knows its place once it is durable.

    It is durable before any offset that is committed after this call: the log writes in the order it is told.
    A record that cannot be written ends the process.
    """
    sent = await _bulk().send_soon(topic, key, value, headers)
    sent.add_done_callback(_written)
    return sent


async def flush() -> None:
    """Everything put before is durable."""
    await _bulk().flush()


def backlog(topic: str) -> int:
    """Records of a topic that this app has not committed yet."""
    record_log = _embedded_log()
    partitions = range(record_log.partitions(topic) or 0)
    return sum(record_log.end(topic, p) - (record_log.committed(app.conf.id, topic, p) or 0) for p in partitions)


def _bulk() -> BulkProducer:
    return EmbeddedBulkProducer(_embedded_log())


def _embedded_log() -> Log:
    found: Log = cast(transport.Transport, app.transport).log
    return found


def _written(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()):
        stop_process(error)


@dataclass(frozen=True)
class Message:
    """What an agent's step is given: one record and its place. An absent key or value is empty."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: dict[str, bytes]
    ts_s: float

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


def consumes(*topics: faust.TopicT) -> Callable[[Handler], Any]:
    """Declare `handle(message)` as an agent on these topics, one message at a time per agent."""

    def declare(handle: Handler) -> Any:
        name = handle.__name__
        channel = topics[0] if len(topics) == 1 else _all_of(topics)

        async def agent(stream: faust.StreamT[Any]) -> None:
            async for event in stream.events():
                await deliver(name, handle, message_of(event))

        agent.__name__ = agent.__qualname__ = name
        agent.__doc__ = handle.__doc__
        agent.__module__ = handle.__module__
        return app.agent(channel, name=name)(agent)

    return declare


def message_of(event: EventT[Any]) -> Message:
    """Faust's event as ours."""
    record = event.message
    headers = record.headers or {}
    return Message(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key or b"",
        value=record.value or b"",
        headers=dict(headers),
        ts_s=record.timestamp,
    )


async def deliver(name: str, handle: Handler, message: Message) -> None:
    """Run one agent's step until the message has had its effect or lies in the dead letters."""
    tries = poison = 0
    while True:
        try:
            await handle(message)
            MESSAGES.labels(name).inc()
            return
        except (LogFull, LogDamaged, SetupRefused) as error:
            stop_process(error)
        except Exception as error:
            tries += 1
            outage = is_outage(error)
            if isinstance(error, StoreError) and not outage:
                stop_process(error)
            if outage:
                RETRIES.labels(name).inc()
                if tries == 1 or tries % 20 == 0:
                    log.warning("%s waits, try %d: %s", name, tries, error)
            else:
                poison += 1
                if poison >= POISON_TRIES:
                    log.exception("%s cannot use %s", name, message)
                    await dead_letter(message, f"{name}: {type(error).__name__}: {error}")
                    return
            await asyncio.sleep(min(BACKOFF_MAX_S, 0.05 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0))


def is_outage(error: BaseException) -> bool:
    """True where trying again later can help: something outside is away, the message is not at fault."""
    return isinstance(error, StoreBusy | ExchangeBusy | ConnectionError | TimeoutError)


async def dead_letter(
    message: Message, reason: str, *, value: bytes | None = None, headers: Mapping[str, bytes] | None = None
) -> None:
    """Put a message (or with `value` a part of it) aside with its bytes, where it came from, and why."""
    kept = {
        **(message.headers if headers is None else headers),
        "reason": reason.encode(),
        "topic": message.topic.encode(),
        "partition": str(message.partition).encode(),
        "offset": str(message.offset).encode(),
    }
    try:
        await put(DEAD_LETTERS_TOPIC, message.key, message.value if value is None else value, list(kept.items()))
        await flush()
    except BaseException as error:  # noqa: BLE001 -- neither handled nor put aside: it must not be acknowledged
        stop_process(error)
    DEAD_LETTERS.labels(message.topic).inc()


def stop_process(error: BaseException) -> NoReturn:
    """End at once, without a commit: what is not acknowledged comes again after the restart."""
    log.critical("stopping without acknowledging: %s", error)
    logging.shutdown()
    os._exit(getattr(error, "exit_code", 70))


def _all_of(topics: Sequence[faust.TopicT]) -> faust.TopicT:
    names = [name for topic in topics for name in topic.topics]
    return app.topic(
        *names,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        partitions=topics[0].partitions,
    )
