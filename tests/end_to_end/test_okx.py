"""A second venue through a real worker: its history and its live streams join, and its book is held."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.stores.sqlite import SqliteStore
from app import outside
from tests.processes import Broker, Worker, call, wait_for

Start = Callable[..., Any]
SYMBOL = "ETH-USDT"


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    """The embedded log: what the venue changes has nothing to do with brokers."""
    return Broker(tmp_path)


def test_history_and_live_of_okx_join_without_a_seam_and_its_book_is_live(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange("--lively", "40", "--start", "2025-08-20T12:00Z")
    worker = start_worker(exchange)
    start(worker, "live", requests=[{"target": "loader-ws", "type": kind} for kind in ("ws_trades", "ws_orderbook")])
    wait_for(lambda: len(stored(worker)) >= 50 and book(worker).get("state") == "live", 60, worker.said)
    assert call("POST", f"{exchange}/sim/behaviours", [{"name": "cut", "seconds": 1}])[0] == 200
    known = len(stored(worker))
    wait_for(lambda: len(stored(worker)) >= known + 50 and book(worker).get("state") == "live", 60, worker.said)

    times = [ts for ts, _, _ in stored(worker).values()]
    span = ":".join(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000)) for ms in (min(times) - 60_000, max(times))
    )
    loads = [{"target": target, "type": "api_trades"} for target in ("loader-producer", "arango-connector")]
    start(worker, "history", requests=loads, time_range=span)
    assert worker.wait_for_end("history", 90)["status"] == "finished", worker.said()[-3000:]
    assert worker.post("/queues/stop", {"queue_id": "live"})[0] == 202
    assert worker.wait_for_end("live")["status"] == "interrupted"

    rows = stored(worker)
    assert sorted(rows) == list(range(min(rows), max(rows) + 1)), "nothing lost"
    assert rows == traded(exchange, min(rows), max(rows))
    ledger = outside.read_coverage(SqliteStore(worker.folder / "store.db", read_only=True), SYMBOL, "trades", "okx")
    assert (len(ledger.stored), ledger.missing, ledger.unrecoverable) == (1, [], [])
    status, page = worker.get(f"/trades/{SYMBOL}?venue=okx&limit=5")
    assert (status, page["venue"], [row["id"] for row in page["rows"]][-1]) == (200, "okx", max(rows))


def test_a_venue_or_symbol_that_is_not_known_is_rejected_by_name(start_worker: Start, start_exchange: Start) -> None:
    worker = start_worker(start_exchange())
    request = {"target": "loader-ws", "type": "ws_trades"}
    said = worker.post(
        "/queues/start", {"command": "start", "venue": "mtgox", "symbol": "BTCUSD", "requests": [request]}
    )
    assert (said[0], said[1]["field"]) == (422, "venue")
    assert "allowed: binance, binance_um, okx" in said[1]["error"]
    said = worker.post(
        "/queues/start", {"command": "start", "venue": "okx", "symbol": "ETHUSDT", "requests": [request]}
    )
    assert (said[0], said[1]["field"]) == (422, "symbol")
    assert "did you mean ETH-USDT" in said[1]["error"]


def start(worker: Worker, queue_id: str, **said: Any) -> None:
    command = {"command": "start", "queue_id": queue_id, "venue": "okx", "symbol": SYMBOL, **said}
    status, answer = worker.post("/queues/start", command)
    assert status == 202, answer


def book(worker: Worker) -> dict[str, Any]:
    status, found = worker.get(f"/book/{SYMBOL}?venue=okx")
    return found if status == 200 else {}


def stored(worker: Worker) -> dict[int, tuple[int, float, float]]:
    """(ts_ms, price, size) by id."""
    store = SqliteStore(worker.folder / "store.db", read_only=True)
    if "trades" not in store.collections():
        return {}
    eq = {"venue": "okx", "symbol": SYMBOL}
    batches = store.scan("trades", eq=eq, columns=["id", "ts_ms", "price", "size"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["ts_ms"], row["price"], row["size"]) for row in rows}


def traded(exchange: str, first_id: int, last_id: int) -> dict[int, tuple[int, float, float]]:
    """What the exchange itself says happened, in the words of its other face."""
    found: dict[int, tuple[int, float, float]] = {}
    while (next_id := max(found, default=first_id - 1) + 1) <= last_id:
        _, rows = call("GET", f"{exchange}/api/v3/historicalTrades?symbol=ETHUSDT&fromId={next_id}&limit=1000")
        found |= {row["id"]: (row["time"], float(row["price"]), float(row["qty"])) for row in rows}
    return {number: row for number, row in found.items() if number <= last_id}
