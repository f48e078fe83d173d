"""The defects of Faust 0.15.3: each test shows the stock class losing data and the repaired one keeping it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka.errors import CommitFailedError, GroupAuthorizationFailedError, IllegalStateError
from faust.exceptions import ImproperlyConfigured
from faust.tables.manager import TableManager as StockTableManager
from faust.tables.recovery import Recovery as StockRecovery
from faust.transport.drivers import aiokafka
from faust.transport.producer import ProducerBuffer as StockBuffer
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from adapters import faust_repair
from tests.machine import Stopwatch

ROOT = Path(__file__).parents[2]
SOURCE, OTHER = TP("source", 0), TP("other", 0)


# F-1: source partitions are resumed before they are sought


class OrderedConsumer:
    """Says in which order recovery asked for things, and which partitions a fetch would have read meanwhile."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.active: set[TP] = set()
        self.fetched_before_seek: set[TP] = set()

    def assignment(self) -> set[TP]:
        return {SOURCE}

    def resume_partitions(self, tps: set[TP]) -> None:
        self.calls.append("resume partitions")
        self.active |= tps

    async def perform_seek(self) -> None:
        await asyncio.sleep(0)  # a broker takes its time, and the fetcher runs
        self.fetched_before_seek = set(self.active)
        self.calls.append("seek")

    def resume_flow(self) -> None:
        self.calls.append("resume flow")


async def recovery_order(recovery_class: type[StockRecovery], monkeypatch: pytest.MonkeyPatch) -> OrderedConsumer:
    app = faust.App("f1", broker="kafka://localhost:1", store="memory://")
    recovery = recovery_class(app, app.tables)
    consumer = OrderedConsumer()
    monkeypatch.setattr(app, "consumer", consumer, raising=False)
    app._fetcher = FakeFetcher()
    app.consumer_generation_id = 7
    await recovery.on_recovery_completed(7)
    return consumer


class FakeFetcher:
    async def maybe_start(self) -> None:
        pass


async def test_f1_a_source_partition_is_sought_before_anything_is_read_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = await recovery_order(StockRecovery, monkeypatch)
    assert stock.fetched_before_seek == {SOURCE}, "Faust has mended F-1: the repair can go"
    repaired = await recovery_order(faust_repair.Recovery, monkeypatch)
    assert repaired.fetched_before_seek == set()
    assert repaired.calls == ["seek", "resume partitions", "resume flow"]


# F-2: the fetch is handed the live set of active partitions


class FakeBroker:
    """aiokafka's fetcher: an empty set of partitions means every partition, and what is handed out is gone."""

    def __init__(self) -> None:
        self.records = {SOURCE: ["s0", "s1"], OTHER: ["o0"]}
        self.asked: list[set[TP]] = []
        self.was_asked = asyncio.Event()
        self.hand_out = asyncio.Event()

    async def fetch(self, active_partitions: set[TP], timeout: float) -> dict[TP, list[str]]:
        self.asked.append(active_partitions)
        self.was_asked.set()
        await self.hand_out.wait()
        return {
            tp: self.records.pop(tp) for tp in list(self.records) if not active_partitions or tp in active_partitions
        }


def consumer_of(consumer_class: type[aiokafka.Consumer], broker: FakeBroker) -> Any:
    app = faust.App("f2", broker="kafka://localhost:1", store="memory://")

    async def nothing(*_: Any) -> None:
        pass

    consumer = consumer_class(
        app.transport, callback=nothing, on_partitions_revoked=nothing, on_partitions_assigned=nothing
    )
    consumer._getmany = broker.fetch  # type: ignore[method-assign, assignment]
    return consumer


async def lost_by_a_pause_during_the_fetch(consumer_class: type[aiokafka.Consumer]) -> set[TP]:
    """Partitions whose records are gone from the broker although nobody asked for them."""
    broker = FakeBroker()
    consumer = consumer_of(consumer_class, broker)
    consumer._active_partitions = {SOURCE}
    waiting = asyncio.create_task(consumer._wait_next_records(1.0))
    await broker.was_asked.wait()
    consumer.pause_partitions({SOURCE})  # a rebalance, or a full buffer
    broker.hand_out.set()
    await waiting
    return {SOURCE, OTHER} - {SOURCE} - set(broker.records)


async def test_f2_a_fetch_takes_no_records_it_was_not_asked_for() -> None:
    assert await lost_by_a_pause_during_the_fetch(aiokafka.Consumer) == {OTHER}, "Faust has mended F-2"
    assert await lost_by_a_pause_during_the_fetch(faust_repair.KafkaConsumer) == set()


async def test_f2_with_nothing_active_nothing_is_fetched_and_the_pause_is_short() -> None:
    broker = FakeBroker()
    consumer = consumer_of(faust_repair.KafkaConsumer, broker)
    watch = Stopwatch()
    await consumer._wait_next_records(1.0)
    assert watch.took_s() < 0.5  # Faust sleeps a second here
    assert broker.asked == []


# F-3: a flush gives up after 0.1 s without progress


class SlowChannel:
    """A broker that answers every 0.3 s."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.sent_all = asyncio.Event()

    async def publish_message(self, fut: Any, wait: bool = False) -> None:
        await asyncio.sleep(0.3)
        self.sent.append(fut.message.value)
        if len(self.sent) == 4:
            self.sent_all.set()


class Put:
    def __init__(self, channel: SlowChannel, value: int) -> None:
        self.message = faust.types.tuples.PendingMessage(channel, None, value, None, None, None, None, None, None)  # type: ignore[arg-type]


async def unsent_after_flush(buffer_class: type[StockBuffer]) -> int:
    buffer = buffer_class()
    buffer.app = faust.App("f3", broker="kafka://localhost:1", store="memory://")
    channel = SlowChannel()
    async with buffer:
        for number in range(4):
            buffer.put(Put(channel, number))  # type: ignore[arg-type]
        await buffer.flush()
        unsent = 4 - len(channel.sent)
        await channel.sent_all.wait()
    return unsent


async def test_f3_a_flush_waits_for_everything_that_was_put_before_it() -> None:
    assert await unsent_after_flush(StockBuffer) > 0, "Faust has mended F-3"
    assert await unsent_after_flush(faust_repair.SendAllBuffer) == 0


async def test_f3_a_flush_of_a_stopped_producer_raises_instead_of_letting_a_commit_pass() -> None:
    buffer = faust_repair.SendAllBuffer()
    buffer.app = faust.App("f3", broker="kafka://localhost:1", store="memory://")
    buffer.put(Put(SlowChannel(), 1))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="1 records are unsent"):
        await buffer.flush()


def test_a_threaded_producer_is_refused() -> None:
    app = faust.App("f3", broker="kafka://localhost:1", producer_threaded=True)
    with pytest.raises(ImproperlyConfigured, match="leave it off"):
        faust_repair.KafkaProducer(app.transport)


# The driver: short polls, direct calls, commits that wait for every producer


class AgentQueue:
    """An agent's queue of 64 records with some in it; above 51 it counts as full."""

    maxsize, pressure_high_size = 64, 51

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting

    def qsize(self) -> int:
        return self.waiting


async def asked_for(queues: dict[TP, AgentQueue]) -> tuple[set[TP], int | None]:
    """The partitions of the next fetch and its limit."""
    broker = FakeBroker()
    consumer = consumer_of(faust_repair.KafkaConsumer, broker)
    consumer._active_partitions = set(queues)
    consumer._queues_of = lambda tp: [queues[tp]]
    broker.hand_out.set()
    await consumer._wait_next_records(1.0)
    return (broker.asked[0] if broker.asked else set()), consumer._at_most


async def test_a_busy_agent_does_not_hold_up_the_topic_of_another() -> None:
    assert await asked_for({SOURCE: AgentQueue(60), OTHER: AgentQueue(0)}) == ({OTHER}, 64)
    assert await asked_for({SOURCE: AgentQueue(40), OTHER: AgentQueue(0)}) == ({SOURCE, OTHER}, 24)
    assert (await asked_for({SOURCE: AgentQueue(60), OTHER: AgentQueue(52)}))[0] == set()


async def test_a_fetch_goes_on_as_soon_as_a_full_queue_has_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust_repair, "NOTHING_ACTIVE_S", 60.0)
    consumer = consumer_of(faust_repair.KafkaConsumer, FakeBroker())
    consumer._active_partitions, consumer._queues_of = {SOURCE}, lambda tp: [AgentQueue(60)]
    waiting = asyncio.create_task(consumer._wait_next_records(1.0))
    await asyncio.sleep(0)
    consumer.on_buffer_drop(SOURCE)
    await asyncio.wait_for(waiting, 150)


async def test_a_broker_answers_a_poll_without_records_soon() -> None:
    def wait_ms(consumer_class: type[aiokafka.Consumer]) -> int:
        thread = consumer_of(consumer_class, FakeBroker())._thread
        return int(thread._create_worker_consumer(thread.transport)._fetch_max_wait_ms)

    assert wait_ms(aiokafka.Consumer) == 1500, "Faust has a setting for it, or aiokafka another name"
    assert wait_ms(faust_repair.KafkaConsumer) == faust_repair.FETCH_WAIT_MS


class OneFetch:
    """What a fetcher tells the drain, and what it hands out once."""

    def __init__(self, consumer: Any, offsets: list[int]) -> None:
        self.should_stop = False
        self._stopped = asyncio.Event()
        self.consumer, self.offsets = consumer, offsets

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        for offset in self.offsets:
            yield (
                SOURCE,
                faust.types.tuples.ConsumerMessage("source", 0, offset, 0.0, 0, [], None, b"", None, 0, 0, SOURCE),
            )
        self.should_stop = True
        self._stopped.set()


async def drained(consumer_class: type[aiokafka.Consumer], offsets: list[int], *, read_to: int | None) -> Any:
    """(offsets delivered, gaps taken, commits made, the read offset at the end)"""
    consumer = consumer_of(consumer_class, FakeBroker())
    delivered: list[int] = []
    gaps: list[tuple[int, int]] = []
    commits: list[int] = []

    async def deliver(message: Any) -> None:
        delivered.append(message.offset)
        consumer._n_acked += 1

    async def add_gap(tp: TP, start: int, end: int) -> None:
        gaps.append((start, end))

    async def commit() -> None:
        commits.append(len(delivered))

    consumer.callback, consumer._add_gap, consumer.commit, consumer._commit_every = deliver, add_gap, commit, 3
    consumer.app.topics.acks_enabled_for = lambda topic: True
    consumer._read_offset[SOURCE] = read_to
    fetch = OneFetch(consumer, offsets)
    consumer.getmany = fetch.getmany
    await consumer._drain_messages(fetch)
    return delivered, gaps, commits, consumer._read_offset[SOURCE]


@pytest.mark.parametrize(
    ("offsets", "read_to"),
    [([0, 1, 2, 3, 4, 5, 6], None), ([7, 8, 12, 13], 7), ([3, 4, 5, 6], 5), ([1, 5], 0), ([2, 1, 2, 3], 2)],
)
async def test_direct_calls_deliver_what_faust_delivers(offsets: list[int], read_to: int | None) -> None:
    theirs = await drained(aiokafka.Consumer, offsets, read_to=read_to)
    assert await drained(faust_repair.KafkaConsumer, offsets, read_to=read_to) == theirs


async def test_a_delivery_that_waits_ends_when_the_flow_stops() -> None:
    consumer = consumer_of(faust_repair.KafkaConsumer, FakeBroker())
    begun, ended = asyncio.Event(), asyncio.Event()

    async def full_queue(message: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    consumer.callback = full_queue
    fetch = OneFetch(consumer, [0])
    consumer.getmany = fetch.getmany
    draining = asyncio.create_task(consumer._drain_messages(fetch))
    await begun.wait()
    consumer.stop_flow()
    await draining
    await ended.wait()


async def test_a_commit_waits_for_the_bulk_producer_and_passes_nothing_done_meanwhile() -> None:
    faust_repair.register()
    consumer = consumer_of(faust_repair.KafkaConsumer, FakeBroker())
    app, done = consumer.app, []
    producer = faust_repair.KafkaProducer(app.transport)
    app.producer, consumer.assignment = producer, lambda: {SOURCE}

    async def bulk_flush() -> None:
        done.append("bulk flush")
        consumer._acked[SOURCE].append(2)  # an agent finishes a message while the flush is awaited

    async def commit(offsets: dict[TP, int]) -> bool:
        done.append(f"commit {offsets[SOURCE]}")
        return True

    app.transport.before_commit, consumer._commit = bulk_flush, commit
    consumer._acked[SOURCE] = [0, 1]
    await consumer.force_commit()
    assert done == ["bulk flush", "commit 2"]


async def test_no_offset_is_committed_when_the_bulk_producer_fails() -> None:
    faust_repair.register()
    consumer = consumer_of(faust_repair.KafkaConsumer, FakeBroker())
    app = consumer.app
    app.producer, consumer.assignment = faust_repair.KafkaProducer(app.transport), lambda: {SOURCE}

    async def bulk_flush() -> None:
        raise ConnectionError("a record of many rows could not be sent")

    app.transport.before_commit = bulk_flush
    consumer._acked[SOURCE] = [0, 1]
    with pytest.raises(ConnectionError):
        await consumer.force_commit()
    assert consumer._committed_offset[SOURCE] is None


class RefusingGroup:
    """aiokafka's consumer, whose group answers a commit with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def assignment(self) -> set[TP]:
        return {SOURCE}

    async def commit(self, offsets: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [CommitFailedError("the group has already rebalanced"), IllegalStateError("No partitions assigned")]
)
async def test_a_commit_refused_in_a_rebalance_does_not_end_the_worker(error: Exception) -> None:
    thread = consumer_of(faust_repair.KafkaConsumer, FakeBroker())._thread
    thread._consumer = RefusingGroup(error)
    assert not await thread._commit({SOURCE: 3})
    assert not thread.crashed


async def acknowledged_after_a_refused_commit(consumer_class: type[aiokafka.Consumer]) -> list[int]:
    """The first record of a partition is done, its commit refused, its partition given back and given again."""
    faust_repair.register()
    consumer = consumer_of(consumer_class, FakeBroker())
    transport = consumer.app.transport
    consumer.app.producer, transport.before_commit = faust_repair.KafkaProducer(transport), None
    consumer.assignment, gone = lambda: {SOURCE}, asyncio.Event()

    async def refused(offsets: dict[TP, int]) -> bool:
        await gone.wait()
        return False

    async def sought() -> dict[TP, int | None]:
        return {SOURCE: None}  # nothing was ever committed

    consumer._thread.commit, consumer.seek_to_committed = refused, sought
    consumer._acked[SOURCE], consumer._acked_index[SOURCE] = [0], {0}
    commit = asyncio.create_task(consumer.force_commit())
    await asyncio.sleep(0)
    for known in (consumer._acked, consumer._acked_index, consumer._committed_offset):
        known.pop(SOURCE, None)
    gone.set()
    assert not await commit
    await consumer.perform_seek()
    consumer.app.topics._acking_topics.add(SOURCE.topic)
    consumer.ack(ConsumerMessage(SOURCE.topic, SOURCE.partition, 0, 0.0, 0, (), b"", b"0", None))
    return list(consumer._acked[SOURCE])


async def test_f5_a_record_whose_commit_was_refused_is_acknowledged_when_it_comes_again() -> None:
    assert await acknowledged_after_a_refused_commit(aiokafka.Consumer) == []
    assert await acknowledged_after_a_refused_commit(faust_repair.KafkaConsumer) == [0]


async def test_a_commit_that_is_forbidden_ends_the_worker() -> None:
    thread = consumer_of(faust_repair.KafkaConsumer, FakeBroker())._thread
    thread._consumer = RefusingGroup(GroupAuthorizationFailedError("numbers"))
    assert not await thread._commit({SOURCE: 3})
    assert thread.crashed


# Around them


def test_kafka_addresses_get_the_repaired_transport() -> None:
    faust_repair.register()
    transport = faust.App("k", broker="kafka://localhost:1").transport
    assert type(transport) is faust_repair.KafkaTransport
    assert (transport.Consumer, transport.Producer) == (faust_repair.KafkaConsumer, faust_repair.KafkaProducer)


def test_the_table_manager_uses_the_repaired_recovery() -> None:
    app = faust.App("t", broker="kafka://localhost:1", TableManager=faust_repair.TableManager)
    assert type(app.tables.recovery) is faust_repair.Recovery
    assert isinstance(app.tables, StockTableManager)


def test_a_failing_recovery_callback_is_logged_and_does_not_stop_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = faust.App("t", broker="kafka://localhost:1", store="memory://", TableManager=faust_repair.TableManager)
    table = app.Table("t")

    @table.on_recover
    async def fails() -> None:
        raise ValueError("broken callback")

    asyncio.run(app.tables.recovery._run_callbacks())
    assert "broken callback" in caplog.text


def test_a_record_that_cannot_be_sent_ends_the_process() -> None:
    code = (
        "import logging; from adapters.faust_repair import Monitor; logging.basicConfig()\n"
        "try: Monitor().on_send_error(None, RuntimeError('the disk is full'), None)\n"
        "finally: print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == faust_repair.SEND_FAILED_EXIT
    assert "still here" not in done.stdout
    assert "the disk is full" in done.stderr


def test_another_version_of_faust_is_refused() -> None:
    code = "import faust; faust.__version__ = '0.15.4'; import adapters.faust_repair"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "mends Faust 0.15.3, 0.15.4 is installed" in done.stderr
