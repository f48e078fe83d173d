"""Series by number: the values of a collection's `series` columns, e.g. (binance, BTCUSDT), as one small integer.

A number is given once and for good, and committed with or before the first row that carries it. What a process knows
are committed numbers, so they stay true; those of a transaction under way are known to its writer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import apsw
import numpy as np
import orjson
import pyarrow as pa

from adapters.stores.shape import Shape, distinct_rows
from models.market import Array

SCHEMA = "CREATE TABLE series (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)"


class Series:
    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # committed; only ever grows, so threads may read it without a lock
        self._pending: dict[str, int] = {}  # of the writer's transaction; touched under the writer's lock only
        self._values: dict[int, Mapping[str, pa.Scalar]] = {}

    def of(
        self, writing: Callable[[], AbstractContextManager[apsw.Connection]], shape: Shape, batch: pa.RecordBatch
    ) -> Array:
        """(rows,) the number of each row's series; new ones are numbered in the transaction of the caller, if any."""
        columns = list(shape.spec.series)
        if not columns:
            distinct: list[dict[str, Any]] = [{}]
        else:
            distinct = distinct_rows(batch, columns)
        names = {tuple(row[column] for column in columns): _name(row) for row in distinct}
        numbers = self._numbers
        if any(name not in numbers for name in names.values()):
            with writing() as connection:
                if unknown := [(name,) for name in names.values() if name not in self._pending]:
                    connection.executemany("INSERT OR IGNORE INTO series (name) VALUES (?)", unknown)
                    self._pending = _all_numbers(connection)
                numbers = {**numbers, **self._pending}
        if len(names) == 1:
            return np.full(len(batch), numbers[next(iter(names.values()))], dtype=np.int64)
        rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        return np.array([numbers[names[row]] for row in rows], dtype=np.int64)

    def committed(self) -> None:
        """The writer's transaction is durable, and so are the numbers given in it."""
        if self._pending:
            self._numbers.update(self._pending)
            self._pending = {}

    def rolled_back(self) -> None:
        """The numbers given in the writer's transaction never were."""
        self._pending, self._values = {}, {}

    def matching(self, connection: apsw.Connection, fixed: Mapping[str, Any]) -> list[int]:
        """Every series with these values among its own."""
        wanted = fixed.items()
        return [n for name, n in _all_numbers(connection).items() if wanted <= orjson.loads(name).items()]

    def of_key(self, connection: apsw.Connection, shape: Shape, key: Mapping[str, Any]) -> int | None:
        """The series a key's columns name; None when nothing was ever written to it."""
        if not set(shape.spec.series) <= set(shape.spec.key):
            return 0  # such a collection finds documents by their key alone
        name = _name({column: key[column] for column in shape.spec.series})
        return self._numbers[name] if name in self._numbers else _all_numbers(connection).get(name)

    def values(self, connection: apsw.Connection, number: int) -> Mapping[str, pa.Scalar]:
        if number not in self._values:
            name = connection.execute("SELECT name FROM series WHERE id = ?", (number,)).get
            self._values[number] = {n: pa.scalar(v, pa.string()) for n, v in orjson.loads(name).items()}
        return self._values[number]


def _all_numbers(connection: apsw.Connection) -> dict[str, int]:
    text = connection.execute("SELECT json_group_array(json_array(name, id)) FROM series").get
    return dict(orjson.loads(text))


def _name(values: Mapping[str, Any]) -> str:
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()
