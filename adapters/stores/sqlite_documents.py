"""Small collections in SQLite: a row is the key, what it is found by, and the document as JSON text.

SQLite is asked in whole batches (JSON in, JSON out), not row by row: apsw gives up Python's lock at every row, and a
thread of a busy process waits up to 5 ms to get it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw
import orjson
import pyarrow as pa

from adapters.stores.shape import Shape
from adapters.stores.sqlite_layout import Selection
from models.market import Array

_PAGE = 5_000  # documents a query
_LOWEST = -(2**63)


class Documents:
    def __init__(self, number: int, shape: Shape) -> None:
        self._shape = shape
        self._table = f"documents_{number}"
        self._keys = [f'"k_{name}"' for name in shape.spec.key]
        names = [*self._keys, "series", "time", "version", "doc"]
        values = ", ".join(f"value->>{n}" for n in range(len(names)))
        into = f"INTO {self._table} ({', '.join(names)}) SELECT {values} FROM json_each(?) WHERE true"
        self._insert = f"INSERT OR IGNORE {into}"
        self._replace = (
            f"INSERT {into} ON CONFLICT ({', '.join(self._keys)}) DO UPDATE SET series = excluded.series, "
            "time = excluded.time, version = excluded.version, doc = excluded.doc "
            f"WHERE excluded.version >= {self._table}.version AND excluded.doc <> {self._table}.doc"
        )

    def create(self, connection: apsw.Connection) -> None:
        types = {"int": "INTEGER", "text": "TEXT"}
        columns = self._shape.spec.columns
        keys = ", ".join(f"{k} {types[columns[n]]}" for k, n in zip(self._keys, self._shape.spec.key, strict=True))
        connection.execute(
            f"CREATE TABLE {self._table} ({keys}, series INTEGER NOT NULL, time INTEGER NOT NULL, "
            f"version INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY ({', '.join(self._keys)})) WITHOUT ROWID"
        )
        connection.execute(f"CREATE INDEX {self._table}_time ON {self._table} (series, time)")

    def drop(self, connection: apsw.Connection) -> None:
        connection.execute(f"DROP TABLE {self._table}")

    def write(self, connection: apsw.Connection, batch: pa.RecordBatch, series: Array, keep: bool) -> tuple[int, int]:
        rows: dict[tuple[Any, ...], list[Any]] = {}
        for number, row in zip(series.tolist(), batch.to_pylist(), strict=True):
            new = self._row(number, row)
            key = tuple(new[: len(self._keys)])
            old = rows.get(key)
            if old is None or (not keep and new[-2] >= old[-2]):
                rows[key] = new
        payload = (orjson.dumps(list(rows.values())).decode(),)
        connection.execute(self._insert, payload)
        created = connection.changes()
        if keep or created == len(rows):
            return created, 0
        connection.execute(self._replace, payload)
        return created, connection.changes()

    def _row(self, series: int, row: Mapping[str, Any]) -> list[Any]:
        spec = self._shape.spec
        version = row[spec.version] if spec.version else None
        time = row[spec.time] if spec.time else 0
        text = orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()
        return [*(row[name] for name in spec.key), series, time, _LOWEST if version is None else version, text]

    def find(
        self, connection: apsw.Connection, keys: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> list[pa.RecordBatch | None]:
        where = " AND ".join(f"{key} = ?" for key in self._keys)
        found: list[pa.RecordBatch | None] = []
        for _, key in keys:
            values = [key[name] for name in self._shape.spec.key]
            text = connection.execute(f"SELECT doc FROM {self._table} WHERE {where}", values).get
            found.append(None if text is None else self._batch(f"[{text}]"))
        return found

    def read(
        self, connection: apsw.Connection, selection: Selection, names: Sequence[str], desc: bool, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        where, values = self._where(selection)
        order = ", ".join(f"{name}{' DESC' if desc else ''}" for name in ("time", *self._keys))
        page = f"SELECT doc FROM {self._table} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
        done = 0
        while limit is None or done < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - done)
            text = connection.execute(f"SELECT group_concat(doc) FROM ({page})", [*values, size, done]).get
            if text is None:
                return
            batch = self._batch(f"[{text}]")
            yield batch.select(list(names))
            done += len(batch)
            if len(batch) < size:
                return

    def count(self, connection: apsw.Connection, selection: Selection) -> int:
        where, values = self._where(selection)
        return int(connection.execute(f"SELECT count(*) FROM {self._table} WHERE {where}", values).get)

    def delete(self, connection: apsw.Connection, selection: Selection) -> int:
        where, values = self._where(selection)
        connection.execute(f"DELETE FROM {self._table} WHERE {where}", values)
        return connection.changes()

    def _where(self, selection: Selection) -> tuple[str, list[Any]]:
        where, values = selection.where("time", "time")
        for name, value in selection.eq.items():
            column = f'"k_{name}"' if name in self._shape.spec.key else f"doc->>'$.{name}'"
            where += f" AND {column} IS ?"
            values.append(value)
        return where, values

    def _batch(self, text: str) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(orjson.loads(text), schema=self._shape.schema)
