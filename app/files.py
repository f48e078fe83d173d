"""What a run left in the store and the log, read by another process: the answers a worker would give, without one.

Read-only, short reads; safe beside a running worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapters.stores.base import Store
from app import report
from app.client import EVENTS_PER_CALL
from app.config import settings
from app.errors import WorkerUnreachable
from app.outside import read_ledgers, reading_store

Json = dict[str, Any]


@contextmanager
def open_store() -> Iterator[Store]:
    """The store read-only. Raises WorkerUnreachable where there is none: then only a worker could answer."""
    path = settings().store_path
    if not settings().on_arango and not path.exists():
        raise WorkerUnreachable(
            f"no worker answers at {settings().web_url} and there is no store at {path}: start one with "
            "`python -m app worker`, or set DATA_DIR"
        )
    store = reading_store()
    try:
        yield store
    finally:
        store.close()


class Files:
    """The reading calls of `app.client.Worker`, answered from the files. Raises UnknownRun, WorkerUnreachable."""

    def runs(self) -> list[Json]:
        with open_store() as store:
            return [report.describe_run(run) for run in report.read_runs(store)]

    def run(self, queue_id: str) -> Json:
        with open_store() as store:
            return report.describe_run(report.read_run(store, queue_id))

    def events(self, queue_id: str, after: int = -1, limit: int = EVENTS_PER_CALL) -> list[Json]:
        with open_store() as store:
            report.read_run(store, queue_id)
            return report.read_events(store, queue_id, after, limit)

    def report(self, queue_id: str) -> Json:
        with open_store() as store:
            return report.run_report(store, queue_id)

    def coverage(self) -> list[Json]:
        """Every stream's ledger."""
        with open_store() as store:
            ledgers = read_ledgers(store)
        return [report.describe_coverage(name, ledger) for name, ledger in sorted(ledgers.items())]
