"""The embedded store: every collection in one SQLite file, for one machine without a database server.

Promise: what `upsert` and `upsert_columns` returned for is in the file and outlives a killed process (WAL,
synchronous=NORMAL: a power cut may take the last commits; loading their range again mends that). A batch is one
transaction. One connection writes; readers see the file as it was when they began. Any thread may call; other
processes open the file with `read_only=True`.

Dangers kept out: SQLite before 3.51.3 can damage a WAL file; two SQLite libraries in one process undo each other's
locks (so: apsw everywhere, never the standard sqlite3 on this file); network file systems.
Several processes of one machine may write: each batch waits for its turn, and what it decides on it reads inside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pyarrow as pa

from adapters.stores import buckets, sqlite_series
from adapters.stores.base import Aggregate, CollectionSpec, Columns, Document, Mode, WriteResult
from adapters.stores.shape import Errors, Refused, Shape
from adapters.stores.sqlite_blocks import Blocks
from adapters.stores.sqlite_documents import Documents
from adapters.stores.sqlite_layout import Layout, Selection
from adapters.stores.sqlite_series import Series
from app.errors import StoreBusy, StoreError

APPLICATION_ID = 0x53464D53  # "SFMS" in the file's header: a StreamForge market store
SCHEMA_VERSION = 1
_BUSY_TIMEOUT_MS = 5_000
_IDLE_READERS = 4
_SCHEMA = f"""
    CREATE TABLE collections (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE COLLATE NOCASE, spec TEXT NOT NULL
    );
    {sqlite_series.SCHEMA};
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA_VERSION};
"""


class SqliteStore:
    """A `Store` in the file `path`. Raises StoreError where the file cannot be used, with what to do."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < (3, 51, 3):
            raise StoreError(f"SQLite {apsw.sqlite_lib_version()} can damage the store: install apsw 3.53 or newer")
        self._path = Path(path)
        self._lock = threading.RLock()  # one writer of this process
        self._pool = threading.Lock()  # guards the list of readers: who reads never waits for who writes
        self._readers: list[apsw.Connection] = []
        self._known: dict[str, tuple[Shape, Layout]] = {}
        self._series = Series()
        self._closed = False
        self._writing_thread: int | None = None  # who is inside a transaction reads what it has written
        with self._translated():
            self._writer = None if read_only else self._open_writer()
            self._readers.append(self._open_reader())

    # -- collections

    def ensure(self, spec: CollectionSpec) -> None:
        shape = Shape(spec)
        with self._writing() as connection:
            stored = self._stored_spec(connection, spec.name)
            if stored is None:
                number = connection.execute(
                    "INSERT INTO collections (name, spec) VALUES (?, ?) RETURNING id",
                    (spec.name, msgspec.json.encode(spec).decode()),
                ).get
                self._layout(number, shape).create(connection)
            elif stored[1] != spec:
                raise StoreError(
                    f"collection {spec.name!r} is stored in another shape: choose another name, "
                    "or drop the stored collection and load it again"
                )

    def collections(self) -> list[str]:
        with self._reading() as connection:
            return [str(name) for (name,) in connection.execute("SELECT name FROM collections ORDER BY name")]

    def drop(self, collection: str) -> None:
        _, layout = self._collection(collection)
        with self._writing() as connection:
            layout.drop(connection)
            connection.execute("DELETE FROM collections WHERE name = ?", (collection,))
            self._known.pop(collection, None)

    # -- write

    def upsert(self, collection: str, documents: Sequence[Document], mode: Mode = "replace") -> WriteResult:
        shape, layout = self._collection(collection)
        if mode == "update":
            return self._update(shape, layout, documents)
        batch, errors = shape.from_documents(documents)
        return self._write(shape, layout, batch, errors, keep=mode == "ignore")

    def upsert_columns(self, collection: str, columns: Columns) -> WriteResult:
        shape, layout = self._collection(collection)
        batch, errors = shape.from_columns(columns)
        return self._write(shape, layout, batch, errors)

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._writing():
            yield

    def delete_before(self, collection: str, ts_ms: int, *, eq: Mapping[str, Any] | None = None) -> int:
        shape, layout = self._collection(collection)
        with self._writing() as connection:
            return layout.delete(connection, self._selection(connection, shape, eq, None, ts_ms))

    def _write(
        self, shape: Shape, layout: Layout, batch: pa.RecordBatch, errors: Errors, keep: bool = False
    ) -> WriteResult:
        if not len(batch):
            return WriteResult(errors=errors)
        series = self._series.of(self._writing, shape, batch)
        with self._writing() as connection:
            created, updated = layout.write(connection, batch, series, keep)
        return WriteResult(created, updated, len(batch) - created - updated, errors)

    def _update(self, shape: Shape, layout: Layout, documents: Sequence[Document]) -> WriteResult:
        """Fields given replace those stored, the others stay."""
        merged: dict[str, Document] = {}
        errors: Errors = []
        with self._writing() as connection:
            for index, document in enumerate(documents):
                try:
                    key = shape.key_text(shape.checked_key(document))
                except Refused as refused:
                    errors.append((index, refused.number, str(refused)))
                    continue
                current = merged.get(key) or self._find(connection, shape, layout, [key])[0] or {}
                if _is_older(document, current, shape.spec.version):
                    continue
                wanted = {**current, **document}
                _, wrong = shape.from_documents([wanted])
                errors += [(index, number, message) for _, number, message in wrong]
                if not wrong:
                    merged[key] = wanted
            batch, _ = shape.from_documents(list(merged.values()))
            result = self._write(shape, layout, batch, errors)
        return WriteResult(
            result.created, result.updated, len(documents) - result.created - result.updated - len(errors), errors
        )

    # -- read

    def get(self, collection: str, keys: Sequence[str]) -> list[Document | None]:
        shape, layout = self._collection(collection)
        with self._reading() as connection:
            return self._find(connection, shape, layout, keys)

    def scan(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None,
        columns: Sequence[str] | None = None, desc: bool = False, limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        shape, layout = self._collection(collection)
        names = list(shape.spec.columns) if columns is None else list(columns)
        unknown = [name for name in names if name not in shape.spec.columns and name != "_key"]
        if unknown or (limit is not None and limit < 0):
            raise StoreError(f"{collection!r} cannot be read so: unknown columns {unknown}, limit {limit}")
        return self._scan(shape, layout, (eq, lo, hi), names, desc, limit)

    def count(
        self, collection: str, *, eq: Mapping[str, Any] | None = None, lo: int | None = None, hi: int | None = None
    ) -> int:
        shape, layout = self._collection(collection)
        with self._reading() as connection:
            return layout.count(connection, self._selection(connection, shape, eq, lo, hi))

    def aggregate(
        self, collection: str, *, eq: Mapping[str, Any], lo: int, hi: int, bucket_ms: int,
        aggregates: Mapping[str, tuple[Aggregate, str]],
    ) -> pa.Table:  # fmt: skip
        shape, _ = self._collection(collection)
        batches = self.scan(collection, eq=eq, lo=lo, hi=hi, columns=buckets.columns_for(shape, aggregates))
        return buckets.fold(list(batches), shape, bucket_ms, aggregates)

    def close(self) -> None:
        with self._lock, self._pool:
            self._closed = True
            for connection in [*self._readers, *([self._writer] if self._writer else [])]:
                connection.close()
            self._readers.clear()

    def _scan(
        self, shape: Shape, layout: Layout, chosen: tuple[Mapping[str, Any] | None, int | None, int | None],
        names: list[str], desc: bool, limit: int | None,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        with_keys = "_key" in names
        needed = [*dict.fromkeys((*names, *shape.spec.key))] if with_keys else names
        with self._reading() as connection:
            selection = self._selection(connection, shape, *chosen)
            for batch in layout.read(connection, selection, [n for n in needed if n != "_key"], desc, limit):
                yield batch.append_column("_key", shape.keys(batch)).select(names) if with_keys else batch

    def _find(
        self, connection: apsw.Connection, shape: Shape, layout: Layout, keys: Sequence[str]
    ) -> list[Document | None]:
        found: list[Document | None] = [None] * len(keys)
        places, wanted = [], []
        for index, key in enumerate(keys):
            values = shape.key_values(key)
            series = None if values is None else self._series.of_key(connection, shape, values)
            if values is not None and series is not None:
                places.append(index)
                wanted.append((series, values))
        for index, row in zip(places, layout.find(connection, wanted), strict=True):
            found[index] = None if row is None else shape.documents(row)[0]
        return found

    # -- what a selection means

    def _selection(
        self, connection: apsw.Connection, shape: Shape, eq: Mapping[str, Any] | None, lo: int | None, hi: int | None
    ) -> Selection:
        eq = dict(eq or {})
        spec = shape.spec
        wrong = [name for name in eq if spec.columns.get(name) not in ("int", "text", "bool")]
        if wrong or (spec.time is None and (lo is not None or hi is not None)):
            raise StoreError(f"{spec.name!r} cannot be searched by {wrong or 'time'}")
        fixed = {name: eq.pop(name) for name in spec.series if name in eq}
        series = self._series.matching(connection, fixed) if fixed else None
        return Selection(series, lo, hi, eq)

    # -- collections known to this process

    def _collection(self, name: str) -> tuple[Shape, Layout]:
        if name not in self._known:
            with self._reading() as connection:
                stored = self._stored_spec(connection, name)
            if stored is None:
                raise StoreError(f"there is no collection {name!r} in {self._path}; it has {self.collections()}")
            number, spec = stored
            shape = Shape(spec)
            self._known[name] = (shape, self._layout(number, shape))
        return self._known[name]

    def _stored_spec(self, connection: apsw.Connection, name: str) -> tuple[int, CollectionSpec] | None:
        row = connection.execute("SELECT id, name, spec FROM collections WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        number, stored, spec = row
        if stored != name:
            raise StoreError(f"collection {name!r} differs from {stored!r} by case only: choose another name")
        return number, msgspec.json.decode(spec, type=CollectionSpec)

    def _layout(self, number: int, shape: Shape) -> Layout:
        if shape.spec.block is None:
            return Documents(number, shape)
        return Blocks(number, shape, self._series.values)

    # -- connections

    @contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        """The writer inside a transaction, committed when the block ends well; a block inside a block is one."""
        with self._lock, self._translated():
            connection = self._writer
            if connection is None or self._closed:
                raise StoreError(f"{self._path} is {'closed' if self._closed else 'opened to read only'}")
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            self._writing_thread = threading.get_ident()
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                self._series.rolled_back()
                raise
            finally:
                self._writing_thread = None
            self._series.committed()

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """A connection of one's own, seeing the file as it is at the first query; inside a transaction, that one."""
        if self._writing_thread == threading.get_ident():
            with self._writing() as connection:
                yield connection
            return
        with self._translated():
            with self._pool:
                if self._closed:
                    raise StoreError(f"{self._path} is closed")
                idle = self._readers.pop() if self._readers else None
            connection = idle or self._open_reader()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                self._give_back(connection)

    def _give_back(self, connection: apsw.Connection) -> None:
        with self._pool:
            if not self._closed and len(self._readers) < _IDLE_READERS:
                _roll_back(connection)
                self._readers.append(connection)
                return
        connection.close()

    def _open_writer(self) -> apsw.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = apsw.Connection(str(self._path), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        self._check_identity(connection, new_is_fine=True)
        if connection.execute("PRAGMA journal_mode = WAL").get != "wal":
            raise StoreError(f"{self._path} lies where SQLite cannot share memory: put it on a local disk")
        connection.execute("PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864")
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA application_id").get == 0:
            connection.execute(_SCHEMA)
        connection.execute("COMMIT")
        return connection

    def _open_reader(self) -> apsw.Connection:
        if not self._path.exists():
            raise StoreError(f"there is no store at {self._path} yet: the worker makes it when it starts")
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        connection = apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        self._check_identity(connection, new_is_fine=False)
        return connection

    def _check_identity(self, connection: apsw.Connection, *, new_is_fine: bool) -> None:
        identity = connection.execute("PRAGMA application_id").get
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if identity != APPLICATION_ID and not (new_is_fine and identity == 0 and tables == 0):
            raise StoreError(f"{self._path} is not a StreamForge store: choose another path, it was left as it is")
        version = connection.execute("PRAGMA user_version").get
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by a newer StreamForge (format {version}, this one reads {SCHEMA_VERSION}): "
                "use that version or another path"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors in the words of `app.errors`."""
        try:
            yield
        except (apsw.BusyError, apsw.LockedError) as error:
            raise StoreBusy(f"{self._path} is being written by another process: {error}", retry_after_s=1.0) from error
        except apsw.FullError as error:
            raise StoreError(
                f"the disk of {self._path} is full: free space and start again; "
                "the last batch was not stored, everything acknowledged before it is safe"
            ) from error
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise StoreError(
                f"{self._path} is damaged or no SQLite file ({error}): "
                "move it away and load again, or choose another path"
            ) from error
        except (apsw.Error, OSError) as error:
            raise StoreError(f"{self._path} cannot be used: {error}") from error


def _roll_back(connection: apsw.Connection) -> None:
    if connection.in_transaction:  # SQLite has ended it itself after some errors
        connection.execute("ROLLBACK")


def _is_older(document: Document, current: Document, version: str | None) -> bool:
    if version is None or document.get(version) is None or current.get(version) is None:
        return False
    return bool(document[version] < current[version])
