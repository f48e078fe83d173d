"""Every venue of the table, on the simulated exchange: its own words on the wire, the same market behind them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.exchanges.binance import BinanceUm
from adapters.exchanges.requests import Patience
from adapters.exchanges.streams import Hub, Limits
from adapters.exchanges.venues import VENUES, Venue
from app.config import Settings
from app.errors import ExchangeRefused
from models.market import interval_of
from models.order_book import BookSync, Snapshot
from tests.adapters.live_client import NOON, eventually, texts, viewer

MINUTE_MS = 60_000
QUICK = Patience(first_wait_s=0.01, again_s=0.01, settle_ms=0)
every_venue = pytest.mark.parametrize("venue", VENUES.values(), ids=VENUES)


@every_venue
def test_a_venue_has_settings_a_chain_and_names_that_differ(venue: Venue) -> None:
    assert {f"{venue.name}_api_url", f"{venue.name}_ws_url"} <= Settings.model_fields.keys()
    assert venue.chain
    exchange = venue.exchange("http://127.0.0.1:9")
    assert exchange.venue == venue.wire.venue == venue.name
    names = [exchange.stream_name(channel, venue.symbol) for channel in ("trades", "book", "candles_5m")]
    assert len({*names}) == 3
    with pytest.raises(ExchangeRefused, match=f"{venue.name} has no channel"):
        exchange.stream_name("candles_7m", venue.symbol)


@every_venue
async def test_live_trades_candles_and_book_are_those_of_the_exchange(venue: Venue) -> None:
    async with viewer(start_ms=NOON + MINUTE_MS - 2_000) as view:
        exchange = venue.exchange(view.running.url)
        hub = Hub(venue.wire, view.running.ws_url, limits=venue.stream_limits(Limits()))
        streams = {channel: hub.subscribe(exchange.stream_name(channel, venue.symbol))
                   for channel in ("trades", "candles_1m", "book")}  # fmt: skip
        try:
            await eventually(lambda: all(stream.joins for stream in streams.values()))
            start_ms = view.exchange.clock.now_ms()
            _, snapshot = await exchange.book_snapshot(venue.symbol)
            for _ in range(40):
                view.move(250)
                await asyncio.sleep(0)
            await eventually(lambda: all(stream.frames for stream in streams.values()))
            end_ms = view.exchange.clock.now_ms()
            await eventually(lambda: streams["book"].frames >= 90)
            got = {channel: await frames_of(stream) for channel, stream in streams.items()}
        finally:
            await hub.close()
            await exchange.close()
    trades = exchange.parse_frames("trades", got["trades"])
    assert not trades.rejected
    tape = view.source.tape.trades("BTCUSDT", start_ms, end_ms)  # type: ignore[attr-defined]
    tape = tape if venue.name != "okx" else tape.singles()
    known = set(tape.id.tolist())
    assert known <= set(trades.columns["id"].tolist())
    assert sum(exchange.parse_frames("candles_1m", got["candles_1m"]).columns["closed"]) == 1
    assert_in_sync(venue, snapshot, [frame for _, frame in got["book"]])


async def frames_of(stream: Any) -> list[tuple[int, bytes]]:
    return [(received.ns, received.frame) for received in await stream.take(10_000, 0.2, 1.0)]


def assert_in_sync(venue: Venue, snapshot: bytes, frames: list[bytes]) -> None:
    """A book from a snapshot of REST, or of the stream itself, and the diffs around it; none lacks."""
    sync = BookSync(venue.chain)
    for kind, frame in [("snapshot", snapshot), *(("frames", frame) for frame in frames)]:
        found = venue.read_book(kind, frame)
        if isinstance(found, Snapshot):
            sync.snapshot(found)
        else:
            sync.diff(found)
    assert (sync.state, sync.losses) == ("live", 0)


async def test_okx_begins_with_what_is_known_and_answers_a_text_ping() -> None:
    async with viewer() as view:
        socket = await view.connect("/ws/v5/public")
        await socket.send_str('{"op":"subscribe","id":"1","args":[{"channel":"books","instId":"BTC-USDT"}]}')
        answer, snapshot = [json.loads(text) for text in await texts(socket, 2)]
        assert (answer["event"], answer["id"], answer["arg"]["instId"]) == ("subscribe", "1", "BTC-USDT")
        assert (snapshot["action"], snapshot["data"][0]["prevSeqId"]) == ("snapshot", -1)
        view.move(200)
        first, second = [json.loads(text)["data"][0] for text in await texts(socket, 2)]
        assert first["prevSeqId"] == snapshot["data"][0]["seqId"]
        assert (second["prevSeqId"], second["checksum"]) == (first["seqId"], 0)
        await socket.send_str("ping")
        assert await texts(socket, 1) == ["pong"]
        await socket.send_str('{"op":"subscribe","args":[{"channel":"trades-all","instId":"BTC-USDT"}]}')
        [refusal] = await texts(socket, 1)
        assert json.loads(refusal)["code"] == "60018", "single trades have a path of their own"


async def test_futures_name_the_event_before_and_keep_books_on_their_own_path() -> None:
    async with viewer() as view:
        book = await view.connect("/public/stream?streams=btcusdt@depth@100ms/btcusdt@aggTrade")
        view.move(1_000)
        events = [json.loads(text)["data"] for text in await texts(book, 9)]
        assert {event["e"] for event in events} == {"depthUpdate"}, "trades are silent on this path"
        assert [event["pu"] for event in events[1:]] == [event["u"] for event in events[:-1]]


async def test_history_of_futures_is_that_of_the_exchange() -> None:
    span = (NOON, NOON + 5 * MINUTE_MS)
    async with viewer(start_ms=NOON + 60 * MINUTE_MS) as view:
        um = BinanceUm(view.running.url, patience=QUICK)
        try:
            for channel in ("trades", "candles_1m"):
                pages = [page async for page in um.history(channel, "BTCUSDT", *span)]
                infos = [page.info(venue="binance_um", symbol="BTCUSDT", channel=channel, asked=span, run="r")
                         for page in pages]  # fmt: skip
                parsed = [um.parse(info, page.body) for info, page in zip(infos, pages, strict=True)]
                tape = view.source.tape  # type: ignore[attr-defined]
                if channel == "trades":
                    found = [n for page in parsed for n in page.columns["id"].tolist()]
                    assert found == tape.trades("BTCUSDT", *span).id.tolist()
                else:
                    found = [n for page in parsed for n in page.columns["ts"].tolist()]
                    assert found == tape.candles("BTCUSDT", interval_of(channel), *span).ts_ms.tolist()
            assert (await um.book_snapshot("BTCUSDT"))[0] > 0
            with pytest.raises(ExchangeRefused, match="does not trade 'BTC-USDT'"):
                await um.prepare("BTC-USDT")
            with pytest.raises(ExchangeRefused, match="binance_um has no channel 'fills'"):
                await um.page_from("fills", "BTCUSDT", 1, NOON)
        finally:
            await um.close()
