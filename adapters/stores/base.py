"""What StreamForge needs of a store: named collections, deterministic keys, idempotent batches, range scans.

Five query shapes and no free text. The same contract suite runs on every class that implements `Store`.
A store is blocking; callers on the event loop hand it to a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from models.market import Array

Document = dict[str, Any]
Columns = Mapping[str, Array | Sequence[Any] | str | int | float | bool | None]
ColumnType = Literal["int", "float", "text", "bool", "floats", "json"]  # floats: a list of float32
Mode = Literal["replace", "update", "ignore"]
Aggregate = Literal["first", "last", "min", "max", "sum", "count", "mean"]

# Numbers of data errors in `WriteResult.errors`, those of ArangoDB so that they mean the same on every store.
BAD_VALUE = 10
BAD_KEY = 1221


@dataclass(frozen=True)
class Ends:
    """Where the edges of a collection lead: formats of vertex keys, filled with the edge's own columns."""

    vertices: str  # the collection
    source: str
    target: str


@dataclass(frozen=True)
class CollectionSpec:
    """A collection's shape.

    `key` names the columns the document's `_key` is made of, in order; `key_format` turns them into that key,
    e.g. key ("venue", "symbol", "id"), key_format "{venue}.{symbol}.{id:015d}". Key columns are text of the
    letters `A-Z a-z 0-9 _ - .` or integers from 0; only one text part (`symbol`, or else the first) may hold the
    character that joins the parts, so that a key leads back to one document. Fields without a declared column are
    kept beside the typed ones.
    """

    name: str
    key: tuple[str, ...]
    key_format: str
    columns: Mapping[str, ColumnType]
    kind: Literal["document", "edge"] = "document"
    time: str | None = "ts"  # column of range scans, never null
    series: tuple[str, ...] = ("venue", "symbol")  # text columns a range scan usually fixes: index (series, time)
    version: str | None = None  # a row with a lower version never replaces one with a higher; null is lowest
    # For bulk rows: (integer key column, span). A store may keep rows of one series whose column lies in the same
    # [n * span, (n + 1) * span) together. Choose the span so that about 1,000 rows fall into it.
    block: tuple[str, int] | None = None
    # For edges: a store that knows graphs joins them. No part of the shape, so stores made before it had ends fit.
    ends: Ends | None = field(default=None, compare=False)


@dataclass(frozen=True)
class WriteResult:
    """What a batch did; `created + updated + ignored + len(errors)` is the number of its rows."""

    created: int = 0  # keys that were not there
    updated: int = 0  # keys whose document is another one now
    ignored: int = 0  # repeats, lower versions, rows overtaken by a later one of the same batch
    errors: list[tuple[int, int, str]] = field(default_factory=list)  # (index in the batch, number, message)


class Store(Protocol):
    def ensure(self, spec: CollectionSpec) -> None:
        """Create the collection; a second time changes nothing. Raises StoreError when the stored shape differs."""
        ...

    def collections(self) -> list[str]: ...

    def upsert(self, collection: str, documents: Sequence[Document], mode: Mode = "replace") -> WriteResult:
        """Write a batch: stored when this returns, in one transaction where the store can. The last of equal keys wins.

        Data errors come back in `errors` and never raise. Raises StoreBusy (try again), StoreError (stop).
        """
        ...

    def upsert_columns(self, collection: str, columns: Columns) -> WriteResult:
        """`upsert` with mode "replace" for columns of equal length; a scalar stands for every row. The fast path.

        NaN becomes null. Raises StoreError for a column the collection does not have or columns of unequal length.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """Writes of this thread inside become durable together when it ends; all or none, where the store can.

        Where it cannot, they are stored in the order they are made: write first what later writes speak of.
        """
        ...

    def get(self, collection: str, keys: Sequence[str]) -> list[Document | None]:
        """The documents of `keys`, in that order, with `_key` and every declared column; None where there is none."""
        ...

    def scan(
        self,
        collection: str,
        *,
        eq: Mapping[str, Any] | None = None,
        lo: int | None = None,
        hi: int | None = None,
        columns: Sequence[str] | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows with `lo <= time < hi`, ordered by time, then by key columns (all reversed with `desc`).

        Columns come as declared; `json` as text, and on request `_key`. What is read is the collection as it was
        at the first batch. Read to the end or close the iterator: until then the store cannot reclaim space.
        """
        ...

    def count(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None
    ) -> int: ...

    def aggregate(
        self,
        collection: str,
        *,
        eq: Mapping[str, Any],
        lo: int,
        hi: int,
        bucket_ms: int,
        aggregates: Mapping[str, tuple[Aggregate, str]],
    ) -> pa.Table:
        """One row per bucket that holds rows: `ts` (bucket start) and one column per aggregate; nulls are skipped."""
        ...

    def delete_before(self, collection: str, ts_ms: int, *, eq: Mapping[str, Any] | None = None) -> int:
        """Delete rows with `time < ts_ms`; answers how many."""
        ...

    def drop(self, collection: str) -> None: ...

    def close(self) -> None: ...
