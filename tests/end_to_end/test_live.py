"""Live streams through a real worker: what the exchange traded is stored, each trade once, whatever happens between."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.stores.sqlite import SqliteStore
from app import outside
from models.coverage import Coverage
from tests.processes import Broker, Worker, call, on_kafka, on_the_embedded_log, wait_for

Start = Callable[..., Any]
ETH = {"venue": "binance", "symbol": "ETHUSDT"}
MINUTE_MS = 60_000


def follow(worker: Worker, queue_id: str = "live", *types: str, symbol: str = "ETHUSDT") -> None:
    requests = [{"target": "loader-ws", "type": kind} for kind in types or ("ws_trades",)]
    command = {"command": "start", "queue_id": queue_id, "symbol": symbol, "requests": requests}
    status, answer = worker.post("/queues/start", command)
    assert status == 202, answer


def stop(worker: Worker, queue_id: str = "live") -> None:
    assert worker.post("/queues/stop", {"queue_id": queue_id})[0] == 202
    assert worker.wait_for_end(queue_id)["status"] == "interrupted"


def behave(exchange: str, *behaviours: dict[str, Any]) -> None:
    status, answer = call("POST", f"{exchange}/sim/behaviours", list(behaviours))
    assert status == 200, answer


def stored_trades(worker: Worker, symbol: str = "ETHUSDT") -> dict[int, tuple[int, float, float]]:
    """(ts_ms, price, size) by id."""
    store = SqliteStore(worker.folder / "store.db", read_only=True)
    if "trades" not in store.collections():
        return {}
    batches = store.scan("trades", eq=ETH | {"symbol": symbol}, columns=["id", "ts_ms", "price", "size"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["ts_ms"], row["price"], row["size"]) for row in rows}


def ledger(worker: Worker, channel: str = "trades", symbol: str = "ETHUSDT") -> Coverage:
    store = SqliteStore(worker.folder / "store.db", read_only=True)
    return outside.read_coverage(store, symbol, channel) if "coverage" in store.collections() else Coverage()


def tape(exchange: str, first_id: int, last_id: int, symbol: str = "ETHUSDT") -> dict[int, tuple[int, float, float]]:
    """What the exchange itself says happened."""
    found: dict[int, tuple[int, float, float]] = {}
    while (next_id := max(found, default=first_id - 1) + 1) <= last_id:
        query = f"symbol={symbol}&fromId={next_id}&limit=1000"
        _, rows = call("GET", f"{exchange}/api/v3/aggTrades?{query}")
        found |= {row["a"]: (row["T"], float(row["p"]), float(row["q"])) for row in rows}
    return {number: row for number, row in found.items() if number <= last_id}


def wait_for_trades(worker: Worker, more: int, symbol: str = "ETHUSDT") -> None:
    before = len(stored_trades(worker, symbol))
    wait_for(lambda: len(stored_trades(worker, symbol)) >= before + more, explain=worker.said)


def states(worker: Worker, queue_id: str = "live") -> list[dict[str, Any]]:
    """All that its stream has said of itself."""
    return [e["extra"] for e in worker.events(queue_id) if e["target"] == "loader-ws" and "state" in e["extra"]]


def gap_filled(worker: Worker) -> bool:
    return any(said.get("gaps", {}).get("filled") for said in states(worker))


def assert_whole(worker: Worker, exchange: str, symbol: str = "ETHUSDT") -> None:
    """Every trade from the first to the last, equal to the exchange's, and the ledger says just that."""
    rows = stored_trades(worker, symbol)
    assert sorted(rows) == list(range(min(rows), max(rows) + 1))
    assert rows == tape(exchange, min(rows), max(rows), symbol)
    known = ledger(worker, symbol=symbol)
    assert (len(known.stored), known.missing, known.unrecoverable) == (1, [], [])
    times, [(start, end)] = [ts for ts, _, _ in rows.values()], known.stored
    assert start == min(times) + 1
    assert end >= max(times)


@pytest.fixture
def exchange(start_exchange: Start) -> str:
    url: str = start_exchange("--lively", "40", "--start", "2025-08-20T12:00Z")
    return url


def test_r01_trades_of_a_cut_are_fetched_before_those_behind_it(start_worker: Start, exchange: str) -> None:
    worker = start_worker(exchange)
    follow(worker)
    wait_for_trades(worker, 50)
    wait_for(lambda: states(worker)[-1]["state"] == "live", explain=worker.said)
    before = len(states(worker))
    behave(exchange, {"name": "cut", "seconds": 3})
    wait_for(lambda: any(said["state"] != "live" for said in states(worker)[before:]), explain=worker.said)
    wait_for(lambda: gap_filled(worker), explain=worker.said)
    wait_for_trades(worker, 50)
    stop(worker)
    assert_whole(worker, exchange)


@on_the_embedded_log
def test_r05_a_lost_frame_is_fetched_by_its_id(start_worker: Start, exchange: str) -> None:
    worker = start_worker(exchange)
    follow(worker)
    wait_for_trades(worker, 30)
    behave(
        exchange, {"name": "drop", "endpoint": "aggTrade", "times": 3}, {"name": "duplicate", "endpoint": "aggTrade"}
    )
    wait_for(lambda: gap_filled(worker), explain=worker.said)
    wait_for_trades(worker, 30)
    stop(worker)
    assert_whole(worker, exchange)


def test_r28_the_successor_of_a_killed_worker_fills_what_was_traded_meanwhile(
    start_worker: Start, exchange: str
) -> None:
    worker = start_worker(exchange)
    follow(worker)
    wait_for(lambda: any(b"checkpoint" in (r.value or b"") for r in worker.broker.records("queue-tasks")))
    for _ in range(2):
        worker.kill()
        time.sleep(1.0)  # trades that nobody hears
        worker = start_worker(exchange)
        wait_for_trades(worker, 30)
    stop(worker)
    assert_whole(worker, exchange)


@on_kafka
def test_r17_live_tasks_go_from_one_living_worker_to_another_without_a_hole_or_a_double(
    start_worker: Start, exchange: str, broker: Broker, tmp_path: Path
) -> None:
    symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT")
    first = start_worker(exchange, STORE_URL=f"sqlite:///{tmp_path / 'store.db'}")
    for symbol in symbols:
        follow(first, symbol, symbol=symbol)
    for symbol in symbols:
        wait_for_trades(first, 10, symbol)
    (tmp_path / "second").mkdir()
    second = Worker(
        tmp_path / "second", exchange, broker=broker, STORE_URL=f"sqlite:///{tmp_path / 'store.db'}"
    )  # joins while the first one works
    try:
        wait_for(lambda: streams_at(second) > 0 and streams_at(first) + streams_at(second) == len(symbols))
        for symbol in symbols:
            wait_for_trades(first, 10, symbol)
        assert first.stop() == 0
        wait_for(lambda: streams_at(second) == len(symbols), explain=second.said)
        for symbol in symbols:
            wait_for_trades(first, 10, symbol)
            stop(second, symbol)
            assert_whole(first, exchange, symbol)
    finally:
        second.kill()


def streams_at(worker: Worker) -> int:
    """Live tasks at work in a worker."""
    found = re.search(r'^streamforge_tasks\{target="loader-ws"\} (\d+)', str(worker.get("/metrics")[1]), re.MULTILINE)
    return int(found[1]) if found else 0


@on_kafka
def test_history_and_live_join_without_a_seam(start_worker: Start, exchange: str) -> None:
    worker = start_worker(exchange)
    follow(worker)
    wait_for_trades(worker, 30)
    first_ms = min(ts for ts, _, _ in stored_trades(worker).values())
    until_ms = max(ts for ts, _, _ in stored_trades(worker).values())
    start_ms = first_ms - 5 * MINUTE_MS
    kinds = [{"target": target, "type": "api_trades"} for target in ("loader-producer", "arango-connector")]
    span = ":".join(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000)) for ms in (start_ms, until_ms))
    command = {"command": "start", "queue_id": "h", "symbol": "ETHUSDT", "time_range": span, "requests": kinds}
    assert worker.post("/queues/start", command)[0] == 202
    assert worker.wait_for_end("h")["status"] == "finished"
    wait_for_trades(worker, 10)
    stop(worker)
    rows = stored_trades(worker)
    assert rows == tape(exchange, min(rows), max(rows))
    assert len(ledger(worker).stored) == 1


def test_a_run_that_was_stopped_goes_on_where_it_was(start_worker: Start, exchange: str) -> None:
    worker = start_worker(exchange)
    follow(worker)
    wait_for_trades(worker, 30)
    wait_for(lambda: any(b"checkpoint" in (r.value or b"") for r in worker.broker.records("queue-tasks")))
    stop(worker)
    before = len(stored_trades(worker))
    follow(worker)
    wait_for(lambda: len(stored_trades(worker)) > before + 30, explain=worker.said)
    assert_whole(worker, exchange)


@on_the_embedded_log
def test_closed_candles_come_live_and_equal_the_exchanges(start_worker: Start, start_exchange: Start) -> None:
    exchange = start_exchange("--lively", "5", "--start", "2025-08-20T12:00Z", "--speed", "20")
    worker = start_worker(exchange)
    follow(worker, "live", "ws_candles_1m")
    behave(exchange, {"name": "no_close", "symbol": "ETHUSDT", "skip": 2, "times": 1})
    wait_for(lambda: len(candles(worker)) >= 6, explain=worker.said)
    stop(worker)
    rows = candles(worker)
    assert sorted(rows) == list(range(min(rows), max(rows) + 1, MINUTE_MS))
    assert_candles_are_the_exchanges(rows, exchange)
    assert ledger(worker, "candles_1m").stored == [(min(rows), max(rows) + MINUTE_MS)]


@on_the_embedded_log
def test_r02_a_hole_that_could_not_be_filled_at_once_is_repaired_from_the_ledger(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange("--lively", "40")
    worker = start_worker(exchange, CANDLE_INTERVALS="1m", REPAIR_AFTER_S="1")
    follow(worker)
    wait_for_trades(worker, 30)
    behave(exchange, {"name": "down", "seconds": 600}, {"name": "cut", "seconds": 1})
    wait_for(lambda: ledger(worker).missing, explain=worker.said)
    assert call("DELETE", f"{exchange}/sim/behaviours")[0] == 200
    wait_for(lambda: not ledger(worker).missing and len(ledger(worker).stored) == 1, explain=worker.said)
    behind_ms = ledger(worker).stored[0][1]
    wait_for(lambda: max(candles(worker), default=0) + MINUTE_MS > behind_ms, explain=worker.said)
    stop(worker)
    rows = stored_trades(worker)
    assert rows == tape(exchange, min(rows), max(rows))
    made = candles(worker)
    assert sorted(made) == list(range(min(made), max(made) + 1, MINUTE_MS)), "no candle lacks for the hole"
    assert_candles_are_the_exchanges(made, exchange)


def candles(worker: Worker) -> dict[int, dict[str, Any]]:
    """By open time."""
    store = SqliteStore(worker.folder / "store.db", read_only=True)
    if "candles_1m" not in store.collections():
        return {}
    return {row["ts"]: row for batch in store.scan("candles_1m", eq=ETH) for row in batch.to_pylist()}


def assert_candles_are_the_exchanges(rows: dict[int, dict[str, Any]], exchange: str) -> None:
    query = f"symbol=ETHUSDT&interval=1m&startTime={min(rows)}&endTime={max(rows)}&limit=1000"
    theirs = {row[0]: row for row in call("GET", f"{exchange}/api/v3/klines?{query}")[1]}
    for ts, row in rows.items():
        assert [row["open"], row["high"], row["low"], row["close"], row["volume"]] == [*map(float, theirs[ts][1:6])]
        assert row["closed"]


@on_the_embedded_log
def test_an_unknown_symbol_is_rejected_with_the_nearest_names(start_worker: Start, exchange: str) -> None:
    worker = start_worker(exchange)
    request = {"target": "loader-ws", "type": "ws_trades"}
    status, said = worker.post("/queues/start", {"command": "start", "symbol": "ETHUSDC", "requests": [request]})
    assert (status, said["field"]) == (422, "symbol")
    assert "did you mean ETHUSDT?" in said["error"]
