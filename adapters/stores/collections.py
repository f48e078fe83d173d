"""Every collection StreamForge keeps: its key, columns, time and version. The names are those of the wire contract.

A candle carries a version, so that a late, older candle never replaces a newer one. Trades never change.
"""

from __future__ import annotations

from dataclasses import replace

from adapters.stores.base import CollectionSpec, ColumnType, Ends
from models.market import INTERVAL_MS

_ROWS_PER_BLOCK = 1024

TRADES = CollectionSpec(
    name="trades",
    key=("venue", "symbol", "id"),
    key_format="{venue}.{symbol}.{id:015d}",
    columns={
        "venue": "text", "symbol": "text", "id": "int", "ts_ms": "int", "price": "float", "size": "float",
        "quote_size": "float", "buyer_is_maker": "bool", "trades": "int",
    },
    time="ts_ms",
    block=("id", _ROWS_PER_BLOCK),
)  # fmt: skip

FILLS = replace(TRADES, name="fills")  # single trades, where those are followed beside the aggregate ones

COVERAGE = CollectionSpec(
    name="coverage",
    key=("venue", "symbol", "channel"),
    key_format="{venue}.{symbol}.{channel}",
    columns={
        "venue": "text", "symbol": "text", "channel": "text", "updated_ms": "int",
        "stored": "json", "missing": "json", "unrecoverable": "json",  # lists of [start_ms, end_ms)
    },
    time=None,
)  # fmt: skip

QUEUE_STATE = CollectionSpec(
    name="queue_state",
    key=("queue_id",),
    key_format="{queue_id}",
    columns={"queue_id": "text", "status": "text", "version": "int", "updated_ms": "int", "state": "json"},
    time="updated_ms",
    series=(),
    version="version",
)

TELEMETRY_EVENTS = CollectionSpec(
    name="telemetry_events",
    key=("topic", "partition", "offset"),
    key_format="{topic}-{partition}-{offset}",
    columns={
        "topic": "text", "partition": "int", "offset": "int", "ts_ms": "int",
        "queue_id": "text", "event": "text", "body": "json",  # body: the event as it was sent
    },
    time="offset",  # of `queue-events`, which has one partition: a run is followed from an offset on
    series=("queue_id",),
)  # fmt: skip

MODELS = CollectionSpec(
    name="models",
    key=("model", "version"),
    key_format="{model}.{version}",
    columns={
        "model": "text", "version": "text", "queue_id": "text", "created_ms": "int", "verdict": "text",
        "path": "text", "metrics": "json",
    },
    time="created_ms",
    series=(),
)  # fmt: skip

GRAPHS = CollectionSpec(
    name="graphs",
    key=("graph",),
    key_format="{graph}",
    columns={"graph": "text", "created_ms": "int", "vertices": "int", "edges": "int", "sha256": "text", "spec": "json"},
    time="created_ms",
    series=(),
)


def candles(interval: str) -> CollectionSpec:
    """`candles_5m` and its like; raises KeyError for an interval that is none.

    `source` is the exchange (`history`, `live`, `replay`) or says how it was made of trades: `aggregated`, `clock`
    (nobody traded any more), or `partial`: it rests on trades that the exchange cannot serve. `version`: the better
    of two (`models.market.versions_of`).
    """
    return CollectionSpec(
        name=f"candles_{interval}",
        key=("venue", "symbol", "ts"),
        key_format="{venue}.{symbol}.{ts}",
        columns={
            "venue": "text", "symbol": "text", "ts": "int", "open": "float", "high": "float", "low": "float",
            "close": "float", "volume": "float", "quote_volume": "float", "trades": "int",
            "taker_buy_volume": "float", "taker_buy_quote_volume": "float", "closed": "bool",
            "source": "text", "version": "int",
        },
        version="version",
        block=("ts", _ROWS_PER_BLOCK * INTERVAL_MS[interval]),
    )  # fmt: skip


def graph_vertices(graph: str, interval: str) -> CollectionSpec:
    """A vertex per candle: `x` are its features, known at the candle's close; labels are never stored here.

    `over_gap`: they rest on a hole, or on a candle that is not whole.
    """
    return CollectionSpec(
        name=graph,
        key=("symbol", "interval", "ts"),
        key_format="{symbol}-{interval}-{ts}",
        columns={
            "symbol": "text", "interval": "text", "ts": "int", "ready": "bool", "gap_bars": "int", "over_gap": "bool",
            "x": "floats",
        },
        series=("symbol", "interval"),
        block=("ts", _ROWS_PER_BLOCK * INTERVAL_MS[interval]),
    )  # fmt: skip


def graph_edges(graph: str, interval: str) -> CollectionSpec:
    """Edges from the past (`src_ts`) to the present (`ts`, when the edge becomes valid), some ten per vertex."""
    columns: dict[str, ColumnType] = {
        "symbol": "text", "interval": "text", "kind": "text", "src_ts": "int", "ts": "int", "over_gap": "bool",
        "attr": "floats",
    }  # fmt: skip
    return CollectionSpec(
        name=f"{graph}_edges",
        key=("symbol", "interval", "kind", "src_ts", "ts"),
        key_format="{symbol}-{interval}-{kind}-{src_ts}-{ts}",
        columns=columns,
        kind="edge",
        series=("symbol", "interval"),
        ends=Ends(graph, "{symbol}-{interval}-{src_ts}", "{symbol}-{interval}-{ts}"),
        block=("ts", _ROWS_PER_BLOCK // 8 * INTERVAL_MS[interval]),
    )
