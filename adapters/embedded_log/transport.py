"""Faust on the embedded log: the driver behind `embedded:///abs/path.db`.

    topic.send / table write -> Producer -> Log -> Consumer -> conductor -> agents

Same promise as Kafka gives Faust: at least once, in order per partition, offsets committed after their effects
(changelog records and offset commits pass through one first-in-first-out writer, so no commit overtakes its rows).
One process is the only member of its group: assignment is Faust's own assignor with one member.

    from adapters.embedded_log import transport
    transport.register()
    app = faust.App("id", broker="embedded:///abs/path.db", ...)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from faust.exceptions import ImproperlyConfigured
from faust.transport import base, drivers
from faust.transport.producer import ProducerBuffer
from faust.types import TP, ConsumerMessage, RecordMetadata
from faust.types.enums import ProcessingGuarantee
from faust.types.tuples import FutureMessage
from mode.utils.times import want_seconds

from adapters.embedded_log.log import IN_FLIGHT_BYTES, Appended, Log, Record, partition_of
from adapters.faust_delivery import DirectDelivery, room_in
from adapters.faust_repair import EndsWithWorkInHand
from app.errors import SetupRefused, StreamForgeError

FETCH_RECORDS = 256  # per partition and fetch
FETCH_BYTES = 1 << 20  # per partition and fetch

Headers = Mapping[str, bytes] | Iterable[tuple[str, bytes]] | None


def register() -> None:
    """Make `embedded://` a broker address; before the App is built."""
    drivers.TRANSPORTS.aliases["embedded"] = f"{__name__}:Transport"


class Consumer(EndsWithWorkInHand, DirectDelivery):
    """Reads assigned partitions out of the log.

    A position is None after every assignment and nothing is fetched there until a seek has set it. Each seek gives
    the partition a new turn; a record fetched in an older turn is dropped, never delivered behind a seek.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if cast(Any, self.app.conf).processing_guarantee is not ProcessingGuarantee.AT_LEAST_ONCE:
            raise ImproperlyConfigured("the embedded log is at_least_once: leave processing_guarantee at its default")
        self._positions: dict[TP, int | None] = {}
        self._turns: dict[TP, int] = {}
        self._fetched_turns: dict[TP, int] = {}
        self._generation = 0
        self._wake = asyncio.Event()
        self._assigning = asyncio.Lock()
        self._stop_listening: Callable[[], None] | None = None

    # Life

    async def on_start(self) -> None:
        """Raises LogInUse, LogDamaged, SetupRefused."""
        self._log = self._transport.acquire()
        self._stop_listening = self._log.listen(self._wake.set)
        await super().on_start()

    async def on_shutdown(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
            self._transport.release()
        await super().on_shutdown()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Create what is missing, then assign in a task: the assignment waits for this method's return."""
        wanted = frozenset(topics)
        declared = {
            name: (channel.partitions, channel.compacting, channel.retention)
            for channel in self.app.topics
            for name in channel.topics
        }
        for topic in wanted:
            partitions, compacting, retention = declared.get(topic, (None, None, None))
            if partitions is None and self._log.partitions(topic) is not None:
                continue
            self._log.ensure_topic(
                topic, partitions or self.app.conf.topic_partitions, compacting, _retention_ms(retention)
            )
        await self._log.register_group(
            self.app.conf.id, [topic for topic in wanted if topic not in self.app.tables.changelog_topics]
        )
        self.add_future(self._assign(wanted))

    async def _assign(self, topics: frozenset[str]) -> None:
        async with self._assigning:
            self.app.on_rebalance_start()
            # An empty set: the flow stops and what was done is committed, but no acknowledgement is thrown away.
            await self.on_partitions_revoked(set())
            assignor = cast(Any, self.app.assignor)
            cluster = cast(Any, SimpleNamespace(partitions_for_topic=self._partition_numbers))
            result = assignor.assign(cluster, {"embedded": assignor.metadata(set(topics))})["embedded"]
            assignor.on_assignment(result)
            assigned = {TP(topic, partition) for topic, numbers in result.assignment for partition in numbers}
            self._positions = dict.fromkeys(assigned)
            self._turns = {tp: self._turns.get(tp, 0) + 1 for tp in assigned}
            self._generation += 1
            self.app.consumer_generation_id = self._generation
            await self.on_partitions_assigned(set(assigned), self._generation)

    def _partition_numbers(self, topic: str) -> set[int] | None:
        count = self._log.partitions(topic)
        return None if count is None else set(range(count))

    # Positions

    def assignment(self) -> set[TP]:
        return set(self._positions)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Source partitions go to their committed offset, or where `consumer_auto_offset_reset` says."""
        found: dict[TP, int | None] = {}
        for tp in self.assignment():
            if not self._is_changelog_tp(tp):
                committed = self._log.committed(self.app.conf.id, tp.topic, tp.partition)
                found[tp] = committed
                self._go_to(tp, await self._reset_offset(tp) if committed is None else committed)
        return cast(Mapping[TP, int], found)  # Faust reads None as "nothing committed"

    async def _reset_offset(self, tp: TP) -> int:
        if self.app.conf.consumer_auto_offset_reset == "latest":
            return self._log.end(*tp)
        return await self._log.start(*tp)

    async def _seek(self, partition: TP, offset: int) -> None:
        self._go_to(TP(*partition), offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Recovery asks for the first kept offset - 1 or for one it has seen: what is not there is passed over."""
        for tp, offset in partitions.items():
            self._go_to(tp, offset)
            if offset > 0:
                self._read_offset[tp] = offset
            else:
                self._read_offset.pop(tp, None)

    def _go_to(self, tp: TP, offset: int) -> None:
        self._positions[tp] = max(0, offset)
        self._turns[tp] = self._turns.get(tp, 0) + 1
        self._wake.set()

    async def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)

    def highwater(self, tp: TP) -> int:
        return self._log.end(*tp)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self._log.end(*tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: await self._log.start(*tp) for tp in partitions}

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Durable when this returns. Raises LogFull, LogDamaged."""
        await self._log.commit(self.app.conf.id, {(tp.topic, tp.partition): offset for tp, offset in offsets.items()})
        return True

    # Topics

    def topic_partitions(self, topic: str) -> int | None:
        return self._log.partitions(topic)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        count = self._log.partitions(topic)
        if count is None or partition is not None or key is None:
            return partition
        return partition_of(key, count)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Raises SetupRefused when it is there with another number of partitions."""
        _create_topic(self._log, topic, partitions, options)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    # Flow

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(tps)
        self._wake.set()

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._wake.set()

    def resume_flow(self) -> None:
        super().resume_flow()
        self._wake.set()

    def stop_flow(self) -> None:
        super().stop_flow()
        self._wake.set()

    async def _wait_next_records(self, timeout: float) -> tuple[Mapping[TP, list[Any]] | None, set[TP] | None]:
        """None for the partitions: `_getmany` has already left out what must not be delivered."""
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
        return await self._getmany(None, timeout), None

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        """Records of active partitions that have a position; waits up to `timeout` seconds for some.

        Raises LogDamaged, and the failure of a log that takes no more.
        """
        self._wake.clear()
        records = await self._fetch()
        if records or self.should_stop:
            return records
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout)
        return await self._fetch()

    async def _fetch(self) -> dict[TP, list[Record]]:
        """Raises LogDamaged, and the failure of a log that takes no more."""
        if self._log.failure is not None:
            raise self._log.failure
        off_disk: dict[TP, tuple[int, int, list[Record]]] = {}
        for tp, position, limit in self._ready():
            if self._in_memory(tp, position, limit) is None:
                turn = self._turns[tp]
                records = await self._log.read(*tp, position, max_records=limit, max_bytes=FETCH_BYTES)
                off_disk[tp] = (turn, position, records)
        found: dict[TP, list[Record]] = {}
        for tp, position, limit in self._ready():  # once more, as they are now: no await from here to the positions
            records_now = self._in_memory(tp, position, limit)
            if records_now is None:
                turn, read_from, records_now = off_disk.get(tp, (-1, -1, []))
                if turn != self._turns[tp] or read_from != position:
                    continue
                if not records_now:  # retention has emptied what was here
                    self._positions[tp] = max(position, self._log.first_readable(*tp))
                records_now = records_now[:limit]
            if records_now:
                self._positions[tp] = records_now[-1].offset + 1
                self._fetched_turns[tp] = self._turns[tp]
                found[tp] = records_now
        return found

    def _ready(self) -> list[tuple[TP, int, int]]:
        """(partition, position, records to fetch) where there is something to fetch and a place to put it.

        No more than its agents' queues take at once (`room_in`). A queue that was full wakes the fetch when it has
        drained (`on_buffer_drop`).
        """
        if not self.flow_active:
            return []
        active, end = self._active_partitions, self._log.end
        room: dict[Any, int] = {}
        ready = []
        for tp, position in self._positions.items():
            if position is None or tp not in active or position >= end(*tp):
                continue
            queues = self._queues_of(tp)
            for queue in queues:
                room.setdefault(queue, room_in(queue, FETCH_RECORDS))
            limit = min([FETCH_RECORDS, *(room[queue] for queue in queues)])
            if limit > 0:
                ready.append((tp, position, limit))
                room.update({queue: room[queue] - limit for queue in queues if queue.maxsize})
        return ready

    def _in_memory(self, tp: TP, position: int, limit: int) -> list[Record] | None:
        return self._log.read_memory(*tp, position, max_records=limit, max_bytes=FETCH_BYTES)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        key, value = record.key, record.value
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offset,
            record.ts_ms / 1000.0,
            0,
            list(record.headers),
            key,
            value,
            None,
            0 if key is None else len(key),
            0 if value is None else len(value),
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    def _sought_since_fetch(self, tp: TP) -> bool:
        return self._fetched_turns.get(tp) != self._turns.get(tp)

    @property
    def _transport(self) -> Transport:
        return cast(Transport, self.transport)


class Buffer(ProducerBuffer):
    """Stays empty: `Producer.send_soon` appends at once. It makes streams wait while too much is in flight."""

    open_log: Log | None = None

    async def wait_until_ebb(self) -> None:
        if self.open_log is not None and self.open_log.in_flight_bytes > IN_FLIGHT_BYTES:
            await self.open_log.room()


class Producer(base.Producer):
    """Appends to the log; starts first and stops last, so the log is open as long as anybody may write."""

    _open: Log | None = None

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> None:
        if transport.app.conf.producer_threaded:
            raise ImproperlyConfigured("the embedded log writes in a thread of its own: leave producer_threaded off")
        super().__init__(transport, loop=loop, **kwargs)
        self.buffer = Buffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    async def on_start(self) -> None:
        """Raises LogInUse, LogDamaged, SetupRefused."""
        self._open = cast(Buffer, self.buffer).open_log = cast(Transport, self.transport).acquire()
        await super().on_start()

    async def on_stop(self) -> None:
        if self._open is not None and self._open.failure is None:
            await self._open.barrier()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        if self._open is not None:
            self._open = cast(Buffer, self.buffer).open_log = None
            cast(Transport, self.transport).release()
        await super().on_shutdown()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Headers,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """A future that is done when the record is on disk. Raises SetupRefused at once for an unknown topic."""
        log = self._log
        if log.in_flight_bytes > IN_FLIGHT_BYTES:
            await log.room()
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        log.append_then(
            topic, key, value, partial(_resolve, future), partition=partition,
            headers=_header_pairs(headers), ts_ms=_milliseconds(timestamp),
        )  # fmt: skip
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        """`send`, and wait for it. Raises LogFull, LogDamaged, SetupRefused."""
        return await (await self.send(*args, **kwargs))

    def send_soon(self, fut: FutureMessage) -> None:
        """Changelog rows and `topic.send_soon`: appended at once, so a later offset commit cannot overtake them."""
        message = fut.message
        channel = cast(Any, message.channel)
        topic = channel.get_topic_name()
        key, value = cast(bytes | None, message.key), cast(bytes | None, message.value)
        log = self._log
        state = self.app.sensors.on_send_initiated(
            self, topic, message=message, keysize=len(key or b""), valsize=len(value or b"")
        )
        log.append_then(
            topic, key, value, partial(self._sent_soon, fut, channel, state), partition=message.partition,
            headers=_header_pairs(cast(Headers, message.headers)), ts_ms=_milliseconds(message.timestamp),
        )  # fmt: skip

    def _sent_soon(
        self, fut: FutureMessage, channel: Any, state: Any, appended: Appended | None, error: StreamForgeError | None
    ) -> None:
        channel._on_published(_Outcome(appended, error), message=fut, producer=self, state=state)

    async def flush(self) -> None:
        """Everything sent before is on disk. Raises LogFull, LogDamaged."""
        await self.buffer.flush()
        if self._open is not None:
            await self._open.barrier()

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Raises SetupRefused when it is there with another number of partitions."""
        _create_topic(self._log, topic, partitions, options)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Raises SetupRefused for an unknown topic."""
        count = self._log.partitions(topic)
        if count is None:
            raise SetupRefused(f"topic {topic!r} is not in the log: declare it in app/topics.py")
        return TP(topic, partition_of(key, count))

    def supports_headers(self) -> bool:
        return True

    @property
    def _log(self) -> Log:
        if self._open is None:
            raise SetupRefused("the embedded log is not open: the app has not started, or has stopped")
        return self._open


class Transport(base.Transport):
    """`embedded:///abs/path.db`; the log is opened when the producer starts, never at import."""

    Consumer = Consumer
    Producer = Producer
    default_port = 0
    driver_version = "embedded log"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.url) != 1 or self.url[0].host or not self.url[0].path.strip("/"):
            shown = ";".join(str(url) for url in self.url)
            raise SetupRefused(
                f"{shown} is no embedded log: write embedded:///abs/path.db, one absolute path without , and ;"
            )
        self._logs: list[Log] = []

    @property
    def log(self) -> Log:
        """The open log, for bulk appends. Raises SetupRefused while the app does not run."""
        if not self._logs:
            raise SetupRefused("the embedded log is not open: the app has not started, or has stopped")
        return self._logs[-1]

    def acquire(self) -> Log:
        """Raises LogInUse, LogDamaged, SetupRefused."""
        self._logs.append(Log.open(self.url[0].path))
        return self._logs[-1]

    def release(self) -> None:
        self._logs.pop().close()


class _Outcome:
    """What Faust's `_on_published` expects of a finished future."""

    __slots__ = ("_appended", "_error")

    def __init__(self, appended: Appended | None, error: StreamForgeError | None) -> None:
        self._appended, self._error = appended, error

    def result(self) -> RecordMetadata:
        if self._appended is None:
            raise cast(StreamForgeError, self._error)
        return _metadata(self._appended)


def _metadata(appended: Appended) -> RecordMetadata:
    topic, partition = appended.topic, appended.partition
    return RecordMetadata(topic, partition, TP(topic, partition), appended.offset, appended.ts_ms, 0)


def _resolve(future: asyncio.Future[RecordMetadata], appended: Appended | None, error: StreamForgeError | None) -> None:
    if future.done():
        return
    if appended is None:
        future.set_exception(cast(StreamForgeError, error))
    else:
        future.set_result(_metadata(appended))


def _create_topic(log: Log, topic: str, partitions: int, options: Mapping[str, Any]) -> None:
    log.ensure_topic(topic, partitions, options.get("compacting"), _retention_ms(options.get("retention")))


def _retention_ms(retention: Any) -> int | None:
    return int(want_seconds(retention) * 1000) if retention else None


def _milliseconds(timestamp: float | None) -> int | None:
    return int(timestamp * 1000) if timestamp else None


def _header_pairs(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    if not headers:
        return ()
    return tuple(headers.items() if isinstance(headers, Mapping) else headers)
