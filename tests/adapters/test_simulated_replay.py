"""A recording played by the simulated exchange is the recording, and what the recorder writes can be played."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from adapters.exchanges.behaviours import Behaviour
from adapters.exchanges.recorder import Recorder, record, streams_of
from adapters.exchanges.sim_replay import ReplaySource
from adapters.exchanges.simulated import play_when_subscribed
from app.errors import SetupRefused
from tests.adapters.live_client import NOON, best, ends, eventually, rebuilt, texts, viewer

RECORDED = Path(os.environ.get("RECORDED_DATA", "")) / "ws"
SPOT = RECORDED / "binance_spot" / "btcusdt_20240808T2354_20240809T0005.jsonl.gz"
FUTURES = RECORDED / "binance_um" / "multi4_20210722T2225.jsonl.gz"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="RECORDED_DATA names no folder with ws")


def lines_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def source() -> ReplaySource:
    return ReplaySource(SPOT)


# -- replay --------------------------------------------------------------------------------------------------


@recorded
async def test_a_recording_is_played_byte_for_byte_in_its_order(source: ReplaySource) -> None:
    raws = [line["raw"] for line in lines_of(SPOT) if line["kind"] == "ws"]
    wanted = [raw for raw in raws if '"stream":"btcusdt@trade"' in raw[:40] or "@depth" in raw[:40]]
    async with viewer(source=source, start_ms=source.start_ms) as view:
        socket = await view.connect("/stream?streams=btcusdt@trade/btcusdt@depth@100ms")
        view.move(source.end_ms - source.start_ms)
        came = await texts(socket, len(wanted))
        assert (sorted(came), len(came)) == (sorted(wanted), 19_904 + 6_495)
        for stream in ("@trade", "@depth"):
            assert [text for text in came if stream in text[:40]] == [raw for raw in wanted if stream in raw[:40]]
        rest: list[dict[str, Any]] = []
        while page := await view.get(
            "/api/v3/historicalTrades", symbol="BTCUSDT", fromId=rest[-1]["id"] + 1 if rest else 0, limit=1000
        ):
            rest += page
    played = [json.loads(text)["data"] for text in came if "@trade" in text[:40]]
    order = ("t", "p", "q", "T", "m", "M")
    assert [[event[name] for name in order] for event in played] == [
        [row[name] for name in ("id", "price", "qty", "time", "isBuyerMaker", "isBestMatch")] for row in rest
    ]
    assert [row["id"] for row in rest] == list(range(rest[0]["id"], rest[0]["id"] + 19_904))


@recorded
async def test_the_whole_candles_of_a_replay_are_the_recorded_ones(source: ReplaySource) -> None:
    async with viewer(source=source, start_ms=source.end_ms) as view:
        rows = await view.get("/api/v3/klines", symbol="BTCUSDT", interval="5m")
    found = [[row[0], *map(float, row[1:6])] for row in rows]
    files = (RECORDED.parent / "klines" / "spot" / "5m_ohlcv" / "2024-08").glob("BTCUSDT*")
    known: dict[int, list[float]] = {}
    for path in files:
        with gzip.open(path, "rt") as table:
            for line in list(table)[1:]:
                open_ms, *numbers = line.split(",")
                known[int(open_ms)] = [float(number) for number in numbers[:5]]
    assert [row[0] for row in found] == [1723161300000, 1723161600000, 1723161900000]
    assert [row[1:] for row in found[:2]] == [known[row[0]] for row in found[:2]]


@recorded
@pytest.mark.parametrize("at_s", [0.1, 30, 400])
async def test_a_loader_gets_in_sync_at_any_time_of_a_replay(source: ReplaySource, at_s: float) -> None:
    at_ms, until_ms = source.start_ms + int(at_s * 1000), source.start_ms + int(at_s * 1000) + 5_000
    snapshot = json.loads(source.depth("BTCUSDT", 5000, at_ms) or "")
    diffs = [json.loads(text) for _, text in source.frames("btcusdt@depth@100ms", at_ms, until_ms)]
    tickers = [json.loads(text) for _, text in source.frames("btcusdt@bookTicker", at_ms, until_ms)]
    by_id = {ticker["u"]: ticker for ticker in tickers}
    compared = 0
    for end in range(5, len(diffs)):
        update_id, bids, asks = rebuilt(snapshot, diffs[:end])
        if update_id in by_id:
            ticker = by_id[update_id]
            compared += best(bids, asks) == (ticker["b"], ticker["B"], ticker["a"], ticker["A"])
    assert compared > 0


@recorded
async def test_only_what_was_played_is_shown(source: ReplaySource) -> None:
    async with viewer(source=source, start_ms=source.start_ms + 60_000) as view:
        (newest,) = await view.get("/api/v3/trades", symbol="BTCUSDT", limit=1)
        assert source.start_ms + 50_000 < newest["time"] <= source.start_ms + 60_500
        assert await view.get("/api/v3/aggTrades", symbol="BTCUSDT") == []  # it was not recorded
        assert (await view.get("/api/v3/time"))["serverTime"] == source.start_ms + 60_000
        assert [s["symbol"] for s in (await view.get("/api/v3/exchangeInfo"))["symbols"]] == ["BTCUSDT"]
        assert {entry["channel"] for entry in (await view.get("/sim/catalog"))["streams"]} == {
            "fills",
            "book",
            "ticker",
        }


@recorded
async def test_a_futures_recording_is_a_futures_exchange() -> None:
    source = ReplaySource(FUTURES)
    async with viewer(source=source, start_ms=source.start_ms) as view:
        public = await view.connect("/public/stream?streams=sushiusdt@depth@100ms")
        market = await view.connect("/market/stream?streams=sushiusdt@aggTrade/sushiusdt@kline_1m")
        view.move(source.end_ms - source.start_ms)
        diffs = [json.loads(text)["data"] for text in await texts(public, 255)]
        assert all(later["pu"] == diff["u"] for diff, later in pairwise(diffs))
        assert len(await texts(market, 62)) == 62
        body = await view.get("/fapi/v1/depth", symbol="SUSHIUSDT", limit=1000)
        assert list(body) == ["lastUpdateId", "E", "T", "bids", "asks"]
        assert body["lastUpdateId"] == diffs[-1]["u"]


@recorded
async def test_faults_meet_a_replay_as_they_meet_a_tape(source: ReplaySource) -> None:
    async with viewer(
        Behaviour(name="drop", endpoint="trade", skip=10), source=source, start_ms=source.start_ms
    ) as view:
        socket = await view.connect("/ws/btcusdt@trade")
        view.move(20_000)
        ids = [json.loads(text)["t"] for text in await texts(socket, 20)]
        assert [later - one for one, later in pairwise(ids)] == [1] * 9 + [2] + [1] * 9
        view.exchange.show([Behaviour(name="cut")])
        await ends(socket)


@recorded
async def test_a_replay_waits_for_its_first_viewer(source: ReplaySource) -> None:
    async with viewer(source=source, start_ms=source.start_ms) as view:
        playing = asyncio.create_task(play_when_subscribed(view.exchange, 100, hold_s=0.05))
        assert (await view.get("/api/v3/time"))["serverTime"] == source.start_ms
        socket = await view.connect("/ws/btcusdt@trade")
        assert await texts(socket, 5) == view.truth("btcusdt@trade", source.start_ms, source.end_ms)[:5]
        await playing


@recorded
def test_recordings_of_different_days_are_refused_together() -> None:
    with pytest.raises(SetupRefused, match="not recorded together"):
        ReplaySource(RECORDED / "binance_spot")


@pytest.mark.parametrize(
    "content", [b"", b"not json\n", b'{"recv_ns":1,"kind":"ws","conn":null,"url":null,"raw":"{}"}\n']
)
def test_a_file_that_is_no_recording_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(SetupRefused, match="odd"):
        ReplaySource(path)


# -- recorder ------------------------------------------------------------------------------------------------


async def test_what_is_recorded_is_played_again_frame_by_frame(tmp_path: Path) -> None:
    channels = ["trades", "fills", "depth", "ticker", "candles_1m"]
    async with viewer() as view:
        recorder = Recorder(
            ["BTCUSDT", "ETHUSDT"], channels, tmp_path, ws_url=view.running.ws_url, api_url=view.running.url
        )
        stopped = asyncio.Event()
        recording = asyncio.create_task(record(recorder, None, stopped))
        streams = streams_of(["BTCUSDT", "ETHUSDT"], channels)
        until = NOON + 10_000
        await view.exchange.sockets.subscribed.wait()
        view.move(10_000)
        truth = {stream: view.truth(stream, NOON, until) for stream in streams}
        frames = sum(map(len, truth.values()))
        await eventually(lambda: recorder.counts["ws"] >= frames and recorder.counts["rest"] >= 2)
        stopped.set()
        await recording
    lines = lines_of(recorder.path)
    assert [line["kind"] for line in lines[:2]] == ["connect", "ws"]
    assert all(list(line) == ["recv_ns", "kind", "conn", "url", "raw"] for line in lines)
    assert [line["recv_ns"] for line in lines] == sorted(line["recv_ns"] for line in lines)
    source = ReplaySource(recorder.path)
    played = {stream: [t for _, t in source.frames(stream, 0, source.end_ms)] for stream in streams}
    assert played == truth
    snapshot = json.loads(source.depth("BTCUSDT", 1000, source.end_ms) or "")
    assert snapshot["lastUpdateId"] >= json.loads(truth["btcusdt@depth@100ms"][-1])["u"]


async def test_a_recorder_comes_back_after_a_cut_and_says_where(tmp_path: Path) -> None:
    async with viewer() as view:
        recorder = Recorder(["BTCUSDT"], ["fills"], tmp_path, ws_url=view.running.ws_url, api_url=view.running.url)
        stopped = asyncio.Event()
        recording = asyncio.create_task(record(recorder, None, stopped))
        await view.exchange.sockets.subscribed.wait()
        view.exchange.show([Behaviour(name="cut")])
        await eventually(lambda: recorder.counts["connect"] == 2)
        stopped.set()
        await recording
    assert [line["kind"] for line in lines_of(recorder.path)] == ["connect", "connect"]


def test_a_channel_without_a_stream_is_refused() -> None:
    assert streams_of(["BTCUSDT"], ["trades", "candles_5m"]) == ["btcusdt@aggTrade", "btcusdt@kline_5m"]
    with pytest.raises(SetupRefused, match="candles_7m"):
        streams_of(["BTCUSDT"], ["candles_7m"])


async def test_the_commands_record_until_ctrl_c_and_play(tmp_path: Path) -> None:
    async with viewer(speed=1) as view:
        environment = {**os.environ, "BINANCE_API_URL": view.running.url}
        command = ["-m", "app", "record", "ethusdt", "--channels", "depth", "--out", str(tmp_path), "--json"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=asyncio.subprocess.PIPE
        )
        sockets = view.exchange.sockets
        await sockets.subscribed.wait()
        await eventually(lambda: any(connection["sent"] > 5 for connection in sockets.listed()))
        process.send_signal(signal.SIGINT)
        told, _ = await process.communicate()
    made = json.loads(told)
    assert (process.returncode, made["lost"]) == (0, 0)
    play = ["-m", "app", "exchange", "--replay", made["file"], "--port", "0", "--speed", "10"]
    process = await asyncio.create_subprocess_exec(sys.executable, *play, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(150):
        ready = json.loads(await process.stdout.readline())
        process.terminate()
        await process.wait()
    assert (ready["source"], ready["speed"], ready["market"]) == ("replay", 10, "spot")
