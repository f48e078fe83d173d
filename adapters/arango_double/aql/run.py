"""One run of a query: its database, its bind parameters, its counts and its warnings."""

from __future__ import annotations

from typing import Any

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection, Database, Server, Unit

Json = dict[str, Any]
_MAX_WARNINGS = 10


class Run:
    def __init__(
        self,
        database: Database,
        unit: Unit,
        bound: Json,
        *,
        fail_on_warning: bool = False,
        max_warnings: int = _MAX_WARNINGS,
    ) -> None:
        self.database, self.unit, self.server, self.bound = database, unit, unit.server, bound
        self.fail_on_warning, self.max_warnings = fail_on_warning, max_warnings
        self.warnings: list[Json] = []
        self.written: set[str] = set()  # names of the collections that a clause so far changes
        self.writes_executed = self.writes_ignored = self.filtered = self.scanned_full = self.scanned_index = 0
        self.full_count: int | None = None

    server: Server

    def warn(self, number: int, text: str) -> None:
        """Raises it instead where the query is to fail on warnings."""
        if self.fail_on_warning:
            raise ArangoError(number, f"AQL: {text} (while executing)")
        if len(self.warnings) < self.max_warnings:
            self.warnings.append({"code": number, "message": text})

    def parameter(self, name: str) -> Any:
        """Raises 1551."""
        if name not in self.bound:
            raise ArangoError(1551, f"no value specified for declared bind parameter '{name}' (while parsing)")
        return self.bound[name]

    def collection(self, name: Any) -> Collection:
        """Raises 1203, 1553."""
        if not isinstance(name, str):
            raise ArangoError(1553, "bind parameter has an invalid value or type (while parsing)")
        return self.database.collection(name)

    def document(self, id: Any) -> Json | None:
        name, _, key = id.partition("/") if isinstance(id, str) else ("", "", "")
        found = self.database.collections.get(name)
        return None if found is None else found.get(key)

    def stats(self) -> Json:
        stats: Json = {
            "writesExecuted": self.writes_executed, "writesIgnored": self.writes_ignored, "documentLookups": 0,
            "seeks": 0, "scannedFull": self.scanned_full, "scannedIndex": self.scanned_index, "searchParallelism": 1,
            "cursorsCreated": 0, "cursorsRearmed": 0, "cacheHits": 0, "cacheMisses": 0, "filtered": self.filtered,
            "httpRequests": 0, "executionTime": 0.0, "peakMemoryUsage": 0, "intermediateCommits": 0,
        }  # fmt: skip
        if self.full_count is not None:
            stats["fullCount"] = self.full_count
        return stats
