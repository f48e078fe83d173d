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
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import faust
from faust.types import EventT

from adapters import faust_repair
from adapters.bulk import BulkProducer, EmbeddedBulkProducer
from adapters.embedded_log import transport
from app import auth
from app.config import settings
from app.errors import ExchangeBusy, LogDamaged, LogFull, SetupRefused, StoreBusy, StoreError
from app.telemetry import DEAD_LETTERS, MESSAGES, RETRIES, logging_config

log = logging.getLogger(__name__)

POISON_TRIES = 3
BACKOFF_MAX_S = 30.0
DEAD_LETTERS_TOPIC = "dead-letters"

Headers = Sequence[tuple[str, bytes]]
Handler = Callable[[EventT[Any]], Awaitable[None]]


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


async def put(topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
    """Write a record with many rows; returns when there is room for it.

    It is durable before any offset that is committed after this call: the log writes in the order it is told.
    A record that cannot be written ends the process.
    """
    (await _bulk().send_soon(topic, key, value, headers)).add_done_callback(_written)


async def flush() -> None:
    """Everything put before is durable."""
    await _bulk().flush()


def backlog(topic: str) -> int:
    """Records of a topic that this app has not committed yet."""
    log_ = app.transport.log
    counts = (log_.end(topic, p) - (log_.committed(app.conf.id, topic, p) or 0) for p in range(log_.partitions(topic)))
    return sum(counts)


def _bulk() -> BulkProducer:
    return EmbeddedBulkProducer(app.transport.log)


def _written(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()):
        stop_process(error)


def consumes(*topics: faust.TopicT[Any]) -> Callable[[Handler], Any]:
    """Declare `handle(event)` as an agent on these topics, one message at a time per agent."""

    def declare(handle: Handler) -> Any:
        name = handle.__name__
        channel = topics[0] if len(topics) == 1 else app.topic(
            *(n for t in topics for n in t.topics), key_type=bytes, value_type=bytes,
            key_serializer="raw", value_serializer="raw", partitions=topics[0].partitions,
        )  # fmt: skip

        async def agent(stream: faust.StreamT[Any]) -> None:
            async for event in stream.events():
                await deliver(name, handle, event)

        agent.__name__ = agent.__qualname__ = name
        agent.__doc__ = handle.__doc__
        agent.__module__ = handle.__module__
        return app.agent(channel, name=name)(agent)

    return declare


async def deliver(name: str, handle: Handler, event: EventT[Any]) -> None:
    """Run one agent's step until the message has had its effect or lies in the dead letters."""
    tries = poison = 0
    while True:
        try:
            await handle(event)
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
                    log.exception("%s cannot use %s", name, where(event))
                    await dead_letter(event, f"{name}: {type(error).__name__}: {error}")
                    return
            await asyncio.sleep(min(BACKOFF_MAX_S, 0.05 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0))


def is_outage(error: BaseException) -> bool:
    """True where trying again later can help: something outside is away, the message is not at fault."""
    return isinstance(error, StoreBusy | ExchangeBusy | ConnectionError | TimeoutError)


async def dead_letter(
    event: EventT[Any], reason: str, *, value: bytes | None = None, headers: Headers | None = None
) -> None:
    """Put a message (or with `value` a part of it) aside with its bytes, where it came from, and why."""
    message = event.message
    kept = dict(headers if headers is not None else [(k, v) for k, v in _header_pairs(event)])
    kept |= {
        "reason": reason.encode(),
        "topic": message.topic.encode(),
        "partition": str(message.partition).encode(),
        "offset": str(message.offset).encode(),
    }
    try:
        body = message.value if value is None else value
        await put(DEAD_LETTERS_TOPIC, message.key, body or b"", list(kept.items()))
        await flush()
    except BaseException as error:  # noqa: BLE001 -- neither handled nor put aside: it must not be acknowledged
        stop_process(error)
    DEAD_LETTERS.labels(message.topic).inc()


def header(event: EventT[Any], name: str) -> bytes | None:
    """A header's value; None where the message does not carry it."""
    return next((value for key, value in _header_pairs(event) if key == name), None)


def where(event: EventT[Any]) -> str:
    return f"{event.message.topic}[{event.message.partition}]@{event.message.offset}"


def stop_process(error: BaseException) -> NoReturn:
    """End at once, without a commit: what is not acknowledged comes again after the restart."""
    log.critical("stopping without acknowledging: %s", error)
    logging.shutdown()
    os._exit(getattr(error, "exit_code", 70))


def _header_pairs(event: EventT[Any]) -> Headers:
    headers = event.message.headers or []
    return list(headers.items() if isinstance(headers, dict) else headers)
