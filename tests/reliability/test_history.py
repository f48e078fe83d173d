"""History that comes late, in other units or with holes: what is stored is whole, or the holes are named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.exchanges.binance_rows import read_trades
from app.errors import RunFailed
from models.candles import flush, fold
from models.spans import length
from tests.processes import ROOT, call, wait_for

MINUTE_MS, DAY_MS = 60_000, 86_400_000
BEGIN_MS = 1_755_648_000_000  # 2025-08-20
DAY = "2025-08-20:2025-08-21"
PAIRS = 50


def page(times: list[int]) -> bytes:
    rows = [
        {"a": n, "p": f"{100 + n % 7}.5", "q": "0.25", "f": n, "l": n, "T": t, "m": n % 2 == 0}
        for n, t in enumerate(times)
    ]
    return msgspec.json.encode(rows)


def candles(times: list[int], until_ms: int) -> list[dict[str, Any]]:
    state, made = fold(None, read_trades(page(times)).columns, MINUTE_MS)
    _, last = flush(state, until_ms)
    return [made, last]


@given(st.lists(st.integers(0, 30 * MINUTE_MS), min_size=1, max_size=60), st.integers(0, 999))
def test_r11_files_in_microseconds_make_the_same_candles_as_files_in_milliseconds(after: list[int], us: int) -> None:
    ms = sorted(BEGIN_MS + t for t in after)
    until_ms = ms[-1] + 2 * MINUTE_MS
    for one, other in zip(candles(ms, until_ms), candles([t * 1000 + us for t in ms], until_ms), strict=True):
        for name, column in one.items():
            np.testing.assert_array_equal(column, other[name])


@given(st.lists(st.integers(0, 5 * MINUTE_MS), min_size=1, max_size=40))
def test_r12_a_candle_is_not_there_one_millisecond_before_it_closes(after: list[int]) -> None:
    times = sorted(BEGIN_MS + t for t in after)
    trades = read_trades(page(times)).columns
    for close_ms in range(times[0] - times[0] % MINUTE_MS + MINUTE_MS, times[-1] + 2 * MINUTE_MS, MINUTE_MS):
        seen = {name: column[trades["ts_ms"] < close_ms] for name, column in trades.items()}
        state, by_trades = fold(None, seen, MINUTE_MS)
        before, early = flush(state, close_ms - 1)
        _, closed = flush(before, close_ms)
        assert all(ts + MINUTE_MS < close_ms for ts in (*by_trades["ts"], *early["ts"]))
        assert closed["ts"].tolist() == [close_ms - MINUTE_MS]


def test_r31_fifty_pairs_through_short_pages_empty_pages_and_refusals_are_whole_or_their_gaps_named(
    start_worker: Callable[..., Any], start_exchange: Callable[..., str]
) -> None:
    exchange = start_exchange("--symbols", str(PAIRS))
    listed = call("GET", f"{exchange}/api/v3/exchangeInfo")[1]["symbols"]
    symbols = [entry["symbol"] for entry in listed][:PAIRS]
    assert len(symbols) == PAIRS
    lacking, hole = symbols[7], (BEGIN_MS + 3 * 3_600_000, BEGIN_MS + 4 * 3_600_000)
    faults = [
        {"name": "short_page", "rows": 90, "times": 40},
        *({"name": "empty_page", "symbol": symbol} for symbol in symbols[10:20]),
        {"name": "too_many_requests", "seconds": 1, "times": 3},
        {"name": "lacks", "symbol": lacking, "start_ms": hole[0], "end_ms": hole[1]},
    ]
    assert call("POST", f"{exchange}/sim/behaviours", faults)[0] == 200
    worker = start_worker(exchange)
    stages = [{"target": target, "type": "api_candles_5m"} for target in ("loader-producer", "arango-connector")]
    command = {"command": "start", "queue_id": "pairs", "symbols": symbols, "time_range": DAY, "requests": stages}
    asked = subprocess.run(
        [sys.executable, "-m", "app", "start", "-", "--follow"], cwd=ROOT, env={**os.environ, **worker.env},
        input=json.dumps(command), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert asked.returncode == RunFailed.exit_code != 0, "one pair has a gap"
    assert re.search(rf"{lacking} candles_5m: unrecoverable 1 span, 3600 s", asked.stderr)
    for symbol in symbols:
        status, answer = worker.get(f"/coverage/binance:{symbol}:candles_5m")
        assert status == 200, answer
        gaps = [hole] if symbol == lacking else []
        assert [tuple(span) for span in answer["unrecoverable"]] == gaps, symbol
        assert length([tuple(span) for span in answer["stored"]]) == DAY_MS - length(gaps), symbol
    wait_for(lambda: worker.get("/queues/pairs")[1]["state"] == "error")
