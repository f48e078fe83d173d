"""What StreamForge needs of a store: named collections, deterministic keys, idempotent batches, range scans.

Five query shapes and no free text. The same contract suite runs on every class that implements `Store`.
A store is blocking; callers on the event loop hand it to a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from models.market import Array

Document = dict[str, Any]
ColumnType = Literal["int", "float", "text", "bool", "floats", "json"]  # floats: a list of float32
Mode = Literal["replace", "update", "ignore"]
Aggregate = Literal["first", "last", "min", "max", "sum", "count", "mean"]


@dataclass(frozen=True)
class CollectionSpec:
    """A collection's shape.

    `key` names the columns the document's `_key` is made of, in order; `key_format` turns them into that key,
    e.g. key ("venue", "symbol", "id"), key_format "{venue}.{symbol}.{id:015d}".
    Fields without a declared column are kept as JSON beside the typed ones.
    """

    name: str
    key: tuple[str, ...]
    key_format: str
    columns: Mapping[str, ColumnType]
    kind: Literal["document", "edge"] = "document"
    time: str | None = "ts"  # column of range scans: (venue, symbol, time)
    version: str | None = None  # a row with a lower version never replaces one with a higher


@dataclass(frozen=True)
class WriteResult:
    created: int = 0
    updated: int = 0
    ignored: int = 0  # repeats and lower versions
    errors: list[tuple[int, int, str]] = field(default_factory=list)  # (index in the batch, number, message)


class Store(Protocol):
    def ensure(self, spec: CollectionSpec) -> None:
        """Create the collection; a second time changes nothing. Raises StoreError when the stored shape differs."""
        ...

    def collections(self) -> list[str]: ...

    def upsert(self, collection: str, documents: Sequence[Document], mode: Mode = "replace") -> WriteResult:
        """Write a batch in one transaction: durable when this returns. The last of equal keys wins.

        Data errors come back in `errors` and never raise. Raises StoreBusy (try again), StoreError (stop).
        """
        ...

    def upsert_columns(self, collection: str, columns: Mapping[str, Array | Sequence[Any] | str | int]) -> WriteResult:
        """`upsert` with mode "replace" for columns of equal length; a scalar stands for every row. The fast path."""
        ...

    def get(self, collection: str, keys: Sequence[str]) -> list[Document | None]: ...

    def scan(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None,
        columns: Sequence[str] | None = None, desc: bool = False, limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows with `lo <= time < hi`, ordered by time (newest first with `desc`)."""
        ...

    def count(self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None) -> int: ...

    def aggregate(
        self, collection: str, *, eq: Mapping[str, Any], lo: int, hi: int, bucket_ms: int,
        aggregates: Mapping[str, tuple[Aggregate, str]],
    ) -> pa.Table:
        """One row per bucket that holds rows: `ts` (bucket start) and one column per aggregate."""
        ...

    def delete_before(self, collection: str, ts_ms: int, *, eq: Mapping[str, Any] | None = None) -> int: ...

    def drop(self, collection: str) -> None: ...

    def close(self) -> None: ...
