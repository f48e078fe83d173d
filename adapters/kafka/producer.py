"""Bulk records on brokers: one librdkafka producer for the process, idempotent, in order, bounded by bytes.

    send_soon -> room? -> librdkafka -> brokers -> poll thread -> one call into the loop per batch -> futures

Promise: a record whose future is done is on every in-sync replica, once, and in the order of the sends of its key. An
outage is retried for ever: then nothing has room, and whoever sends waits. What the brokers refuse ends it: its future
fails, and so does every later call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from functools import partial
from time import monotonic
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from adapters.bulk import Headers
from adapters.embedded_log.log import Appended
from adapters.kafka.client import Connection
from adapters.kafka.session import MAX_RECORD_BYTES, PATIENCE_S, as_sentence, producer_settings, sentence
from app.errors import BrokerUnreachable, SetupRefused, StreamForgeError

IN_FLIGHT_BYTES = 32 << 20
RECORD_BYTES = 200  # what a record costs beside its own bytes
LINGER_MS = 10
POLL_S = 0.5
LOOKS_AGAIN_S = 1.0
SAYS_AGAIN_S = 60.0

log = logging.getLogger(__name__)

_Waiting = tuple[asyncio.Future[Appended], int, int]  # the record's future, its bytes, its generation
_Delivered = tuple[_Waiting, KafkaError | None, str, int, int, int]  # topic, partition, offset, ts_ms


class KafkaBulkProducer:
    """A `BulkProducer` for the one event loop that sends. Raises SetupRefused for settings that cannot be used."""

    def __init__(
        self, connection: Connection, max_in_flight_bytes: int = IN_FLIGHT_BYTES, settings: dict[str, Any] | None = None
    ) -> None:
        self._connection, self._limit = connection, max_in_flight_bytes
        self.failure: StreamForgeError | None = None
        self.in_flight_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._partitions: dict[str, int] = {}
        self._generation = 0  # records between two flushes
        self._open: Counter[int] = Counter()  # records on their way, by generation
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._gate = asyncio.Lock()  # who has to wait, in order
        self._room = asyncio.Event()
        self._delivered: list[_Delivered] = []  # of the poll thread only
        self._over = threading.Event()
        self._says_again_s = 0.0
        own: dict[str, Any] = {
            "linger.ms": LINGER_MS,
            "message.timeout.ms": 0,  # never: an outage is waited for
            "queue.buffering.max.messages": 0,
            "queue.buffering.max.kbytes": 2**31 - 1,  # bytes are bounded here, where one can wait
            # Brokers that vanish without a word are given up sooner than after a minute, and found again soon.
            "request.timeout.ms": 15_000,
            "socket.timeout.ms": 20_000,
            "reconnect.backoff.max.ms": 2_000,
            "error_cb": self._heard,
        }
        with as_sentence(connection):
            self._producer = Producer({**producer_settings(connection), **own, **(settings or {})}, logger=log)
        self._thread = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._thread.start()

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        await (await self.send_soon(topic, key, value, headers))

    async def send_soon(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> asyncio.Future[Appended]:
        """Returns when there is room. Raises SetupRefused for an unknown topic, TypeError for what is not bytes."""
        if topic in self._partitions and self.in_flight_bytes < self._limit and not self._gate.locked():
            return self._hand_over(topic, key, value, headers)
        async with self._gate:
            await self._learn(topic)
            while self.in_flight_bytes >= self._limit and self.failure is None:
                self._room.clear()
                await self._room.wait()
            return self._hand_over(topic, key, value, headers)

    async def flush(self) -> None:
        """Everything sent before is durable. Raises what the first failed record raised."""
        if self.failure is not None:
            raise self.failure
        if not self._open:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._generation, done))
        self._generation += 1
        await done

    async def partitions(self, topic: str) -> int:
        """Raises SetupRefused for an unknown topic; waits while no broker answers."""
        async with self._gate:
            await self._learn(topic)
        return self._partitions[topic]

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is on its way, then end; blocks. What is not sent in time is left, and said."""
        left = self._producer.flush(timeout_s)
        self._over.set()
        self._thread.join(POLL_S * 2)
        if left:
            self._producer.purge()
            log.warning("%d records were not acknowledged by the brokers within %g s", left, timeout_s)

    # In the loop

    def _hand_over(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers
    ) -> asyncio.Future[Appended]:
        if self.failure is not None:
            raise self.failure
        loop = asyncio.get_running_loop()
        self._loop = loop
        future: asyncio.Future[Appended] = loop.create_future()
        size = len(key or b"") + len(value or b"") + RECORD_BYTES
        waiting = future, size, self._generation
        try:
            self._producer.produce(
                topic, value=value, key=key, headers=list(headers), on_delivery=partial(self._take, waiting)
            )
        except KafkaException as error:
            self._fail(future, topic, size - RECORD_BYTES, error.args[0])
            return future
        self.in_flight_bytes += size
        self._open[self._generation] += 1
        return future

    def _settle(self, delivered: list[_Delivered]) -> None:
        """What one poll has brought."""
        open_records = self._open
        for (future, size, generation), error, topic, partition, offset, ts_ms in delivered:
            self.in_flight_bytes -= size
            open_records[generation] -= 1
            if not open_records[generation]:
                del open_records[generation]
            if error is not None:
                self._fail(future, topic, size - RECORD_BYTES, error)
            elif not future.done():
                future.set_result(Appended(topic, partition, offset, ts_ms))
        if self.in_flight_bytes < self._limit:
            self._room.set()
        oldest = min(open_records, default=self._generation)
        while self._flushes and self._flushes[0][0] < oldest:
            done = self._flushes.pop(0)[1]
            if not done.done():
                done.set_result(None)

    def _fail(self, future: asyncio.Future[Appended], topic: str, size: int, error: KafkaError) -> None:
        failure = self._sentence(topic, size, error)
        self._end(failure)
        if not future.done():
            future.set_exception(failure)

    def _end(self, failure: StreamForgeError) -> None:
        self.failure = self.failure or failure
        self._room.set()
        for _, done in self._flushes:
            if not done.done():
                done.set_exception(self.failure)
        self._flushes.clear()

    def _sentence(self, topic: str, size: int, error: KafkaError) -> StreamForgeError:
        code, where = error.code(), self._connection.bootstrap
        if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE):
            return SetupRefused(
                f"a record of {size:,} bytes is too large for topic {topic}: a record may have"
                f" {MAX_RECORD_BYTES:,} bytes, and max.message.bytes of the topic has to be as much;"
                " run `python -m app topics apply`"
            )
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            return SetupRefused(f"topic {topic} is not on the brokers at {where}: run `python -m app topics apply`")
        return sentence(error, self._connection, f"a record for topic {topic}")

    async def _learn(self, topic: str) -> None:
        """The partitions of every topic, unless this one is known; an outage is waited for. Raises SetupRefused."""
        tries = 0
        while topic not in self._partitions and self.failure is None:
            try:
                self._partitions = await asyncio.to_thread(self._ask)
            except KafkaException as error:
                found = sentence(error, self._connection, f"topic {topic}")
                if not isinstance(found, BrokerUnreachable):
                    raise found from None
                tries += 1
                if tries == 1 or tries % 20 == 0:
                    log.warning("sending waits, try %d: %s", tries, found)
                await asyncio.sleep(LOOKS_AGAIN_S)
            else:
                self._refuse_unknown(topic)

    def _refuse_unknown(self, topic: str) -> None:
        if topic not in self._partitions:
            raise SetupRefused(
                f"topic {topic!r} is not on the brokers at {self._connection.bootstrap}, or is not ours to see:"
                " declare it in app/topics.py and run `python -m app topics apply`"
            )

    def _ask(self) -> dict[str, int]:
        found = self._producer.list_topics(timeout=PATIENCE_S).topics
        return {name: len(topic.partitions) for name, topic in found.items() if topic.error is None}

    # In the thread

    def _poll(self) -> None:
        while not self._over.is_set():
            self._producer.poll(POLL_S)
            if self._delivered:
                delivered, self._delivered = self._delivered, []
                self._in_loop(self._settle, delivered)

    def _take(self, waiting: _Waiting, error: KafkaError | None, message: Message) -> None:
        self._delivered.append((
            waiting, error, message.topic() or "", message.partition() or 0, message.offset() or 0,
            message.timestamp()[1],
        ))  # fmt: skip

    def _heard(self, error: KafkaError) -> None:
        """Outages mend themselves; after a fatal error librdkafka takes nothing more."""
        if error.fatal():
            self._in_loop(self._end, sentence(error, self._connection, "the producer cannot go on"))
        elif monotonic() >= self._says_again_s:
            self._says_again_s = monotonic() + SAYS_AGAIN_S
            log.warning("the brokers at %s: %s", self._connection.bootstrap, error.str())

    def _in_loop(self, call: Any, *arguments: Any) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop was closed just now: nobody waits any more
            self._over.set()
