"""The market live: what viewers are sent, in which order, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import msgspec
import numpy as np
import orjson
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from app.web import live as web_live
from app.web import market
from app.web.live import TAKES_NOTHING, Audience
from app.web.market import STALE_AFTER_S, Feed, beat, feed_of, take
from app.web.tail import facts_of
from models.market import Batch, BookUpdate, encode_batch, encode_book_update, pack_columns

Client = TestClient[Any, Any]
KEY = b"binance:ETHUSDT"
MINUTE_MS = 60_000
NOON_MS = 1_755_648_000_000


def trades(first: int, count: int = 3, source: str = "live") -> Batch:
    ids = np.arange(first, first + count)
    columns = {"id": ids, "ts_ms": NOON_MS + ids, "price": ids * 1.5, "size": np.ones(count),
               "quote_size": ids * 1.5, "buyer_is_maker": ids % 2 == 0, "trades": np.ones(count)}  # fmt: skip
    return Batch(venue="binance", symbol="ETHUSDT", channel="trades", source=source, run="r", ts_receipt_ms=NOON_MS,
                 columns=pack_columns("trades", columns))  # fmt: skip


def candles(*opened_ms: int, source: str = "aggregated") -> Batch:
    columns = {name: np.ones(len(opened_ms)) for name in ("open", "high", "low", "close", "volume", "quote_volume",
               "trades", "taker_buy_volume", "taker_buy_quote_volume", "closed")}  # fmt: skip
    return Batch(venue="binance", symbol="ETHUSDT", channel="candles_1m", source=source, run="r",
                 ts_receipt_ms=NOON_MS,
                 columns=pack_columns("candles_1m", columns | {"ts": np.array(opened_ms)}))  # fmt: skip


def book(update_id: int, state: Any = "live") -> BookUpdate:
    sides: Any = {"bids": ((10.0, 1.0),), "asks": ((11.0, 2.0),)} if state == "live" else {}
    nan = np.array([1.0, np.nan], "<f8").tobytes()
    return BookUpdate(venue="binance", symbol="ETHUSDT", source="live", run="r", ts_receipt_ms=NOON_MS, state=state,
                      ts_ms=NOON_MS, update_id=update_id, columns={"ofi": nan, "microprice": nan[:8]},
                      **sides)  # fmt: skip


class Seat:
    """An audience of one that only counts: what a feed does must not depend on sockets."""

    def __len__(self) -> int:
        return 1


@pytest.fixture
def feed() -> Feed:
    seat: Any = Seat()
    return Feed("binance", "ETHUSDT", seat)


def news(feed: Feed, now: float) -> dict[str, Any]:
    frame = feed.frame(now)
    return orjson.loads(frame) if frame else {}


def test_live_trades_are_sent_once_and_history_only_where_it_fills_what_was_missed(feed: Feed) -> None:
    feed.take_batch(trades(1, 100, source="history"), 1.0)
    assert news(feed, 1.0).get("trades") is None
    feed.take_batch(trades(201, 3), 2.0)
    feed.take_batch(trades(202, 3), 2.0)  # a repeat after a crash
    assert [row[0] for row in news(feed, 2.0)["trades"]] == [201, 202, 203, 204]
    feed.take_batch(trades(5, 10, source="history"), 2.0)  # a load of long ago
    feed.take_batch(trades(203, 4, source="history"), 2.0)  # the repair of a hole that viewers wait for
    feed.take_batch(trades(207, 1), 2.0)
    said = news(feed, 2.1)
    assert said["trades"] == [[205, NOON_MS + 205, 307.5, 1.0, False], [206, NOON_MS + 206, 309.0, 1.0, True],
                              [207, NOON_MS + 207, 310.5, 1.0, False]]  # fmt: skip
    assert {one["state"] for one in feed.health(2.1)} == {"repairing"}


def test_of_a_book_only_the_newest_state_is_sent_and_what_is_not_known_is_null(feed: Feed) -> None:
    for update_id in range(1, 50):
        feed.take_book(book(update_id), 1.0)
    said = news(feed, 1.0)
    assert said["book"] == {"state": "live", "ts_ms": NOON_MS, "update_id": 49, "bids": [[10.0, 1.0]],
                            "asks": [[11.0, 2.0]], "ofi": None, "microprice": 1.0}  # fmt: skip
    assert news(feed, 1.05) == {}  # nothing new, and the heartbeat is not due
    feed.take_book(book(50, "stale"), 1.1)
    assert news(feed, 1.1)["book"]["state"] == "stale"
    assert [one["state"] for one in feed.health(1.1)] == ["repairing"]


def test_candles_are_news_at_the_edge_of_what_is_live_only(feed: Feed) -> None:
    feed.take_batch(candles(NOON_MS - MINUTE_MS), 1.0)  # made of history: nothing is live yet
    feed.take_batch(trades(1), 1.0)
    feed.take_batch(candles(NOON_MS - 90 * MINUTE_MS), 1.0)
    feed.take_batch(candles(NOON_MS - 90 * MINUTE_MS, NOON_MS - MINUTE_MS), 1.0)
    [candle] = news(feed, 1.0)["candles"]
    assert (candle["interval"], candle["ts"], candle["close"]) == ("1m", NOON_MS - MINUTE_MS, 1.0)


def test_a_symbol_without_data_is_stale_at_once_when_its_time_is_over_and_says_so_every_second(feed: Feed) -> None:
    assert news(feed, 1.0)["state"] == "waiting"
    feed.take_batch(trades(1), 10.0)
    assert news(feed, 10.0)["state"] == "live"
    beats = [now for tick in range(1, 50) if (said := news(feed, now := 10 + tick / 10)) and said["state"] == "live"]
    assert len(beats) == int(STALE_AFTER_S)
    at = 10 + STALE_AFTER_S + 0.1
    assert feed.state(at) == "stale"
    assert [one["state"] for one in feed.health(at)] == ["stale"]
    feed.take_book(book(1), at)
    assert {one["channel"]: one["state"] for one in feed.health(at)} == {"trades": "quiet", "book": "live"}


def test_more_than_a_frame_holds_is_left_to_the_store_and_said(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "TRADES_KEPT", 10)
    feed.take_batch(trades(1, 25), 1.0)
    said = news(feed, 1.0)
    assert (len(said["trades"]), said["trades"][-1][0], said["left_out"]) == (10, 25, True)
    feed.take_batch(trades(26, 1), 1.0)
    assert "left_out" not in news(feed, 1.1)


def test_what_cannot_be_read_changes_nothing() -> None:
    before = dict(market._feeds)
    bare = msgspec.structs.replace(trades(1), columns={})
    ragged = msgspec.structs.replace(trades(1), columns=trades(1).columns | {"ts_ms": b"", "price": b"odd"})
    unknown = msgspec.structs.replace(candles(NOON_MS), channel="candles_7m")
    for batch in (bare, ragged, unknown, msgspec.structs.replace(bare, channel="candles_1m")):
        take("market.trades", KEY, encode_batch(batch))
        assert facts_of("market.trades", encode_batch(batch))
    take("market.books", KEY, encode_book_update(msgspec.structs.replace(book(1), columns={"ofi": b"odd"})))
    for event in (
        b"[]",
        b'{"extra": []}',
        b'{"extra": {"stream": 7}}',
        b'{"extra": {"stream": "binance:ETHUSDT:book"}}',
    ):
        take("queue-events", None, event)
    for topic in ("market.trades", "market.books", "market.candles"):
        for value in (b"", None, b"nonsense", b"\xff" * 100):
            take(topic, b"\xff\xfe", value)
            take(topic, KEY, value)
    assert set(market._feeds) - set(before) <= {KEY.decode()}


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(market, "_feeds", {})
    app = web.Application()
    app.router.add_get("/ws", market.watch_market)
    async with TestClient(TestServer(app), connector=aiohttp.TCPConnector(limit=0)) as client:
        yield client


async def watch(client: Client, symbol: str = "ETHUSDT") -> Any:
    return await client.ws_connect(f"/ws?symbol={symbol}")


def test_r24_an_amended_candle_is_sent_and_an_older_version_of_it_is_not(feed: Feed) -> None:
    feed.take_batch(trades(1), 1.0)
    first = candles(NOON_MS - MINUTE_MS)
    amended = msgspec.structs.replace(first, revision=1)
    partial = msgspec.structs.replace(first, source="partial")
    for batch, sent in ((first, 1), (amended, 1), (first, 0), (partial, 0), (amended, 1)):
        feed.take_batch(batch, 1.0)
        assert len(feed.candles) == sent
        feed.candles = []
    assert len(feed.versions["1m"]) == 1


def test_r03_a_partial_candle_says_so(feed: Feed) -> None:
    feed.take_batch(trades(1), 1.0)
    feed.take_batch(candles(NOON_MS - MINUTE_MS, source="partial"), 1.0)
    assert [one["partial"] for one in news(feed, 1.0)["candles"]] == [True]


async def test_every_viewer_of_a_symbol_gets_the_same_frames_in_sequence(client: Client) -> None:
    take("market.trades", KEY, encode_batch(trades(1)))
    viewers = [await watch(client) for _ in range(3)]
    other = await watch(client, "BTCUSDT")
    hellos = [orjson.loads(await viewer.receive_str()) for viewer in viewers]
    assert {(hello["event"], hello["seq"], hello["last_id"], hello["symbol"]) for hello in hellos} == {
        ("hello", 0, 3, "ETHUSDT")
    }
    for number in range(5):
        take("market.trades", KEY, encode_batch(trades(4 + 3 * number)))
        take("market.books", KEY, encode_book_update(book(number)))
        beat(float(number))
    frames = [[await viewer.receive_str() for _ in range(5)] for viewer in viewers]
    assert frames[0] == frames[1] == frames[2]
    said = [orjson.loads(frame) for frame in frames[0]]
    assert [one["seq"] for one in said] == [1, 2, 3, 4, 5]
    assert [row[0] for one in said for row in one["trades"]] == list(range(4, 19))
    assert orjson.loads(await other.receive_str())["symbol"] == "BTCUSDT"
    assert "trades" not in orjson.loads(await other.receive_str())


async def test_a_viewer_that_talks_is_answered_with_an_error_and_closed_alone(client: Client) -> None:
    quiet, loud = await watch(client), await watch(client)
    for viewer in (quiet, loud):
        await viewer.receive_str()
    await loud.send_str("{]")
    assert orjson.loads(await loud.receive_str()) == {"event": "error", "message": TAKES_NOTHING}
    assert (await loud.receive()).data == WSCloseCode.POLICY_VIOLATION
    beat(1.0)
    assert orjson.loads(await quiet.receive_str())["event"] == "news"


VIEWERS = 1_000


@pytest.fixture
def viewers() -> Iterator[int]:
    """How many viewers this machine has sockets for: each takes two, one a side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * VIEWERS + 200
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    yield min(VIEWERS, (max(soft, limit) - 200) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_thousand_viewers_that_read_nothing_hold_up_neither_the_market_nor_the_one_that_reads(
    client: Client, viewers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience_s in ("ALIVE_EVERY_S", "SEND_WITHIN_S"):  # who reads nothing answers no ping either
        monkeypatch.setattr(web_live, patience_s, 3_600.0)
    sleeping = []
    for first in range(1, viewers, 100):
        sleeping += await asyncio.gather(*(watch(client) for _ in range(first, min(first + 100, viewers))))
    reader = await watch(client)
    feed = feed_of(KEY.decode())
    assert feed is not None
    assert (orjson.loads(await reader.receive_str())["event"], len(feed.audience)) == ("hello", viewers)
    seen: list[int] = []
    batch, batches = 50, 20
    for number in range(batches):
        take("market.trades", KEY, encode_batch(trades(1 + batch * number, batch)))
        beat(float(number))
        seen += [row[0] for row in orjson.loads(await reader.receive_str())["trades"]]
    assert seen == list(range(1, 1 + batch * batches))
    assert feed.last_id == seen[-1]
    for number in range(batches, batches + market.FRAMES_KEPT + 2):
        beat(float(number))  # without giving the loop a turn: nobody takes a frame, everybody is too slow
    slow = sleeping[0]
    said = [orjson.loads(message.data)["event"] async for message in slow]
    assert (said[0], said[-1], slow.close_code) == ("hello", "cut-off", WSCloseCode.TRY_AGAIN_LATER)
    take("market.trades", KEY, encode_batch(trades(1 + batch * batches)))
    assert feed.last_id == batch * batches + 3, "the market went on"
    for viewer in sleeping:
        if viewer._response.connection:
            viewer._response.connection.transport.abort()
    async with asyncio.timeout(150):
        while len(feed.audience) > 1:  # noqa: ASYNC110 -- what the other end of a socket does can only be looked at
            await asyncio.sleep(0.01)


async def test_an_audience_of_the_market_is_cut_off_when_it_does_not_keep_up(client: Client) -> None:
    slow = await watch(client)
    feed = feed_of(KEY.decode())
    assert isinstance(feed, Feed)
    assert isinstance(feed.audience, Audience)
    for number in range(market.FRAMES_KEPT + 2):
        beat(float(number))  # without giving the loop a turn: nothing is taken
    seen = []
    while (message := await slow.receive(timeout=150)).type is WSMsgType.TEXT:
        seen.append(orjson.loads(message.data)["event"])
    assert (seen[-1], message.data) == ("cut-off", WSCloseCode.TRY_AGAIN_LATER)
