"""Live streams when things go wrong, by their id: nothing is lost, what lacks is said, the limits are kept."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.exchanges import streams
from agents import stream
from models.control import Json
from models.folding import Folding, fold_batch
from tests.feed import FakeFeed, agg_trade, turns
from tests.streams import ETH, at, connected, depth, following, numbers

DAY_S = 86_400.0


async def test_r01_what_passed_during_a_cut_goes_on_before_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, 2, 3)
        await case.until(lambda: case.ids == [1, 2, 3])
        await case.feed.cut()
        case.rest.newest = 5000
        await case.until(lambda: len(case.ids) == 5000)
        await case.say(5001)
        await case.until(lambda: 5001 in case.ids)
        assert case.ids == list(range(1, 5002))
        assert case.ledger.stored == [(at(1) + 1, at(5001))]
        assert case.said["gaps"] == {"filled": 1}


async def test_r05_a_missing_id_is_fetched_while_those_behind_it_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, 2, 3, 6, 7, 9)
        await case.until(lambda: len(case.ids) == 9)
        assert case.ids == list(range(1, 10))
        assert case.ledger.stored == [(at(1) + 1, at(9))]


async def test_r03_a_hole_that_cannot_be_had_in_time_is_said_and_live_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        case.rest.lost = {3, 4}
        await case.say(1, 2, 5, 6)
        await case.until(lambda: case.ids == [1, 2, 5, 6])
        assert case.ledger.missing == [(at(2), at(5) + 1)]
        assert case.ledger.holes() == [(at(2), at(5) + 1)]
        assert case.said["gaps"]["missing"] == 1


async def test_r01_live_goes_on_while_the_rest_side_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1)
        await case.until(lambda: case.ids == [1])
        case.rest.away = True
        await case.feed.cut()
        await case.until(lambda: case.feed.subscribed(ETH) and case.hub.is_up(ETH))
        await case.say(50, 51)
        await case.until(lambda: case.ids == [1, 50, 51])
        assert case.ledger.missing == [(at(1) + 1, at(50) + 1)]


async def test_r02_a_successor_begins_with_what_passed_since_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, 2, 3)
        await case.until(lambda: case.job.checkpoints)
        cursor = case.job.checkpoints[-1]
    assert cursor == {"next_id": 4, "covered_to": at(3)}
    async with following(monkeypatch, cursor=cursor) as case:
        await case.say(2500)
        await case.until(lambda: case.ids and case.ids[-1] == 2500)
        assert case.ids == list(range(4, 2501))
        assert case.ledger.stored == [(at(3), at(2500))]


@pytest.mark.parametrize(
    "bad",
    [
        {"p": "0"},
        {"p": "x"},
        {"p": None},
        {"q": "-1"},
        {"T": "soon"},
        {"m": 5},
        {"a": 2**53 + 1},
        {"a": 2**70},
        {"a": -4},
    ],
)
async def test_r10_a_bad_frame_is_put_aside_and_the_good_record_fetched(
    monkeypatch: pytest.MonkeyPatch, bad: Json
) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, 2)
        await case.say(3, **bad)
        await case.say(4, 5)
        await case.until(lambda: 5 in case.ids)
        assert case.feed.connects == 1
        bad_id = bad.get("a", 3)
        if bad_id == 3 and "T" not in bad:  # its place can be read: its neighbours are told apart from it
            assert case.ids == [1, 2, 4, 5]
            assert case.ledger.missing == [(at(2), at(3) + 1)]
        else:
            assert {1, 2, 3, 4, 5} <= {*case.ids}
            assert case.ledger.missing == []
        kept_all_the_same = bad_id == 2**53 + 1
        assert len(case.rejected) == (0 if kept_all_the_same else 1)
        if case.rejected:
            assert json.loads(case.rejected[0].frame[1])["data"].items() >= bad.items()


async def test_r10_unknown_fields_and_microseconds_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, nq="5", st=1, deep={"x": [1]})
        await case.say(2, T=at(2) * 1000)
        await case.say(3, M=None)
        await case.until(lambda: case.ids == [1, 2, 3])
        times = [ts for batch in case.batches for ts in batch.array("ts_ms").tolist()]
        assert times == [at(1), at(2), at(3)]
        assert case.ledger.stored == [(at(1) + 1, at(3))]


async def test_r13_a_skewed_clock_is_measured_and_moves_no_trade(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        case.clock.now_s = at(1) / 1000 + 5
        await case.say(1, 2)
        await case.until(lambda: case.ids == [1, 2])
        await case.until(lambda: case.said["skew_s"] > 3)
        assert case.batches[0].array("ts_ms").tolist()[0] == at(1)
        assert case.batches[0].ts_receipt_ms >= at(1) + 5000


async def test_r15_a_day_of_reconnects_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        tasks = []
        for hour in range(24):
            await case.say(*range(3 * hour, 3 * hour + 3))
            await case.until(lambda: case.ids and case.ids[-1] == case.rest.newest)
            await case.feed.cut()
            await case.until(lambda: not case.hub.is_up(ETH))
            await case.until(lambda: case.hub.is_up(ETH))
            case.clock.advance(3600)
            if hour > 2:
                tasks.append(len(asyncio.all_tasks()))
        assert case.ids == list(range(72))
        assert max(tasks) - min(tasks) <= 3


async def test_r23_a_quiet_symbol_is_known_to_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1, 2)
        await case.until(lambda: case.ids == [1, 2])
        case.rest.now_ms = at(200)
        await case.until(lambda: case.ledger.stored == [(at(1) + 1, at(200) - stream.SETTLED_MS)], step_s=0.5)
        folding, closed = Folding(), []
        for batch in case.batches:
            closed += [len(made.columns["ts"]) for made in fold_batch(folding, batch, ("1m",)).candles]
        assert closed == [2]
        await case.say(201)
        await case.until(lambda: 201 in case.ids)
        assert case.ledger.stored == [(at(1) + 1, at(201))]


async def test_r05_a_broken_chain_and_a_reader_without_a_book_bring_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ethusdt@depth@100ms"
    async with following(monkeypatch, "ws_orderbook") as case:
        case.rest.newest = 10
        await case.until(lambda: case.books.count("snapshot") == 1)
        await case.feed.say(name, depth(5, 10))
        await case.feed.say(name, depth(11, 12))
        await case.until(lambda: "frames" in case.books)
        assert case.rest.snapshots == 1
        case.rest.newest = 14
        await case.feed.say(name, depth(16, 17))
        await case.until(lambda: case.rest.snapshots >= 2)
        assert case.books.count("snapshot") == 1, "one that is older than the gap is of no use"
        case.rest.newest = 17
        await case.until(lambda: case.books.count("snapshot") == 2)
        case.job.told.put_nowait({"snapshot": "ETHUSDT"})
        await case.until(lambda: case.books.count("snapshot") == 3)


async def test_r08_before_the_day_is_over_another_connection_runs_and_nothing_is_lost() -> None:
    async with connected(connection_silent_s=1e9, stream_silent_s=1e9) as (feed, hub, clock):
        eth, said = hub.subscribe(ETH), 0
        await clock.run_until(lambda: hub.is_up(ETH))
        end_s = clock.now_s + 2.5 * DAY_S
        while clock.now_s < end_s:
            said += 1
            await feed.say(ETH, agg_trade(said))
            clock.advance(300.0)
            await asyncio.sleep(0.002)
            await turns(50)
        got: list[int] = []
        await clock.run_until(lambda: got.extend(numbers(eth)) or said in got)
        assert feed.open_at_subscribe == [1, 2, 2]
        assert {*got} == {*range(1, said + 1)}


async def test_r08_a_shutdown_notice_brings_the_next_connection_before_the_end() -> None:
    async with connected() as (feed, hub, clock):
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: hub.is_up(ETH))
        old = feed.connections[0]
        await feed.say_raw('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}')
        await clock.run_until(lambda: feed.connects == 2 and old not in feed.connections)
        assert feed.open_at_subscribe == [1, 2]
        await feed.say(ETH, agg_trade(2))
        await clock.run_until(lambda: eth.frames)
        assert numbers(eth) == [2]


async def test_r08_a_connection_that_is_open_and_silent_is_replaced() -> None:
    async with connected(connection_silent_s=30.0) as (feed, hub, clock):
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: hub.is_up(ETH))
        await clock.run_until(lambda: eth.joins == 2, step_s=1.0, most_s=40)
        assert feed.connects == 2


async def test_r09_a_closed_door_is_knocked_at_less_and_less() -> None:
    async with connected() as (feed, hub, clock):
        feed.refuses = True
        hub.subscribe(ETH)
        await clock.run_until(lambda: clock.now_s >= 1_000_000 + 300, step_s=0.5)
        assert 5 <= feed.connects < 20
        waits = [seconds for seconds in clock.slept if seconds > 20]
        assert waits
        assert max(waits) <= hub.limits.longest_wait_s
        assert len({*waits}) == len(waits), "chance keeps many loaders apart"


async def test_r09_a_door_that_closes_behind_everyone_stays_within_the_budget_of_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected(connects=10, connects_within_s=300.0, first_wait_s=0.001, longest_wait_s=0.001) as made:
        feed, hub, clock = made
        made_at: list[float] = []
        connect = streams.connect

        def knock(*to: Any, **how: Any) -> Any:
            made_at.append(clock.now_s)
            return connect(*to, **how)

        monkeypatch.setattr(streams, "connect", knock)
        hub.subscribe(ETH)
        began_s = clock.now_s
        while clock.now_s < began_s + 650:
            await feed.cut()
            clock.advance(1.0)
            await asyncio.sleep(0.002)
            await turns(20)
        assert 20 <= len(made_at) <= 30
        for late, early in zip(made_at[10:], made_at, strict=False):
            assert late - early >= 300


async def test_r10_what_nobody_knows_is_counted_and_the_connection_lives() -> None:
    strays: list[bytes] = []
    async with connected() as (feed, hub, clock):
        hub.on_stray = strays.append
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: hub.is_up(ETH))
        for text in ("not JSON", "null", "[1,2]", '{"e":"blockTrade","s":"ETHUSDT"}', '{"stream":"x@y","data":{}}'):
            await feed.say_raw(text)
        await feed.say_raw(json.dumps({"stream": ETH, "data": None}))
        await feed.say_raw(json.dumps({"stream": ETH, "data": {**agg_trade(1), "new": {"deep": [1]}}}))
        await clock.run_until(lambda: eth.frames == 2)
        assert strays == [b"not JSON", b"null", b"[1,2]"]
        assert feed.connects == 1


async def test_r14_a_reader_that_is_behind_holds_up_the_exchange_not_the_memory() -> None:
    async with connected(queue_frames=50, connection_silent_s=1e9, stream_silent_s=1e9) as (feed, hub, clock):
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: hub.is_up(ETH))
        sending = asyncio.create_task(_say_many(feed, 2000))
        await clock.run_until(lambda: eth.frames >= 50)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(eth._queue) == 50
        got: list[int] = []
        while len(got) < 2000:
            clock.advance(0.1)
            got += numbers(eth)
            eth._room.set()
            await asyncio.sleep(0.001)
        await sending
        assert got == list(range(2000))


async def _say_many(feed: FakeFeed, count: int) -> None:
    for number in range(count):
        await feed.say(ETH, agg_trade(number))
