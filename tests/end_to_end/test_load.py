"""History through a real worker: everything the exchange has is stored once, and what it lacks is shown."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.stores.sqlite import SqliteStore
from app.pipelines import Stages, usual
from tests.machine import Stopwatch
from tests.processes import ROOT, Worker, call, on_kafka, on_the_embedded_log, wait_for

Start = Callable[..., Any]
LOAD = Stages(graph=False, train=False)
CANDLES = Stages(trades=False, graph=False, train=False)
DAY = "2025-08-20:2025-08-21"
DAY_MS = 1755648000000
HOUR_MS = 3_600_000
BTC = {"venue": "binance", "symbol": "BTCUSDT"}


def begin(worker: Worker, queue_id: str, time_range: str = DAY, stages: Stages = LOAD, **said: Any) -> None:
    command = usual("BTCUSDT", time_range, "5m", stages, queue_id=queue_id, **said)
    status, answer = worker.post("/queues/start", command)
    assert status == 202, answer


def verify(worker: Worker, queue_id: str) -> tuple[int, dict[str, Any]]:
    """What `python -m app verify RUN --json` says: its exit code and its document."""
    done = subprocess.run(
        [sys.executable, "-m", "app", "verify", queue_id, "--json"],
        cwd=ROOT, env={**os.environ, **worker.env}, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def behave(exchange: str, *behaviours: dict[str, Any]) -> None:
    status, answer = call("POST", f"{exchange}/sim/behaviours", list(behaviours))
    assert status == 200, answer


def stored(worker: Worker, collection: str, **between: int) -> int:
    store = SqliteStore(worker.folder / "store.db", read_only=True)
    return store.count(collection, eq=BTC, **between) if collection in store.collections() else 0


def test_a_day_is_stored_whole_and_candles_from_trades_equal_the_exchanges(
    start_worker: Start, start_exchange: Start
) -> None:
    worker = start_worker(start_exchange())
    begin(worker, "day")
    assert worker.wait_for_end("day")["status"] == "finished"
    assert stored(worker, "candles_5m") == 288
    code, document = verify(worker, "day")
    assert (code, document["differences"]) == (0, 0)


@on_the_embedded_log
def test_the_same_range_again_asks_for_nothing_and_doubles_nothing(start_worker: Start, start_exchange: Start) -> None:
    exchange = start_exchange()
    worker = start_worker(exchange)
    begin(worker, "first")
    worker.wait_for_end("first")
    trades, asked = stored(worker, "trades"), call("GET", f"{exchange}/sim/requests")[1]
    begin(worker, "second")
    assert worker.wait_for_end("second")["status"] == "finished"
    assert stored(worker, "trades") == trades
    again = call("GET", f"{exchange}/sim/requests")[1]
    assert {path: n for path, n in again.items() if "Trades" in path or "klines" in path} == {
        path: n for path, n in asked.items() if "Trades" in path or "klines" in path
    }


def test_a_worker_killed_at_random_moments_of_a_load_loses_and_doubles_nothing(
    start_worker: Start, start_exchange: Start
) -> None:
    seed = int(os.environ.get("KILL_SEED", "1"))
    kills = int(os.environ.get("KILLS", "3"))
    days = int(os.environ.get("KILL_DAYS", "4"))
    rng = random.Random(seed)
    exchange = start_exchange()
    worker = start_worker(exchange)
    begin(worker, "k", f"2025-08-20:2025-08-{20 + days}" if days < 12 else "2025-08-20:2025-09-19")
    for _ in range(kills):
        time.sleep(rng.uniform(0.05, 1.5))  # the moment is the point
        worker.kill()
        worker = start_worker(exchange)
    assert worker.wait_for_end("k")["status"] == "finished"
    code, document = verify(worker, "k")
    assert code == 0, [check for check in document["checks"] if check["differences"]]


def test_a_worker_stopped_in_the_middle_of_a_load_ends_in_seconds_and_goes_on(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange()
    worker = start_worker(exchange)
    begin(worker, "s", "2025-08-20:2025-08-26")
    wait_for(lambda: stored(worker, "trades") > 20_000, explain=worker.said)
    watch = Stopwatch()
    assert worker.stop() == 0
    assert watch.took_s() < 10
    worker = start_worker(exchange)
    assert worker.wait_for_end("s")["status"] == "finished"
    assert verify(worker, "s")[1]["differences"] == 0


@on_the_embedded_log
def test_a_row_that_cannot_be_read_is_put_aside_and_leaves_a_hole(start_worker: Start, start_exchange: Start) -> None:
    exchange = start_exchange()
    bad_ts = DAY_MS + 10 * HOUR_MS
    behave(exchange, {"name": "bad_row", "endpoint": "klines", "at": bad_ts})
    worker = start_worker(exchange)
    begin(worker, "bad", stages=CANDLES)
    end = worker.wait_for_end("bad")
    assert end["status"] == "error"
    assert "missing" in end["error_message"]
    assert stored(worker, "candles_5m") == 287
    [letter] = list(worker.broker.records("dead-letters"))
    assert str(bad_ts).encode() in (letter.value or b"")
    assert dict(letter.headers)["topic"] == b"raw.candles"
    [ledger] = SqliteStore(worker.folder / "store.db", read_only=True).get("coverage", ["binance.BTCUSDT.candles_5m"])
    assert ledger is not None
    assert [tuple(span) for span in ledger["missing"]] == [(bad_ts, bad_ts + 300_000)]

    call("DELETE", f"{exchange}/sim/behaviours")
    begin(worker, "bad", stages=CANDLES)  # the same run goes on: only the hole is asked for
    wait_for(lambda: stored(worker, "candles_5m") == 288, explain=worker.said)
    wait_for(lambda: worker.get("/queues/bad")[1]["state"] == "finished", explain=worker.said)


@on_the_embedded_log
def test_a_range_the_exchange_lacks_is_unrecoverable_and_an_error_unless_allowed(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange()
    hole = (DAY_MS + 5 * HOUR_MS, DAY_MS + 6 * HOUR_MS)
    behave(exchange, {"name": "lacks", "start_ms": hole[0], "end_ms": hole[1]})
    worker = start_worker(exchange)
    begin(worker, "lacking", stages=CANDLES)
    end = worker.wait_for_end("lacking")
    assert (end["status"], "unrecoverable" in end["error_message"]) == ("error", True)
    begin(worker, "allowed", stages=CANDLES, allow_missing=True)
    assert worker.wait_for_end("allowed")["status"] == "finished"
    persisted = [e for e in worker.events("allowed") if e.get("target") == "arango-connector" and e["finished"]][-1]
    assert [tuple(span) for span in persisted["extra"]["unrecoverable"]] == [hole]


@on_kafka
def test_a_connector_to_which_nothing_comes_ends_instead_of_waiting_for_ever(start_worker: Start) -> None:
    worker = start_worker()
    request = {"target": "arango-connector", "type": "api_candles_5m"}
    command = {"command": "start", "queue_id": "alone", "symbol": "BTCUSDT", "time_range": DAY, "requests": [request]}
    assert worker.post("/queues/start", command)[0] == 202
    end = worker.wait_for_end("alone")
    assert (end["status"], "missing" in end["error_message"]) == ("error", True)


@on_the_embedded_log
def test_an_exchange_that_is_down_is_waited_for_and_stop_still_works(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange()
    behave(exchange, {"name": "down", "seconds": 600})
    worker = start_worker(exchange)
    begin(worker, "down", stages=CANDLES)
    wait_for(lambda: any("exchange" in str(e.get("message")) for e in worker.events("down")), explain=worker.said)
    watch = Stopwatch()
    worker.post("/queues/stop", {"queue_id": "down"})
    end = worker.wait_for_end("down")
    assert end["status"] == "interrupted"
    assert watch.took_s(end["timestamp"]) < 5
    call("DELETE", f"{exchange}/sim/behaviours")
    begin(worker, "down", stages=CANDLES)
    wait_for(lambda: worker.get("/queues/down")[1]["state"] == "finished", explain=worker.said)
    assert stored(worker, "candles_5m") == 288


@on_the_embedded_log
def test_a_range_too_short_to_train_on_is_a_clear_error_without_an_artifact(
    start_worker: Start, start_exchange: Start
) -> None:
    worker = start_worker(start_exchange())
    begin(worker, "short", "2025-08-20:2025-08-23", Stages(trades=False))
    end = worker.wait_for_end("short")
    assert end["status"] == "error"
    assert "candles" in end["error_message"]
    assert not list((worker.folder / "models").glob("*/*"))


@pytest.mark.parametrize(
    ("broker", "target", "stages", "time_range"),
    [
        ("kafka", "loader-producer", LOAD, "2025-08-20:2025-09-19"),
        ("embedded", "gnn-trainer", Stages(trades=False), "2025-08-20:2025-08-27"),
    ],
    indirect=["broker"],
)
def test_what_is_at_work_is_answered_within_a_second_and_stopped_within_five(
    start_worker: Start, start_exchange: Start, target: str, stages: Stages, time_range: str
) -> None:
    worker = start_worker(start_exchange())
    begin(worker, "busy", time_range, stages)

    def at_work() -> bool:
        return any(e.get("status") == "loading" and e["target"] == target for e in worker.events("busy"))

    wait_for(at_work, explain=worker.said)
    watch = Stopwatch()
    worker.post("/commands", {"command": "ping", "queue_id": "busy", "sent_at": 1.0})
    pongs: list[dict[str, Any]] = []
    wait_for(
        lambda: pongs.extend(e for e in worker.events("busy") if e["event"] == "pong") or pongs, explain=worker.said
    )
    assert watch.took_s(pongs[0]["ponged_at"]) < 1.0
    watch = Stopwatch()
    worker.post("/queues/stop", {"queue_id": "busy"})
    end = worker.wait_for_end("busy")
    assert end["status"] == "interrupted"
    assert watch.took_s(end["timestamp"]) < 5
    assert len([e for e in worker.events("busy") if e["event"] == "pong"]) == 1
    assert not list((worker.folder / "models").glob("*/*"))


@on_kafka
def test_the_recorded_month_is_stored_field_by_field(start_worker: Start, start_exchange: Start) -> None:
    if not (recorded := os.environ.get("RECORDED_DATA")):
        pytest.skip("RECORDED_DATA is not set: no recorded market data")
    folder = Path(recorded) / "klines/spot/5m_full"
    worker = start_worker(start_exchange("--data", str(folder)))
    begin(worker, "month", "2025-08-19T15:10:00Z:2025-09-18T15:10:00Z", CANDLES)
    assert worker.wait_for_end("month")["status"] == "finished"
    with gzip.open(next(folder.glob("BTCUSDT-*")), "rt") as file:
        rows = list(csv.DictReader(file))
    batches = SqliteStore(worker.folder / "store.db", read_only=True).scan("candles_5m", eq=BTC)
    found = [row for batch in batches for row in batch.to_pylist()]
    assert len(found) == len(rows) == 8640
    names = {"ts": "open_time", "trades": "count"}
    for name in ("ts", "open", "high", "low", "close", "volume", "quote_volume", "trades", "taker_buy_volume",
                 "taker_buy_quote_volume"):  # fmt: skip
        assert [row[name] for row in found] == [float(row[names.get(name, name)]) for row in rows], name
    assert verify(worker, "month")[0] == 0
