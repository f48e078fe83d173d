"""Synthetic candles for the learning tests: volatility clusters, volume follows it, direction holds no signal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.gnn.features import CandleGrid, grid_of
from models.gnn.graph import CandleGraph, GraphSpec, build_graph
from models.market import CANDLE_COLUMNS, Array

START_MS = 1_755_561_600_000  # 2025-08-19T00:00Z
STEP_MS = 300_000
Candles = dict[str, Array]


def candles_of(count: int, seed: int = 0) -> Candles:
    """`count` closed 5m candles without a gap; the same seed gives the same candles, and fewer are a prefix."""
    rows = np.random.default_rng(seed).standard_normal((count, 6))
    log_vol = np.zeros(count)
    for t in range(1, count):
        log_vol[t] = 0.97 * log_vol[t - 1] + 0.12 * rows[t, 0]
    vol = 0.001 * np.exp(log_vol)
    closes = 50_000 * np.exp(np.cumsum(vol * rows[:, 1]))
    opens = np.concatenate([[50_000.0], closes[:-1]])
    high = np.maximum(opens, closes) * np.exp(vol * np.abs(rows[:, 2]) / 2)
    low = np.minimum(opens, closes) * np.exp(-vol * np.abs(rows[:, 3]) / 2)
    volume = 10 * np.exp(log_vol + 0.3 * rows[:, 4])
    share = 1 / (1 + np.exp(-0.5 * rows[:, 5]))
    return as_columns({
        "ts": START_MS + STEP_MS * np.arange(count), "open": opens, "high": high, "low": low, "close": closes,
        "volume": volume, "quote_volume": volume * (high + low + closes) / 3, "trades": 1 + (volume * 20).astype(int),
        "taker_buy_volume": volume * share, "taker_buy_quote_volume": volume * share * closes,
        "closed": np.ones(count, dtype=bool),
    })  # fmt: skip


def as_columns(columns: dict[str, Array]) -> Candles:
    return {name: np.asarray(columns[name]).astype(dtype) for name, dtype in CANDLE_COLUMNS.items()}


def rows_of(candles: Candles, keep: Array | slice) -> Candles:
    return {name: column[keep] for name, column in candles.items()}


def another_future(candles: Candles, last: int) -> Candles:
    """The same candles up to and including `last`; every later one multiplied by a random walk, volumes shuffled."""
    rng = np.random.default_rng(99)
    changed = {name: column.copy() for name, column in candles.items()}
    later = slice(last + 1, None)
    walk = np.exp(np.cumsum(rng.normal(0, 0.01, len(candles["ts"][later]))))
    for name in ("open", "high", "low", "close"):
        changed[name][later] *= walk
    for name in ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"):
        changed[name][later] *= rng.permutation(walk)
    return changed


@pytest.fixture(scope="session")
def make_candles() -> Callable[..., Candles]:
    return candles_of


@pytest.fixture(scope="session")
def without() -> Callable[[Candles, list[int]], Candles]:
    return lambda candles, rows: rows_of(candles, np.delete(np.arange(len(candles["ts"])), rows))


@pytest.fixture(scope="session")
def first() -> Callable[[Candles, int], Candles]:
    return lambda candles, count: rows_of(candles, slice(count))


@pytest.fixture(scope="session")
def change_future() -> Callable[[Candles, int], Candles]:
    return another_future


@pytest.fixture(scope="session")
def candles() -> Candles:
    """1,500 candles: about the fewest that can be trained on."""
    return candles_of(1500)


@pytest.fixture(scope="session")
def grid(candles: Candles) -> CandleGrid:
    return grid_of(candles, "5m")


@pytest.fixture(scope="session")
def graph(candles: Candles) -> CandleGraph:
    return build_graph(candles, GraphSpec(), symbol="BTCUSDT")
