"""The usual pipeline as one `start` command: load, persist, graph, train, of one symbol and range.

The names are those of the wire contract; whatever else a command can say goes in beside them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Json = dict[str, Any]


class Stages(NamedTuple):
    """Which parts of the usual pipeline are wanted."""

    candles: bool = True
    trades: bool = True
    graph: bool = True
    train: bool = True


def usual(symbol: str, time_range: str, interval: str, stages: Stages, **said: Any) -> Json:
    """A `start` command. `said` are further fields of it (`queue_id`, `epochs`, ...); None means: not said."""
    loaded = [f"api_candles_{interval}"] * stages.candles + ["api_trades"] * stages.trades
    requests: list[Json] = [{"target": "loader-producer", "type": kind} for kind in loaded]
    requests += [{"target": "arango-connector", "type": kind} for kind in loaded]
    if stages.graph:
        requests.append({"target": "graph-builder", "type": "gnn_graph", "interval": interval})
    if stages.train:
        requests.append({"target": "gnn-trainer", "type": "gnn_train", "interval": interval})
    command: Json = {"command": "start", "symbol": symbol, "time_range": time_range, "requests": requests}
    return command | {name: value for name, value in said.items() if value is not None}
