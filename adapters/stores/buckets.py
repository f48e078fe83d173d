"""Rows folded into buckets of time; the same for every store, so that their answers are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from adapters.stores.base import Aggregate
from adapters.stores.shape import Shape

Aggregates = Mapping[str, tuple[Aggregate, str]]  # name: (how, column)


def columns_for(shape: Shape, aggregates: Aggregates) -> list[str]:
    """What has to be read for `fold`."""
    return [*dict.fromkeys((shape.spec.time or "", *(column for _, column in aggregates.values())))]


def fold(batches: Iterable[pa.RecordBatch], shape: Shape, bucket_ms: int, aggregates: Aggregates) -> pa.Table:
    """One row per bucket that holds rows: `ts` (its start) and one column per aggregate; nulls are skipped.

    `batches` hold `columns_for(...)` in order of time, which `first` and `last` are about.
    """
    names = columns_for(shape, aggregates)
    rows = pa.Table.from_batches(batches, schema=pa.schema([shape.schema.field(name) for name in names]))
    times = rows.column(names[0]).to_numpy()
    bucketed = rows.append_column("_bucket", pa.array(times // bucket_ms * bucket_ms))
    wanted = [(column, how) for how, column in aggregates.values()]
    # One thread keeps the order.
    folded = bucketed.group_by("_bucket", use_threads=False).aggregate(wanted).sort_by("_bucket")
    arrays = [folded.column(f"{column}_{how}") for how, column in aggregates.values()]
    return pa.table([folded.column("_bucket"), *arrays], names=["ts", *aggregates])
