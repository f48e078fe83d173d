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
import logging
import os
from collections.abc import Mapping
from time import monotonic
from typing import Any, cast

import faust
import faust.sensors
from faust.exceptions import ImproperlyConfigured
from faust.tables import recovery
from faust.tables.manager import TableManager as FaustTableManager
from faust.transport import drivers
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.tuples import FutureMessage

from app.errors import SetupRefused

FAUST_VERSION = "0.15.3"
if faust.__version__ != FAUST_VERSION:
    raise SetupRefused(
        f"faust_repair mends Faust {FAUST_VERSION}, {faust.__version__} is installed: install the locked one, or read"
        " its changes, prove the four defects again with tests/adapters/test_faust_repair.py and raise the number"
    )

SEND_FAILED_EXIT = 70  # EX_SOFTWARE: a record is lost to this process, so nothing more may be acknowledged
NOTHING_ACTIVE_S = 0.02  # Faust: 1 s, in which a released partition stands still
IN_HAND_LOOK_S = 0.2  # how often a stop looks whether the agents are done
FLUSH_LOOK_S = 1.0  # how often a waiting flush looks whether the producer still runs

logger = logging.getLogger(__name__)


def register() -> None:
    """Make `kafka://` and `aiokafka://` the repaired transport; before the App is built."""
    for name in ("kafka", "aiokafka"):
        drivers.TRANSPORTS.aliases[name] = f"{__name__}:KafkaTransport"


class Recovery(recovery.Recovery):
    """F-1: a source partition is read again only after it stands on its committed offset."""

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Table callbacks, seek, resume: in this order. Raises RebalanceAgain, ServiceStopped as Faust's does."""
        app, consumer = cast(Any, self.app), self.app.consumer
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        await self._run_callbacks()
        if app.consumer_generation_id != generation_id:
            self.log.warning("Another rebalance has begun: recovery of generation %r ends here", generation_id)
            return
        assignment = consumer.assignment()
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=app.conf.broker_request_timeout)
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


class KafkaConsumer(EndsWithWorkInHand, aiokafka.Consumer):
    """F-2: the fetch is told the partitions that were active when it began, and never that there are none."""

    async def _wait_next_records(self, timeout: float) -> tuple[Mapping[TP, list[Any]] | None, set[TP] | None]:
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))
        self.not_waiting_next_records.clear()
        try:
            active = None if self.app.client_only else self._get_active_partitions()
            if active is None:
                return await self._getmany(active_partitions=None, timeout=timeout), None
            if not active:
                await self.sleep(NOTHING_ACTIVE_S)
                return {}, active
            # A copy for the thread; the live set for `getmany`, which drops what has been paused since.
            return await self._getmany(active_partitions=set(active), timeout=timeout), active
        finally:
            self.not_waiting_next_records.set()


class SendAllBuffer(ProducerBuffer):
    """F-3: `flush` returns when everything put before it has been handed to the producer, however long that takes."""

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


class KafkaTransport(aiokafka.Transport):
    """aiokafka's driver with the repaired consumer and producer."""

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
