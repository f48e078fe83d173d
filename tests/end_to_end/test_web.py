"""The HTTP calls of a real worker: what is granted, what is refused and changes nothing, what is shown."""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pyarrow as pa
import pytest

from app.config import settings
from app.files import Files
from tests.machine import Stopwatch
from tests.market import Market
from tests.processes import Process, on_the_embedded_log, wait_for

Start = Callable[..., Any]
DUMMY = {"target": "dummy-service", "type": "simulate"}
LOAD = {"target": "loader-producer", "type": "api_candles_5m"}
BAD_TYPE = {"interval": "7m", "type": "api_candles_7m"}
INVERTED, FUTURE = "2025-09-19:2025-08-20", "2025-08-20:2999-01-01"
MONTH = {"symbol": "BTCUSDT", "time_range": "2025-08-20:2025-09-19"}
ARROW = "application/vnd.apache.arrow.stream"

REFUSED: list[tuple[str, Any, int, str]] = [
    ("/queues/start", {"requests": [DUMMY | {"target": "nobody"}]}, 422, "requests[0].target"),
    ("/queues/start", {"requests": [DUMMY | {"type": "nothing"}]}, 422, "requests[0].type"),
    ("/queues/start", MONTH | {"symbol": "btcusdt", "requests": [LOAD]}, 422, "requests[0].symbol"),
    ("/queues/start", MONTH | {"requests": [LOAD | BAD_TYPE]}, 422, "requests[0].type"),
    ("/queues/start", MONTH | {"time_range": INVERTED, "requests": [LOAD]}, 422, "requests[0].time_range"),
    ("/queues/start", MONTH | {"time_range": FUTURE, "requests": [LOAD]}, 422, "requests[0].time_range"),
    ("/queues/start", {"requests": "all"}, 422, "requests"),
    ("/queues/start", {"queue_id": "*", "requests": [DUMMY]}, 422, "queue_id"),
    ("/queues/start", {"command": "stop", "queue_id": "x"}, 422, "command"),
    ("/queues/start", [1], 422, "body"),
    ("/queues/stop", {"queue_id": "nobody"}, 404, "queue_id"),
    ("/queues/stop?queue_id=nobody", None, 404, "queue_id"),
    ("/queues/stop", {}, 422, "queue_id"),
    ("/commands", {"command": "dance", "queue_id": "x"}, 422, "command"),
    ("/commands", {"queue_id": "x"}, 422, "command"),
    ("/commands", {"command": "ping", "queue_id": "nobody"}, 404, "queue_id"),
    ("/commands", {"command": "start", "requests": [DUMMY]}, 422, "command"),
]


def ask(url: str, **headers: str) -> tuple[Any, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=150) as answer:
        return answer.headers, answer.read()


@on_the_embedded_log
def test_what_cannot_be_granted_is_refused_with_its_field_and_nothing_is_written(start_worker: Start) -> None:
    worker = start_worker()
    for path, body, status, field in REFUSED:
        got, answer = worker.post(path, body)
        assert (got, answer.get("field")) == (status, field), (path, body, answer)
        assert answer["error"]
    assert worker.post("/queues/start", {"requests": [DUMMY], "payload": {"much": "x" * (2 << 20)}})[0] == 413
    assert worker.get("/queues")[1]["queues"] == []
    assert worker.events() == []
    for path, status in (("/queues/nobody", 404), ("/queues/nobody/events", 404), ("/queues/nobody/report", 404),
                         ("/tables/nothing", 404), ("/tables/tasks/nothing", 404), ("/coverage/nothing", 404),
                         ("/coverage/binance:BTCUSDT:trades?start=x", 422), ("/trades/BTCUSDT?limit=0", 422),
                         ("/candles/BTCUSDT/7m", 422), ("/ws/topic/raw.trades", 404), ("/ws/queues", 426),
                         ("/queues?after=nobody", 422), ("/models/a/b", 404)):  # fmt: skip
        got, answer = worker.get(path)
        assert (got, "error" in answer) == (status, True), path


def test_a_run_can_be_asked_for_when_its_start_is_answered(start_worker: Start) -> None:
    worker = start_worker()
    watch = Stopwatch()
    status, answer = worker.post("/queues/start", {"requests": [DUMMY | {"payload": {"seconds": 0.3}}]})
    assert status == 202
    assert watch.took_s() < 2
    queue_id = answer["queue_id"]
    assert answer == {"status": "accepted", "queue_id": queue_id, "ids": [f"{queue_id}.0"]}
    status, run = worker.get(f"/queues/{queue_id}")
    assert (status, run["queue_id"], [step["task_id"] for step in run["steps"]]) == (200, queue_id, answer["ids"])

    worker.wait_for_end(queue_id)
    on_topic = worker.events(queue_id)
    wait_for(lambda: len(worker.get(f"/queues/{queue_id}/events")[1]["events"]) >= len(on_topic))
    kept = worker.get(f"/queues/{queue_id}/events")[1]["events"]
    assert [{k: v for k, v in event.items() if k != "offset"} for event in kept] == on_topic
    pages = []
    after, more = -1, True
    while more:
        _, page = worker.get(f"/queues/{queue_id}/events?after={after}&limit=2")
        pages += page["events"]
        after, more = pages[-1]["offset"], page["more"]
    assert pages == kept

    assert worker.get("/queues/list") == worker.get("/queues")
    assert worker.get(f"/tables/workflows/{queue_id}")[1]["queue_id"] == queue_id
    assert [row["key"] for row in worker.get("/tables/tasks")[1]["rows"]] == answer["ids"]
    assert {table["name"] for table in worker.get("/tables")[1]["tables"]} >= {"workflows", "tasks"}
    wait_for(lambda: worker.get("/queues?state=finished")[1]["queues"])
    assert worker.get("/queues?state=finished&limit=1")[1]["queues"][0]["progress"] == 1.0
    assert worker.post(f"/queues/stop?queue_id={queue_id}", None)[0] == 202
    metrics = ask(f"{worker.url}/metrics")[1].decode()
    assert 'streamforge_commands_total{answer="accepted",command="start"} 1.0' in metrics
    for word in ("live", "ready", "startup"):
        assert worker.get(f"/health/{word}")[0] == 200
    for path in ("/table", "/router", "/graph", "/stats", "/performance/"):
        assert worker.get(path)[0] == 404, f"Faust's own {path} is served"


async def test_every_viewer_sees_every_event_and_none_keeps_the_worker_from_stopping(start_worker: Start) -> None:
    worker = start_worker()
    async with aiohttp.ClientSession(worker.url) as session:
        viewers = [await session.ws_connect(path) for path in ("/ws/queues", "/ws/queues", "/ws/topic/queue-events")]
        command = {"queue_id": "d", "requests": [DUMMY | {"payload": {"seconds": 0.5}}]}
        assert (await asyncio.to_thread(worker.post, "/queues/start", command))[0] == 202
        seen: list[list[Any]] = []
        for viewer in viewers:
            seen.append([])
            while not (seen[-1] and seen[-1][-1]["target"] == "queue-manager" and seen[-1][-1]["finished"]):
                seen[-1].append(json.loads(await viewer.receive_str(timeout=150)))
        assert seen == [worker.events("d")] * 3

        watch = Stopwatch()
        ending = asyncio.create_task(asyncio.to_thread(worker.stop))
        assert json.loads(await viewers[0].receive_str(timeout=150))["event"] == "cut-off"
        # The other two never read again: nothing they do or leave may hold the worker.
        assert await ending == 0
        assert watch.took_s() < 10


async def test_trades_and_books_reach_a_viewer_of_their_symbol_as_they_come(start_worker: Start) -> None:
    worker = start_worker()
    market = Market(worker.broker)
    async with aiohttp.ClientSession(worker.url) as session:
        viewer = await session.ws_connect("/ws/market?symbol=ETHUSDT")
        frames = [json.loads(await viewer.receive_str(timeout=150))]
        while not frames[-1].get("book"):  # from the first one that is seen on, every record is
            await asyncio.to_thread(market.show_book)
            frames.append(json.loads(await viewer.receive_str(timeout=150)))
        sent = [number for _ in range(3) for number in await asyncio.to_thread(market.trade)]
        seen: list[int] = []
        while seen != sent:
            frames.append(json.loads(await viewer.receive_str(timeout=150)))
            seen += [row[0] for row in frames[-1].get("trades", [])]
            assert seen == sent[: len(seen)]
        assert [frame["seq"] for frame in frames] == list(range(frames[0]["seq"], frames[0]["seq"] + len(frames)))
        books = [frame["book"] for frame in frames if frame.get("book")]
        assert len(books[-1]["bids"]) == len(books[-1]["asks"]) == 20
        await viewer.send_str("what else?")
        while (said := json.loads(await viewer.receive_str(timeout=150)))["event"] != "error":
            assert said["event"] == "news"
    assert {one["channel"] for one in worker.get("/streams")[1]["streams"]} == {"trades", "book"}
    assert worker.get("/book/ETHUSDT")[1]["field"] == "symbol"


@on_the_embedded_log
def test_a_foreign_page_can_neither_change_nor_watch_anything(start_worker: Start) -> None:
    worker = start_worker()
    body = json.dumps({"queue_id": "d", "requests": [DUMMY]}).encode()
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    evil = {"Origin": "https://evil.example"}
    for path, data, headers in (("/queues/start", body, evil), ("/ws/queues", None, handshake | evil),
                                ("/queues/start", body, {"Host": "evil.example"}),
                                ("/queues", None, {"Host": "evil.example"})):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(worker.url + path, data, headers), timeout=150)
        assert refused.value.code == 403
        assert json.load(refused.value)["error"]
    assert worker.get("/queues")[1]["queues"] == []


def test_a_starting_worker_says_503_until_it_knows_its_runs_again(start_worker: Start) -> None:
    worker = start_worker()
    worker.post("/queues/start", {"queue_id": "known", "requests": [DUMMY | {"payload": {"seconds": 0.1}}]})
    worker.wait_for_end("known")
    worker.kill()
    Process.__init__(worker, "worker", ["worker"], worker.folder, worker.env)
    status = 0

    def answers() -> bool:
        nonlocal status
        try:
            status, answer = worker.get("/queues")
        except urllib.error.URLError:
            return False
        assert status in (200, 503), answer
        assert status == 503 or [run["queue_id"] for run in answer["queues"]] == ["known"]
        return bool(status == 200)

    wait_for(answers, explain=worker.said)


@on_the_embedded_log
def test_a_worker_with_a_token_changes_nothing_without_it(start_worker: Start) -> None:
    worker = start_worker(API_TOKEN="open-sesame")
    command = {"queue_id": "d", "requests": [DUMMY]}
    assert worker.post("/queues/start", command)[0] == 401
    assert worker.get("/queues") == (200, {"queues": [], "more": False})
    assert worker.get("/status")[1]["token_needed"] is True
    body = json.dumps(command).encode()
    call = urllib.request.Request(f"{worker.url}/queues/start", body, {"Authorization": "Bearer open-sesame"})
    with urllib.request.urlopen(call, timeout=150) as answer:
        assert answer.status == 202


def test_the_loaded_candles_are_served_as_json_and_as_arrow(
    start_worker: Start, start_exchange: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_worker(start_exchange())
    command = MONTH | {
        "queue_id": "load", "time_range": "2025-08-20:2025-08-22",
        "requests": [LOAD, {"target": "arango-connector", "type": "api_candles_5m"}],
    }  # fmt: skip
    unknown = command | {"symbol": "NOSUCHUSDT", "queue_id": "other"}
    assert worker.post("/queues/start", unknown)[1]["field"] == "symbol"
    assert worker.post("/queues/start", command)[0] == 202
    assert worker.wait_for_end("load")["status"] == "finished"

    [stream] = worker.get("/coverage")[1]["streams"]
    assert (stream["stream"], stream["stored_share"], stream["missing"]) == ("binance:BTCUSDT:candles_5m", 1.0, [])
    assert stream["stored"] == [[stream["start_ms"], stream["end_ms"]]]
    assert worker.get("/coverage/binance:BTCUSDT:candles_5m?start=2025-08-20&end=2025-08-24")[1]["stored_share"] == 0.5

    rows: list[Any] = []
    address: str | None = "/candles/BTCUSDT/5m?start=2025-08-20&end=2025-08-22&limit=100"
    while address:
        _, page = worker.get(address)
        rows, address = page["rows"] + rows, page["earlier"]
    assert len(rows) == 2 * 288
    assert [b["ts"] - a["ts"] for a, b in itertools.pairwise(rows)] == [300_000] * (len(rows) - 1)
    headers, body = ask(f"{worker.url}/candles/BTCUSDT/5m?start=2025-08-20&end=2025-08-22", Accept=ARROW)
    assert headers["Content-Type"] == ARROW
    with pa.ipc.open_stream(body) as reader:
        assert reader.read_all().to_pylist() == rows
    status, simulated = 200, worker.get("/status")[1]["simulated"]
    assert simulated["source"] == "generated"
    assert "BTCUSDT" in simulated["symbols"]
    assert worker.get("/queues/load/report")[0] == status

    # Without a worker the files say the same, field by field.
    for name, value in worker.broker.env.items() | {("DATA_DIR", str(worker.folder))}:
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("STORE_URL", raising=False)
    settings.cache_clear()
    try:

        def the_same() -> bool:
            said = {"queues": worker.get("/queues")[1]["queues"], "streams": worker.get("/coverage")[1]["streams"]}
            return bool(said == orjson.loads(orjson.dumps({"queues": Files().runs(), "streams": Files().coverage()})))

        wait_for(the_same)
        assert orjson.loads(orjson.dumps(Files().run("load"))) == worker.get("/queues/load")[1]
    finally:
        settings.cache_clear()


@on_the_embedded_log
def test_a_worker_beyond_loopback_without_a_token_refuses_to_start(start_worker: Start) -> None:
    with pytest.raises(AssertionError, match=r"ended with 3: .*API_TOKEN"):
        start_worker(WEB_BIND="0.0.0.0", API_TOKEN="")
