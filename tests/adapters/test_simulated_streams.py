"""The live side of the simulated exchange: the exchange's formats, one market seen through every window, its limits."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adapters.exchanges.behaviours import Behaviour
from adapters.exchanges.sources import TapeSource
from adapters.exchanges.tape import FIRST_DAY_MS, MINUTE_MS, Tape, listings
from tests.adapters.live_client import NOON, TAPE, best, ends, rebuilt, texts, viewer

RECORDED = Path(os.environ.get("RECORDED_DATA", "")) / "ws" / "binance_spot"
SOURCE = TapeSource(TAPE)


def shape(value: Any) -> Any:
    """Names in order and types; of lists the first element's."""
    if isinstance(value, dict):
        return [(name, shape(part)) for name, part in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def events(stream: str, after_ms: int, until_ms: int) -> list[dict[str, Any]]:
    return [json.loads(text) for _, text in SOURCE.frames(stream, after_ms, until_ms)]


# -- formats ------------------------------------------------------------------------------------------------

FORMATS = [
    ("aggTrade", "multi4_20210814T1446.jsonl.gz"),
    ("kline_1m", "multi4_20210814T1446.jsonl.gz"),
    ("depth@100ms", "multi4_20210814T1446.jsonl.gz"),
    ("bookTicker", "multi4_20210814T1446.jsonl.gz"),
    ("trade", "btcusdt_20240808T2354_20240809T0005.jsonl.gz"),
]


@pytest.mark.skipif(not RECORDED.is_dir(), reason="RECORDED_DATA names no folder with ws/binance_spot")
@pytest.mark.parametrize(("kind", "file"), FORMATS)
def test_a_frame_has_the_fields_of_the_recorded_one_in_its_order(kind: str, file: str) -> None:
    recorded = []
    with gzip.open(RECORDED / file, "rt") as lines:
        for line in lines:
            frame = json.loads(json.loads(line)["raw"] or "null")
            if frame and frame.get("stream", "").endswith(f"@{kind}"):
                recorded.append(frame["data"])
            if len(recorded) == 40:
                break
    ours = events(f"btcusdt@{kind}", NOON, NOON + MINUTE_MS)
    full = [event for event in recorded if event.get("b") != [] and event.get("a") != []]
    assert shape(ours[0]) == shape(full[0])
    decimals = [value for event in ours for value in (*event.values(), *event.get("k", {}).values())]
    padded = [text for text in decimals if isinstance(text, str) and "." in text]
    assert all(len(text.split(".")[1]) == 8 for text in padded)


async def test_a_combined_frame_wraps_the_bare_event_of_a_raw_one() -> None:
    async with viewer() as view:
        raw = await view.connect("/ws/btcusdt@aggTrade/ethusdt@aggTrade")
        combined = await view.connect("/stream?streams=btcusdt@aggTrade/ethusdt@aggTrade")
        view.move(10_000)
        truth = [view.truth(f"{symbol}@aggTrade", NOON, NOON + 10_000) for symbol in ("btcusdt", "ethusdt")]
        count = sum(map(len, truth))
        bare, wrapped = await texts(raw, count), await texts(combined, count)
        assert sorted(bare) == sorted(truth[0] + truth[1])
        names = [f"{json.loads(text)['s'].lower()}@aggTrade" for text in bare]
        assert wrapped == [f'{{"stream":"{name}","data":{text}}}' for name, text in zip(names, bare, strict=True)]


async def test_times_come_in_microseconds_when_asked_for() -> None:
    async with viewer() as view:
        socket = await view.connect("/ws/btcusdt@trade?timeUnit=MICROSECOND")
        view.move(10_000)
        truth = json.loads(view.truth("btcusdt@trade", NOON, NOON + 10_000)[0])
        (text,) = await texts(socket, 1)
        assert json.loads(text) == {**truth, "E": truth["E"] * 1000, "T": truth["T"] * 1000}


# -- one market, seen through every window -------------------------------------------------------------------


async def test_live_trades_are_those_of_rest_by_id_and_value() -> None:
    async with viewer() as view:
        aggregates = await view.connect("/ws/ethusdt@aggTrade")
        singles = await view.connect("/ws/ethusdt@trade")
        view.move(MINUTE_MS)
        until = NOON + MINUTE_MS
        agg = [json.loads(t) for t in await texts(aggregates, len(view.truth("ethusdt@aggTrade", NOON, until)))]
        one = [json.loads(t) for t in await texts(singles, len(view.truth("ethusdt@trade", NOON, until)))]
        rest = await view.get("/api/v3/aggTrades", symbol="ETHUSDT", fromId=agg[0]["a"], limit=1000)
        assert [{name: event[name] for name in rest[0]} for event in agg] == rest[: len(agg)]
        fills = await view.get("/api/v3/historicalTrades", symbol="ETHUSDT", fromId=one[0]["t"], limit=1000)
        assert [
            [event[name] for name in ("t", "p", "q", "T", "m", "M")] for event in one
        ] == [[row[name] for name in ("id", "price", "qty", "time", "isBuyerMaker", "isBestMatch")]
              for row in fills[: len(one)]]  # fmt: skip
        newest = await view.get("/api/v3/trades", symbol="ETHUSDT", limit=5)
        assert [row["id"] for row in newest][-1] >= one[-1]["t"]
    assert [event["a"] for event in agg] == list(range(agg[0]["a"], agg[0]["a"] + len(agg)))
    assert [event["t"] for event in one] == list(range(agg[0]["f"], agg[-1]["l"] + 1))
    for event in agg:
        parts = [fill for fill in one if event["f"] <= fill["t"] <= event["l"]]
        assert round(sum(float(fill["q"]) for fill in parts), 8) == float(event["q"])
        assert {(fill["p"], fill["m"], fill["T"]) for fill in parts} == {(event["p"], event["m"], event["T"])}


async def test_a_candles_closing_frame_is_the_row_of_rest_and_the_sum_of_its_trades() -> None:
    until = NOON + 6 * MINUTE_MS
    klines = [event["k"] for event in events("btcusdt@kline_1m", NOON, until)]
    closed = [candle for candle in klines if candle["x"] and candle["t"] >= NOON]
    assert [candle["t"] for candle in closed] == [NOON + i * MINUTE_MS for i in range(len(closed))]
    assert len(closed) >= 5
    async with viewer(start_ms=until) as view:
        rows = await view.get("/api/v3/klines", symbol="BTCUSDT", interval="1m", startTime=NOON, limit=len(closed))
    order = ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q")
    assert [[candle[name] for name in order] for candle in closed] == [row[:11] for row in rows]
    assert all(candle["n"] == candle["L"] - candle["f"] + 1 for candle in klines if candle["f"] >= 0)
    for candle in closed:
        fills = [t for t in events("btcusdt@trade", candle["t"], candle["T"] + 1) if candle["t"] <= t["T"]]
        prices = [float(fill["p"]) for fill in fills]
        assert [float(candle[name]) for name in "ohlc"] == [prices[0], max(prices), min(prices), prices[-1]]
        assert (candle["f"], candle["L"]) == (fills[0]["t"], fills[-1]["t"])


@pytest.mark.parametrize("stream", ["btcusdt@depth@100ms", "btcusdt@depth", "xrpusdt@depth@100ms"])
async def test_snapshot_and_diffs_make_the_book_that_book_ticker_shows(stream: str) -> None:
    symbol, until = stream.partition("@")[0], NOON + 60_000
    diffs = events(stream, NOON, until)
    tickers = {ticker["u"]: ticker for ticker in events(f"{symbol}@bookTicker", NOON, until)}
    assert [b["U"] - a["u"] for a, b in pairwise(diffs)] == [1] * (len(diffs) - 1)
    for taken_ms in (NOON + 1_234, NOON + 7_777, NOON + 30_050):
        snapshot = json.loads(SOURCE.depth(symbol.upper(), 5000, taken_ms))
        for end in range(len(diffs) // 2 + 5, len(diffs), 7):
            update_id, bids, asks = rebuilt(snapshot, diffs[:end])
            ticker = tickers[update_id]
            assert best(bids, asks) == (ticker["b"], ticker["B"], ticker["a"], ticker["A"])
        later = json.loads(SOURCE.depth(symbol.upper(), 5000, diffs[-1]["E"]))
        assert rebuilt(snapshot, diffs) == (later["lastUpdateId"], dict(later["bids"]), dict(later["asks"]))


def test_books_agree_across_midnight_and_through_fast_trades() -> None:
    tape = Tape(3, listings(2))
    midnight = FIRST_DAY_MS + 86_400_000
    tape.crowd("BTCUSDT", midnight + 5_000, 200)
    source = TapeSource(tape)
    frames = source.frames("btcusdt@depth@100ms", midnight - 3_000, midnight + 30_000)
    diffs = [json.loads(text) for _, text in frames]
    snapshot = json.loads(source.depth("BTCUSDT", 5000, midnight - 1_500))
    later = json.loads(source.depth("BTCUSDT", 5000, diffs[-1]["E"]))
    assert rebuilt(snapshot, diffs) == (later["lastUpdateId"], dict(later["bids"]), dict(later["asks"]))


def test_every_trade_prints_at_a_best_price_shown_by_then() -> None:
    tickers = SOURCE.frames("btcusdt@bookTicker", NOON, NOON + 60_000)
    shown = [(ts_ms, json.loads(text)) for ts_ms, text in tickers]
    trades = [trade for trade in events("btcusdt@aggTrade", NOON, NOON + 60_000) if trade["T"] > NOON + 1000]
    assert len(trades) > 20
    for trade in trades:
        before = [ticker for ts_ms, ticker in shown if ts_ms <= trade["T"]][-50:]
        side = "b" if trade["m"] else "a"
        last = [ticker for ts_ms, ticker in shown if ts_ms < trade["T"]][-1:]
        at_once = [ticker for ts_ms, ticker in shown if ts_ms == trade["T"]]
        assert before
        assert trade["p"] in {ticker[side] for ticker in (*last, *at_once)}


def test_the_same_moment_looks_the_same_whatever_was_asked_before() -> None:
    other = TapeSource(Tape(11, listings(5, lively=4)))
    later = other.frames("ethusdt@depth@100ms", NOON + 50_000, NOON + 60_000)
    assert later == SOURCE.frames("ethusdt@depth@100ms", NOON, NOON + 60_000)[-len(later) :]
    assert other.depth("ETHUSDT", 100, NOON) == SOURCE.depth("ETHUSDT", 100, NOON)


def test_a_partial_book_stream_shows_the_top_of_the_snapshot() -> None:
    frames = SOURCE.frames("btcusdt@depth5@100ms", NOON, NOON + 1_000)
    assert len(frames) == 10
    assert all(text == SOURCE.depth("BTCUSDT", 5, ts_ms) for ts_ms, text in frames)


async def test_two_hundred_symbols_go_over_one_connection() -> None:
    source = TapeSource(Tape(5, listings(200)))
    streams = [f"{listing.symbol.lower()}@aggTrade" for listing in source.tape.listings]
    async with viewer(source=source, start_ms=FIRST_DAY_MS + 3_600_000) as view:
        socket = await view.connect("/stream?streams=" + "/".join(streams))
        view.move(30 * MINUTE_MS)
        start = FIRST_DAY_MS + 3_600_000
        wanted = {stream: view.truth(stream, start, start + 30 * MINUTE_MS) for stream in streams}
        got: dict[str, list[str]] = {stream: [] for stream in streams}
        for text in await texts(socket, sum(map(len, wanted.values()))):
            stream, _, data = text[11:-1].partition('","data":')
            got[stream].append(data)
    assert got == wanted
    assert sum(map(bool, wanted.values())) > 190


# -- the protocol --------------------------------------------------------------------------------------------


async def asked(socket: aiohttp.ClientWebSocketResponse, **message: Any) -> Any:
    await socket.send_str(json.dumps(message))
    return json.loads((await texts(socket, 1))[0])


async def test_subscriptions_are_made_listed_and_ended() -> None:
    async with viewer(Behaviour(name="socket_limit", text="messages_per_s", value=50)) as view:
        socket = await view.connect("/ws")
        names = ["btcusdt@trade", "nosuchcoin@trade"]  # a well-formed name is taken and stays silent
        assert await asked(socket, method="SUBSCRIBE", params=names, id=1) == {"result": None, "id": 1}
        assert await asked(socket, method="LIST_SUBSCRIPTIONS", id="x") == {"result": names, "id": "x"}
        assert await asked(socket, method="GET_PROPERTY", params=["combined"], id=2) == {"result": False, "id": 2}
        done = {"result": None, "id": None}
        assert await asked(socket, method="SET_PROPERTY", params=["combined", True], id=None) == done
        view.move(5_000)
        (text,) = await texts(socket, 1)
        assert json.loads(text)["stream"] == "btcusdt@trade"
        other = await view.connect("/stream?streams=ethusdt@trade")
        assert await asked(other, method="UNSUBSCRIBE", params=["ethusdt@trade"], id=3) == {"result": None, "id": 3}
        assert await asked(other, method="LIST_SUBSCRIPTIONS", id=4) == {"result": [], "id": 4}


WRONG = [
    ('{"method":"SUBSCRIBE","params":["btcusdt"],"id":1}', 2),
    ('{"method":"SUBSCRIBE","params":["BTCUSDT@trade"],"id":1}', 2),
    ('{"method":"SUBSCRIBE","params":["btcusdt@kline_7m"],"id":1}', 2),
    ('{"method":"SUBSCRIBE","params":[],"id":1}', 2),
    ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2),
    ('{"method":"PLEASE","id":1}', 2),
    ('{"method":"LIST_SUBSCRIPTIONS","id":1.5}', 2),
    ('{"method":"GET_PROPERTY","params":["colour"],"id":1}', 0),
    ('{"method":"SET_PROPERTY","params":["combined","yes"],"id":1}', 1),
    ("not json", 3),
]


@pytest.mark.parametrize(("message", "code"), WRONG)
async def test_a_wrong_message_is_answered_in_the_exchanges_shape_and_the_connection_lives(
    message: str, code: int
) -> None:
    async with viewer() as view:
        socket = await view.connect("/ws")
        await socket.send_str(message)
        answer = json.loads((await texts(socket, 1))[0])
        assert answer["error"]["code"] == code
        assert await asked(socket, method="LIST_SUBSCRIPTIONS", id=9) == {"result": [], "id": 9}
        view.exchange.show([Behaviour(name="flat_errors")])
        await socket.send_str(message)
        assert json.loads((await texts(socket, 1))[0])["code"] == code


async def test_answers_may_come_late_and_out_of_order() -> None:
    async with viewer(Behaviour(name="late_answer", seconds=2)) as view:
        socket = await view.connect("/ws")
        await socket.send_str('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        assert await asked(socket, method="LIST_SUBSCRIPTIONS", id=2) == {"result": [], "id": 2}
        view.move(2_000)
        assert json.loads((await texts(socket, 1))[0])["id"] == 1


async def test_the_sixth_message_of_a_second_ends_the_connection() -> None:
    async with viewer() as view:
        socket = await view.connect("/ws")
        for number in range(6):
            await socket.send_str(f'{{"method":"LIST_SUBSCRIPTIONS","id":{number}}}')
        assert await ends(socket) == aiohttp.WSCloseCode.POLICY_VIOLATION


async def test_more_streams_than_a_connection_may_have_are_refused() -> None:
    async with viewer(Behaviour(name="socket_limit", text="streams", value=2)) as view:
        socket = await view.connect("/ws/btcusdt@trade/ethusdt@trade")
        answer = await asked(socket, method="SUBSCRIBE", params=["xrpusdt@trade"], id=1)
        assert answer["error"]["code"] == 2


async def test_too_many_connection_attempts_of_an_address_are_refused() -> None:
    async with viewer(Behaviour(name="socket_limit", text="connects", value=3)) as view:
        for _ in range(3):
            await (await view.connect("/ws")).close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await view.connect("/ws")
        assert refused.value.status == 429
        view.move(301_000)
        await view.connect("/ws")


async def test_a_ping_comes_every_twenty_seconds_and_needs_its_own_pong_within_a_minute() -> None:
    async with viewer(Behaviour(name="socket_limit", text="real_pong_s", value=0)) as view:
        good, wrong = await view.connect("/ws", autoping=False), await view.connect("/ws", autoping=False)
        payloads = []
        for _ in range(4):
            view.move(20_000)
            ping = await good.receive(timeout=150)
            assert ping.type == aiohttp.WSMsgType.PING
            await good.pong(ping.data)
            payloads.append(ping.data)
            assert await asked(good, method="LIST_SUBSCRIPTIONS", id=1) == {"result": [], "id": 1}  # the pong is heard
            if len(payloads) == 1:
                await wrong.receive(timeout=150)
                await wrong.pong(b"something else")
        assert len(set(payloads)) == 4
        assert await ends(wrong) == aiohttp.WSCloseCode.POLICY_VIOLATION
        assert not good.closed


async def test_a_connection_lives_a_day_at_most() -> None:
    async with viewer(Behaviour(name="no_ping", times=0)) as view:
        socket = await view.connect("/ws")
        view.move(86_400_000)
        assert await ends(socket) == aiohttp.WSCloseCode.OK


async def test_time_runs_at_the_speed_that_was_asked_for() -> None:
    async with viewer(speed=1000) as view:
        socket = await view.connect("/ws/btcusdt@aggTrade")
        frames = [json.loads(text) for text in await texts(socket, 100)]
        said = (await view.get("/api/v3/time"))["serverTime"]
        assert NOON < frames[-1]["E"] <= said + 1
        view.exchange.show([Behaviour(name="clock", at=NOON + 10_000_000, speed=0)])
        assert (await view.get("/api/v3/time"))["serverTime"] == NOON + 10_000_000


async def test_a_slow_viewer_loses_nothing_and_keeps_nobody_waiting() -> None:
    async with viewer() as view:
        slow, quick = await view.connect("/ws/btcusdt@depth@100ms"), await view.connect("/ws/btcusdt@depth@100ms")
        view.move(40_000)
        truth = view.truth("btcusdt@depth@100ms", NOON, NOON + 40_000)
        assert await texts(quick, len(truth)) == truth
        assert await texts(slow, len(truth)) == truth


async def test_futures_routes_carry_only_what_belongs_to_them() -> None:
    source = TapeSource(TAPE)
    source.market = "um"
    async with viewer(source=source) as view:
        public = await view.connect("/public/stream?streams=btcusdt@aggTrade/btcusdt@bookTicker")
        market = await view.connect("/market/stream?streams=btcusdt@aggTrade/btcusdt@bookTicker")
        view.move(20_000)
        seen = {json.loads(text)["stream"] for text in await texts(public, 100)}
        assert seen == {"btcusdt@bookTicker"}
        assert json.loads((await texts(market, 1))[0])["stream"] == "btcusdt@aggTrade"


async def test_what_is_open_can_be_looked_at() -> None:
    async with viewer() as view:
        socket = await view.connect("/ws/btcusdt@trade")
        await asked(socket, method="LIST_SUBSCRIPTIONS", id=1)
        listed = await view.get("/sim/sockets")
        assert [connection["streams"] for connection in listed["open"]] == [["btcusdt@trade"]]
        assert listed["opened"] == 1
