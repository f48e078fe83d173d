"""Metrics equal their definitions, intervals respect days, and no verdict says more than the folds allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as reference

from app.errors import RunFailed
from models.gnn import evaluate
from models.gnn.evaluate import Blocks, Candidate, Outcome, control_of, score
from models.gnn.report import render

STEP_MS = 300_000
DAYS = 20


def outcome_of(folds: int = 1, horizon: int = 12, days: int = DAYS) -> Outcome:
    """Answers in runs of `horizon`, so that neighbours share them."""
    rng = np.random.default_rng(0)
    count = days * 288
    move = np.repeat(rng.normal(0, 0.002, count // horizon), horizon)
    asked_ms = 1_755_561_600_000 + STEP_MS * np.arange(count)
    return Outcome((move > 0).astype(np.float32), asked_ms, np.arange(count) * folds // count, move)


def answers(y: np.ndarray, skill: float, seed: int, horizon: int = 12) -> np.ndarray:
    """Probabilities that lean to the truth by `skill`, with errors that last a whole horizon."""
    noise = np.repeat(np.random.default_rng(seed).normal(0, 0.1, len(y) // horizon), horizon)
    return np.clip(0.5 + skill * (y - 0.5) + noise, 0.01, 0.99)


def candidate(name: str, role: str, p: np.ndarray, loss: float | None = None) -> Candidate:
    return Candidate(name, role, p, p[None, :] if loss else p[None, :][:0], [9] if loss else [], loss)


def contest(outcome: Outcome, gnn_skill: float, control_skill: float, base_skill: float = 0.0) -> list[Candidate]:
    y = outcome.y
    return [
        candidate("majority", "baseline", np.full(len(y), 0.5)),
        candidate("MLP", "baseline", answers(y, base_skill, seed=1), loss=0.69),
        candidate("SAGE", "gnn", answers(y, gnn_skill, seed=2), loss=0.68),
        candidate(control_of("SAGE"), "control", answers(y, control_skill, seed=3), loss=0.69),
    ]


def report_of(outcome: Outcome, candidates: list[Candidate]) -> evaluate.LabelReport:
    sizes = {"train": 1000, "validation": 100, "test": len(outcome.y)}
    return evaluate.evaluate("dir", 12, outcome, candidates, sizes, 0.5)


def test_metrics_equal_their_definitions_also_with_ties():
    rng = np.random.default_rng(3)
    y = (rng.random(2000) > 0.4).astype(np.float32)
    p = np.round(np.clip(0.3 * y + rng.random(2000) * 0.7, 0.01, 0.99), 1)
    found = score(y, p, Blocks.make(STEP_MS * np.arange(2000), seed=0))
    says, bins = p > 0.5, np.minimum((p * 10).astype(int), 9)
    expected = {
        "accuracy": reference.accuracy_score(y, says),
        "balanced_accuracy": reference.balanced_accuracy_score(y, says),
        "mcc": reference.matthews_corrcoef(y, says),
        "auc": reference.roc_auc_score(y, p),
        "log_loss": reference.log_loss(y, p),
        "brier": reference.brier_score_loss(y, p),
        "ece": sum(abs((p - y)[bins == k].sum()) for k in range(10)) / 2000,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-5), name
        assert found[name].low <= found[name].high


def test_the_bootstrap_of_a_resample_equals_the_metric_of_its_samples():
    rng = np.random.default_rng(4)
    y = (rng.random(3000) > 0.5).astype(np.float32)
    p = np.round(rng.random(3000), 2)
    blocks = Blocks.make(STEP_MS * np.arange(3000), seed=0)
    times = blocks.draws[7][blocks.of].astype(int)
    expected = reference.roc_auc_score(np.repeat(y, times), np.repeat(p, times))
    assert evaluate._auc(y > 0.5, p, blocks)[7] == pytest.approx(expected)


def test_intervals_are_wider_by_days_than_by_samples_when_neighbours_agree():
    outcome = outcome_of(horizon=72)
    p = answers(outcome.y, 0.1, seed=1, horizon=72)
    by_day = score(outcome.y, p, Blocks.make(outcome.asked_ms, seed=0))["accuracy"]
    naive = 2 * 1.96 * 0.5 / np.sqrt(len(outcome.y))
    assert by_day.high - by_day.low > 3 * naive


def test_the_same_seed_gives_the_same_intervals():
    outcome = outcome_of()
    p = answers(outcome.y, 0.1, seed=1)
    first, again = (score(outcome.y, p, Blocks.make(outcome.asked_ms, seed=0)) for _ in range(2))
    assert first == again
    assert first != score(outcome.y, p, Blocks.make(outcome.asked_ms, seed=1))


def test_fewer_than_five_days_are_cut_into_five_blocks_and_that_is_said():
    outcome = outcome_of(days=2)
    report = report_of(outcome, contest(outcome, 0.1, 0.1))
    assert report.block_hours == pytest.approx(9.6, abs=0.1)
    assert any("under 5 days" in warning for warning in report.warnings)


def test_better_is_said_with_three_folds_and_withheld_with_fewer():
    for folds, word in ((3, "better"), (2, "indistinguishable"), (1, "indistinguishable")):
        outcome = outcome_of(folds)
        report = report_of(outcome, contest(outcome, gnn_skill=0.4, control_skill=0.0))
        assert report.folds == folds
        assert report.verdict.word == word
        assert report.verdict.difference.high < 0
        assert any("indicative only" in warning for warning in report.warnings) == (folds < 3)
    assert "one fold: indicative only" in report.verdict.reason


def test_worse_and_indistinguishable_are_told_apart():
    outcome = outcome_of(folds=3)
    worse = report_of(outcome, contest(outcome, gnn_skill=-0.3, control_skill=0.0, base_skill=0.4))
    assert (worse.verdict.word, worse.verdict.baseline) == ("worse", "MLP")
    even = contest(outcome, gnn_skill=0.2, control_skill=0.0, base_skill=0.2)
    assert report_of(outcome, even).verdict.word == "indistinguishable"


def test_the_network_is_chosen_by_validation_and_never_by_the_test():
    outcome = outcome_of(folds=3)
    lucky = candidate("GATv2", "gnn", answers(outcome.y, 0.6, seed=7), loss=0.70)
    control = candidate(control_of("GATv2"), "control", answers(outcome.y, 0.0, seed=8), loss=0.70)
    report = report_of(outcome, [*contest(outcome, gnn_skill=0.1, control_skill=0.0), lucky, control])
    assert report.verdict.model == "SAGE"


def test_a_network_without_its_control_is_not_reported():
    outcome = outcome_of()
    alone = [c for c in contest(outcome, gnn_skill=0.1, control_skill=0.0) if c.role != "control"]
    with pytest.raises(RunFailed, match="SAGE has no control: train 'SAGE random edges' too"):
        report_of(outcome, alone)


def test_edges_that_help_are_told_from_edges_that_do_not():
    outcome = outcome_of(folds=3)
    useless = report_of(outcome, contest(outcome, gnn_skill=0.2, control_skill=0.2))
    assert any("edges carry no measurable information: random edges score the same" in w for w in useless.warnings)
    useful = report_of(outcome, contest(outcome, gnn_skill=0.5, control_skill=0.0))
    assert useful.edges[0].word == "better"
    assert not any("edges" in w for w in useful.warnings)
    harmful = report_of(outcome, contest(outcome, gnn_skill=-0.3, control_skill=0.4))
    assert any("random edges score better" in w for w in harmful.warnings)


def test_the_standard_error_counts_one_sample_per_horizon():
    outcome = outcome_of()
    report = report_of(outcome, contest(outcome, 0.1, 0.1))
    assert report.standard_error == pytest.approx(0.5 / np.sqrt(DAYS * 24), abs=1e-5)


def test_an_incredible_score_is_called_a_leak():
    outcome = outcome_of(folds=3)
    report = report_of(outcome, contest(outcome, gnn_skill=0.9, control_skill=0.0))
    assert any("leak" in warning for warning in report.warnings)


def test_trading_holds_one_position_at_a_time_and_pays_for_it():
    outcome = outcome_of()
    traded = evaluate.trade(outcome, outcome.y.astype(float), horizon_bars=12)
    assert traded.trades == DAYS * 24
    assert traded.gross_bp == pytest.approx(np.abs(outcome.move[::12]).mean() * 1e4, abs=1e-3)
    assert traded.net_bp["10"] == pytest.approx(traded.gross_bp - 10, abs=1e-3)
    assert traded.break_even_accuracy["0"] == 0.5
    assert traded.top_decile_accuracy == 1
    wrong = evaluate.trade(outcome, 1 - outcome.y.astype(float), horizon_bars=12)
    assert wrong.gross_bp == -traded.gross_bp


def test_the_report_prints_errors_intervals_verdict_and_every_warning():
    outcome = outcome_of()
    report = report_of(outcome, contest(outcome, gnn_skill=0.2, control_skill=0.0, base_skill=0.2))
    text = render(evaluate.Metrics(trials=12, labels=[report]))
    for said in ("standard error of an accuracy: 2.3%", "95 % interval", "SAGE *", "majority", *report.warnings):
        assert said in text
    assert "Verdict: SAGE is indistinguishable from MLP" in text
    assert "12 models fitted" in text


def test_blocks_do_not_depend_on_where_the_clock_starts():
    outcome = outcome_of()
    later = replace(outcome, asked_ms=outcome.asked_ms + 7 * 86_400_000)
    pair = [Blocks.make(o.asked_ms, seed=0).of for o in (outcome, later)]
    np.testing.assert_array_equal(*pair)
