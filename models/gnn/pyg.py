"""A candle graph as PyG's `Data`.

Shapes: x (N, F) float32, edge_index (2, E) int64 from the past to the present, edge_attr (E, 2) float32,
edge_type (E,) int64 places in EDGE_KINDS, ts (N,) int64 open times in ms, ready (N,) bool: every feature is known.
"""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data

from models.gnn.graph import CandleGraph


def to_data(graph: CandleGraph) -> Data:
    """Vertices by time, edges by (dst, kind, src): the same graph gives the same tensors."""
    return Data(
        x=torch.from_numpy(graph.x.copy()),
        edge_index=torch.from_numpy(np.stack([graph.edge_src, graph.edge_dst])),
        edge_attr=torch.from_numpy(graph.edge_attr.copy()),
        edge_type=torch.from_numpy(graph.edge_kind.astype(np.int64)),
        ts=torch.from_numpy(graph.ts.copy()),
        ready=torch.from_numpy(graph.ready.copy()),
    )
