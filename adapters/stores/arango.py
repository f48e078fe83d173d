"""The store in ArangoDB 3.11 or newer: a document a row, deterministic keys, idempotent batches.

Promise: what `upsert` and `upsert_columns` returned for was acknowledged by the server for every document, or is named
in `errors` with ArangoDB's own number. A batch is not atomic: when it is cut short (StoreBusy), some of it may be
stored, and sending it again changes nothing that is. A version never goes down, whoever writes (3.12: the server
compares, `versionAttribute`; 3.11: each change names the revision it saw). An acknowledged write survives the end of
the server's process; a power cut may take the last 100 ms (`waitForSync` is off): loading their range again mends that.

Blocking, from any thread. Batches beyond `batch_rows` are sent in parallel by threads of the store's own, one request
each at a time; a scan fetches one page ahead there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from adapters.stores import arango_query as aql
from adapters.stores import arango_rows, buckets
from adapters.stores.arango_batches import Patience, winners
from adapters.stores.arango_client import Address, Away, Client, Refused
from adapters.stores.arango_query import Chosen
from adapters.stores.arango_rows import RANK
from adapters.stores.arango_setup import VERSION_ATTRIBUTE_SINCE, Ground, Sizing
from adapters.stores.arango_writer import Writer
from adapters.stores.base import Aggregate, CollectionSpec, Columns, Document, Mode, WriteResult
from adapters.stores.shape import Errors, Shape
from app.errors import StoreBusy, StoreError

log = logging.getLogger(__name__)

BATCH_ROWS = 1_000  # documents a request
PAGE_ROWS = 10_000  # rows a page of a scan
CURSOR_S = 600  # a reader may think so long between two pages
THREADS = 4


class ArangoStore:
    """A `Store` in the database of `address`. Raises StoreError where it cannot be used, StoreBusy when it is away."""

    def __init__(
        self, address: Address, *, read_only: bool = False, threads: int = THREADS, batch_rows: int = BATCH_ROWS,
        patience: Patience | None = None, sizing: Sizing | None = None,
    ) -> None:  # fmt: skip
        self._address, self._read_only, self._batch_rows = address, read_only, batch_rows
        self._patience = patience or Patience()
        self._closing = threading.Event()
        self._client = Client(address, threads + 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="arango")
        self._ground = Ground(self._client, self._patience, self._closing.wait, sizing or Sizing())
        self._known: dict[str, Shape] = {}
        self._made: dict[str, CollectionSpec] = {}
        version = self._ground.prepare(read_only=read_only)
        self._writer = Writer(self._client, self._patience, self._closing, batch_rows)
        self._writer.server_compares_versions = version[:2] >= VERSION_ATTRIBUTE_SINCE

    def __repr__(self) -> str:
        return f"ArangoStore({self._address})"

    # -- collections

    def ensure(self, spec: CollectionSpec) -> None:
        shape = Shape(spec)
        if self._made.get(spec.name) == spec:
            return
        self._check_writing()
        self._ground.make(spec)
        self._made[spec.name], self._known[spec.name] = spec, shape

    def collections(self) -> list[str]:
        self._check_open()
        return self._ground.names()

    def drop(self, collection: str) -> None:
        self._shape(collection)
        self._check_writing()
        self._ground.drop(collection)
        self._known.pop(collection, None)
        self._made.pop(collection, None)

    # -- write

    def upsert(self, collection: str, documents: Sequence[Document], mode: Mode = "replace") -> WriteResult:
        shape = self._shape(collection)
        if mode == "update":
            self._check_writing()
            return self._writer.update(shape, documents)
        batch, errors = shape.from_documents(documents)
        return self._write(shape, batch, errors, len(documents), keep=mode == "ignore")

    def upsert_columns(self, collection: str, columns: Columns) -> WriteResult:
        shape = self._shape(collection)
        batch, errors = shape.from_columns(columns)
        return self._write(shape, batch, errors, len(batch) + len(errors))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Not atomic: every write inside is acknowledged before the next one begins, none is taken back.

        ArangoDB's stream transactions must name their collections beforehand, end after 60 s of silence, and fail as
        a whole on one conflict. Order does what is needed: rows first, then the ledger that speaks of them.
        """
        self._check_writing()
        yield

    def delete_before(self, collection: str, ts_ms: int, *, eq: Mapping[str, Any] | None = None) -> int:
        shape = self._shape(collection)
        self._check_writing()
        spec, eq = shape.spec, dict(eq or {})
        parts: list[dict[str, Any]] = [eq]
        if not set(spec.series) <= set(eq):  # series by series, so that the index finds what is old
            Chosen(spec, eq, None, ts_ms)
            found = (dict(zip(spec.series, row, strict=True)) for row in self._all(aql.series(spec)))
            parts = [{**eq, **row} for row in found if all(eq.get(name, row[name]) == row[name] for name in row)]
        removed = 0
        for part in parts:
            query = aql.remove(Chosen(spec, part, None, ts_ms))
            while gone := len(self._all(query)):
                removed += gone
                if gone < aql.REMOVED_AT_ONCE:
                    break
        return removed

    def _write(
        self, shape: Shape, batch: pa.RecordBatch, errors: Errors, rows: int, *, keep: bool = False
    ) -> WriteResult:
        """`errors` are those of rows that are not in the batch; places are those of the caller's rows."""
        self._check_writing()
        bad = {index for index, _, _ in errors}
        places = [index for index in range(rows) if index not in bad] if bad else list(range(rows))
        documents = arango_rows.encode(shape, batch)
        ranks = [document[RANK] for document in documents] if shape.spec.version else None
        chosen = winners([document["_key"] for document in documents], ranks, keep)
        created = updated = 0
        for part in self._in_parts(shape, [documents[place] for place in chosen], keep):
            created, updated = created + part.created, updated + part.updated
            errors += [(places[chosen[index]], number, why) for index, number, why in part.errors]
        return WriteResult(created, updated, rows - created - updated - len(errors), sorted(errors))

    def _in_parts(self, shape: Shape, documents: list[Document], keep: bool) -> list[WriteResult]:
        """The results of parts of at most `batch_rows`, their errors by place in `documents`. No key twice in here."""
        size = self._batch_rows
        if len(documents) <= size:
            return [self._writer.write(shape, documents, keep=keep)] if documents else []
        starts = range(0, len(documents), size)
        write = self._writer.write
        futures = [self._pool.submit(write, shape, documents[at : at + size], keep=keep) for at in starts]
        done = [future.result() for future in futures]
        for start, part in zip(starts, done, strict=True):
            part.errors[:] = [(start + index, number, why) for index, number, why in part.errors]
        return done

    # -- read

    def get(self, collection: str, keys: Sequence[str]) -> list[Document | None]:
        shape = self._shape(collection)
        real = [key for key in dict.fromkeys(keys) if shape.key_values(key) is not None]
        found = dict(zip(real, self._writer.find(collection, real), strict=True))
        return [None if (d := found.get(key)) is None else arango_rows.decode(shape, d) for key in keys]

    def scan(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None,
        columns: Sequence[str] | None = None, desc: bool = False, limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        shape = self._shape(collection)
        names = list(shape.spec.columns) if columns is None else list(columns)
        unknown = [name for name in names if name not in shape.spec.columns and name != "_key"]
        if unknown or (limit is not None and limit < 0):
            raise StoreError(f"{collection!r} cannot be read so: unknown columns {unknown}, limit {limit}")
        chosen = Chosen(shape.spec, dict(eq or {}), lo, hi)
        if not chosen.text_decides:
            return self._pages(shape, chosen, names, desc, limit)
        needed = [*dict.fromkeys((*names, *chosen.order))]
        pages = self._pages(shape, chosen, needed, desc, None)
        return _in_order(pages, chosen, names, desc, limit)

    def count(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None
    ) -> int:
        [found] = self._all(aql.count(Chosen(self._shape(collection).spec, dict(eq or {}), lo, hi)))
        return int(found)

    def aggregate(
        self, collection: str, *, eq: Mapping[str, Any], lo: int, hi: int, bucket_ms: int,
        aggregates: Mapping[str, tuple[Aggregate, str]],
    ) -> pa.Table:  # fmt: skip
        shape = self._shape(collection)
        batches = self.scan(collection, eq=eq, lo=lo, hi=hi, columns=buckets.columns_for(shape, aggregates))
        return buckets.fold(list(batches), shape, bucket_ms, aggregates)

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _pages(
        self, shape: Shape, chosen: Chosen, names: list[str], desc: bool, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        for page in self._cursor(aql.rows(chosen, names, desc=desc, limit=limit)):
            if page:
                yield arango_rows.arrow(shape, names, page)

    def _all(self, query: aql.Query) -> list[Any]:
        return [row for page in self._cursor(query) for row in page]

    def _cursor(self, query: aql.Query) -> Iterator[list[Any]]:
        """Pages of a query's result, one fetched ahead. The query sees the collection as it is at the first page."""
        self._check_open()
        body = {
            "query": query.text, "bindVars": query.bind, "batchSize": PAGE_ROWS, "ttl": CURSOR_S,
            "options": {"stream": True, "allowRetry": True},
        }  # fmt: skip
        changes = " REMOVE " in query.text
        if changes:
            body["options"] = {}
        page = self._fetch("/_api/cursor", body)
        cursor = page.get("id")
        try:
            while True:
                more: Future[dict[str, Any]] | None = None
                if page.get("hasMore"):
                    batch = page.get("nextBatchId")
                    path = f"/_api/cursor/{cursor}" + (f"/{batch}" if batch else "")
                    more = self._pool.submit(self._fetch, path, None)
                else:
                    cursor = None
                yield page["result"]
                if more is None:
                    return
                page = more.result()
        finally:
            if cursor is not None and not self._closing.is_set():
                self._forget(cursor)

    def _fetch(self, path: str, body: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            try:
                page: dict[str, Any] = self._client.call("POST", path, body=body).body
                return page
            except Refused as refused:
                if refused.number == 1600:  # the server was started anew, or the reader thought for too long
                    raise StoreBusy(
                        f"{self._address} has forgotten the query: read again from the start", retry_after_s=0.5
                    ) from None
                raise

        return self._client.persist(ask, self._patience, self._closing.wait)

    def _forget(self, cursor: str) -> None:
        try:
            self._client.call("DELETE", f"/_api/cursor/{cursor}")
        except (Refused, Away, StoreError):
            log.debug("the cursor %s ends by itself", cursor)

    # -- collections known to this process

    def _shape(self, name: str) -> Shape:
        self._check_open()
        if name not in self._known:
            spec = self._ground.record_of(name)
            if spec is None:
                raise StoreError(f"there is no collection {name!r} in {self._address}; it has {self.collections()}")
            self._known[name] = Shape(spec)
        return self._known[name]

    def _check_writing(self) -> None:
        self._check_open()
        if self._read_only:
            raise StoreError(f"{self._address} is opened to read only")

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreError(f"{self._address} is closed")


def _in_order(
    pages: Iterator[pa.RecordBatch], chosen: Chosen, names: list[str], desc: bool, limit: int | None
) -> Iterator[pa.RecordBatch]:
    """Rows of one time by the bytes of their texts, whatever language the server sorts by."""
    how = "descending" if desc else "ascending"
    time, left = chosen.spec.time, limit
    waiting: list[pa.RecordBatch] = []
    for page in pages:
        waiting.append(page)
        rows = pa.Table.from_batches(waiting)
        ready = 0
        if time is not None:  # rows of the last time may go on in the next page
            times = rows.column(time).to_numpy()
            ready = len(times) - int((times == times[-1]).sum())
        yield from _cut(rows.slice(0, ready), chosen, names, how, left)
        left = None if left is None else left - min(ready, left)
        if left == 0:
            pages.close()  # type: ignore[attr-defined]
            return
        waiting = rows.slice(ready).to_batches()
    if waiting:
        yield from _cut(pa.Table.from_batches(waiting), chosen, names, how, left)


def _cut(rows: pa.Table, chosen: Chosen, names: list[str], how: str, left: int | None) -> Iterator[pa.RecordBatch]:
    if len(rows):
        ordered = rows.sort_by([(name, how) for name in chosen.order]).select(names)
        yield from (ordered if left is None else ordered.slice(0, left)).combine_chunks().to_batches()
