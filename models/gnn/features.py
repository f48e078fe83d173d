"""Candles become scale-free features: row t looks at closed candles up to and including t, at none after it.

Everything is computed on the regular time grid of the interval, where a missing candle is NaN: a return over k
bars exists only when both its ends exist k bars apart, so no number silently bridges a gap. A row with any
feature that cannot be known yet (the first day, the bars around a gap) is not `ready`.
Formulas: returns, ranges and distances in units of an exponentially weighted volatility; RSI and ATR as Wilder's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan

import numpy as np
import numpy.typing as npt

from app.errors import RunFailed
from models.market import CANDLE_COLUMNS, INTERVAL_MS, Array

Floats = npt.NDArray[np.float64]

VOL_SPAN = 288  # bars: one day of 5m candles
CLIP = 8.0
MIN_WINDOW_SHARE = 0.9  # a rolling window with more holes than this is not known
DAY_MS = 86_400_000
RETURN_BARS = (1, 2, 3, 6, 12, 24, 72, 288)
WARM_UP_BARS = max(RETURN_BARS)  # the first row with every feature is row WARM_UP_BARS


@dataclass(frozen=True)
class CandleGrid:
    """Candles on the regular grid of their interval.

    Shapes: `position` (N,) grid row of each candle; `columns` each (G,), NaN where no candle is; N <= G.
    """

    ts: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    columns: dict[str, Floats]
    interval_ms: int

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.columns["close"])

    def log_close(self) -> Floats:
        return np.log(self.columns["close"])

    def returns(self) -> Floats:
        """Log return of each bar, NaN at the first bar, at a hole and right after it."""
        return difference(self.log_close(), 1)

    def volatility(self) -> Floats:
        """Exponentially weighted root mean square return of a bar (span 288), NaN where it is zero or unknown."""
        vol = np.sqrt(exponential_mean(self.returns() ** 2, 2 / (VOL_SPAN + 1)))
        return np.where(vol > 1e-12, vol, np.nan)

    def vwap(self) -> Floats:
        """Volume-weighted average price of each bar; (high + low + close) / 3 where nothing traded."""
        c = self.columns
        typical = (c["high"] + c["low"] + c["close"]) / 3
        return _ratio(c["quote_volume"], c["volume"], typical)


def grid_of(candles: Mapping[str, Array], interval: str) -> CandleGrid:
    """Check the candles and put them on their grid.

    Raises RunFailed when they are not closed, not sorted, not on the interval's grid or not prices.
    """
    step = INTERVAL_MS[interval]
    ts = np.ascontiguousarray(candles["ts"], dtype=np.int64)
    if len(ts) == 0:
        raise RunFailed("there are no candles to build features from: load the range first")
    if np.any(np.diff(ts) <= 0):
        raise RunFailed("candles must be sorted by open time without repeats: read them from the store in time order")
    if np.any(ts % step):
        raise RunFailed(f"candles do not start on the {interval} grid: they are of another interval")
    if not np.all(candles["closed"]):
        raise RunFailed("an unclosed candle was given: only closed candles can be features")
    position = (ts - ts[0]) // step
    size = int(position[-1]) + 1
    columns = {name: _spread(candles[name], position, size) for name in CANDLE_COLUMNS if name not in ("ts", "closed")}
    for name in ("open", "high", "low", "close"):
        values = columns[name][position]
        if not np.all(np.isfinite(values) & (values > 0)):
            raise RunFailed(f"the candles hold a {name} that is no positive price: load the range again")
    return CandleGrid(ts, position, columns, step)


def compute_features(grid: CandleGrid) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Features of every candle and whether all of them are known.

    Shapes: x (N, F) float32 in the order of FEATURE_NAMES, clipped to +-8, 0 where unknown; ready (N,) bool.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = _all_columns(grid)
    x = np.stack([columns[name] for name in FEATURE_NAMES], axis=1)[grid.position]
    ready = np.asarray(~np.isnan(x).any(axis=1))
    x = np.clip(np.nan_to_num(x, nan=0.0, posinf=CLIP, neginf=-CLIP), -CLIP, CLIP)
    return x.astype(np.float32), ready


def rests_on_gap(grid: CandleGrid, partial: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """Of every candle whether a hole, or a candle that is itself `partial`, lies in what its features look back on.

    Means go on over a hole of few bars, so a row can be `ready` and rest on one all the same.
    Shapes: partial, returned (N,) bool.
    """
    bad = ~grid.present
    if partial is not None:
        bad[grid.position] |= partial
    count = np.cumsum(bad)
    before = np.concatenate([np.zeros(WARM_UP_BARS + 1, dtype=count.dtype), count])[: len(count)]
    return np.asarray((count > before)[grid.position])


def _all_columns(grid: CandleGrid) -> dict[str, Floats]:
    vol = grid.volatility()
    return {**_price(grid, vol), **_candle_shape(grid, vol), **_volume(grid), **_order_flow(grid, vol), **_clock(grid)}


def _price(grid: CandleGrid, vol: Floats) -> dict[str, Floats]:
    y, r = grid.log_close(), grid.returns()
    out = {f"return_{k}": difference(y, k) / (vol * np.sqrt(k)) for k in RETURN_BARS}
    for k in (6, 24, 288):
        out[f"log_vol_ratio_{k}"] = np.log(np.sqrt(rolling_mean(r**2, k)) / vol)
    for k in (20, 100):
        out[f"ema_distance_{k}"] = (y - exponential_mean(y, 2 / (k + 1))) / (vol * np.sqrt(k))
    for k in (72, 288):
        scale = vol * np.sqrt(k)
        out[f"below_high_{k}"] = (y - rolling_max(np.log(grid.columns["high"]), k)) / scale
        out[f"above_low_{k}"] = (y + rolling_max(-np.log(grid.columns["low"]), k)) / scale
    gain = exponential_mean(np.maximum(r, 0), 1 / 14)
    loss = exponential_mean(np.maximum(-r, 0), 1 / 14)
    out["rsi_14"] = _ratio(gain - loss, gain + loss, 0.0)  # (RSI - 50) / 50
    return out


def _candle_shape(grid: CandleGrid, vol: Floats) -> dict[str, Floats]:
    o, h, low, c = (np.log(grid.columns[name]) for name in ("open", "high", "low", "close"))
    before = shift(c, 1)
    true_range = np.maximum(h, before) - np.minimum(low, before)
    return {
        "range": (h - low) / vol,
        "body": (c - o) / vol,
        "upper_wick": (h - np.maximum(o, c)) / vol,
        "lower_wick": (np.minimum(o, c) - low) / vol,
        "close_location": _ratio(2 * c - h - low, h - low, 0.0),
        "log_atr_14": np.log(exponential_mean(true_range, 1 / 14) / vol),
    }


def _volume(grid: CandleGrid) -> dict[str, Floats]:
    volume, r = grid.columns["volume"], grid.returns()
    z = z_score(np.log1p(volume), VOL_SPAN)
    out = {"volume_z": z, "volume_z_ew12": exponential_mean(z, 2 / 13)}
    for k in (3, 12, 72):
        out[f"signed_volume_{k}"] = _ratio(rolling_mean(np.sign(r) * volume, k), rolling_mean(volume, k), 0.0)
    return out


def _order_flow(grid: CandleGrid, vol: Floats) -> dict[str, Floats]:
    volume, count = grid.columns["volume"], grid.columns["trades"]
    flow = 2 * grid.columns["taker_buy_volume"] - volume  # base bought minus sold by aggressors
    out = {f"taker_imbalance_{k}": _ratio(rolling_mean(flow, k), rolling_mean(volume, k), 0.0) for k in (1, 3, 12, 72)}
    out["flow_z"] = z_score(flow, VOL_SPAN)
    out["trade_count_z"] = z_score(np.log1p(count), VOL_SPAN)
    out["trade_size_z"] = z_score(np.log1p(_ratio(volume, count, 0.0)), VOL_SPAN)
    out["vwap_deviation"] = (grid.log_close() - np.log(grid.vwap())) / vol
    return out


def _clock(grid: CandleGrid) -> dict[str, Floats]:
    first = int(grid.ts[0])
    closes_ms = first + (np.arange(len(grid.present)) + 1) * grid.interval_ms
    angle = 2 * np.pi * (closes_ms % DAY_MS) / DAY_MS
    return {"day_sin": np.sin(angle), "day_cos": np.cos(angle)}


FEATURE_NAMES: tuple[str, ...] = (
    *(f"return_{k}" for k in RETURN_BARS),
    "log_vol_ratio_6", "log_vol_ratio_24", "log_vol_ratio_288",
    "range", "body", "upper_wick", "lower_wick", "close_location",
    "volume_z", "volume_z_ew12", "signed_volume_3", "signed_volume_12", "signed_volume_72",
    "rsi_14", "log_atr_14", "ema_distance_20", "ema_distance_100",
    "below_high_72", "above_low_72", "below_high_288", "above_low_288",
    "taker_imbalance_1", "taker_imbalance_3", "taker_imbalance_12", "taker_imbalance_72",
    "flow_z", "trade_count_z", "trade_size_z", "vwap_deviation",
    "day_sin", "day_cos",
)  # fmt: skip


def shift(values: Floats, bars: int) -> Floats:
    """The value `bars` earlier, NaN where there is none. Shapes: (G,) -> (G,)."""
    out = np.full(len(values), np.nan)
    out[bars:] = values[: len(values) - bars]
    return out


def difference(values: Floats, bars: int) -> Floats:
    """Value minus the value `bars` earlier; NaN unless both exist. Shapes: (G,) -> (G,)."""
    return values - shift(values, bars)


def exponential_mean(values: Floats, alpha: float) -> Floats:
    """Weighted mean of all values so far, weight (1 - alpha)^age; a NaN ages the others and counts nothing.

    Equals pandas `ewm(alpha=alpha, adjust=True, ignore_na=False).mean()`. Shapes: (G,) -> (G,).
    """
    decay, total, weight = 1 - alpha, 0.0, 0.0
    out = []
    for value in values.tolist():
        total *= decay
        weight *= decay
        if not isnan(value):
            total += value
            weight += 1.0
        out.append(total / weight if weight else np.nan)
    return np.array(out)


def rolling_mean(values: Floats, bars: int) -> Floats:
    """Mean of the last `bars` values, holes left out; NaN with too many holes. Shapes: (G,) -> (G,)."""
    known = ~np.isnan(values)
    count = _over_window(known.astype(np.float64), bars, 0.0, np.sum)
    total = _over_window(np.where(known, values, 0.0), bars, 0.0, np.sum)
    return np.where(count >= MIN_WINDOW_SHARE * bars, total / np.maximum(count, 1), np.nan)


def rolling_max(values: Floats, bars: int) -> Floats:
    """Largest of the last `bars` values, holes left out; NaN with too many holes. Shapes: (G,) -> (G,)."""
    known = ~np.isnan(values)
    count = _over_window(known.astype(np.float64), bars, 0.0, np.sum)
    top = _over_window(np.where(known, values, -np.inf), bars, -np.inf, np.max)
    return np.where(count >= MIN_WINDOW_SHARE * bars, top, np.nan)


def z_score(values: Floats, bars: int) -> Floats:
    """Distance from the mean of the last `bars` values in their standard deviations; 0 where they do not vary."""
    mean = rolling_mean(values, bars)
    variance = rolling_mean(values**2, bars) - mean**2
    return _ratio(values - mean, np.sqrt(np.maximum(variance, 0)), 0.0, floor=1e-9)


def sigmoid(logits: Floats) -> Floats:
    """Probability of a logit, of any shape."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))


def _over_window(values: Floats, bars: int, fill: float, reduce: Callable[..., Floats]) -> Floats:
    padded = np.concatenate([np.full(bars - 1, fill), values])
    return reduce(np.lib.stride_tricks.sliding_window_view(padded, bars), axis=-1)


def _ratio(top: Floats, bottom: Floats, otherwise: Floats | float, floor: float = 0.0) -> Floats:
    """`top / bottom`, `otherwise` where bottom is not above `floor`; an unknown side stays unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.where(bottom > floor, top / bottom, otherwise)
    return np.where(np.isnan(top) | np.isnan(bottom), np.nan, out)


def _spread(values: Array, position: npt.NDArray[np.int64], size: int) -> Floats:
    out = np.full(size, np.nan)
    out[position] = values
    return out
