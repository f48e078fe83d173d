"""Bulk collections in SQLite: a row is a block of about 1,000 rows of one series, as Arrow columns.

Why not a row a row: apsw gives up Python's lock at every row, and beside a busy event loop each row may then wait 5 ms
for it (on an idle machine with two cores: 1,500 rows/s instead of 450,000). A block is one row: written, merged and
read as arrays, exact to the bit, and a month is a thousand reads. `python -m bench.store` compares the two.
A batch replaces the blocks it touches in one transaction; a block that it would not change is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apsw
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from adapters.stores.shape import Shape
from adapters.stores.sqlite_layout import Selection
from models.market import Array

BATCH_ROWS = 65_536  # rows of one batch of a scan, at most
_LOWEST = -(2**63)


class _Block(NamedTuple):
    id: int
    series: int
    rows: int
    time_min: int
    time_max: int


class Blocks:
    """`series_values(connection, number)` answers the values of a series' columns."""

    def __init__(
        self, number: int, shape: Shape, series_values: Callable[[apsw.Connection, int], Mapping[str, pa.Scalar]]
    ) -> None:
        spec = shape.spec
        self._shape = shape
        self._series_values = series_values
        self._table = f"blocks_{number}"
        self._by, self._span = spec.block or ("", 1)
        self._time = spec.time or ""
        self._key = [name for name in spec.key if name not in spec.series]
        self._stored = pa.schema([f for f in shape.schema if f.name not in spec.series])
        self._order = [self._time, *(name for name in spec.key if name != self._time)]

    def create(self, connection: apsw.Connection) -> None:
        connection.execute(
            f"CREATE TABLE {self._table} (id INTEGER PRIMARY KEY, series INTEGER NOT NULL, block INTEGER NOT NULL, "
            "rows INTEGER NOT NULL, time_min INTEGER NOT NULL, time_max INTEGER NOT NULL, data BLOB NOT NULL)"
        )
        connection.execute(f"CREATE UNIQUE INDEX {self._table}_place ON {self._table} (series, block)")
        connection.execute(f"CREATE INDEX {self._table}_time ON {self._table} (series, time_max, time_min, rows)")

    def drop(self, connection: apsw.Connection) -> None:
        connection.execute(f"DROP TABLE {self._table}")

    # -- write

    def write(self, connection: apsw.Connection, batch: pa.RecordBatch, series: Array, keep: bool) -> tuple[int, int]:
        created = updated = 0
        rows = batch.select(self._stored.names)
        for number, block, part in _split(rows, series, self._numbers(batch.column(self._by)) // self._span):
            old = self._load_at(connection, number, block)
            merged, new, changed = self._merge(old, part, keep)
            if new or changed:
                self._store(connection, number, block, merged)
            created += new
            updated += changed
        return created, updated

    def _store(self, connection: apsw.Connection, series: int, block: int, rows: pa.RecordBatch) -> None:
        times = self._numbers(rows.column(self._time))
        place = (series, block, len(rows), int(times.min()), int(times.max()), rows.serialize())
        connection.execute(
            f"INSERT INTO {self._table} (series, block, rows, time_min, time_max, data) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (series, block) DO UPDATE SET rows = excluded.rows, time_min = excluded.time_min, "
            "time_max = excluded.time_max, data = excluded.data",
            place,
        )

    def _merge(self, old: pa.RecordBatch | None, new: pa.RecordBatch, keep: bool) -> tuple[pa.RecordBatch, int, int]:
        """Old and new rows, one a key: the last of the highest version wins (`keep`: the first). Sorted by key.

        Returns the rows, how many keys are new, and how many old rows are different now.
        """
        if self._follows(old, new):
            return (new if old is None else pa.concat_batches([old, new])), len(new), 0
        there = 0 if old is None else len(old)
        rows = new if old is None else pa.concat_batches([old, new])
        codes = [self._codes(rows.column(name)) for name in self._key]
        position = np.arange(len(rows))
        order = np.lexsort([position, self._versions(rows), *reversed(codes)])
        starts, ends = _runs([code[order] for code in codes])
        first = np.minimum.reduceat(order, starts)
        winner = first if keep else order[ends - 1]
        contested = np.flatnonzero((first < there) & (winner >= there))
        created = int((first >= there).sum())
        if not len(contested):
            return (rows.take(winner) if created or old is None else old), created, 0
        same = self._equal(rows.take(first[contested]), rows.take(winner[contested]))
        winner[contested[same]] = first[contested[same]]
        return rows.take(winner), created, len(contested) - int(same.sum())

    def _follows(self, old: pa.RecordBatch | None, new: pa.RecordBatch) -> bool:
        """True when `new` only continues `old`: the usual case of a stream, where nothing needs a merge."""
        if self._key != [self._by]:
            return False
        keys = self._numbers(new.column(self._by))
        return bool((np.diff(keys) > 0).all()) and (
            old is None or bool(keys[0] > self._numbers(old.column(self._by))[-1])
        )

    def _codes(self, column: pa.Array) -> Array:
        """Numbers that are equal where the values are equal."""
        if pa.types.is_integer(column.type):
            return self._numbers(column)
        codes: Array = column.dictionary_encode().indices.to_numpy()
        return codes

    def _versions(self, rows: pa.RecordBatch) -> Array:
        if self._shape.spec.version is None:
            return np.zeros(len(rows), dtype=np.int64)
        return self._numbers(rows.column(self._shape.spec.version).fill_null(_LOWEST))

    def _equal(self, left: pa.RecordBatch, right: pa.RecordBatch) -> Array:
        """(rows,) bool: all columns equal, null equal to null."""
        equal = np.ones(len(left), dtype=bool)
        for a, b in zip(left.columns, right.columns, strict=True):
            if pa.types.is_list(a.type):
                equal &= np.array([x == y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], dtype=np.bool_)
            else:
                both_null = pc.and_(a.is_null(), b.is_null())
                equal &= pc.or_(pc.equal(a, b).fill_null(False), both_null).to_numpy(zero_copy_only=False)
        return equal

    # -- read

    def read(
        self, connection: apsw.Connection, selection: Selection, names: Sequence[str], desc: bool, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        blocks = self._blocks(connection, selection)
        blocks.sort(key=(lambda b: -b.time_max) if desc else (lambda b: b.time_min))
        one_series = len({b.series for b in blocks}) == 1
        left = sum(b.rows for b in blocks) if limit is None else limit
        needed = [*dict.fromkeys((*names, *self._order))]
        pending: list[pa.RecordBatch] = []
        enough = min(BATCH_ROWS, left)
        for n, block in enumerate(blocks):
            pending.append(self._select(self._load(connection, block), selection, needed))
            last = n + 1 == len(blocks)
            if not last and sum(map(len, pending)) < enough:
                continue
            rows = self._sorted(pa.concat_batches(pending), desc, one_series)
            # Blocks overlap in time where ids and times disagree: what a later block may still precede has to wait.
            ready = len(rows) if last else self._before(rows, blocks[n + 1], desc)
            pending = [rows.slice(ready)]
            enough = min(BATCH_ROWS, left) + 2 * len(pending[0])
            for start in range(0, min(ready, left), BATCH_ROWS):
                yield rows.slice(start, min(BATCH_ROWS, ready - start, left - start)).select(list(names))
            left -= min(ready, left)
            if left == 0:
                return

    def find(
        self, connection: apsw.Connection, keys: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> list[pa.RecordBatch | None]:
        loaded: dict[tuple[int, int], pa.RecordBatch | None] = {}
        found: list[pa.RecordBatch | None] = []
        for series, key in keys:
            place = (series, key[self._by] // self._span)
            if place not in loaded:
                rows = self._load_at(connection, *place)
                loaded[place] = None if rows is None else self._whole(connection, rows, series)
            block = loaded[place]
            rows = None if block is None else block.filter(_matches(block, {name: key[name] for name in self._key}))
            found.append(rows if rows is not None and len(rows) else None)
        return found

    def count(self, connection: apsw.Connection, selection: Selection) -> int:
        total = 0
        for block in self._blocks(connection, selection):
            whole = not selection.eq and _within(block, selection)
            total += block.rows if whole else len(self._select(self._load(connection, block), selection, self._order))
        return total

    def delete(self, connection: apsw.Connection, selection: Selection) -> int:
        deleted = 0
        for block in self._blocks(connection, selection):
            rows = self._load(connection, block)
            chosen = self._chosen(rows, selection)
            deleted += int(chosen.sum())
            if chosen.all():
                connection.execute(f"DELETE FROM {self._table} WHERE id = ?", (block.id,))
            elif chosen.any():
                number = connection.execute(f"SELECT block FROM {self._table} WHERE id = ?", (block.id,)).get
                left = rows.select(self._stored.names).filter(pa.array(~chosen))
                self._store(connection, block.series, number, left)
        return deleted

    def _blocks(self, connection: apsw.Connection, selection: Selection) -> list[_Block]:
        where, values = selection.where("time_min", "time_max")
        found = "json_group_array(json_array(id, series, rows, time_min, time_max))"
        text = connection.execute(f"SELECT {found} FROM {self._table} WHERE {where}", values).get
        return [_Block(*block) for block in orjson.loads(text)]

    def _load(self, connection: apsw.Connection, block: _Block) -> pa.RecordBatch:
        data = connection.execute(f"SELECT data FROM {self._table} WHERE id = ?", (block.id,)).get
        rows = pa.ipc.read_record_batch(pa.py_buffer(data), self._stored)
        return self._whole(connection, rows, block.series)

    def _load_at(self, connection: apsw.Connection, series: int, block: int) -> pa.RecordBatch | None:
        query = f"SELECT data FROM {self._table} WHERE series = ? AND block = ?"
        data = connection.execute(query, (series, block)).get
        return None if data is None else pa.ipc.read_record_batch(pa.py_buffer(data), self._stored)

    def _whole(self, connection: apsw.Connection, rows: pa.RecordBatch, series: int) -> pa.RecordBatch:
        """With the columns that the series stands for."""
        values = self._series_values(connection, series)
        arrays = [pa.repeat(values[n], len(rows)) if n in values else rows.column(n) for n in self._shape.schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=self._shape.schema)

    def _select(self, rows: pa.RecordBatch, selection: Selection, names: Sequence[str]) -> pa.RecordBatch:
        chosen = self._chosen(rows, selection)
        rows = rows.select(list(names))
        return rows if chosen.all() else rows.filter(pa.array(chosen))

    def _chosen(self, rows: pa.RecordBatch, selection: Selection) -> Array:
        """(rows,) bool."""
        times = self._numbers(rows.column(self._time))
        chosen = np.ones(len(rows), dtype=bool)
        if selection.lo is not None:
            chosen &= times >= selection.lo
        if selection.hi is not None:
            chosen &= times < selection.hi
        if selection.eq:
            chosen &= _matches(rows, selection.eq).to_numpy(zero_copy_only=False)
        return chosen

    def _sorted(self, rows: pa.RecordBatch, desc: bool, one_series: bool) -> pa.RecordBatch:
        if self._is_sorted(rows, -1 if desc else 1, one_series):
            return rows
        if self._is_sorted(rows, 1 if desc else -1, one_series):
            return rows.take(pa.array(np.arange(len(rows))[::-1]))
        return rows.sort_by([(name, "descending" if desc else "ascending") for name in self._order])

    def _is_sorted(self, rows: pa.RecordBatch, sign: int, one_series: bool) -> bool:
        times = np.diff(self._numbers(rows.column(self._time))) * sign
        keys = np.diff(self._numbers(rows.column(self._by))) * sign
        # Where one number is all of the key, it decides between rows of one time.
        alone = self._key == [self._by] and one_series
        return bool(((times > 0) | ((times == 0) & (keys > 0) & alone)).all())

    def _before(self, rows: pa.RecordBatch, following: _Block, desc: bool) -> int:
        """How many of the sorted rows come before anything the following block can hold."""
        times = self._numbers(rows.column(self._time))
        if desc:
            return int(np.searchsorted(-times, -following.time_max))
        return int(np.searchsorted(times, following.time_min))

    @staticmethod
    def _numbers(column: pa.Array) -> Array:
        numbers: Array = column.to_numpy()
        return numbers


def _split(rows: pa.RecordBatch, series: Array, blocks: Array) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Rows by (series, block), in their order."""
    order = np.lexsort([np.arange(len(rows)), blocks, series])
    in_place = bool((np.diff(order) == 1).all())
    for start, end in zip(*_runs([series[order], blocks[order]]), strict=True):
        part = rows.slice(start, end - start) if in_place else rows.take(pa.array(order[start:end]))
        yield int(series[order[start]]), int(blocks[order[start]]), part


def _runs(columns: Sequence[Array]) -> tuple[Array, Array]:
    """Starts and ends of runs of equal values in sorted columns."""
    changes = np.zeros(max(len(columns[0]) - 1, 0), dtype=bool)
    for column in columns:
        changes |= column[1:] != column[:-1]
    edges = np.flatnonzero(changes) + 1
    return np.concatenate([[0], edges]), np.concatenate([edges, [len(columns[0])]])


def _within(block: _Block, selection: Selection) -> bool:
    starts = selection.lo is None or block.time_min >= selection.lo
    return starts and (selection.hi is None or block.time_max < selection.hi)


def _matches(rows: pa.RecordBatch, eq: Mapping[str, Any]) -> pa.Array:
    matches = pa.repeat(True, len(rows))
    for name, value in eq.items():
        column = rows.column(name)
        same = column.is_null() if value is None else pc.equal(column, pa.scalar(value, column.type)).fill_null(False)
        matches = pc.and_(matches, same)
    return matches
