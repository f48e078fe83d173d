"""Edges go from the past to the present, holes are not bridged, and a stored graph comes back bit for bit."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RunFailed
from models.gnn.features import WARM_UP_BARS
from models.gnn.graph import (
    EDGE_KINDS,
    LAG,
    VISIBILITY,
    CandleGraph,
    GraphSpec,
    build_graph,
    check_causal,
    data_hash,
    edge_columns,
    ego_graph,
    graph_from_columns,
    lag_edges,
    meta_document,
    random_past_edges,
    vertex_columns,
    visibility_edges,
)  # fmt: skip

LAST = 900


def pairs(edges) -> set[tuple[int, int]]:
    return set(zip(edges[0].tolist(), edges[1].tolist(), strict=True))


def test_a_graph_of_four_candles_sees_what_a_line_can_reach():
    heights = np.array([3.0, 1.0, 2.0, 4.0])
    assert pairs(visibility_edges(heights, 288, 16)) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert pairs(lag_edges(np.ones(4, dtype=bool), (1, 2))) == {(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)}


@given(st.lists(st.integers(0, 9) | st.just(None), min_size=2, max_size=40), st.integers(1, 40), st.integers(1, 6))
def test_visibility_equals_its_definition(values, look_back, cap):
    heights = np.array([np.nan if v is None else float(v) for v in values])
    expected = set()
    for t in range(len(heights)):
        seen = []
        for s in range(t - 1, max(t - look_back, 0) - 1, -1):
            between = [heights[t] + (heights[s] - heights[t]) * (t - j) / (t - s) - heights[j] for j in range(s, t + 1)]
            if all(gap > 1e-9 for gap in between[1:-1]) and not np.isnan(between).any():
                seen.append((s, t))
        expected |= set(seen[:cap])
    assert pairs(visibility_edges(heights, look_back, cap)) == expected


def test_every_edge_goes_strictly_from_the_past_to_the_present(graph):
    check_causal(graph)
    assert (graph.ts[graph.edge_src] < graph.ts[graph.edge_dst]).all()
    counts = np.bincount(graph.edge_kind)
    assert counts[LAG] == sum(1500 - lag for lag in graph.spec.lags)
    assert 4 * 1500 < counts[VISIBILITY] < 8 * 1500
    assert np.bincount(graph.edge_dst[graph.edge_kind == VISIBILITY]).max() <= graph.spec.visibility_cap


def undirected(graph: CandleGraph) -> CandleGraph:
    both = (np.concatenate([graph.edge_src, graph.edge_dst]), np.concatenate([graph.edge_dst, graph.edge_src]))
    order = np.lexsort(both)
    return msgspec.structs.replace(
        graph, edge_src=both[0][order], edge_dst=both[1][order],
        edge_kind=np.tile(graph.edge_kind, 2)[order], edge_attr=np.tile(graph.edge_attr, (2, 1))[order],
    )  # fmt: skip


def test_undirected_edges_are_caught(graph):
    with pytest.raises(RunFailed, match="past to the present"):
        check_causal(undirected(graph))


def test_an_edge_of_a_candle_to_itself_is_caught(graph):
    with pytest.raises(RunFailed, match="past to the present"):
        check_causal(msgspec.structs.replace(graph, edge_src=graph.edge_dst))


def past_of(graph: CandleGraph, columns=()) -> list:
    """What a model may see up to LAST: features, edges into it, and extra columns."""
    into = graph.edge_dst <= LAST
    edges = [graph.edge_src[into], graph.edge_dst[into], graph.edge_kind[into], graph.edge_attr[into]]
    return [graph.x[: LAST + 1], *edges, *(column[: LAST + 1] for column in columns)]


def equal(left: list, right: list) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_another_future_leaves_every_vertex_and_edge_so_far_bit_equal(graph, candles, change_future):
    other = build_graph(change_future(candles, LAST), graph.spec, symbol="BTCUSDT")
    assert not equal([graph.edge_src], [other.edge_src])
    assert equal(past_of(graph), past_of(other))


def test_the_same_check_catches_undirected_edges_and_degrees(graph, candles, change_future):
    other = build_graph(change_future(candles, LAST), graph.spec, symbol="BTCUSDT")
    assert not equal(past_of(undirected(graph)), past_of(undirected(other)))
    degrees = [[np.bincount(g.edge_src, minlength=1500) + np.bincount(g.edge_dst)] for g in (graph, other)]
    assert not equal(past_of(graph, degrees[0]), past_of(other, degrees[1]))
    in_degrees = [[np.bincount(g.edge_dst)] for g in (graph, other)]
    assert equal(past_of(graph, in_degrees[0]), past_of(other, in_degrees[1]))


def test_r03_every_row_that_looks_back_on_a_hole_or_on_a_partial_candle_is_flagged(candles, without):
    hole = 700
    graph = build_graph(without(candles, [hole]), GraphSpec(), symbol="BTCUSDT")
    assert np.flatnonzero(graph.over_gap).tolist() == [*range(hole, hole + WARM_UP_BARS)]
    assert graph.ready[graph.over_gap].any(), "known over the hole, and flagged all the same"
    partial = np.arange(len(candles["ts"])) == hole
    flagged = build_graph({**candles, "partial": partial}, GraphSpec(), symbol="BTCUSDT")
    assert np.flatnonzero(flagged.over_gap).tolist() == [*range(hole, hole + WARM_UP_BARS + 1)]
    assert edge_columns(flagged)["over_gap"].tolist() == flagged.over_gap[flagged.edge_dst].tolist()
    assert not build_graph(candles, GraphSpec(), symbol="BTCUSDT").over_gap.any()


def test_r24_a_candle_amended_after_its_graph_was_built_makes_another_graph_and_changes_none_of_its_past(candles):
    late = {name: column.copy() for name, column in candles.items()}
    late["close"][LAST + 1] *= 1.0001
    first, second = (build_graph(some, GraphSpec(), symbol="BTCUSDT") for some in (candles, late))
    assert first.data_hash != second.data_hash
    assert equal(past_of(first), past_of(second))


def test_a_gap_is_marked_and_no_line_of_sight_crosses_it(candles, without):
    hole = 700
    graph = build_graph(without(candles, [hole]), GraphSpec(), symbol="BTCUSDT")
    assert graph.gap_bars.sum() == 1
    assert graph.gap_bars[hole] == 1
    sight = graph.edge_kind == VISIBILITY
    assert not ((graph.edge_src < hole) & (graph.edge_dst >= hole) & sight).any()
    age = (graph.ts[graph.edge_dst] - graph.ts[graph.edge_src]) // graph.spec.interval_ms
    assert set(age[graph.edge_kind == LAG].tolist()) == set(graph.spec.lags)
    assert not (graph.edge_dst[graph.edge_kind == LAG][age[graph.edge_kind == LAG] == 1] == hole).any()


def test_edge_attributes_are_age_and_move_in_volatilities_known_at_the_present_end(graph, grid):
    place = int(np.flatnonzero(graph.edge_kind == VISIBILITY)[-1])
    src, dst = graph.edge_src[place], graph.edge_dst[place]
    age = dst - src
    move = (grid.log_close()[dst] - grid.log_close()[src]) / (grid.volatility()[dst] * np.sqrt(age))
    np.testing.assert_allclose(graph.edge_attr[place], [np.log1p(age) / 6, move], rtol=1e-5)


def test_random_edges_keep_every_in_degree_and_stay_in_the_past(graph, candles):
    control = random_past_edges(graph, candles, seed=1)
    check_causal(control)
    np.testing.assert_array_equal(control.edge_dst, graph.edge_dst)
    assert {EDGE_KINDS[kind] for kind in control.edge_kind} == {"random"}
    assert (control.edge_dst - control.edge_src).max() <= graph.spec.visibility_bars
    assert control.graph_hash == random_past_edges(graph, candles, seed=1).graph_hash
    assert control.graph_hash != random_past_edges(graph, candles, seed=2).graph_hash


def test_a_stored_graph_comes_back_bit_equal_from_rows_in_any_order(graph):
    meta = msgspec.json.decode(msgspec.json.encode(meta_document(graph)))
    stored = []
    for columns, seed in ((vertex_columns(graph), 1), (edge_columns(graph), 2)):
        order = np.random.default_rng(seed).permutation(len(columns["ts"]))
        rows = {name: np.asarray(c)[order] if not isinstance(c, str) else c for name, c in columns.items()}
        stored.append({name: c if isinstance(c, str) else c.tolist() for name, c in rows.items()})  # as JSON has it
    back = graph_from_columns(meta, *stored)
    assert back.graph_hash == graph.graph_hash
    np.testing.assert_array_equal(back.x, graph.x)
    np.testing.assert_array_equal(back.edge_attr, graph.edge_attr)
    assert (back.spec, back.symbol, back.data_hash) == (graph.spec, graph.symbol, graph.data_hash)


def test_a_stored_graph_that_lost_a_row_is_refused(graph):
    vertices, edges = vertex_columns(graph), edge_columns(graph)
    fewer = {name: c if isinstance(c, str) else c[:-1] for name, c in edges.items()}
    with pytest.raises(RunFailed, match="build it again"):
        graph_from_columns(meta_document(graph), vertices, fewer)
    changed = {**vertices, "x": np.where(graph.x == graph.x[900, 0], 0, graph.x)}
    with pytest.raises(RunFailed, match="build it again"):
        graph_from_columns(meta_document(graph), changed, edges)


def test_a_stored_graph_that_lost_its_last_vertices_is_refused(graph):
    vertices = {name: c if isinstance(c, str) else c[:-3] for name, c in vertex_columns(graph).items()}
    with pytest.raises(RunFailed, match="build it again"):
        graph_from_columns(meta_document(graph), vertices, edge_columns(graph))


def test_no_stored_column_holds_a_label(graph):
    assert set(vertex_columns(graph)) == {"symbol", "interval", "ts", "ready", "gap_bars", "over_gap", "x"}
    assert set(edge_columns(graph)) == {"symbol", "interval", "kind", "src_ts", "ts", "over_gap", "attr"}


def test_the_ego_graph_holds_all_two_hop_ancestors_and_nothing_later(graph):
    vertices, edges, ends = ego_graph(graph, 1000, hops=2)
    direct = set(graph.edge_src[graph.edge_dst == 1000].tolist())
    second = {s for d in direct for s in graph.edge_src[graph.edge_dst == d].tolist()}
    assert set(vertices.tolist()) == {1000} | direct | second
    assert vertices[-1] == 1000
    np.testing.assert_array_equal(vertices[ends[0]], graph.edge_src[edges])
    np.testing.assert_array_equal(vertices[ends[1]], graph.edge_dst[edges])


def test_too_few_candles_say_how_many_are_needed(make_candles):
    with pytest.raises(RunFailed, match=f"{WARM_UP_BARS + 1} are needed and there are 200"):
        build_graph(make_candles(200), GraphSpec(), symbol="BTCUSDT")
    build_graph(make_candles(WARM_UP_BARS + 1), GraphSpec(), symbol="BTCUSDT")


def test_a_flat_market_has_no_graph(make_candles):
    candles = make_candles(600)
    flat = {n: np.full(600, 5.0) if n in ("open", "high", "low", "close") else c for n, c in candles.items()}
    with pytest.raises(RunFailed, match="flat"):
        build_graph(flat, GraphSpec(), symbol="BTCUSDT")


def test_the_data_hash_tells_candles_symbols_and_specs_apart(candles):
    spec = GraphSpec()
    changed = {**candles, "volume": np.where(np.arange(1500) == 3, 1.0, candles["volume"])}
    others = [
        data_hash(changed, spec, "BTCUSDT"), data_hash(candles, spec, "ETHUSDT"),
        data_hash(candles, GraphSpec(lags=(1,)), "BTCUSDT"), data_hash(candles, spec, "BTCUSDT"),
    ]  # fmt: skip
    assert len(set(others)) == 4
    assert data_hash(candles, spec, "BTCUSDT") == others[-1]


def test_a_graph_of_other_features_is_not_built(candles):
    with pytest.raises(RunFailed, match="other features"):
        build_graph(candles, GraphSpec(features=("return_1",)), symbol="BTCUSDT")
