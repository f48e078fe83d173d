"""Candles and graphs between a store and their arrays; the same for every store.

The hash in `graphs` is written last: a graph without it is not a graph yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from adapters.stores import collections
from adapters.stores.base import Store
from app.errors import RunFailed, StoreError
from models.gnn import graph as gnn
from models.market import CANDLE_COLUMNS, INTERVAL_MS, Array

BATCH_ROWS = 5_000


def read_candles(store: Store, venue: str, symbol: str, interval: str, start_ms: int, end_ms: int) -> dict[str, Array]:
    """The closed candles of a range as columns of CANDLE_COLUMNS, each (N,), by open time.

    And `partial`, (N,) bool: true of those over trades that the exchange cannot serve.
    """
    spec = collections.candles(interval)
    store.ensure(spec)
    batches = store.scan(
        spec.name, eq={"venue": venue, "symbol": symbol}, lo=start_ms, hi=end_ms, columns=[*CANDLE_COLUMNS, "source"]
    )
    columns = _arrays(batches, [*CANDLE_COLUMNS, "source"])
    closed = np.asarray(columns["closed"], dtype=np.bool_)
    candles = {name: np.asarray(columns[name]).astype(dtype)[closed] for name, dtype in CANDLE_COLUMNS.items()}
    return candles | {"partial": np.array([source == "partial" for source in columns["source"]], np.bool_)[closed]}


def is_stored(store: Store, name: str, graph: gnn.CandleGraph) -> bool:
    """True when exactly this graph is stored under `name`."""
    [known] = store.get("graphs", [name])
    return known is not None and known["sha256"] == graph.graph_hash


def write_graph(store: Store, name: str, graph: gnn.CandleGraph, queue_id: str) -> Iterator[tuple[int, int]]:
    """Write in slices; yields (rows written, rows in all) after each. Raises StoreBusy, StoreError."""
    interval = graph.spec.interval
    parts = (
        (collections.graph_vertices(name, interval), gnn.vertex_columns(graph), len(graph.ts)),
        (collections.graph_edges(name, interval), gnn.edge_columns(graph), len(graph.edge_src)),
    )
    total, written = sum(rows for _, _, rows in parts), 0
    document = {"graph": name, "created_ms": int(time.time() * 1000), "vertices": 0, "edges": 0, "sha256": ""}
    store.upsert("graphs", [document])  # what is there now is no graph any more
    for spec, _, _ in parts:
        store.ensure(spec)  # refuses a name that holds something else
        store.drop(spec.name)
        store.ensure(spec)
    for spec, columns, rows in parts:
        for at in range(0, rows, BATCH_ROWS):
            part = {k: c if isinstance(c, str) else c[at : at + BATCH_ROWS] for k, c in columns.items()}
            result = store.upsert_columns(spec.name, part)
            if result.errors:
                raise StoreError(f"{spec.name} refused {len(result.errors)} rows: {result.errors[0][2]}")
            written += min(BATCH_ROWS, rows - at)
            yield written, total
    meta = gnn.meta_document(graph)
    counts = {"vertices": meta["vertices"], "edges": meta["edges"]}
    store.upsert(
        "graphs", [{**document, **counts, "sha256": meta["graph_hash"], "spec": {**meta, "queue_id": queue_id}}]
    )


def read_graph(store: Store, name: str, as_of_ms: int | None = None) -> gnn.CandleGraph:
    """The graph as it was built; with `as_of_ms` as it was known then: of candles that had closed.

    Raises RunFailed when it is not there or not what was written.
    """
    [document] = store.get("graphs", [name])
    if document is None or not document["sha256"]:
        raise RunFailed(f"no graph is called {name!r}: run a `graph-builder` step first")
    meta: dict[str, Any] = document["spec"]
    interval = meta["spec"]["interval"]
    vertices, edges = collections.graph_vertices(name, interval), collections.graph_edges(name, interval)
    before = None if as_of_ms is None else as_of_ms - INTERVAL_MS[interval] + 1  # open times of what had closed
    return gnn.graph_from_columns(
        meta,
        _arrays(store.scan(vertices.name, hi=before), list(vertices.columns)),
        _arrays(store.scan(edges.name, hi=before), list(edges.columns)),
        whole=before is None,
    )


def load_data(store: Store, name: str, as_of_ms: int | None = None) -> Any:
    """The graph as PyG's `Data` (see `models.gnn.pyg`), equal tensors from every store. Raises RunFailed."""
    from models.gnn.pyg import to_data

    return to_data(read_graph(store, name, as_of_ms))


def _arrays(batches: Iterator[pa.RecordBatch], names: list[str]) -> dict[str, Any]:
    """Record batches as one array per column; a list column (floats) as (N, width)."""
    read = list(batches)
    if not read:
        return {name: np.empty(0) for name in names}
    table = pa.Table.from_batches(read)
    columns: dict[str, Any] = {}
    for name in names:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        elif pa.types.is_string(column.type):
            columns[name] = column.to_pylist()
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns
