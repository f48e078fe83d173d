"""The three defects of Faust 0.15.3: each test shows the stock class losing data and the repaired one keeping it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.exceptions import ImproperlyConfigured
from faust.tables.manager import TableManager as StockTableManager
from faust.tables.recovery import Recovery as StockRecovery
from faust.transport.drivers import aiokafka
from faust.transport.producer import ProducerBuffer as StockBuffer
from faust.types import TP

from adapters import faust_repair

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
    await asyncio.wait_for(consumer._wait_next_records(1.0), 0.5)  # Faust sleeps a second here
    assert broker.asked == []


# F-3: a flush gives up after 0.1 s without progress


class SlowChannel:
    """A broker that answers every 0.15 s."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.sent_all = asyncio.Event()

    async def publish_message(self, fut: Any, wait: bool = False) -> None:
        await asyncio.sleep(0.15)
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
