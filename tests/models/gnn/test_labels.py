"""Labels are made of bars after t, masked where a bar is missing, and say when their answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import CommandRejected
from models.gnn.features import grid_of
from models.gnn.labels import LABELS, make_labels, trailing_median

HORIZON = 12
STEP_MS = 300_000


def test_direction_compares_the_average_prices_of_the_entry_bar_and_the_last_bar(candles, grid):
    labels = make_labels("dir", grid, HORIZON)
    price = candles["quote_volume"] / candles["volume"]
    for t in (300, 700, 1400):
        assert labels.y[t] == (price[t + 1 + HORIZON] > price[t + 1])
    np.testing.assert_array_equal(labels.valid, np.arange(1500) < 1500 - HORIZON - 1)


def test_volatility_regime_compares_with_a_median_known_at_the_time(candles, grid):
    labels = make_labels("vol_regime", grid, HORIZON)
    returns, vol = np.diff(np.log(candles["close"]), prepend=np.nan), grid.volatility()
    ahead = [np.sqrt(np.mean(returns[t + 1 : t + 1 + HORIZON] ** 2)) for t in range(1500 - HORIZON)]
    ratio = np.log(np.array(ahead)[1:] / vol[1 : 1500 - HORIZON])  # of t = 1, 2, ...
    for t in (620, 900, 1400):
        known = np.sort(ratio[: t - HORIZON - 1])  # asked at 1 .. t-h-1, answered by t-1
        assert labels.y[t] == (ratio[t - 1] > known[(len(known) - 1) // 2])
        assert labels.valid[t]
    assert not labels.valid[:288].any()


@pytest.mark.parametrize("name", list(LABELS))
@pytest.mark.parametrize("horizon", [1, 12])
def test_an_answer_depends_on_nothing_after_its_end(candles, change_future, grid, name, horizon):
    last = 900
    labels = make_labels(name, grid, horizon)
    other = make_labels(name, grid_of(change_future(candles, last), "5m"), horizon)
    known = labels.end_ms <= labels.asked_ms[last]
    np.testing.assert_array_equal(labels.move[known], other.move[known])
    first_unknown = int(np.flatnonzero(~known)[0])
    assert labels.move[first_unknown] != other.move[first_unknown]  # and `end_ms` is no later than it must be


@pytest.mark.parametrize("name", list(LABELS))
def test_no_answer_is_known_when_it_is_asked(grid, name):
    labels = make_labels(name, grid, 1)
    np.testing.assert_array_equal(labels.asked_ms, grid.ts + STEP_MS)
    assert (labels.end_ms > labels.asked_ms).all()


@pytest.mark.parametrize("name", list(LABELS))
def test_an_answer_that_needs_a_missing_bar_is_masked(candles, without, name):
    hole = 1200
    labels = make_labels(name, grid_of(without(candles, [hole]), "5m"), HORIZON)
    needs_it = {"dir": [hole - 1, hole - 1 - HORIZON], "vol_regime": list(range(hole - HORIZON, hole))}[name]
    assert not labels.valid[needs_it].any()
    assert labels.valid[[hole - HORIZON - 2, hole + 20]].all()


def test_a_return_of_zero_is_masked_and_not_a_fall(candles):
    flat = {name: column.copy() for name, column in candles.items()}
    for name in ("open", "high", "low", "close", "volume", "quote_volume"):
        flat[name][1003] = flat[name][1001]
    labels = make_labels("dir", grid_of(flat, "5m"), 2)
    assert labels.move[1000] == 0
    assert not labels.valid[1000]


def test_the_trailing_median_equals_a_sort_of_each_window():
    values = np.random.default_rng(0).normal(size=300)
    values[::7] = np.nan
    got = trailing_median(values, bars=50, min_bars=20)
    for t in (30, 120, 299):
        window = np.sort(values[max(t - 49, 0) : t + 1])
        window = window[~np.isnan(window)]
        assert got[t] == window[(len(window) - 1) // 2]
    assert np.isnan(got[:19]).all()


@pytest.mark.parametrize(("name", "horizon", "field"), [("up", 12, "label"), ("dir", 0, "horizon")])
def test_an_unknown_label_or_horizon_is_rejected_by_its_field(grid, name, horizon, field):
    with pytest.raises(CommandRejected) as caught:
        make_labels(name, grid, horizon)
    assert caught.value.field == field


def test_volatility_regime_has_a_median_where_a_week_holds_few_bars(candles):
    hourly = {**candles, "ts": (candles["ts"] - candles["ts"][0]) * 12}
    labels = make_labels("vol_regime", grid_of(hourly, "1h"), HORIZON)
    assert labels.valid[288 : 1500 - HORIZON].all()
    assert 0.3 < labels.y[labels.valid].mean() < 0.7
