"""Series by number: the values of a collection's `series` columns, e.g. (binance, BTCUSDT), as one small integer.

A number is given once and for good, and committed with or before the first row that carries it; so what a process
knows of them stays true (a rollback makes it forget), and what it does not know is read when it meets the number.
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
        self._numbers: dict[str, int] = {}  # replaced as a whole, so that threads may read it without a lock
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
        if unknown := [name for name in names.values() if name not in self._numbers]:
            with writing() as connection:
                connection.executemany("INSERT OR IGNORE INTO series (name) VALUES (?)", [(name,) for name in unknown])
                self._load(connection)
        if len(names) == 1:
            return np.full(len(batch), self._numbers[next(iter(names.values()))], dtype=np.int64)
        rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        return np.array([self._numbers[names[row]] for row in rows], dtype=np.int64)

    def forget(self) -> None:
        """After a rollback: what was numbered in it is not."""
        self._numbers, self._values = {}, {}

    def matching(self, connection: apsw.Connection, fixed: Mapping[str, Any]) -> list[int]:
        """Every series with these values among its own."""
        self._load(connection)
        wanted = fixed.items()
        return [number for name, number in self._numbers.items() if wanted <= orjson.loads(name).items()]

    def of_key(self, connection: apsw.Connection, shape: Shape, key: Mapping[str, Any]) -> int | None:
        """The series a key's columns name; None when nothing was ever written to it."""
        if not set(shape.spec.series) <= set(shape.spec.key):
            return 0  # such a collection finds documents by their key alone
        name = _name({column: key[column] for column in shape.spec.series})
        if name not in self._numbers:
            self._load(connection)
        return self._numbers.get(name)

    def values(self, connection: apsw.Connection, number: int) -> Mapping[str, pa.Scalar]:
        if number not in self._values:
            name = connection.execute("SELECT name FROM series WHERE id = ?", (number,)).get
            self._values[number] = {n: pa.scalar(v, pa.string()) for n, v in orjson.loads(name).items()}
        return self._values[number]

    def _load(self, connection: apsw.Connection) -> None:
        text = connection.execute("SELECT json_group_array(json_array(name, id)) FROM series").get
        self._numbers = dict(orjson.loads(text))


def _name(values: Mapping[str, Any]) -> str:
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()
