"""What the layouts of a SQLite collection have in common: the selection they answer, and rows by series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import apsw
import pyarrow as pa

from models.market import Array


@dataclass(frozen=True)
class Selection:
    """Rows of some series (None: all) with `lo <= time < hi` whose other columns equal `eq`."""

    series: Sequence[int] | None = None
    lo: int | None = None
    hi: int | None = None
    eq: Mapping[str, Any] = field(default_factory=dict)

    def where(self, time_from: str, time_to: str) -> tuple[str, list[Any]]:
        """SQL for series and time: rows whose `time_to` is at or past lo and whose `time_from` is before hi."""
        terms, values = ["1"], list[Any]()
        if self.series is not None:
            terms.append(f"series IN ({','.join('?' * len(self.series))})")
            values += self.series
        if self.lo is not None:
            terms.append(f"{time_to} >= ?")
            values.append(self.lo)
        if self.hi is not None:
            terms.append(f"{time_from} < ?")
            values.append(self.hi)
        return " AND ".join(terms), values


class Layout(Protocol):
    """How one collection lies in the file. Every call is part of the caller's transaction."""

    def create(self, connection: apsw.Connection) -> None: ...

    def drop(self, connection: apsw.Connection) -> None: ...

    def write(self, connection: apsw.Connection, batch: pa.RecordBatch, series: Array, keep: bool) -> tuple[int, int]:
        """Rows in order, each with its series; `keep`: what is there stays. Returns (created, updated)."""
        ...

    def find(
        self, connection: apsw.Connection, keys: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> list[pa.RecordBatch | None]:
        """One row for each (series, key columns); None where there is none."""
        ...

    def read(
        self, connection: apsw.Connection, selection: Selection, names: Sequence[str], desc: bool, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Columns `names` in order of time, then key."""
        ...

    def count(self, connection: apsw.Connection, selection: Selection) -> int: ...

    def delete(self, connection: apsw.Connection, selection: Selection) -> int: ...
