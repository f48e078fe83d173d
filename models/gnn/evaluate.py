"""What a model is worth: metrics with intervals, a verdict against the best baseline, and what trading it would cost.

Neighbouring samples share their answers' bars, so every interval comes from resampling whole days (block bootstrap,
400 resamples, seeded), and the standard error counts one independent sample per horizon. A verdict "better" needs
three folds; with fewer it is withheld, whatever the numbers say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import RunFailed
from models.gnn.dataset import FOLDS_FOR_A_VERDICT
from models.gnn.features import DAY_MS, Floats
from models.gnn.graph import Ints

RESAMPLES = 400
LEVEL = (0.025, 0.975)
MIN_BLOCKS = 5
ECE_BINS = 10
COSTS_BP = (0, 5, 10, 20)  # round trip
INCREDIBLE_AUC = {"dir": 0.70}  # an honest pipeline stays far below this on real markets

Role = Literal["baseline", "control", "gnn"]
Word = Literal["better", "indistinguishable", "worse"]


class Interval(msgspec.Struct, frozen=True):
    """A value and its 95 % block-bootstrap interval."""

    value: float
    low: float
    high: float


class Trading(msgspec.Struct, frozen=True, kw_only=True):
    """Non-overlapping positions held for one horizon each, in basis points per trade."""

    trades: int
    gross_bp: float
    net_bp: dict[str, float]  # by round-trip cost
    mean_move_bp: float
    break_even_accuracy: dict[str, float]  # by round-trip cost; above 1: impossible
    top_decile_accuracy: float
    top_decile_gross_bp: float


class ModelScore(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: Role
    metrics: dict[str, Interval]
    fold_accuracy: list[float]
    seed_accuracy: list[float] = []
    epochs: list[int] = []
    validation_loss: float | None = None
    trading: Trading | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Log-loss of `model` minus that of `other` on the same samples: below 0 the model is better."""

    model: str
    other: str
    difference: Interval

    @property
    def word(self) -> Word:
        if self.difference.high < 0:
            return "better"
        return "worse" if self.difference.low > 0 else "indistinguishable"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    word: Word
    model: str
    baseline: str
    difference: Interval
    reason: str


class LabelReport(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    horizon_bars: int
    folds: int
    samples: dict[str, int]
    share_of_ones: dict[str, float]
    standard_error: float  # of an accuracy: 0.5 / sqrt(test samples / horizon)
    block_hours: float
    models: list[ModelScore]
    verdict: Verdict
    edges: list[Comparison]  # each network against the same network on random past edges
    warnings: list[str]


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of metrics.json."""

    schema: int = 1
    trials: int  # models fitted and tested; no setting was searched and no seed was picked
    labels: list[LabelReport]


@dataclass(frozen=True)
class Outcome:
    """The test samples of one label over all folds. Shapes: each (n,)."""

    y: npt.NDArray[np.float32]
    asked_ms: Ints
    fold: Ints
    move: Floats


@dataclass(frozen=True)
class Candidate:
    """One model's answers to the samples of an Outcome. Shapes: probability (n,), by_seed (seeds, n)."""

    name: str
    role: Role
    probability: Floats
    by_seed: Floats
    epochs: list[int]
    validation_loss: float | None


@dataclass(frozen=True)
class Blocks:
    """Samples in blocks and how often each resample draws each block.

    Shapes: `of` (n,) block of each sample; `draws` (RESAMPLES + 1, blocks), its first row the sample itself.
    """

    of: Ints
    draws: Floats
    hours: float

    @classmethod
    def make(cls, asked_ms: Ints, seed: int) -> Blocks:
        """One block per UTC day; fewer than five days are cut into five blocks of equal length."""
        length = DAY_MS
        of = asked_ms // length
        if len(np.unique(of)) < MIN_BLOCKS:
            length = int(asked_ms[-1] - asked_ms[0]) // MIN_BLOCKS + 1
            of = (asked_ms - asked_ms[0]) // length
        _, of = np.unique(of, return_inverse=True)
        count = int(of.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        return cls(of, np.concatenate([np.ones((1, count)), drawn]), length / 3_600_000)

    def totals(self, values: Floats) -> Floats:
        """Sum of `values` in each resample. Shapes: (n,) -> (R,), (n, k) -> (R, k)."""
        sums = np.zeros((self.draws.shape[1], *values.shape[1:]))
        np.add.at(sums, self.of, values)
        return np.asarray(self.draws @ sums)

    def mean(self, values: Floats) -> Interval:
        return interval(self.totals(values) / self.totals(np.ones(len(values))))


def interval(resampled: Floats) -> Interval:
    """The first entry is the value itself, the others its resamples; resamples without a value do not count."""
    rest = resampled[1:][np.isfinite(resampled[1:])]
    low, high = np.quantile(rest, LEVEL) if len(rest) else (np.nan, np.nan)
    return Interval(*(round(float(v), 6) for v in (resampled[0], low, high)))


def sample_log_loss(y: npt.NDArray[np.float32], p: Floats) -> Floats:
    """Shapes: (n,), (n,) -> (n,)."""
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return -np.log(np.where(y > 0.5, clipped, 1 - clipped))


def score(y: npt.NDArray[np.float32], p: Floats, blocks: Blocks) -> dict[str, Interval]:
    """Accuracy, balanced accuracy, MCC, AUC, log-loss, Brier score and ECE (10 bins). Shapes: (n,), (n,)."""
    one, says = y > 0.5, p > 0.5
    cells = np.stack([one & says, ~one & says, one & ~says, ~one & ~says], axis=1).astype(np.float64)
    tp, fp, fn, tn = blocks.totals(cells).T
    n = tp + fp + fn + tn
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = (tp / (tp + fn) + tn / (tn + fp)) / 2
        spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        mcc = np.where(spread > 0, (tp * tn - fp * fn) / np.maximum(spread, 1e-12), 0.0)
    return {
        "accuracy": interval((tp + tn) / n),
        "balanced_accuracy": interval(balanced),
        "mcc": interval(mcc),
        "auc": interval(_auc(one, p, blocks)),
        "log_loss": blocks.mean(sample_log_loss(y, p)),
        "brier": blocks.mean((p - y) ** 2),
        "ece": interval(_calibration_error(y, p, blocks) / n),
    }


def _auc(one: npt.NDArray[np.bool_], p: Floats, blocks: Blocks) -> Floats:
    """Chance that a 1 is ranked above a 0, ties half, of each resample. Shapes: (n,), (n,) -> (R,)."""
    _, rank = np.unique(p, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    first = np.flatnonzero(np.diff(rank[order], prepend=-1))
    weight = blocks.draws[:, blocks.of[order]]
    ones = np.add.reduceat(weight * one[order], first, axis=1)
    zeros = np.add.reduceat(weight * ~one[order], first, axis=1)
    below = np.cumsum(zeros, axis=1) - zeros
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((ones * (below + zeros / 2)).sum(axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1)))


def _calibration_error(y: npt.NDArray[np.float32], p: Floats, blocks: Blocks) -> Floats:
    member = np.eye(ECE_BINS)[np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)]
    return np.asarray(np.abs(blocks.totals(member * (p - y)[:, None])).sum(axis=1))


def trade(outcome: Outcome, p: Floats, horizon_bars: int) -> Trading:
    """What following the probabilities would have earned, `outcome.move` being the log return over the horizon."""
    bp = outcome.move * 1e4
    signed = np.where(p > 0.5, bp, -bp)
    held = signed[::horizon_bars]
    gross, mean_move = float(held.mean()), float(np.abs(bp).mean())
    sure = np.argsort(-np.abs(p - 0.5), kind="stable")[: max(len(p) // 10, 1)]
    return Trading(
        trades=len(held), gross_bp=round(gross, 3), net_bp={str(c): round(gross - c, 3) for c in COSTS_BP},
        mean_move_bp=round(mean_move, 3),
        break_even_accuracy={str(c): round(0.5 + c / (2 * mean_move), 4) for c in COSTS_BP},
        top_decile_accuracy=round(float((signed[sure] > 0).mean()), 4),
        top_decile_gross_bp=round(float(signed[sure].mean()), 3),
    )  # fmt: skip


def compare(model: Candidate, other: Candidate, y: npt.NDArray[np.float32], blocks: Blocks) -> Comparison:
    """Paired: both models answer the same resampled samples."""
    difference = sample_log_loss(y, model.probability) - sample_log_loss(y, other.probability)
    return Comparison(model=model.name, other=other.name, difference=blocks.mean(difference))


def judge(candidates: list[Candidate], y: npt.NDArray[np.float32], blocks: Blocks, folds: int) -> Verdict:
    """The network with the lowest validation loss against the baseline with the lowest test loss.

    The network is chosen without looking at the test part; the baseline by looking at it, which favours the baseline.
    """
    network = min((c for c in candidates if c.role == "gnn"), key=lambda c: c.validation_loss or np.inf)
    baseline = min(
        (c for c in candidates if c.role != "gnn"), key=lambda c: float(sample_log_loss(y, c.probability).mean())
    )
    found = compare(network, baseline, y, blocks)
    word, reason = found.word, "the 95 % interval of the paired log-loss difference decides"
    if folds < FOLDS_FOR_A_VERDICT:
        reason = _few(folds)
        if word == "better":
            word, reason = "indistinguishable", f"{reason} (lower loss here; better needs {FOLDS_FOR_A_VERDICT} folds)"
    return Verdict(word=word, model=network.name, baseline=baseline.name, difference=found.difference, reason=reason)


def evaluate(
    label: str,
    horizon_bars: int,
    outcome: Outcome,
    candidates: list[Candidate],
    sizes: dict[str, int],
    train_share_of_ones: float,
    seed: int = 0,
) -> LabelReport:
    """Everything the report says about one label. Raises RunFailed for a network without its control."""
    blocks = Blocks.make(outcome.asked_ms, seed)
    folds = len(np.unique(outcome.fold))
    scores = [_model_score(label, horizon_bars, outcome, candidate, blocks) for candidate in candidates]
    edges = [compare(c, _control(c, candidates), outcome.y, blocks) for c in candidates if c.role == "gnn"]
    return LabelReport(
        label=label, horizon_bars=horizon_bars, folds=folds, samples=sizes,
        share_of_ones={"train": round(train_share_of_ones, 4), "test": round(float(outcome.y.mean()), 4)},
        standard_error=round(0.5 / float(np.sqrt(len(outcome.y) / horizon_bars)), 5),
        block_hours=round(blocks.hours, 2),
        models=scores, verdict=judge(candidates, outcome.y, blocks, folds), edges=edges,
        warnings=_warnings(label, folds, blocks, edges, scores),
    )  # fmt: skip


def control_of(model: str) -> str:
    """The name of a network's control: the same network on random past edges."""
    return f"{model} random edges"


def _control(network: Candidate, candidates: list[Candidate]) -> Candidate:
    name = control_of(network.name)
    found = next((c for c in candidates if (c.name, c.role) == (name, "control")), None)
    if found is None:
        raise RunFailed(f"{network.name} has no control: train {name!r} too, or its edges cannot be judged")
    return found


def _model_score(label: str, horizon_bars: int, outcome: Outcome, model: Candidate, blocks: Blocks) -> ModelScore:
    right = (model.probability > 0.5) == (outcome.y > 0.5)
    return ModelScore(
        name=model.name, role=model.role, metrics=score(outcome.y, model.probability, blocks),
        fold_accuracy=[round(float(right[outcome.fold == k].mean()), 4) for k in np.unique(outcome.fold)],
        seed_accuracy=[round(float(((p > 0.5) == (outcome.y > 0.5)).mean()), 4) for p in model.by_seed],
        epochs=model.epochs, validation_loss=None if model.validation_loss is None else round(model.validation_loss, 6),
        trading=trade(outcome, model.probability, horizon_bars) if label == "dir" else None,
    )  # fmt: skip


def _few(folds: int) -> str:
    return f"{'one fold' if folds == 1 else f'{folds} folds'}: indicative only"


def _warnings(label: str, folds: int, blocks: Blocks, edges: list[Comparison], scores: list[ModelScore]) -> list[str]:
    said = []
    if folds < FOLDS_FOR_A_VERDICT:
        said.append(_few(folds))
    if blocks.hours < 24:
        said.append(f"the test part is under {MIN_BLOCKS} days: blocks of {blocks.hours:.1f} h, intervals too narrow")
    for word, what in (("indistinguishable", "score the same"), ("worse", "score better")):
        models = ", ".join(c.model for c in edges if c.word == word)
        if models:
            said.append(f"edges carry no measurable information: random edges {what} ({models})")
    limit = INCREDIBLE_AUC.get(label)
    if limit and any(s.metrics["auc"].value > limit for s in scores):
        said.append(f"an AUC above {limit:.2f} is not to be had on real markets: look for a leak or generated data")
    return said
