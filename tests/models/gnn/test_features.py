"""Features look back only, never across a hole, and say when they cannot be known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from app.errors import RunFailed
from models.gnn import features
from models.gnn.features import FEATURE_NAMES, WARM_UP_BARS, CandleGrid, compute_features, grid_of

LAST = 900


def sees_the_future(candles, change_future, compute=compute_features) -> bool:
    """True when a row up to LAST differs once the candles after LAST are other ones."""
    x, ready = compute(grid_of(candles, "5m"))
    other_x, other_ready = compute(grid_of(change_future(candles, LAST), "5m"))
    assert not np.array_equal(x, other_x), "the future did not change: this test proves nothing"
    past = slice(LAST + 1)
    return not (np.array_equal(x[past], other_x[past]) and np.array_equal(ready[past], other_ready[past]))


def test_another_future_leaves_every_feature_so_far_bit_equal(candles, change_future):
    assert not sees_the_future(candles, change_future)


def test_fewer_candles_give_the_same_rows_bit_for_bit(candles, first):
    x, ready = compute_features(grid_of(candles, "5m"))
    part_x, part_ready = compute_features(grid_of(first(candles, LAST), "5m"))
    np.testing.assert_array_equal(part_x, x[:LAST])
    np.testing.assert_array_equal(part_ready, ready[:LAST])


def _centred(grid: CandleGrid):
    x, ready = compute_features(grid)
    x[:, 0] = np.convolve(x[:, 0], np.ones(5) / 5, mode="same")
    return x, ready


def _scaled_by_the_whole_sample(grid: CandleGrid):
    x, ready = compute_features(grid)
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9), ready


def _next_return_as_a_feature(grid: CandleGrid):
    x, ready = compute_features(grid)
    x[:, 0] = np.append(np.diff(grid.log_close()), 0)
    return x, ready


def _centred_window(monkeypatch):
    plain = features.rolling_mean
    monkeypatch.setattr(features, "rolling_mean", lambda y, bars: np.roll(plain(y, bars), -(bars // 2)))
    return compute_features


@pytest.mark.parametrize("leak", [_centred, _scaled_by_the_whole_sample, _next_return_as_a_feature])
def test_a_leaking_feature_is_caught(candles, change_future, leak):
    assert sees_the_future(candles, change_future, leak)


def test_a_centred_rolling_window_is_caught(candles, change_future, monkeypatch):
    assert sees_the_future(candles, change_future, _centred_window(monkeypatch))


def test_the_first_row_with_every_feature_follows_the_warm_up(graph):
    assert np.flatnonzero(graph.ready)[0] == WARM_UP_BARS
    assert graph.ready[WARM_UP_BARS:].all()


def test_features_are_finite_clipped_and_in_the_declared_order(graph):
    assert graph.x.shape == (1500, len(FEATURE_NAMES)) == (1500, len(set(FEATURE_NAMES)))
    assert graph.x.dtype == np.float32
    assert np.abs(graph.x).max() <= features.CLIP
    assert graph.x[graph.ready].std(axis=0).min() > 0.01


def test_features_do_not_depend_on_the_price_scale(make_candles):
    candles = make_candles(700)
    cheap = {n: c / 1000 if n in ("open", "high", "low", "close", "quote_volume") else c for n, c in candles.items()}
    x, _ = compute_features(grid_of(candles, "5m"))
    cheap_x, _ = compute_features(grid_of(cheap, "5m"))
    np.testing.assert_allclose(cheap_x, x, atol=1e-4)


def test_a_missing_candle_is_not_bridged(candles, without):
    hole = 700
    x, ready = compute_features(grid_of(without(candles, [hole]), "5m"))
    full, _ = compute_features(grid_of(candles, "5m"))
    for bars in features.RETURN_BARS:
        column = FEATURE_NAMES.index(f"return_{bars}")
        row = hole + bars - 1  # `bars` after the hole, one row earlier because the hole has none
        assert x[row, column] == 0
        assert not ready[row]
        assert full[row + 1, column] != 0
    assert ready[hole + 40]  # between those, a day with one hole is still a day
    np.testing.assert_array_equal(x[:hole], full[:hole])


def test_a_long_hole_needs_its_own_warm_up(candles, without):
    _, ready = compute_features(grid_of(without(candles, list(range(700, 780))), "5m"))
    assert not ready[700 : 700 + WARM_UP_BARS - 80].any()
    assert ready[700 + WARM_UP_BARS :].all()


def test_candles_without_trades_have_features(candles):
    quiet = {name: column.copy() for name, column in candles.items()}
    for row in (800, 801):
        for name in ("open", "high", "low", "close"):
            quiet[name][row] = quiet["close"][799]
        for name in ("volume", "quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume"):
            quiet[name][row] = 0
    x, ready = compute_features(grid_of(quiet, "5m"))
    assert np.isfinite(x).all()
    assert ready[800:].all()


def test_exponential_mean_weighs_by_age_and_skips_holes():
    values = np.array([np.nan, 1.0, np.nan, 4.0])
    got = features.exponential_mean(values, alpha=0.5)
    np.testing.assert_allclose(got[1:], [1.0, 1.0, (4 + 0.25 * 1) / (1 + 0.25)])
    assert np.isnan(got[0])


def test_rolling_windows_equal_a_plain_loop(make_candles):
    values = np.log(make_candles(200)["close"])
    plain = [(values[t - 11 : t + 1].mean(), values[t - 11 : t + 1].max()) for t in range(11, 200)]
    np.testing.assert_allclose(features.rolling_mean(values, 12)[11:], [mean for mean, _ in plain], rtol=1e-12)
    np.testing.assert_array_equal(features.rolling_max(values, 12)[11:], [top for _, top in plain])
    assert np.isnan(features.rolling_mean(values, 12)[:10]).all()


def _unsorted(c):
    return {name: column[::-1] for name, column in c.items()}


def _unclosed(c):
    return {**c, "closed": np.arange(len(c["ts"])) < 5}


def _off_grid(c):
    return {**c, "ts": c["ts"] + 1}


def _no_price(c):
    return {**c, "close": np.where(np.arange(len(c["ts"])) == 7, 0.0, c["close"])}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_unsorted, "sorted"), (_unclosed, "closed"), (_off_grid, "grid"), (_no_price, "positive price")],
)
def test_unusable_candles_are_refused_with_a_sentence(make_candles, spoil: Callable, says: str):
    with pytest.raises(RunFailed, match=says):
        grid_of(spoil(make_candles(20)), "5m")
