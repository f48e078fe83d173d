"""The defects of Faust 0.15.3 that lose data or never end, repaired by subclasses; nothing is patched in place.

F-1  Recovery resumes the source partitions before it seeks: events are delivered, cleared, and then taken for a
     gap. `Recovery`, through `TableManager`: callbacks, seek, and only then resume.
F-2  The Kafka consumer's thread is handed the live set of active partitions; empty, it means "all", and what is
     drained then is thrown away. `KafkaConsumer` hands it a copy.
F-3  An offset commit gives up waiting for unsent changelog records after 0.1 s without progress. `SendAllBuffer`,
     in `KafkaProducer`: a flush waits for every record put before it. (The embedded log has no such buffer.)

F-4  A stop or rebalance clears the agents' queues and then waits until every message that was begun is acknowledged.
     Where two agents read one topic, a message that one has done and the other had in its queue never is: the
     worker hangs. `EndsWithWorkInHand`, in both consumers, waits for what an agent is working on, and for nothing
     else; what was cleared is not acknowledged and comes again.
F-5  A commit that the group refuses counts as done. Where nothing was ever committed, the seek after the rebalance does
     not correct that: the first records come again, their acknowledgements are taken for old ones, and the position
     stands still until more records come. `KafkaConsumer` remembers only what was committed.

How an App uses it:

    from adapters import faust_repair
    faust_repair.register()                      # kafka:// and aiokafka:// get the repaired consumer and producer
    app = faust.App("id", broker=..., TableManager=faust_repair.TableManager, Monitor=faust_repair.Monitor, ...)

`TableManager` also leaves out the second that Faust sleeps at start: every table here is declared at import.
`Monitor` has no hook per event (7 of 76 us), and ends the process when a record cannot be sent: Faust would log
the error and commit the offsets of what was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, cast

import faust
import faust.sensors
from aiokafka.errors import CommitFailedError, IllegalStateError  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]
from faust.exceptions import ImproperlyConfigured
from faust.tables import recovery
from faust.tables.manager import TableManager as FaustTableManager
from faust.transport import drivers
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.tuples import FutureMessage

from adapters.faust_delivery import DirectDelivery, room_in
from app.errors import SetupRefused

FAUST_VERSION = "0.15.3"
if faust.__version__ != FAUST_VERSION:
    raise SetupRefused(
        f"faust_repair mends Faust {FAUST_VERSION}, {faust.__version__} is installed: install the locked one, or read"
        " its changes, prove the four defects again with tests/adapters/test_faust_repair.py and raise the number"
    )

SEND_FAILED_EXIT = 70  # EX_SOFTWARE: a record is lost to this process, so nothing more may be acknowledged
NOTHING_ACTIVE_S = 0.02  # Faust: 1 s, in which a released partition stands still
FETCH_WAIT_MS = 50  # a broker without records answers a poll after this
FETCH_RECORDS = 1_000  # of one fetch, at most
FETCH_LOOK_S = 0.2  # how long a fetch waits for records before it asks anew which partitions are active
IN_HAND_LOOK_S = 0.2  # how often a stop looks whether the agents are done
FLUSH_LOOK_S = 1.0  # how often a waiting flush looks whether the producer still runs

logger = logging.getLogger(__name__)


def register() -> None:
    """Make `kafka://` and `aiokafka://` the repaired transport; before the App is built."""
    for name in ("kafka", "aiokafka"):
        drivers.TRANSPORTS.aliases[name] = f"{__name__}:KafkaTransport"


class Recovery(recovery.Recovery):
    """F-1: a source partition is read again only after it stands on its committed offset.

    A rebalance that begins meanwhile ends this recovery before anybody hears of it. Brokers that are away are waited
    for: Faust's recovery ends for good after 90 s.
    """

    _rebalances = 0  # how many there had been when this one's partitions came

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        self._rebalances = self.app.rebalancing_count
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Table callbacks, seek, resume: in this order. Raises RebalanceAgain, ServiceStopped as Faust's does."""
        app, consumer = cast(Any, self.app), self.app.consumer
        if self._is_over(generation_id):
            return
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        await self._run_callbacks()
        assignment = consumer.assignment()
        if assignment:
            await self._wait(consumer.perform_seek())
        if self._is_over(generation_id):
            return
        if assignment:
            consumer.resume_partitions({tp for tp in assignment if not self._is_changelog_tp(tp)})
        self.completed.set()
        app.flow_control.resume()  # clears the queues: nothing may have been delivered since the seek
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        app.on_rebalance_end()
        self.log.info("Worker ready")

    def _is_over(self, generation_id: int) -> bool:
        """True when partitions have been taken or given anew since this recovery began."""
        app = self.app
        over = app.consumer_generation_id != generation_id or app.rebalancing_count != self._rebalances
        if over:
            self.log.warning("Another rebalance has begun: recovery of generation %r ends here", generation_id)
        return over

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        await super()._wait(coro)

    async def _run_callbacks(self) -> None:
        results = await asyncio.gather(
            *(
                table.on_recovery_completed(self.actives_for_table[table], self.standbys_for_table[table])
                for table in self.tables.values()
            ),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, Exception):
                self.log.error("A table's on_recover callback failed: %r", error)


class TableManager(FaustTableManager):
    """Recovers tables with the repaired `Recovery`, and starts without Faust's pause of one second."""

    @property
    def recovery(self) -> recovery.Recovery:
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class EndsWithWorkInHand(Consumer):
    """F-4: a stop waits for the events that agents have in hand, not for those that were cleared from their queues."""

    async def wait_empty(self) -> None:
        while not self.should_stop and self._in_hand():
            await self.commit()
            if self._in_hand():
                await self._wait_for_ack(timeout=IN_HAND_LOOK_S)
        self._unacked_messages.clear()
        await self.commit_and_end_transactions()

    def _in_hand(self) -> bool:
        """True while an agent works on an event."""
        actors = (actor for agent in self.app.agents.values() for actor in cast(Any, agent)._actors)
        return any(actor.stream.current_event is not None for actor in actors)


class KafkaConsumerThread(aiokafka.AIOKafkaConsumerThread):
    """Polls briefly, and takes a refused commit for what it is: the records come again."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust: 1500, in which an idle partition's poll holds up the others of its broker. Read when it starts.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def getmany_at_most(
        self, asked: set[TP] | None, timeout: float, records: int | None
    ) -> Mapping[TP, list[Any]]:
        """Faust's `getmany`, with a limit of its own for each fetch."""
        fetch, consumer = self._fetch_records, self._ensure_consumer()
        found = await self.call_thread(fetch, consumer, asked, timeout=timeout, max_records=records)
        return cast(Mapping[TP, list[Any]], found)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """False when the group has moved on. Any other refusal ends the worker, and its records come again."""
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        ours = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        if not ours:
            return False
        self.tp_last_committed_at.update(dict.fromkeys(ours, monotonic()))
        try:
            await consumer.commit({TopicPartition(*tp): OffsetAndMetadata(at, "") for tp, at in ours.items()})
        except (CommitFailedError, IllegalStateError) as error:
            self.log.warning("Offsets were not committed, so their records come again: %s", error)
            return False
        except Exception as error:
            self.log.exception("Offsets cannot be committed, so this worker ends")
            await self.crash(error)
            return False
        return True


class KafkaConsumer(EndsWithWorkInHand, DirectDelivery, aiokafka.Consumer):
    """F-2: the fetch is told the partitions that were active when it began, and never that there are none.

    It is asked for what its agents' queues take at once; the rest stays with aiokafka, and nobody's topic waits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_most: int | None = None  # records of the next fetch
        self._drained = asyncio.Event()  # a full queue has room again
        self._refused: dict[TP, int | None] = {}  # by the commit at work: what is committed there in truth

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        done = await super()._commit(offsets)
        self._refused = {} if done else {tp: self._committed_offset[tp] for tp in offsets}
        return done

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        self._refused = {}
        done = await super()._commit_offsets(offsets, start_new_transaction)
        self._committed_offset.update(self._refused)  # F-5
        return done

    async def perform_seek(self) -> None:
        self._committed_offset.clear()  # F-5: what a commit under way wrote after the partitions were given back
        await super().perform_seek()

    def _new_consumer_thread(self) -> KafkaConsumerThread:
        return KafkaConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> tuple[Mapping[TP, list[Any]] | None, set[TP] | None]:
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
        self.not_waiting_next_records.clear()
        try:
            if self.app.client_only:
                return await self._getmany(active_partitions=None, timeout=timeout), None
            active = self._get_active_partitions()
            # A copy for the thread; the live set for `getmany`, which drops what has been paused since.
            asked = self._with_room(active)
            if not asked:
                self._drained.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), NOTHING_ACTIVE_S)
                return {}, active
            all_asked = len(asked) == len(active) and not self._buffered_partitions
            look_s = min(timeout, FETCH_LOOK_S if all_asked else NOTHING_ACTIVE_S)
            return await self._getmany(active_partitions=asked, timeout=look_s), active
        finally:
            self.not_waiting_next_records.set()

    def _with_room(self, active: set[TP]) -> set[TP]:
        """The partitions whose agents take records now; `_at_most` is then what all of them take."""
        self._at_most = cast(int | None, self.app.conf.broker_max_poll_records)
        if self.app.in_recovery:  # nothing else is delivered meanwhile
            return set(active)
        room = {
            tp: min((room_in(queue, FETCH_RECORDS) for queue in self._queues_of(tp)), default=FETCH_RECORDS)
            for tp in active
        }
        asked = {tp for tp, records in room.items() if records > 0}
        if asked:
            self._at_most = min(room[tp] for tp in asked)
        return asked

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        thread = cast(KafkaConsumerThread, self._thread)
        return await thread.getmany_at_most(active_partitions, timeout, self._at_most)

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._drained.set()


class SendAllBuffer(ProducerBuffer):
    """F-3: `flush` returns when everything put before it has been handed to the producer, however long that takes."""

    max_messages = 1_000  # before streams wait; Faust's 100 are passed by every burst of table writes, with a warning

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put = self._sent = 0

    def put(self, fut: FutureMessage) -> None:
        self._put += 1
        super().put(fut)

    async def _send_pending(self, fut: FutureMessage) -> None:
        try:
            await super()._send_pending(fut)
        finally:
            self._sent += 1

    async def flush(self) -> None:
        """Raises RuntimeError when records are left and nobody sends them any more: offsets must not be committed."""
        mine = self._put
        while self._sent < mine:
            if self.state != "running":
                raise RuntimeError(f"{mine - self._sent} records are unsent and the producer is {self.state}")
            self.message_sent.clear()
            try:
                await asyncio.wait_for(self.message_sent.wait(), FLUSH_LOOK_S)
            except asyncio.TimeoutError:  # noqa: UP041
                continue


class KafkaProducer(aiokafka.Producer):
    """Faust's producer with a buffer that is not left behind."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> None:
        if transport.app.conf.producer_threaded:
            raise ImproperlyConfigured("the repaired buffer does not wait for a threaded producer: leave it off")
        super().__init__(transport, loop=loop, **kwargs)
        self.buffer = SendAllBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    async def flush(self) -> None:
        """Everything put before, by Faust or by a producer of our own, is on the brokers."""
        await super().flush()
        if also := cast(KafkaTransport, self.transport).before_commit:
            await also()


class KafkaTransport(aiokafka.Transport):
    """aiokafka's driver with the repaired consumer and producer.

    `before_commit` is awaited by every flush, so also between choosing offsets and committing them: a second producer
    (`app.core`'s, for bulk) says here when everything it was given is on the brokers. What it raises stops the commit.
    """

    before_commit: Callable[[], Awaitable[None]] | None = None

    Consumer = KafkaConsumer
    Producer = KafkaProducer


class Monitor(faust.sensors.Monitor):
    """Faust's monitor without its work per event; a record that cannot be sent ends the process."""

    def on_message_in(self, tp: TP, offset: int, message: Any) -> None:
        """Nothing per event."""

    def on_stream_event_in(self, tp: TP, offset: int, stream: Any, event: Any) -> dict[str, Any] | None:
        """Only what the stall check of the Kafka consumer reads."""
        self.stream_inbound_time[tp] = monotonic()
        return None

    def on_stream_event_out(
        self, tp: TP, offset: int, stream: Any, event: Any, state: dict[str, Any] | None = None
    ) -> None:
        """Nothing per event."""

    def on_message_out(self, tp: TP, offset: int, message: Any) -> None:
        """Nothing per event."""

    def on_table_get(self, table: Any, key: Any) -> None:
        """Nothing per row."""

    def on_table_set(self, table: Any, key: Any, value: Any) -> None:
        """Nothing per row."""

    def on_table_del(self, table: Any, key: Any) -> None:
        """Nothing per row."""

    def on_send_initiated(self, producer: Any, topic: str, message: Any, keysize: int, valsize: int) -> None:
        """Nothing per record."""

    def on_send_completed(self, producer: Any, state: Any, metadata: Any) -> None:
        """Nothing per record."""

    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        """End the process now: a graceful stop would commit the offsets of what was not sent."""
        logger.critical("A record could not be sent, so this process ends without acknowledging more: %s", exc)
        logging.shutdown()
        os._exit(SEND_FAILED_EXIT)
