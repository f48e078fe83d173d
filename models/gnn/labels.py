"""What a model is asked: labels made from candles after t, each with the time at which it becomes known.

`dir`         does the volume-weighted average price rise from bar t+1 to bar t+1+h? An entry at t+1 can be made;
              close to close would mostly measure the bid-ask bounce. Zero returns are masked, not class 0.
`vol_regime`  is the realised volatility of bars t+1..t+h, over the volatility known at t, above the trailing
              seven-day median of the same ratio as known at t?

Labels are made by the trainer from candles and never stored beside features, so serving cannot read them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import numpy as np
import numpy.typing as npt

from app.errors import CommandRejected
from models.gnn.features import CandleGrid, Floats, rolling_mean, shift

MEDIAN_SPAN_MS = 7 * 86_400_000
MEDIAN_MIN_BARS = 288  # a median of less than this (half the span, where seven days are fewer) is no regime


@dataclass(frozen=True)
class Labels:
    """One question for every candle.

    Shapes: all (N,). `y` 0 or 1; `valid` bool; `move` the number whose sign `y` is (log return, or log ratio over
    its median). Times in ms: a sample is asked at `asked_ms` (its candle's close) and its answer is known at `end_ms`.
    """

    name: str
    horizon_bars: int
    y: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    move: Floats
    asked_ms: npt.NDArray[np.int64]
    end_ms: npt.NDArray[np.int64]


def make_labels(name: str, grid: CandleGrid, horizon_bars: int) -> Labels:
    """Labels of every candle; not `valid` where a bar that is needed does not exist.

    Raises CommandRejected for an unknown label or a horizon below 1.
    """
    if name not in LABELS:
        raise CommandRejected("label", f"{name!r} is not known; allowed are {', '.join(LABELS)}")
    if horizon_bars < 1:
        raise CommandRejected("horizon", f"{horizon_bars} bars: it must be at least 1")
    kind = LABELS[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        move = kind.move(grid, horizon_bars)[grid.position]
    step = grid.interval_ms
    return Labels(
        name=name, horizon_bars=horizon_bars, y=(move > 0).astype(np.float32),
        valid=np.isfinite(move) & (move != 0), move=move, asked_ms=grid.ts + step,
        end_ms=grid.ts + (horizon_bars + kind.last_bar_offset + 1) * step,
    )  # fmt: skip


def _direction(grid: CandleGrid, horizon_bars: int) -> Floats:
    price = np.log(grid.vwap())
    return _ahead(price, 1 + horizon_bars) - _ahead(price, 1)


def _volatility_regime(grid: CandleGrid, horizon_bars: int) -> Floats:
    squares = grid.returns() ** 2
    whole = ~np.isnan(_total(squares, horizon_bars))  # every bar of the window is there
    realised = np.sqrt(np.where(whole, rolling_mean(squares, horizon_bars), np.nan))
    ratio = np.log(_ahead(realised, horizon_bars) / grid.volatility())  # at t, of bars t+1..t+h
    ratio = np.where(np.isfinite(ratio), ratio, np.nan)
    span_bars = max(MEDIAN_SPAN_MS // grid.interval_ms, 1)
    median = trailing_median(ratio, span_bars, min(MEDIAN_MIN_BARS, (span_bars + 1) // 2))
    return ratio - shift(median, horizon_bars + 1)


@dataclass(frozen=True)
class _Kind:
    move: Callable[[CandleGrid, int], Floats]
    last_bar_offset: int  # the last bar needed is t + horizon + this


LABELS: dict[str, _Kind] = {"dir": _Kind(_direction, 1), "vol_regime": _Kind(_volatility_regime, 0)}


def trailing_median(values: Floats, bars: int, min_bars: int) -> Floats:
    """Lower median of the last `bars` values, holes left out; NaN with fewer than `min_bars`. Shapes: (G,) -> (G,)."""
    ordered: list[float] = []
    out = np.full(len(values), np.nan)
    listed = values.tolist()
    for t, value in enumerate(listed):
        if not isnan(value):
            insort(ordered, value)
        if t >= bars and not isnan(listed[t - bars]):
            del ordered[bisect_left(ordered, listed[t - bars])]
        if len(ordered) >= min_bars:
            out[t] = ordered[(len(ordered) - 1) // 2]
    return out


def _ahead(values: Floats, bars: int) -> Floats:
    out = np.full(len(values), np.nan)
    out[: max(len(values) - bars, 0)] = values[bars:]
    return out


def _total(values: Floats, bars: int) -> Floats:
    """Sum of the last `bars` values, NaN where one of them is."""
    padded = np.concatenate([np.full(bars - 1, np.nan), values])
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, bars).sum(axis=-1))
