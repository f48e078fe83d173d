"""The graph of one symbol's candles: every closed candle is a vertex, every edge goes from the past to the present.

    candles -> build_graph -> CandleGraph -> vertex_columns, edge_columns -> store -> graph_from_columns -> CandleGraph

Two kinds of edges: `lag` joins a candle with the ones 1, 2, 3, 6 and 12 bars before it; `visibility` with the
earlier closes it can see in a straight line over the closes between (natural visibility graph, Lacasa et al. 2008).
A later candle never changes an earlier vertex or edge. Only in-edges are made; no degree is ever a feature, because
the out-degree of a candle tells its future. Labels are not in here: the trainer makes them from candles.
Round trip through the store is bit-equal; `graph_hash` proves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import RunFailed
from models.gnn.features import FEATURE_NAMES, WARM_UP_BARS, CandleGrid, Floats, compute_features, grid_of, rests_on_gap
from models.market import CANDLE_COLUMNS, INTERVAL_MS, Array

Ints = npt.NDArray[np.int64]
EDGE_KINDS: tuple[str, ...] = ("lag", "visibility", "random")  # the code of a kind is its place here
LAG, VISIBILITY, RANDOM = range(3)
EDGE_ATTRIBUTES: tuple[str, ...] = ("log_age", "scaled_move")


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the graph is made of; its hash travels with every graph and every model."""

    schema: int = 1
    interval: str = "5m"
    lags: tuple[int, ...] = (1, 2, 3, 6, 12)
    visibility_bars: int = 288  # how far back a candle can see
    visibility_cap: int = 16  # the most recent visible ones are kept
    features: tuple[str, ...] = FEATURE_NAMES

    @property
    def interval_ms(self) -> int:
        return INTERVAL_MS[self.interval]

    @property
    def schema_hash(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class CandleGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Vertices sorted by time, edges sorted by (dst, kind, src).

    Shapes: ts (N,) int64 open times ms; x (N, F) float32; ready (N,) bool, every feature known; gap_bars (N,) int64,
    candles missing right before this one; over_gap (N,) bool, see `rests_on_gap`;
    edge_src, edge_dst (E,) int64 places of vertices; edge_kind (E,) uint8;
    edge_attr (E, 2) float32: log1p(age in bars) / 6 and the log price move since, in volatilities known at dst.
    """

    symbol: str
    spec: GraphSpec
    data_hash: str  # of the candles and the spec
    ts: Ints
    x: npt.NDArray[np.float32]
    ready: npt.NDArray[np.bool_]
    gap_bars: Ints
    over_gap: npt.NDArray[np.bool_]
    edge_src: Ints
    edge_dst: Ints
    edge_kind: npt.NDArray[np.uint8]
    edge_attr: npt.NDArray[np.float32]

    @property
    def graph_hash(self) -> str:
        """SHA-256 over every array in declared order; equal for equal graphs wherever they were stored."""
        digest = hashlib.sha256(f"{self.symbol} {self.data_hash}".encode())
        for name in ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()


ARRAYS = ("ts", "x", "ready", "gap_bars", "over_gap", "edge_src", "edge_dst", "edge_kind", "edge_attr")


def build_graph(candles: Mapping[str, Array], spec: GraphSpec, *, symbol: str) -> CandleGraph:
    """Vertices and edges of closed candles sorted by time (columns of `CANDLE_COLUMNS`, each (N,)).

    Where there is a column `partial`, true of candles that are not whole, what rests on these is flagged `over_gap`.
    A candle that is amended afterwards changes nothing in a graph that was built: building it again gives one with
    another `data_hash`, so that who uses it can tell.
    Raises RunFailed when there are too few candles, none with every feature, or when they are not usable.
    """
    if spec.features != FEATURE_NAMES:
        raise RunFailed("this version computes other features than the graph's spec lists: build the graph again")
    needed, there = WARM_UP_BARS + 1, len(candles["ts"])
    if there < needed:
        raise RunFailed(f"too few candles for a graph: {needed} are needed and there are {there}; load a longer range")
    grid = grid_of(candles, spec.interval)
    x, ready = compute_features(grid)
    if not ready.any():
        raise RunFailed(
            f"no candle of {symbol} has all features: the {there} candles are flat or too full of gaps; "
            f"{needed} in a row are needed"
        )
    src, dst, kind = _edges(grid, spec)
    return CandleGraph(
        symbol=symbol, spec=spec, data_hash=data_hash(candles, spec, symbol), ts=grid.ts, x=x, ready=ready,
        gap_bars=np.diff(grid.position, prepend=-1) - 1, over_gap=rests_on_gap(grid, candles.get("partial")),
        edge_src=src, edge_dst=dst, edge_kind=kind,
        edge_attr=edge_attributes(grid, src, dst),
    )  # fmt: skip


def data_hash(candles: Mapping[str, Array], spec: GraphSpec, symbol: str) -> str:
    """SHA-256 over the symbol, the spec and the canonical little-endian bytes of the candles, column by column."""
    digest = hashlib.sha256(f"{symbol} {spec.schema_hash}".encode())
    for name, dtype in CANDLE_COLUMNS.items():
        digest.update(np.ascontiguousarray(candles[name], dtype=dtype).tobytes())
    return digest.hexdigest()


def edge_attributes(grid: CandleGrid, src: Ints, dst: Ints) -> npt.NDArray[np.float32]:
    """Age and price move of each edge, from what is known when `dst` closes. Shapes: (E,), (E,) -> (E, 2)."""
    age = (grid.position[dst] - grid.position[src]).astype(np.float64)
    y, vol = grid.log_close()[grid.position], grid.volatility()[grid.position]
    move = (y[dst] - y[src]) / (vol[dst] * np.sqrt(age))
    pair = np.stack([np.log1p(age) / 6, np.clip(np.nan_to_num(move, nan=0.0), -8, 8)], axis=1)
    return pair.astype(np.float32)


def random_past_edges(graph: CandleGraph, candles: Mapping[str, Array], seed: int) -> CandleGraph:
    """The control: the same number of in-edges for each candle, from random earlier candles in the same look-back."""
    rng = np.random.default_rng(seed)
    reach = np.minimum(graph.edge_dst, graph.spec.visibility_bars)
    src = graph.edge_dst - 1 - (rng.random(len(reach)) * reach).astype(np.int64)
    order = np.lexsort((src, graph.edge_dst))
    src = src[order]
    grid = grid_of(candles, graph.spec.interval)
    return msgspec.structs.replace(
        graph, edge_src=src, edge_kind=np.full(len(src), RANDOM, dtype=np.uint8),
        edge_attr=edge_attributes(grid, src, graph.edge_dst),
    )  # fmt: skip


def check_causal(graph: CandleGraph) -> None:
    """Raise RunFailed unless every edge goes strictly from the past to the present and every number is finite."""
    if np.any(np.diff(graph.ts) <= 0):
        raise RunFailed("the graph's vertices are not in time order: build the graph again")
    if np.any(graph.ts[graph.edge_src] >= graph.ts[graph.edge_dst]):
        raise RunFailed("an edge of the graph does not go from the past to the present: build the graph again")
    if not (np.isfinite(graph.x).all() and np.isfinite(graph.edge_attr).all()):
        raise RunFailed("the graph holds a number that is not finite: build the graph again")


def ego_graph(graph: CandleGraph, vertex: int, hops: int) -> tuple[Ints, Ints, Ints]:
    """What the output of `vertex` depends on after `hops` layers.

    Returns (vertices (M,) ascending, edge places (K,), edge ends renumbered (2, K)); the vertex itself is the last.
    """
    reached, frontier = np.array([vertex]), np.array([vertex])
    for _ in range(hops):
        frontier = np.unique(graph.edge_src[np.isin(graph.edge_dst, frontier)])
        reached = np.union1d(reached, frontier)
    edges = np.flatnonzero(np.isin(graph.edge_dst, reached) & np.isin(graph.edge_src, reached))
    ends = np.stack([np.searchsorted(reached, graph.edge_src[edges]), np.searchsorted(reached, graph.edge_dst[edges])])
    return reached, edges, ends


# --- stored form -----------------------------------------------------------------------------------------------------


def vertex_columns(graph: CandleGraph) -> dict[str, Any]:
    """Columns of the vertex collection; the key is symbol, interval and ts. `x` is (N, F) float32."""
    return {
        "symbol": graph.symbol, "interval": graph.spec.interval, "ts": graph.ts,
        "ready": graph.ready, "gap_bars": graph.gap_bars, "over_gap": graph.over_gap,
        "x": graph.x,
    }  # fmt: skip


def edge_columns(graph: CandleGraph) -> dict[str, Any]:
    """Columns of the edge collection; the key is symbol, interval, kind and both ends. `attr` is (E, 2) float32.

    `src_ts` is the past end; `ts` the present one, from which the edge is valid and never changes. An edge is
    `over_gap` when its present end is: that one looks back farther than any edge reaches.
    """
    return {
        "symbol": graph.symbol, "interval": graph.spec.interval,
        "kind": [EDGE_KINDS[code] for code in graph.edge_kind.tolist()],
        "src_ts": graph.ts[graph.edge_src], "ts": graph.ts[graph.edge_dst],
        "over_gap": graph.over_gap[graph.edge_dst], "attr": graph.edge_attr,
    }  # fmt: skip


def meta_document(graph: CandleGraph) -> dict[str, Any]:
    """The one document that describes a stored graph: spec, hashes, counts, time range."""
    counts = np.bincount(graph.edge_kind, minlength=len(EDGE_KINDS)).tolist()
    return {
        "symbol": graph.symbol, "spec": msgspec.to_builtins(graph.spec), "schema_hash": graph.spec.schema_hash,
        "data_hash": graph.data_hash, "graph_hash": graph.graph_hash, "vertices": len(graph.ts),
        "ready_vertices": int(graph.ready.sum()), "missing_candles": int(graph.gap_bars.sum()),
        "over_gap_vertices": int(graph.over_gap.sum()),
        "edges": len(graph.edge_src),
        "edges_by_kind": {kind: n for kind, n in zip(EDGE_KINDS, counts, strict=True) if n},
        "start_ms": int(graph.ts[0]), "end_ms": int(graph.ts[-1]) + graph.spec.interval_ms,
    }  # fmt: skip


def graph_from_columns(
    meta: Mapping[str, Any], vertices: Mapping[str, Sequence[Any] | Array], edges: Mapping[str, Sequence[Any] | Array],
    *, whole: bool = True,
) -> CandleGraph:  # fmt: skip
    """The graph as it was built, from its meta document and stored columns in any order.

    Raises RunFailed when what was read is not what was written; `whole=False`: it is the graph up to some moment.
    """
    spec = msgspec.convert(meta["spec"], GraphSpec)
    order = np.argsort(np.asarray(vertices["ts"], dtype=np.int64), kind="stable")
    ts = np.asarray(vertices["ts"], dtype=np.int64)[order]
    src_ts, dst_ts = (np.asarray(edges[name], dtype=np.int64) for name in ("src_ts", "ts"))
    src, dst = np.searchsorted(ts, src_ts), np.searchsorted(ts, dst_ts)
    kind = np.array([EDGE_KINDS.index(name) for name in edges["kind"]], dtype=np.uint8)
    by_dst = np.lexsort((src, kind, dst))
    graph = CandleGraph(
        symbol=meta["symbol"], spec=spec, data_hash=meta["data_hash"], ts=ts,
        x=_matrix(vertices["x"], len(spec.features))[order],
        ready=np.asarray(vertices["ready"], dtype=np.bool_)[order],
        gap_bars=np.asarray(vertices["gap_bars"], dtype=np.int64)[order],
        over_gap=np.asarray(vertices["over_gap"], dtype=np.bool_)[order],
        edge_src=src[by_dst], edge_dst=dst[by_dst], edge_kind=kind[by_dst],
        edge_attr=_matrix(edges["attr"], len(EDGE_ATTRIBUTES))[by_dst],
    )  # fmt: skip
    if whole and graph.graph_hash != meta["graph_hash"]:
        raise RunFailed(
            f"the stored graph of {graph.symbol} is not the one that was built ({len(ts)} of {meta['vertices']} "
            f"vertices, {len(src)} of {meta['edges']} edges were read): build it again"
        )
    return graph


def _matrix(rows: Sequence[Any] | Array, width: int) -> npt.NDArray[np.float32]:
    return np.asarray(rows, dtype=np.float32).reshape(-1, width)


# --- edges -----------------------------------------------------------------------------------------------------------


def _edges(grid: CandleGrid, spec: GraphSpec) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
    """Edges in grid places, then in vertex places, sorted by (dst, kind, src)."""
    lag_src, lag_dst = lag_edges(grid.present, spec.lags)
    see_src, see_dst = visibility_edges(grid.log_close(), spec.visibility_bars, spec.visibility_cap)
    place = np.full(len(grid.present), -1, dtype=np.int64)
    place[grid.position] = np.arange(len(grid.position))
    src, dst = place[np.concatenate([lag_src, see_src])], place[np.concatenate([lag_dst, see_dst])]
    kind = np.repeat(np.array([LAG, VISIBILITY], dtype=np.uint8), [len(lag_src), len(see_src)])
    order = np.lexsort((src, kind, dst))
    return src[order], dst[order], kind[order]


def lag_edges(present: npt.NDArray[np.bool_], lags: Sequence[int]) -> tuple[Ints, Ints]:
    """Pairs exactly `lag` bars apart of which both exist. Shapes: (G,) -> (E,), (E,)."""
    dst = [lag + np.flatnonzero(present[lag:] & present[: len(present) - lag]) for lag in lags]
    return np.concatenate([d - lag for d, lag in zip(dst, lags, strict=True)]), np.concatenate(dst)


def visibility_edges(heights: Floats, look_back: int, cap: int) -> tuple[Ints, Ints]:
    """Natural visibility, looking back only, the `cap` nearest; a hole (NaN) hides all behind it.

    Going back lag by lag, a bar is visible when the slope to it exceeds every slope so far.
    Shapes: (G,) -> (E,), (E,). Cost: look_back passes over the array.
    """
    steepest = np.full(len(heights), -np.inf)
    seen = np.zeros(len(heights), dtype=np.int64)
    sources, targets = [], []
    for lag in range(1, min(look_back, len(heights) - 1) + 1):
        slope = (heights[:-lag] - heights[lag:]) / lag
        horizon = steepest[lag:]
        dst = lag + np.flatnonzero((slope > horizon) & (seen[lag:] < cap))
        seen[dst] += 1
        sources.append(dst - lag)
        targets.append(dst)
        np.maximum(horizon, np.where(np.isnan(slope), np.inf, slope), out=horizon)
    return np.concatenate(sources), np.concatenate(targets)
