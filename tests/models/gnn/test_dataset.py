"""Parts follow one another in time, purged; the scaler has seen the first only; inputs are checked when read."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from app.errors import RunFailed
from models.gnn.baselines import fit_linear
from models.gnn.dataset import (
    Fold,
    Part,
    check_purged,
    fit_scaler,
    folds_of,
    load_inputs,
    minimum_candles,
    part_of,
    save_inputs,
)  # fmt: skip
from models.gnn.features import grid_of
from models.gnn.graph import GraphSpec, build_graph
from models.gnn.labels import LABELS, Labels, make_labels

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def fold(graph) -> Fold:
    return folds_of(graph)[0]


@given(horizon=st.integers(1, 30), name=st.sampled_from(list(LABELS)))
def test_every_answer_of_a_part_is_known_before_the_next_part_asks(graph, grid, fold, horizon, name):
    labels = make_labels(name, grid, horizon)
    part = part_of(fold, graph, labels)
    check_purged(part, labels)
    assert labels.end_ms[part.train].max() < labels.asked_ms[part.validation].min()
    assert labels.end_ms[part.validation].max() < labels.asked_ms[part.test].min()
    assert labels.end_ms[part.train].max() < labels.asked_ms[part.test].min()
    for rows in (part.train, part.validation, part.test):
        assert (graph.ready & labels.valid)[rows].all()


def test_an_unpurged_split_is_caught(graph, grid):
    labels = make_labels("dir", grid, 12)
    usable = np.flatnonzero(graph.ready & labels.valid)
    thirds = Part(*np.array_split(usable, 3))
    with pytest.raises(RunFailed, match="not purged"):
        check_purged(thirds, labels)


def test_a_purge_by_one_bar_too_few_is_caught(graph, grid, fold):
    labels = make_labels("dir", grid, 12)
    shorter = replace(labels, end_ms=labels.end_ms - graph.spec.interval_ms)
    with pytest.raises(RunFailed, match="not purged"):
        check_purged(part_of(fold, graph, shorter), labels)


def test_a_shuffled_split_is_caught(graph, grid):
    labels = make_labels("dir", grid, 1)
    usable = np.random.default_rng(0).permutation(np.flatnonzero(graph.ready & labels.valid))
    with pytest.raises(RunFailed, match="not purged"):
        check_purged(Part(*np.array_split(usable, 3)), labels)


def test_the_scaler_has_seen_the_training_part_only(graph, candles, change_future, fold):
    last = int(np.flatnonzero(graph.ts + graph.spec.interval_ms < fold.train[1])[-1])
    other = build_graph(change_future(candles, last), graph.spec, symbol="BTCUSDT")
    np.testing.assert_array_equal(fit_scaler(graph, fold).mean, fit_scaler(other, fold).mean)
    np.testing.assert_array_equal(fit_scaler(graph, fold).std, fit_scaler(other, fold).std)
    whole = replace(fold, train=(fold.train[0], fold.test[1]))  # the leak: a scaler of the whole sample
    assert not np.array_equal(fit_scaler(graph, whole).mean, fit_scaler(other, whole).mean)


def test_scaled_training_rows_have_mean_zero_and_deviation_one(graph, fold):
    asked = graph.ts + graph.spec.interval_ms
    rows = fit_scaler(graph, fold).apply(graph.x)[graph.ready & (asked < fold.train[1])]
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-3)


def test_a_month_is_one_fold_and_three_months_walk_forward(graph):
    def of_days(days: int) -> list[Fold]:
        ts = graph.ts[0] + 300_000 * np.arange(days * 288)
        return folds_of(msgspec.structs.replace(graph, ts=ts, ready=np.ones(len(ts), dtype=bool)))

    [month] = of_days(30)
    assert month.train[1] - month.train[0] == pytest.approx(0.65 * 30 * DAY_MS, abs=600_000)
    assert len(of_days(75)) == 1
    folds = of_days(90)
    assert len(folds) == 4
    for fold in folds:
        days = [(end - start) / DAY_MS for start, end in (fold.train, fold.validation, fold.test)]
        assert days == [30, 4, 14]
        assert fold.train[1] == fold.validation[0]
        assert fold.validation[1] == fold.test[0]
    assert [b.test[0] - a.test[1] for a, b in pairwise(folds)] == [0, 0, 0]


@pytest.mark.parametrize("horizon", [1, 12, 60])
def test_the_stated_minimum_is_enough_and_less_says_how_many_are_needed(make_candles, horizon):
    def parts(count: int) -> list[Part]:
        candles = make_candles(count)
        graph, grid = build_graph(candles, GraphSpec(), symbol="BTCUSDT"), grid_of(candles, "5m")
        return [part_of(folds_of(graph)[0], graph, make_labels(name, grid, horizon)) for name in LABELS]

    needed = minimum_candles(horizon)
    assert len(parts(needed)) == 2
    with pytest.raises(RunFailed, match=f"at least {needed} candles .* there are {needed - 20}"):
        parts(needed - 20)


def test_a_label_with_one_answer_only_is_refused(graph, grid, fold):
    labels = make_labels("dir", grid, 12)
    with pytest.raises(RunFailed, match="same answer"):
        part_of(fold, graph, replace(labels, y=np.ones_like(labels.y)))


def test_inputs_come_back_as_they_were_saved(graph, candles, tmp_path):
    save_inputs(tmp_path / "inputs", candles, graph)
    inputs = load_inputs(tmp_path / "inputs")
    assert inputs.graph.graph_hash == graph.graph_hash
    assert inputs.graph.spec == graph.spec
    for name, column in candles.items():
        np.testing.assert_array_equal(inputs.candles[name], column)
        assert inputs.candles[name].dtype == column.dtype


def test_a_graph_of_other_candles_is_refused(graph, make_candles, tmp_path):
    save_inputs(tmp_path / "inputs", make_candles(1500, seed=5), graph)
    with pytest.raises(RunFailed, match="other candles"):
        load_inputs(tmp_path / "inputs")


def test_a_graph_with_an_edge_from_the_future_is_refused(graph, candles, tmp_path):
    turned = msgspec.structs.replace(graph, edge_src=graph.edge_dst, edge_dst=graph.edge_src)
    save_inputs(tmp_path / "inputs", candles, turned)
    with pytest.raises(RunFailed, match="past to the present"):
        load_inputs(tmp_path / "inputs")


@pytest.mark.parametrize("content", [b"", b"not a tensor file", None])
def test_damaged_inputs_are_refused_with_a_sentence(tmp_path, content):
    path = tmp_path / "inputs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFailed, match="start the training again"):
        load_inputs(path)


def auc_of_shuffled(x: np.ndarray, labels: Labels, part: Part) -> float:
    """Mean AUC over ten shuffles of the labels, trained and tested on shuffled ones."""
    found = []
    for seed in range(10):
        y = shuffled(labels, seed)
        model = fit_linear(x[part.train], y[part.train])
        found.append(roc_auc_score(y[part.test], model.probability(x[part.test])))
    return float(np.mean(found))


def shuffled(labels: Labels, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(labels.y)


def test_nothing_can_be_learned_from_shuffled_labels(make_candles):
    candles = make_candles(6000)
    graph, grid = build_graph(candles, GraphSpec(), symbol="BTCUSDT"), grid_of(candles, "5m")
    fold = folds_of(graph)[0]
    labels = make_labels("dir", grid, 12)
    part = part_of(fold, graph, labels)
    assert auc_of_shuffled(fit_scaler(graph, fold).apply(graph.x), labels, part) == pytest.approx(0.5, abs=0.02)


def test_the_same_check_catches_a_label_among_the_features(graph, grid, fold, monkeypatch):
    labels = make_labels("dir", grid, 12)
    part = part_of(fold, graph, labels)
    x = fit_scaler(graph, fold).apply(graph.x)
    aucs = []
    for seed in range(3):
        y = shuffled(labels, seed)
        leaking = np.column_stack([x, y + np.random.default_rng(seed).normal(0, 1, len(y)).astype(np.float32)])
        model = fit_linear(leaking[part.train], y[part.train])
        aucs.append(roc_auc_score(y[part.test], model.probability(leaking[part.test])))
    assert np.mean(aucs) > 0.6
