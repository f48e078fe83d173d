"""R07: many books lose their chain at once, the exchange refuses snapshots, and each is in sync again within budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.processes import Worker, call, on_the_embedded_log, wait_for

BOOKS = 50
AT_ONCE = 4  # snapshots that are under way together


def states(worker: Worker) -> dict[str, str]:
    status, answer = worker.get("/tables/book_by_symbol?limit=200")
    assert status == 200, answer
    return {row["key"]: row["value"]["state"] for row in answer["rows"]}


def shown(exchange: str) -> Counter[str]:
    return Counter(entry["name"] for entry in call("GET", f"{exchange}/sim/log")[1])


@on_the_embedded_log
def test_r07_fifty_books_that_lose_their_chain_at_once_are_in_sync_again_without_a_ban(
    start_worker: Callable[..., Any], start_exchange: Callable[..., str]
) -> None:
    exchange = start_exchange("--symbols", str(BOOKS), "--start", "2025-08-20T12:00Z")
    symbols = [entry["symbol"] for entry in call("GET", f"{exchange}/api/v3/exchangeInfo")[1]["symbols"]]
    worker = start_worker(exchange)
    command = {"queue_id": "books", "symbols": symbols, "requests": [{"target": "loader-ws", "type": "ws_orderbook"}]}
    assert worker.post("/queues/start", command)[0] == 202

    def all_live() -> bool:
        known = states(worker)
        return len(known) == BOOKS and set(known.values()) == {"live"}

    wait_for(all_live, explain=worker.said)
    faults = [
        {"name": "too_many_requests", "endpoint": "depth", "seconds": 1, "times": 2},
        {"name": "banned", "endpoint": "depth", "seconds": 2},
        *({"name": "drop", "endpoint": "depth", "symbol": symbol} for symbol in symbols),
    ]
    assert call("POST", f"{exchange}/sim/behaviours", faults)[0] == 200
    wait_for(lambda: shown(exchange) == {"too_many_requests": 2, "banned": 1, "drop": BOOKS}, explain=worker.said)
    wait_for(all_live, explain=worker.said)
    answers = call("GET", f"{exchange}/sim/requests")[1]["answers"]
    assert answers["depth 429"] == 2, "no more refusals than those it was shown"
    assert answers["depth 418"] <= 1 + AT_ONCE, "who is banned does not knock"
