"""What build_books says of a book, and when it asks for a snapshot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from faust.types import TP

from agents import books
from app.core import Message
from models.control import ANY_ATTEMPT, TaskMessage
from models.market import (
    BookUpdate,
    FramesInfo,
    decode_book_update,
    decode_frames,
    encode_frames,
    encode_frames_info,
)
from tables.book_by_symbol import BookRow

KEY = "binance:ETHUSDT"


class World:
    """Where an agent's words go, and a clock."""

    def __init__(self) -> None:
        self.updates: list[BookUpdate] = []
        self.letters: list[tuple[bytes, str]] = []
        self.tasks: list[TaskMessage] = []
        self.rows: dict[str, BookRow] = {}
        self.now_s = 1_000.0

    async def put(self, topic: str, key: bytes, value: bytes) -> None:
        assert topic == "market.books"
        self.updates.append(decode_book_update(value))

    async def dead_letter(self, _message: Message, reason: str, *, value: bytes) -> None:
        self.letters.append((value, reason))

    async def send_task(self, message: TaskMessage) -> None:
        self.tasks.append(message)

    def monotonic(self) -> float:
        return self.now_s

    @property
    def row(self) -> BookRow:
        return self.rows[KEY]


class Table(dict[str, BookRow]):
    def put(self, key: str, row: BookRow, of: Message) -> None:
        self[key] = row

    def partition_of(self, key: str) -> int:
        return 0 if key == KEY else 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name in ("put", "dead_letter", "send_task"):
        monkeypatch.setattr(books, name, getattr(world, name))
    world.rows = Table()
    monkeypatch.setattr(books, "book_by_symbol", world.rows)
    monkeypatch.setattr(books.time, "monotonic", world.monotonic)
    books._books.clear()
    return world


def depth(first: int, last: int, bids: dict[str, str] | None = None, asks: dict[str, str] | None = None) -> bytes:
    event = {"e": "depthUpdate", "E": 1_700_000_000_000 + last, "s": "ETHUSDT", "U": first, "u": last,
             "b": list((bids or {}).items()), "a": list((asks or {}).items())}  # fmt: skip
    return json.dumps({"stream": "ethusdt@depth@100ms", "data": event}).encode()


def body(last: int) -> bytes:
    return json.dumps({"lastUpdateId": last, "bids": [["10", "3"], ["9", "1"]], "asks": [["11", "1"]]}).encode()


def raw(
    offset: int, *frames: bytes, kind: str = "frames", channel: str = "book", venue: str = "binance", task: str = "t1"
) -> Message:
    info = FramesInfo(
        venue=venue, symbol="ETHUSDT", channel=channel, run="r", task=task, kind=kind, ts_receipt_ms=offset
    )
    value = encode_frames([(n, frame) for n, frame in enumerate(frames)])
    return Message("raw.books", 0, offset, KEY.encode(), value, {"frames": encode_frames_info(info)}, 0.0)


async def synced(world: World) -> None:
    await books.build([raw(0, depth(98, 100)), raw(1, body(100), kind="snapshot")])
    assert [update.state for update in world.updates] == ["live"]
    world.updates.clear()
    world.tasks.clear()
    world.now_s += 60


async def test_r04_a_book_is_shown_when_it_is_in_sync_and_not_before(world: World) -> None:
    await books.build([raw(0, depth(98, 100))])
    assert world.updates == []
    assert (world.row.state, world.row.bids) == ("stale", ())
    await books.build([raw(1, body(100), kind="snapshot")])
    [update] = world.updates
    assert (update.state, update.update_id, update.ts_ms) == ("live", 100, 1_700_000_000_100)
    assert (update.bids, update.asks, len(update)) == (((10.0, 3.0), (9.0, 1.0)), ((11.0, 1.0),), 0)


async def test_a_message_of_diffs_is_one_update_with_a_row_for_each(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 102, {"10": "5"}), depth(103, 103, {}, {"10.5": "2"}))])
    [update] = world.updates
    assert update.array("update_id").tolist() == [102, 103]
    assert update.array("ask").tolist() == [11.0, 10.5]
    assert update.array("ofi").tolist() == [0.0, -2.0]
    assert (update.state, update.update_id, update.origin) == ("live", 103, ("raw.books", 0, 2))
    assert (world.row.update_id, world.row.features["spread"], world.row.at) == (103, 0.5, {"raw.books-0": 2})


async def test_r05_after_a_gap_the_book_is_stale_and_empty_and_a_snapshot_is_asked_for_once_in_two_seconds(
    world: World,
) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101), depth(103, 103))])
    [update] = world.updates
    assert (update.state, update.bids, update.asks) == ("stale", (), ())
    assert (update.update_id, len(update)) == (101, 1), "where it was last in sync"
    [asked] = world.tasks
    assert (asked.kind, asked.task_id, asked.queue_id) == ("tell", "t1", "r")
    assert (asked.attempt, asked.command) == (ANY_ATTEMPT, {"snapshot": "ETHUSDT"})
    world.now_s += 1.9
    await books.build([raw(3, depth(104, 104))])
    assert len(world.tasks) == 1
    assert len(world.updates) == 1, "stale is said once"
    world.now_s += 0.2
    await books.build([raw(4, depth(105, 105))])
    assert len(world.tasks) == 2
    await books.build([raw(5, body(104), kind="snapshot")])
    assert (world.updates[-1].state, world.updates[-1].update_id) == ("live", 105)
    assert world.updates[-1].array("ofi").tolist() == [0.0], "what flowed meanwhile is not known"


async def test_a_gap_that_a_snapshot_was_ready_for_makes_no_flow_up(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101)), raw(3, body(110), kind="snapshot")])
    await books.build([raw(4, depth(108, 111, {"10": "50"}))])
    assert (world.updates[-1].state, world.updates[-1].array("ofi").tolist()) == ("live", [0.0])


async def test_r06_a_crossed_book_is_invalid(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101, {"11": "1"}))])
    [update] = world.updates
    assert (update.state, update.bids, len(update)) == ("invalid", (), 0)
    assert world.tasks[-1].command == {"snapshot": "ETHUSDT"}


async def test_r10_a_frame_that_cannot_be_used_is_put_aside_and_the_rest_goes_on(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101), b'{"e":"depthUpdate"}', depth(102, 102))])
    [(value, reason)] = world.letters
    assert decode_frames(value) == [(1, b'{"e":"depthUpdate"}')], "it can be sent again as it lies there"
    assert "book" in reason
    assert world.updates[-1].array("update_id").tolist() == [101, 102]


async def test_a_message_that_comes_again_makes_no_second_update(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101))])
    before = list(world.updates)
    await books.build([raw(0, depth(98, 100)), raw(1, body(100), kind="snapshot"), raw(2, depth(101, 101))])
    assert world.updates == before
    assert world.row.at == {"raw.books-0": 2}


async def test_r04_a_restarted_owner_says_stale_until_it_is_in_sync_again(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101))])
    books._books.clear()  # another process, with the row
    world.updates.clear()
    await books.build([raw(2, depth(101, 101))])
    [update] = world.updates
    assert (update.state, update.bids, update.update_id) == ("stale", (), 101)
    assert (world.row.state, world.row.bids) == ("stale", ())
    assert len(world.tasks) == 1
    await books.build([raw(3, depth(102, 102)), raw(4, body(101), kind="snapshot")])
    assert world.row.state == "live"
    assert world.updates[-1].array("update_id").tolist() == [102]


async def test_what_a_restarted_owner_hears_again_takes_nothing_back(world: World) -> None:
    await synced(world)
    await books.build([raw(2, depth(101, 101)), raw(3, depth(102, 102))])
    books._books.clear()
    world.updates.clear()
    again = [raw(0, depth(98, 100)), raw(1, body(100), kind="snapshot"), raw(2, depth(101, 101))]
    await books.build(again)
    assert [update.state for update in world.updates] == ["stale"]
    await books.build([raw(3, depth(102, 102))])
    assert [(update.state, update.update_id, len(update)) for update in world.updates[1:]] == [("live", 102, 0)]
    assert (world.row.state, world.row.update_id) == ("live", 102)


async def test_a_book_of_a_partition_that_went_elsewhere_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await synced(world)
    books._books["binance:ELSEWHERE"] = books.KeptBook("binance")
    monkeypatch.setattr(books, "assignment", lambda: {TP("raw.books", 0), TP("raw.trades", 1)})
    await books.forget_books()
    assert list(books._books) == [KEY]


async def test_a_failed_write_loses_no_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await synced(world)

    async def away(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(books, "put", away)
        with pytest.raises(ConnectionError):
            await books.build([raw(2, depth(101, 101))])
    await books.build([raw(2, depth(101, 101))])
    assert world.updates[-1].array("update_id").tolist() == [101]


async def test_only_the_symbol_that_broke_is_out_of_sync(world: World) -> None:
    await synced(world)
    other = books.KeptBook("binance")
    books._books["binance:BTCUSDT"] = other
    other.use("frames", [(0, depth(98, 100))])
    other.use("snapshot", [(0, body(100))])
    await books.build([raw(2, depth(105, 105))])
    assert (world.row.state, other.sync.state) == ("stale", "live")


async def test_a_replay_has_nobody_to_ask_and_best_prices_alone_make_no_book(world: World) -> None:
    await books.build([raw(0, depth(98, 100), task=""), raw(1, b"{}", channel="ticker")])
    assert (world.updates, world.tasks, world.letters) == ([], [], [])


async def test_a_venue_that_nobody_can_read_is_an_error_of_its_message(world: World) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        await books.build([raw(0, depth(98, 100), venue="nowhere")])
