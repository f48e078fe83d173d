"""From candles and a graph to folds: train, validation and test in time order, purged, scaled by the training part.

    inputs file -> load_inputs -> Inputs -> folds + make_labels -> part_of -> Part (what one fit and its test may see)

Nothing of a later part reaches an earlier one: a sample whose answer is known only after the next part begins is
purged (by its times, not by index arithmetic), and the scaler has seen the training rows only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from app.errors import RunFailed
from models.gnn.features import DAY_MS, WARM_UP_BARS
from models.gnn.graph import ARRAYS, CandleGraph, GraphSpec, Ints, check_causal, data_hash
from models.gnn.labels import MEDIAN_MIN_BARS, Labels
from models.market import CANDLE_COLUMNS, Array

SINGLE_FOLD_SHARES = (0.65, 0.10, 0.25)  # train, validation, test of a range too short to walk forward
TRAIN_DAYS, VALIDATION_DAYS, TEST_DAYS = 30, 4, 14  # of a walk-forward fold; the step is the test part
FOLDS_FOR_A_VERDICT = 3  # below this nothing may be called better
MIN_TRAIN, MIN_VALIDATION, MIN_TEST = 400, 48, 150  # samples a part needs, after the purge


@dataclass(frozen=True)
class Inputs:
    candles: dict[str, Array]
    graph: CandleGraph


class _Header(msgspec.Struct, frozen=True):
    symbol: str
    spec: GraphSpec
    data_hash: str


def save_inputs(path: Path, candles: Mapping[str, Array], graph: CandleGraph) -> None:
    """Write candles and graph into one safetensors file, which a child process may trust to hold only arrays."""
    tensors = {f"candles.{name}": np.ascontiguousarray(candles[name], dtype=d) for name, d in CANDLE_COLUMNS.items()}
    tensors |= {f"graph.{name}": np.ascontiguousarray(getattr(graph, name)) for name in ARRAYS}
    header = _Header(graph.symbol, graph.spec, graph.data_hash)
    save_file(tensors, path, metadata={"manifest": msgspec.json.encode(header).decode()})


def load_inputs(path: Path) -> Inputs:
    """Read what `save_inputs` wrote. Raises RunFailed when it is damaged, not causal, or not of these candles."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = msgspec.json.decode(file.metadata()["manifest"], type=_Header)
            candles = {name: file.get_tensor(f"candles.{name}") for name in CANDLE_COLUMNS}
            arrays: dict[str, Any] = {name: file.get_tensor(f"graph.{name}") for name in ARRAYS}
    except (OSError, SafetensorError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise RunFailed(
            f"the training inputs {path.name} cannot be read ({error}): start the training again"
        ) from error
    graph = CandleGraph(symbol=header.symbol, spec=header.spec, data_hash=header.data_hash, **arrays)
    if data_hash(candles, graph.spec, graph.symbol) != graph.data_hash:
        raise RunFailed(f"the graph of {graph.symbol} was built from other candles: build the graph again")
    check_causal(graph)
    return Inputs(candles, graph)


@dataclass(frozen=True)
class Fold:
    """Three stretches of time, half-open in ms of the moment a sample is asked, one after the other."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """One label on one fold. Shapes: each (n,) places of vertices, ascending."""

    train: Ints
    validation: Ints
    test: Ints


@dataclass(frozen=True)
class Scaler:
    """Shapes: mean, std (F,) float32, of the ready training rows."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def apply(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (x - self.mean) / self.std


def minimum_candles(horizon_bars: int) -> int:
    """How many candles without a gap every label can be trained on: the warm-up and three parts after the purge."""
    purged = horizon_bars + 2
    late = max(MEDIAN_MIN_BARS + purged - WARM_UP_BARS, 0)  # bars after the warm-up without a volatility median
    needed = (MIN_TRAIN + late + purged, MIN_VALIDATION + purged, MIN_TEST + purged)
    return WARM_UP_BARS + max(int(np.ceil(n / share)) for n, share in zip(needed, SINGLE_FOLD_SHARES, strict=True)) + 2


def folds_of(graph: CandleGraph) -> list[Fold]:
    """Walk-forward folds when the range holds at least three of them, otherwise one chronological split."""
    asked = graph.ts[graph.ready] + graph.spec.interval_ms
    first, end = int(asked[0]), int(asked[-1]) + graph.spec.interval_ms
    train, validation, test = (days * DAY_MS for days in (TRAIN_DAYS, VALIDATION_DAYS, TEST_DAYS))
    starts = range(first, end - train - validation - test + 1, test)
    if len(starts) >= FOLDS_FOR_A_VERDICT:
        return [_fold(at, at + train, at + train + validation, at + train + validation + test) for at in starts]
    to_train, to_validation = np.cumsum(SINGLE_FOLD_SHARES)[:2]
    cuts = (int(asked[int(len(asked) * to_train)]), int(asked[int(len(asked) * to_validation)]))
    return [_fold(first, *cuts, end)]


def _fold(start: int, train_end: int, validation_end: int, end: int) -> Fold:
    return Fold((start, train_end), (train_end, validation_end), (validation_end, end))


def part_of(fold: Fold, graph: CandleGraph, labels: Labels) -> Part:
    """The samples of each stretch, purged so that every answer of a part is known before the next part begins.

    Raises RunFailed when a part is too small, or has one class only.
    """
    usable = graph.ready & labels.valid
    train = _asked_in(fold.train, labels, usable & (labels.end_ms < fold.validation[0]))
    validation = _asked_in(fold.validation, labels, usable & (labels.end_ms < fold.test[0]))
    part = Part(train, validation, _asked_in(fold.test, labels, usable))
    sizes = (len(part.train), len(part.validation), len(part.test))
    if any(size < least for size, least in zip(sizes, (MIN_TRAIN, MIN_VALIDATION, MIN_TEST), strict=True)):
        raise RunFailed(
            f"the range is too short to train on: at least {minimum_candles(labels.horizon_bars)} candles without a "
            f"gap are needed and there are {len(graph.ts)} (samples of {labels.name}: {sizes[0]} to train, {sizes[1]} "
            f"to validate, {sizes[2]} to test); load a longer range"
        )
    if any(len(np.unique(labels.y[rows])) < 2 for rows in (part.train, part.test)):
        raise RunFailed(f"all samples of {labels.name} to train or to test have the same answer: load another range")
    return part


def _asked_in(span: tuple[int, int], labels: Labels, usable: npt.NDArray[np.bool_]) -> Ints:
    return np.flatnonzero(usable & (labels.asked_ms >= span[0]) & (labels.asked_ms < span[1]))


def check_purged(part: Part, labels: Labels) -> None:
    """Raise RunFailed unless every answer of a part is known before the first question of the next."""
    for earlier, later in ((part.train, part.validation), (part.validation, part.test)):
        if labels.end_ms[earlier].max() >= labels.asked_ms[later].min():
            raise RunFailed(f"the split of {labels.name} is not purged: an answer reaches into the next part")


def fit_scaler(graph: CandleGraph, fold: Fold) -> Scaler:
    """Mean and standard deviation of the ready rows asked before the validation part; a constant column keeps std 1."""
    asked = graph.ts + graph.spec.interval_ms
    rows = graph.x[graph.ready & (asked >= fold.train[0]) & (asked < fold.train[1])].astype(np.float64)
    std = rows.std(axis=0)
    return Scaler(rows.mean(axis=0).astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32))
