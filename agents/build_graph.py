"""Stored candles become a graph: the store -> build -> {graph}, {graph}_edges, graphs.

Edges go from past to present only. A graph of the same candles and the same spec is not written again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from adapters.stores import graphs
from app import outside
from app.work import Finished, Job, work
from models.control import BUILDER, graph_name
from models.gnn import graph as gnn

_one_writer: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by graph


@work(BUILDER)
async def build(job: Job) -> Finished:
    """Read, build, write in slices."""
    step, store = job.step, outside.store()
    assert step.range_ms is not None
    name = graph_name(step)
    candles = await asyncio.to_thread(
        graphs.read_candles, store, step.venue, step.symbol, step.interval, *step.range_ms
    )
    graph = await asyncio.to_thread(gnn.build_graph, candles, gnn.GraphSpec(interval=step.interval), symbol=step.symbol)
    rows = len(graph.ts) + len(graph.edge_src)
    async with _one_writer[name]:
        if not await asyncio.to_thread(graphs.is_stored, store, name, graph):
            slices = graphs.write_graph(store, name, graph, job.queue_id)
            while (written := await asyncio.to_thread(next, slices, None)) is not None:
                await job.report(records_written=written[0], progress=written[0] / written[1], message=f"writes {name}")
    counts = {"vertices": len(graph.ts), "edges": len(graph.edge_src)}
    text = f"{name}: {counts['vertices']:,} vertices, {counts['edges']:,} edges"
    return Finished(rows, text, {"graph": name, "graph_hash": graph.graph_hash, **counts})
