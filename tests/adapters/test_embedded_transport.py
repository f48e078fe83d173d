"""Faust applications on the embedded log: same agents, tables and recovery as on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.contrib.asgi import faust_app_running
from faust.exceptions import ImproperlyConfigured
from faust.tables.manager import TableManager as StockTableManager
from faust.transport import base as faust_base
from faust.types import TP

from adapters import faust_repair
from adapters.embedded_log import transport
from adapters.embedded_log.log import Log, LogReader, partition_of
from adapters.faust_delivery import in_hand, take_waiting
from app.errors import LogDamaged, SetupRefused
from tests.machine import Stopwatch
from tests.reliability.embedded_app import PARTITIONS, decode, expected_rows, make_app, prepare, rows

REBALANCES = 6
EVENTS = 6_000
RAW: dict[str, Any] = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def app_on(path: Path, **settings: Any) -> faust.App:
    transport.register()
    defaults: dict[str, Any] = {
        "store": "memory://",
        "TableManager": faust_repair.TableManager,
        "topic_partitions": PARTITIONS,
        "table_standby_replicas": 0,
        "broker_commit_interval": 0.1,
        "web_enabled": False,
    }
    return faust.App("small", broker=f"embedded://{path}", **{**defaults, **settings})


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Tables and offsets tell nobody when they change."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "waited too long"
        await asyncio.sleep(0.01)


# The same on every broker


@asynccontextmanager
async def on_embedded(path: Path) -> AsyncIterator[Callable[..., faust.App]]:
    yield lambda **settings: app_on(path, **settings)


BROKERS: list[Any] = [on_embedded]  # the Kafka half adds itself here: an App factory on a fresh broker


async def send_number(topic: Any, number: int) -> Any:
    key, value, headers = b"key%d" % (number % 5), b"%d" % number, {"queue_id": b"q%d" % number}
    return await (await topic.send(key=key, value=value, headers=headers, timestamp=1_700_000_000.125 + number))


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_message_arrives_as_it_was_sent(broker: Any, path: Path) -> None:
    async with broker(path) as make:
        app = make()
        topic = app.topic("messages", partitions=PARTITIONS, **RAW)
        arrived: list[Any] = []

        @app.agent(topic)
        async def agent(stream: Any) -> None:
            async for event in stream.events():
                arrived.append(event.message)  # noqa: PERF401 (a stream has no end)

        async with faust_app_running(app):
            sent = [await send_number(topic, number) for number in range(40)]
            tombstone = await (await topic.send(key=b"key0", value=None))
            await until(lambda: len(arrived) == 41)
    by_value = {message.value: message for message in arrived}
    for number, metadata in enumerate(sent):
        message = by_value[b"%d" % number]
        assert (message.partition, message.offset) == (metadata.partition, metadata.offset)
        assert message.partition == partition_of(b"key%d" % (number % 5), PARTITIONS)
        assert message.headers == [("queue_id", b"q%d" % number)]
        assert message.timestamp == 1_700_000_000.125 + number
        assert metadata.topic_partition == TP("messages", metadata.partition)
    assert by_value[None].offset == tombstone.offset
    for partition in {message.partition for message in arrived}:
        offsets = [message.offset for message in arrived if message.partition == partition]
        assert offsets == list(range(len(offsets)))


async def test_an_agent_takes_what_waits_and_each_row_goes_to_the_partition_of_its_event(path: Path) -> None:
    taken: list[int] = []

    def build() -> tuple[faust.App, Any, Any]:
        app = app_on(path)
        topic = app.topic("messages", partitions=PARTITIONS, **RAW)
        table = app.Table("counts", partitions=PARTITIONS, key_type=bytes, value_type=bytes)

        @app.agent(topic)
        async def agent(stream: Any) -> None:
            async for event in stream.events():
                together = [event, *take_waiting(stream, 31)]
                for each in together:
                    with in_hand(each):
                        table[each.key] = each.value
                await asyncio.sleep(0.01)  # others come meanwhile
                for each in together[1:]:
                    await stream.ack(each)
                taken.append(len(together))

        return app, topic, table

    app, topic, _ = build()
    async with faust_app_running(app):
        for number in range(200):
            await send_number(topic, number)
        await until(lambda: sum(taken) == 200)
    assert max(taken) > 1
    with LogReader(path) as log:
        committed = [at for (_, topic, _), at in log.committed().items() if topic == "messages"]
        assert sum(committed) == 200, "a stop commits what was taken beside the first"
        for row in log.records("small-counts-changelog"):
            assert row.key is not None
            assert partition_of(row.key, PARTITIONS) == row.partition
    taken.clear()
    app, _, table = build()
    async with faust_app_running(app):
        await until(lambda: len(table) == 5)
        assert {bytes(key): int(value) % 5 for key, value in table.items()} == {b"key%d" % n: n for n in range(5)}
    assert taken == []


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_restart_goes_on_where_it_stopped_with_its_table(broker: Any, path: Path) -> None:
    async with broker(path) as make:
        seen: list[bytes] = []

        def build() -> tuple[faust.App, Any, Any]:
            app = make()
            topic = app.topic("messages", partitions=PARTITIONS, **RAW)
            table = app.Table("counts", partitions=PARTITIONS, key_type=bytes, value_type=bytes)

            @app.agent(topic)
            async def agent(stream: Any) -> None:
                async for event in stream.events():
                    seen.append(event.value)
                    table[event.key] = b"%d" % (int(table.get(event.key) or 0) + 1)

            return app, topic, table

        for run in range(3):
            app, topic, table = build()
            async with faust_app_running(app):
                assert dict(table.items()) == ({b"a": b"%d" % (2 * run), b"b": b"%d" % run} if run else {})
                for key in (b"a", b"b", b"a"):
                    await topic.send(key=key, value=b"%d" % run)
                await until(lambda run=run: len(seen) == 3 * (run + 1))
        assert seen == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3


@pytest.mark.parametrize("broker", BROKERS)
async def test_the_router_knows_who_has_a_key(broker: Any, path: Path) -> None:
    async with broker(path) as make:
        app = make()
        app.Table("counts", partitions=PARTITIONS, key_type=bytes, value_type=bytes)
        async with faust_app_running(app):
            await until(lambda: bool(app.tables.actives_ready))
            here = str(app.conf.canonical_url)
            assert app.router.table_metadata("counts") == {here: {"small-counts-changelog": list(range(PARTITIONS))}}
            assert str(app.router.key_store("counts", b"a")) == here
            assert app.is_leader()


# Rebalances, judged by rows


async def rebalance_under_backlog(path: Path, app: faust.App, times: int) -> None:
    consumer: Any = app.consumer
    for number in range(times):
        done = lambda: sum(decode(row).last + 1 for row in app.second.values())  # type: ignore[attr-defined] # noqa: E731
        goal = EVENTS * (number + 1) // (times + 2)
        await until(lambda goal=goal, done=done: done() >= goal)
        await consumer._assign(frozenset(app.topics._topic_name_index))
        await until(lambda: not app.rebalancing)
    await until(lambda: {key: decode(row).last for key, row in app.second.items()} == expected_rows(EVENTS))  # type: ignore[attr-defined]


def jumped(path: Path) -> int:
    return sum(row.jumped for table in ("first", "second") for row in rows(path, table).values())


@pytest.mark.parametrize("buffer_messages", [16, 512])  # 16: the queue is full and the delivery waits
async def test_rebalances_under_backlog_lose_nothing(path: Path, buffer_messages: int) -> None:
    await asyncio.to_thread(prepare, path, EVENTS)
    app = make_app(path, stream_buffer_maxsize=buffer_messages)
    async with faust_app_running(app):
        await rebalance_under_backlog(path, app, REBALANCES)
    assert jumped(path) == 0


class SlowSeek(transport.Consumer):
    """A broker that answers the seek in the middle of a fetch, and 200 ms later where nothing is fetched meanwhile.

    As Kafka's client, and against this driver's rules, it reads on from the old place while the seek is asked for,
    and delivers what it had fetched before.
    """

    delivered_meanwhile = 0

    async def seek_to_committed(self) -> Any:
        self.halfway, self.sought = asyncio.Event(), asyncio.Event()
        self.delivered_meanwhile = 0
        for tp, position in self._positions.items():
            if position is None and not self._is_changelog_tp(tp):
                self._positions[tp] = self._log.committed(self.app.conf.id, tp.topic, tp.partition) or 0
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.halfway.wait(), 0.2)
        found = await super().seek_to_committed()
        self.sought.set()
        return found

    async def _deliver(self, tp: TP, message: Any) -> None:
        self._fetched_turns[tp] = self._turns[tp]
        await super()._deliver(tp, message)
        if not self._is_changelog_tp(tp):
            self.delivered_meanwhile += 1
            if self.delivered_meanwhile == 90:
                self.halfway.set()
                await self.sought.wait()


async def jumped_with(manager: type, path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(transport.Transport, "Consumer", SlowSeek)
    await asyncio.to_thread(prepare, path, EVENTS)
    app = make_app(path, table_manager=manager)
    async with faust_app_running(app):
        await rebalance_under_backlog(path, app, 3)
    return jumped(path)


async def test_f1_a_slow_seek_loses_events_with_fausts_recovery_and_none_with_the_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):  # how much it loses is chance; that it loses is not
        if lost := await jumped_with(StockTableManager, tmp_path / f"stock{number}.db", monkeypatch):
            break
    assert lost > 0
    assert await jumped_with(faust_repair.TableManager, tmp_path / "repaired.db", monkeypatch) == 0


# Topics


async def test_sending_to_an_unknown_topic_raises_at_once(path: Path) -> None:
    app = app_on(path)
    async with faust_app_running(app):
        with pytest.raises(SetupRefused, match="'nowhere'"):
            await app.topic("nowhere", **RAW).send(key=b"k", value=b"v")
        with pytest.raises(SetupRefused, match="'nowhere'"):
            app.topic("nowhere", **RAW).send_soon(key=b"k", value=b"v")


async def test_another_partition_count_stops_the_start(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("messages", 8)
    app = app_on(path)

    @app.agent(app.topic("messages", partitions=4, **RAW))
    async def agent(stream: Any) -> None:
        async for _ in stream:
            pass

    async with faust_app_running(app):
        await until(lambda: app.should_stop)
    assert isinstance(app.crash_reason, SetupRefused)
    assert "has 8 partitions" in str(app.crash_reason)
    log.close()


@pytest.mark.parametrize(
    "address", ["embedded://host/x.db", "embedded://", "embedded:///", "embedded:///a.db;embedded:///b.db"]
)
def test_an_address_that_is_no_absolute_path_is_refused(address: str) -> None:
    transport.register()
    with pytest.raises(SetupRefused, match=r"embedded:///abs/path\.db"):
        _ = faust.App("x", broker=address).transport


def test_what_the_log_cannot_promise_is_refused(path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="at_least_once"):
        _ = app_on(path, processing_guarantee="exactly_once").consumer
    with pytest.raises(ImproperlyConfigured, match="producer_threaded"):
        _ = app_on(path, producer_threaded=True).producer


async def test_the_open_log_is_there_for_bulk_appends_while_the_app_runs(path: Path) -> None:
    app = app_on(path)
    with pytest.raises(SetupRefused, match="not open"):
        _ = app.transport.log  # type: ignore[attr-defined]
    async with faust_app_running(app):
        log = app.transport.log  # type: ignore[attr-defined]
        log.ensure_topic("bulk", 1)
        assert (await log.append("bulk", b"k", b"v")).offset == 0
    with pytest.raises(SetupRefused, match="not open"):
        _ = app.transport.log  # type: ignore[attr-defined]


async def test_two_apps_in_one_process_share_the_log(path: Path) -> None:
    got: dict[str, list[bytes]] = {"one": [], "two": []}
    apps = []
    for name, values in got.items():
        app = app_on(path)
        app.conf.id = name
        topic = app.topic("messages", partitions=1, **RAW)

        @app.agent(topic)
        async def agent(stream: Any, values: list[bytes] = values) -> None:
            async for value in stream:
                values.append(value)  # noqa: PERF401 (a stream has no end)

        apps.append((app, topic))
    (first, topic), (second, _) = apps
    async with faust_app_running(first), faust_app_running(second):
        for number in range(100):
            await topic.send(key=b"k", value=b"%d" % number)
        await until(lambda: all(len(values) == 100 for values in got.values()))
    assert got["one"] == got["two"] == [b"%d" % number for number in range(100)]
    with LogReader(path) as reader:
        assert reader.committed() == {("one", "messages", 0): 100, ("two", "messages", 0): 100}


# Tables


async def test_a_table_recovers_over_holes_and_a_last_tombstone(path: Path) -> None:
    def build() -> tuple[faust.App, Any, Any]:
        app = app_on(path)
        topic = app.topic("changes", partitions=1, **RAW)
        table = app.Table("state", partitions=1, key_type=bytes, value_type=bytes)

        @app.agent(topic)
        async def agent(stream: Any) -> None:
            async for event in stream.events():
                if event.value == b"remove":
                    del table[event.key]
                else:
                    table[event.key] = event.value

        return app, topic, table

    app, topic, table = build()
    async with faust_app_running(app):
        for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"c", b"4"), (b"c", b"remove")):
            await topic.send(key=key, value=value)
        await until(
            lambda: dict(table.items()) == {b"a": b"3", b"b": b"2"} and log_end(app, "small-state-changelog") == 5
        )
    for _ in range(2):
        app, topic, table = build()
        async with faust_app_running(app):
            assert dict(table.items()) == {b"a": b"3", b"b": b"2"}


def log_end(app: faust.App, topic: str) -> int:
    return app.transport.log.end(topic, 0)  # type: ignore[attr-defined]


async def start_after(path: Path, writes: int) -> float:
    """CPU seconds of a start on 10,000 rows that were written so many times in all."""
    app = app_on(path)
    table = app.Table("state", partitions=PARTITIONS, key_type=bytes, value_type=bytes)
    log = Log.open(path)
    log.ensure_topic("small-state-changelog", PARTITIONS, compact=True)
    for number in range(writes):
        log.append("small-state-changelog", b"key%d" % (number % 10_000), b"%d" % number)
        if number % 1000 == 0:
            await log.room(1 << 20)
    await log.barrier()
    log.close()
    with LogReader(path) as reader:
        assert len(list(reader.records("small-state-changelog"))) == 10_000
    began_s = time.process_time()
    async with faust_app_running(app):
        spent_s = time.process_time() - began_s
        assert len(table) == 10_000
        assert table[b"key9999"] == b"%d" % (writes - 1)
    return spent_s


async def test_a_start_reads_the_rows_however_often_they_were_written(path: Path) -> None:
    once_s = await start_after(path.with_name("once.db"), 10_000)
    assert await start_after(path, 100_000) < 2 * once_s


# Flow


def app_with_two_agents_on_one_topic(path: Path, seen: dict[str, set[tuple[bytes, bytes]]]) -> faust.App:
    app = app_on(path, stream_buffer_maxsize=64)
    numbers = app.topic("numbers", partitions=PARTITIONS, **RAW)

    def agent(name: str, pause_s: float) -> None:
        async def read(stream: Any) -> None:
            async for event in stream.events():
                await asyncio.sleep(pause_s)
                seen[name].add((event.message.key, event.message.value))

        read.__name__ = name
        app.agent(numbers, name=name)(read)

    agent("quick", 0)
    agent("slow", 0.005)
    return app


async def test_f4_a_stop_waits_for_work_in_hand_only_and_what_was_cleared_comes_again(path: Path) -> None:
    """Faust's own wait never ends: one agent has done messages that were cleared from the other's queue."""
    await asyncio.to_thread(prepare, path, 600)
    seen: dict[str, set[tuple[bytes, bytes]]] = {"quick": set(), "slow": set()}
    app = app_with_two_agents_on_one_topic(path, seen)
    async with faust_app_running(app):
        await until(lambda: len(seen["quick"]) > len(seen["slow"]) > 5)
        consumer = app.consumer
        consumer.stop_flow()
        app.flow_control.suspend()
        app.flow_control.clear()
        stock = asyncio.ensure_future(faust_base.Consumer.wait_empty(consumer))  # type: ignore[arg-type]
        done, _ = await asyncio.wait({stock}, timeout=2)
        assert not done
        await asyncio.wait_for(consumer.wait_empty(), 150)
        await stock
    app = app_with_two_agents_on_one_topic(path, seen)
    async with faust_app_running(app):
        await until(lambda: len(seen["quick"]) == len(seen["slow"]) == 600)


async def test_an_agent_that_is_stuck_holds_up_no_other(path: Path) -> None:
    """Its queue is full and its backlog long; what others are sent arrives at once all the same."""
    await asyncio.to_thread(prepare, path, 2000)
    app = app_on(path, stream_buffer_maxsize=16)
    stuck = app.topic("numbers", partitions=PARTITIONS, **RAW)
    quick = app.topic("quick", partitions=1, **RAW)
    release, seen = asyncio.Event(), {"stuck": 0, "quick": 0}

    @app.agent(stuck)
    async def stuck_agent(stream: Any) -> None:
        async for _ in stream:
            await release.wait()
            seen["stuck"] += 1

    @app.agent(quick)
    async def quick_agent(stream: Any) -> None:
        async for _ in stream:
            seen["quick"] += 1

    async with faust_app_running(app):
        for number in range(200):
            await quick.send(key=b"k", value=b"v")
            if number % 50 == 0:
                await until(lambda number=number: seen["quick"] == number + 1)
        await until(lambda: seen["quick"] == 200)
        assert seen["stuck"] == 0
        release.set()
        await until(lambda: seen["stuck"] == 2000)


async def spends_next_to_nothing() -> bool:
    """Less than 5 % of a processor in some second; what else a busy machine does in this process comes and goes."""
    for _ in range(30):
        spent_s = time.process_time()
        await asyncio.sleep(1.0)
        if time.process_time() - spent_s < 0.05:
            return True
    return False


async def test_an_idle_app_costs_next_to_nothing_and_an_event_arrives_at_once(path: Path) -> None:
    app = app_on(path)
    topic = app.topic("messages", partitions=1, **RAW)
    delays_s: list[float] = []

    @app.agent(topic)
    async def agent(stream: Any) -> None:
        async for event in stream.events():
            delays_s.append(time.perf_counter() - float(event.value))  # noqa: PERF401 (a stream has no end)

    async with faust_app_running(app):
        assert await spends_next_to_nothing()
        watch = Stopwatch()
        for number in range(500):
            await topic.send(key=b"k", value=b"%r" % time.perf_counter())
            await asyncio.sleep(0.001)
            del number
        await until(lambda: len(delays_s) == 500)
    assert sorted(delays_s)[250] < watch.allowed_s(500 * 0.005) / 500


async def test_damage_under_a_running_app_ends_it(path: Path) -> None:
    """A page that cannot be read is never taken for the end of a partition."""
    await asyncio.to_thread(prepare, path, 3000)
    app = make_app(path)

    async def unreadable(*_: Any, **__: Any) -> Any:
        raise LogDamaged("the page cannot be read")

    log = Log.open(path)
    log.read = unreadable  # type: ignore[method-assign]
    async with faust_app_running(app):
        await until(lambda: app.should_stop)
    assert isinstance(app.crash_reason, LogDamaged)
    log.close()
    assert {key: row.last for key, row in rows(path, "second").items()} != expected_rows(3000)


# Guard


OVERRIDDEN = {
    (transport.Consumer, faust_base.Consumer): {"create_topic": "options"},
    (transport.Producer, faust_base.Producer): {"create_topic": "options", "send_and_wait": "args"},
    (transport.Buffer, transport.ProducerBuffer): {},
    (faust_repair.KafkaConsumer, faust_repair.aiokafka.Consumer): {},
    (faust_repair.KafkaProducer, faust_repair.aiokafka.Producer): {},
    (faust_repair.SendAllBuffer, transport.ProducerBuffer): {},
    (faust_repair.Recovery, faust_repair.recovery.Recovery): {},
    (faust_repair.TableManager, StockTableManager): {},
    (faust_repair.Monitor, faust.sensors.Monitor): {},
}


@pytest.mark.parametrize(("ours", "theirs"), list(OVERRIDDEN))
def test_what_is_overridden_takes_what_faust_gives(ours: type, theirs: type) -> None:
    assert faust.__version__ == faust_repair.FAUST_VERSION == "0.15.3"
    open_ended = OVERRIDDEN[ours, theirs]
    compared = 0
    for name, method in vars(ours).items():
        stock = getattr(theirs, name, None)
        if not inspect.isfunction(method) or stock is None or name == "__init__":
            continue
        compared += 1
        if name in open_ended:
            assert open_ended[name] in inspect.signature(method).parameters
            continue
        assert list(inspect.signature(method).parameters) == list(inspect.signature(stock).parameters), name
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(stock), name
    assert compared or theirs is faust_repair.aiokafka.Producer
