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
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, cast

import faust
from faust.exceptions import ConsumerNotStarted
from faust.types import TP, EventT

from adapters import faust_repair
from adapters.bulk import BulkProducer, EmbeddedBulkProducer
from adapters.embedded_log import transport
from adapters.embedded_log.log import Appended, Log
from adapters.faust_delivery import take_waiting
from adapters.kafka.client import Connection
from adapters.kafka.lag import Backlog
from adapters.kafka.producer import KafkaBulkProducer
from app import auth
from app.config import settings
from app.errors import ExchangeBusy, LogDamaged, LogFull, SetupRefused, StoreBusy, StoreError
from app.sensors import Sensors
from app.telemetry import DEAD_LETTERS, MESSAGES, RETRIES, logging_config

log = logging.getLogger(__name__)

POISON_TRIES = 3
BACKOFF_MAX_S = 30.0
DEAD_LETTERS_TOPIC = "dead-letters"
TOGETHER = 32  # messages of up to 1,000 rows: what a step takes at once, where it can

_waiting: set[str] = set()  # agents that wait for something outside

Headers = Sequence[tuple[str, bytes]]
Handler = Callable[["Message"], Awaitable[None]]
Step = Callable[[list["Message"]], Awaitable[None]]


def make_app() -> faust.App:
    """The application on the broker that the settings name."""
    config = settings()
    transport.register()
    faust_repair.register()
    return faust.App(
        config.group,
        broker=config.broker,
        broker_credentials=connection().faust_credentials() if config.on_kafka else None,
        broker_session_timeout=config.kafka_session_timeout_s,
        broker_heartbeat_interval=min(3.0, config.kafka_session_timeout_s / 4),
        consumer_max_fetch_size=4 << 20,  # bytes per partition and fetch
        producer_max_request_size=8 << 20,
        store=f"{config.table_store}://",
        datadir=config.data_dir.resolve() / "tables",
        TableManager=faust_repair.TableManager,
        Monitor=Sensors,
        key_type=bytes,
        value_type=bytes,
        topic_partitions=config.partitions,
        topic_allow_declare=not config.on_kafka,  # on brokers `topics apply` has made them all
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


@cache
def connection() -> Connection:
    """How this process reaches the brokers. Raises SetupRefused."""
    return Connection.of(settings())


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


def assignment() -> set[TP]:
    """This worker's partitions; none before its consumer runs, when the web server already answers."""
    try:
        return set(app.consumer.assignment())
    except ConsumerNotStarted:
        return set()


def positions(topics: Sequence[str]) -> dict[TP, tuple[int, int]]:
    """(committed position, end) of this worker's partitions of these topics, as far as the broker says so now."""
    mine = assignment()
    if settings().on_kafka:
        known = _kafka_backlog().waiting({app.conf.id: topics})
        fresh = {topic for topic in topics if _kafka_backlog().is_fresh(app.conf.id, topic)}
        return {TP(topic, n): at for (_, topic, n), at in known.items() if topic in fresh and TP(topic, n) in mine}
    committed: Mapping[TP, int | None] = cast(Any, app.consumer)._committed_offset  # Faust has no public name for it
    return {tp: (committed.get(tp) or 0, app.consumer.highwater(tp) or 0) for tp in mine if tp.topic in topics}


def hears(topic: str) -> bool:
    """False while the brokers do not say where this worker stands on the topic: what was said there may lie unread."""
    return not settings().on_kafka or _kafka_backlog().is_fresh(app.conf.id, topic)


faust_repair.KafkaTransport.before_commit = staticmethod(flush)  # an offset is committed after the bulk records too


def backlog(topic: str, readers: Sequence[str]) -> int:
    """Records of a topic that the slowest of these groups has not committed yet; on brokers, half a second ago."""
    if settings().on_kafka:
        return max((_kafka_backlog().of(group, topic) for group in readers), default=0)
    record_log = embedded_log()
    partitions = range(record_log.partitions(topic) or 0)
    return sum(record_log.end(topic, p) - (record_log.committed(app.conf.id, topic, p) or 0) for p in partitions)


def _bulk() -> BulkProducer:
    return _kafka_bulk() if settings().on_kafka else EmbeddedBulkProducer(embedded_log())


@cache
def _kafka_bulk() -> KafkaBulkProducer:
    return KafkaBulkProducer(connection())


@cache
def _kafka_backlog() -> Backlog:
    return Backlog(connection())


def embedded_log() -> Log:
    """The log of this process; there once the app has started, without brokers only."""
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
    event: EventT[Any] | None = None  # Faust's own

    @property
    def place(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


def consumes(*topics: faust.TopicT) -> Callable[[Handler], Any]:
    """Declare `handle(message)` as an agent on these topics, one message at a time per agent."""

    def declare(handle: Handler) -> Any:
        async def step(messages: list[Message]) -> None:
            await handle(messages[0])

        return _declare(handle, step, topics, at_most=1)

    return declare


def consumes_together(*topics: faust.TopicT) -> Callable[[Step], Any]:
    """Declare `handle(messages)` as an agent on these topics: what waits for it, in order, at most TOGETHER.

    A table row is written in the name of its message (`Rows.put(..., of=message)`). When the messages cannot be used
    together they come again one by one, so that only the one at fault is put aside.
    """
    return lambda handle: _declare(handle, handle, topics, at_most=TOGETHER)


def _declare(named: Any, step: Step, topics: Sequence[faust.TopicT], at_most: int) -> Any:
    name = named.__name__
    channel = topics[0] if len(topics) == 1 else _all_of(topics)

    async def agent(stream: faust.StreamT[Any]) -> None:
        async for event in stream.events():
            also = take_waiting(stream, at_most - 1)
            await deliver(name, step, [message_of(each) for each in (event, *also)])
            for each in also:
                await stream.ack(each)

    agent.__name__ = agent.__qualname__ = name
    agent.__doc__ = named.__doc__
    agent.__module__ = named.__module__
    return app.agent(channel, name=name)(agent)


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
        event=event,
    )


async def deliver(name: str, step: Step, messages: list[Message]) -> None:
    """Run one agent's step until the messages have had their effect or lie in the dead letters."""
    tries = poison = 0
    while True:
        try:
            await step(messages)
            MESSAGES.labels(name).inc(len(messages))
            _waiting.discard(name)
            return
        except (LogFull, LogDamaged, SetupRefused) as error:
            stop_process(error)
        except Exception as error:
            tries += 1
            outage = is_outage(error)
            if isinstance(error, StoreError) and not outage:
                stop_process(error)
            if outage:
                _waiting.add(name)
                RETRIES.labels(name).inc()
                if tries == 1 or tries % 20 == 0:
                    log.warning("%s waits, try %d: %s", name, tries, error)
            elif len(messages) > 1:  # one of them is at fault
                for message in messages:
                    await deliver(name, step, [message])
                return
            else:
                poison += 1
                if poison >= POISON_TRIES:
                    log.exception("%s cannot use %s", name, messages[0])
                    await dead_letter(messages[0], f"{name}: {type(error).__name__}: {error}")
                    _waiting.discard(name)
                    return
            try:
                await asyncio.sleep(min(BACKOFF_MAX_S, 0.05 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0))
            except asyncio.CancelledError:  # its partition has gone, and with it what it waited for
                _waiting.discard(name)
                raise


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


def waiting_agents() -> list[str]:
    """Agents that wait for something outside, and try again."""
    return sorted(_waiting)


on_abandon: list[Callable[[], None]] = []  # called before this process ends without a stop: end the child processes


def restart_process(reason: str) -> NoReturn:
    """Begin anew as the same process, without a commit: what is not acknowledged comes again."""
    log.critical("starting anew without acknowledging: %s", reason)
    for end_children in on_abandon:
        end_children()
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def stop_process(error: BaseException) -> NoReturn:
    """End at once, without a commit: what is not acknowledged comes again after the restart."""
    log.critical("stopping without acknowledging: %s", error)
    for end_children in on_abandon:
        end_children()
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
