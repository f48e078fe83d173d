"""A collection's spec made usable: documents and columns to checked Arrow rows, keys to text and back.

What a store keeps has passed here: text keys hold allowed letters only, integers fit int64, NaN is null, infinity
is refused. A row that fails comes back as an error with its index; the others of its batch go on.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from adapters.stores.base import BAD_KEY, BAD_VALUE, CollectionSpec, Columns, ColumnType, Document
from app.errors import StoreError
from models.market import Array

EXTRA = "_extra"  # fields without a declared column, as JSON text
KEY_LETTERS = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_NAME_LETTERS = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,250}")
_INT64 = range(-(2**63), 2**63)
_ARROW: dict[ColumnType, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "floats": pa.list_(pa.float32()),
    "json": pa.string(),
}
Errors = list[tuple[int, int, str]]


class Refused(ValueError):
    """A data error of one row: `number` and the sentence."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Shape:
    """What a layout needs to know of a collection. Raises StoreError for a spec that cannot be kept."""

    def __init__(self, spec: CollectionSpec) -> None:
        _check_spec(spec)
        self.spec = spec
        self.schema = pa.schema([(name, _ARROW[kind]) for name, kind in spec.columns.items()] + [(EXTRA, pa.string())])
        self.required = (*spec.key, *spec.series, *([spec.time] if spec.time else []))
        self._text_keys = [name for name in spec.key if spec.columns[name] == "text"]
        self._key_pattern = re.compile(_pattern(spec))
        self._known_texts: set[tuple[str, ...]] = set()

    # -- keys

    def key_text(self, row: Mapping[str, Any]) -> str:
        return self.spec.key_format.format_map({name: row[name] for name in self.spec.key})

    def key_values(self, key: str) -> dict[str, Any] | None:
        """The key columns of a key's text; None for a text that is no key of this collection."""
        match = self._key_pattern.fullmatch(key)
        if match is None:
            return None
        return {n: int(v) if self.spec.columns[n] == "int" else v for n, v in match.groupdict().items()}

    def checked_key(self, document: Document) -> dict[str, Any]:
        """The key columns of a document. Raises Refused."""
        self._check_present(document, self.spec.key)
        key = {name: _CLEAN[self.spec.columns[name]](name, document[name]) for name in self.spec.key}
        self._check_key(key)
        return key

    # -- rows

    def from_documents(self, documents: Sequence[Document]) -> tuple[pa.RecordBatch, Errors]:
        """Checked rows in order, and the errors of those that are left out."""
        rows: list[dict[str, Any]] = []
        errors: Errors = []
        for index, document in enumerate(documents):
            try:
                rows.append(self._clean(document))
            except Refused as refused:
                errors.append((index, refused.number, str(refused)))
        arrays = [pa.array([row[f.name] for row in rows], f.type) for f in self.schema]
        return pa.record_batch(arrays, schema=self.schema), errors

    def from_columns(self, columns: Columns) -> tuple[pa.RecordBatch, Errors]:
        """Columns of equal length, scalars stretched. Raises StoreError for unknown columns or unequal lengths."""
        rows = self._length(columns)
        try:
            arrays = [_column(columns.get(f.name), rows, f.type, self.spec.columns.get(f.name)) for f in self.schema]
            batch = pa.record_batch(arrays, schema=self.schema)
            self._check_batch(batch)
        except (Refused, pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # some row is wrong: find out which
            return self.from_documents(_rows_of(columns, rows))
        return batch, []

    def documents(self, batch: pa.RecordBatch) -> list[Document]:
        """Rows as documents with `_key`, every declared column and the undeclared fields."""
        json_columns = [name for name, kind in self.spec.columns.items() if kind == "json"]
        found = []
        for row in batch.to_pylist():
            extra = row.pop(EXTRA)
            for name in json_columns:
                row[name] = None if row[name] is None else orjson.loads(row[name])
            found.append({"_key": self.key_text(row), **row, **(orjson.loads(extra) if extra else {})})
        return found

    def keys(self, batch: pa.RecordBatch) -> pa.Array:
        """(rows,) the key of each row, which has the key columns."""
        return pa.array([self.key_text(row) for row in batch.select(self.spec.key).to_pylist()], pa.string())

    # -- checks

    def _length(self, columns: Columns) -> int:
        unknown = [name for name in columns if name not in self.spec.columns]
        missing = [name for name in self.required if name not in columns]
        if unknown or missing:
            raise StoreError(
                f"collection {self.spec.name!r} cannot take these columns: "
                f"unknown {unknown}, missing {missing}; it has {list(self.spec.columns)}"
            )
        lengths = {len(value) for value in columns.values() if _is_column(value)}
        if len(lengths) > 1:
            raise StoreError(f"columns for {self.spec.name!r} must be of one length, not {sorted(lengths)}")
        return lengths.pop() if lengths else 1

    def _clean(self, document: Document) -> dict[str, Any]:
        row: dict[str, Any] = {}
        extra = {}
        for name, value in document.items():
            if name in self.spec.columns:
                row[name] = None if value is None else _CLEAN[self.spec.columns[name]](name, value)
            elif name not in ("_key", "_id", "_rev"):
                extra[name] = value
        for name in self.spec.columns:
            row.setdefault(name, None)
        row[EXTRA] = _json(EXTRA, extra) if extra else None
        self._check_present(row, self.required)
        self._check_key(row)
        return row

    def _check_present(self, row: Mapping[str, Any], names: Sequence[str]) -> None:
        for name in names:
            if row.get(name) is None:
                raise Refused(BAD_KEY if name in self.spec.key else BAD_VALUE, f"{name} is required")

    def _check_key(self, row: Mapping[str, Any]) -> None:
        for name in self.spec.key:
            value = row[name]
            if isinstance(value, int) and value < 0:
                raise Refused(BAD_KEY, f"{name} is part of the key and must be 0 or more, not {value}")
            if isinstance(value, str) and not KEY_LETTERS.fullmatch(value):
                raise Refused(BAD_KEY, f"{name} is part of the key: letters A-Z a-z 0-9 _ - . only, not {value!r}")
        self._check_readable(row)

    def _check_readable(self, row: Mapping[str, Any]) -> None:
        """A key must lead back to its columns, or two documents could share one."""
        texts = tuple(row[name] for name in self._text_keys)
        if texts in self._known_texts:
            return
        if self.key_values(self.key_text(row)) != {name: row[name] for name in self.spec.key}:
            raise Refused(BAD_KEY, f"the key {self.key_text(row)!r} does not tell where its parts end: change {texts}")
        if len(self._known_texts) < 100_000:
            self._known_texts.add(texts)

    def _check_batch(self, batch: pa.RecordBatch) -> None:
        """The same checks as row by row, on whole columns; says only that something is wrong."""
        for name in self.required:
            if batch.column(name).null_count:
                raise Refused(BAD_VALUE, f"{name} is required")
        texts = []
        for name in self.spec.key:
            column = batch.column(name)
            if self.spec.columns[name] == "text":
                texts.append(name)
            elif len(column) and pc.min(column).as_py() < 0:
                raise Refused(BAD_KEY, f"{name} is part of the key")
        if texts:
            for row in distinct_rows(batch, texts):
                self._check_key({name: row.get(name, 0) for name in self.spec.key})


def _check_spec(spec: CollectionSpec) -> None:
    used = {*spec.key, *spec.series, *filter(None, (spec.time, spec.version, spec.block and spec.block[0]))}
    wrong = [
        (not _NAME_LETTERS.fullmatch(spec.name), "its name needs letters A-Z a-z 0-9 _ - and starts with a letter"),
        (not used <= set(spec.columns), f"it has no columns {sorted(used - set(spec.columns))}"),
        (not spec.key, "it has no key"),
        (any(spec.columns.get(n) not in ("text", "int") for n in spec.key), "key columns are text or int"),
        (any(spec.columns.get(n) != "text" for n in spec.series), "series columns are text"),
        (spec.block and (spec.time is None or spec.block[0] not in spec.key), "blocks need a time and a key column"),
        (any(name.startswith("_") for name in spec.columns), "columns do not start with _"),
    ]
    for fault, why in wrong:
        if fault:
            raise StoreError(f"collection {spec.name!r} cannot be kept: {why}")


def _pattern(spec: CollectionSpec) -> str:
    """Reads a key back: greedy where the separator itself may stand, as short as possible elsewhere."""
    free = "symbol" if "symbol" in spec.key else spec.key[0]
    parts = []
    for literal, name, _, _ in string.Formatter().parse(spec.key_format):
        parts.append(re.escape(literal))
        if name is not None:
            text = ".+" if name == free else ".+?"
            parts.append(f"(?P<{name}>{'[0-9]+' if spec.columns[name] == 'int' else text})")
    return "".join(parts)


def distinct_rows(batch: pa.RecordBatch, names: Sequence[str]) -> list[dict[str, Any]]:
    """The different rows of some columns; a batch of one stream, where each has one value, is told at once."""
    values = [batch.column(name).unique() for name in names]
    if all(len(found) == 1 for found in values):
        return [{name: found[0].as_py() for name, found in zip(names, values, strict=True)}]
    rows: list[dict[str, Any]] = pa.Table.from_batches([batch.select(names)]).group_by(names).aggregate([]).to_pylist()
    return rows


# -- one value


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or int(value) not in _INT64:
        raise Refused(BAD_VALUE, f"{name} must be an integer of 64 bits, not {value!r}")
    return int(value)


def _float(name: str, value: Any) -> float | None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise Refused(BAD_VALUE, f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise Refused(BAD_VALUE, f"{name} must be a finite number, not {value!r}")
    return None if math.isnan(number) else number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(BAD_VALUE, f"{name} must be text, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(BAD_VALUE, f"{name} must be text that can be written as UTF-8, not {value!r}") from None
    return str(value)


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise Refused(BAD_VALUE, f"{name} must be true or false, not {value!r}")
    return bool(value)


def _floats(name: str, value: Any) -> list[float | None]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise Refused(BAD_VALUE, f"{name} must be a list of numbers, not {value!r}")
    return [None if item is None else _float32(name, item) for item in value]


def _float32(name: str, value: Any) -> float | None:
    number = _float(name, value)
    if number is not None and abs(number) > float(np.finfo(np.float32).max):
        raise Refused(BAD_VALUE, f"{name} must hold numbers of float32, not {value!r}")
    return number


def _json(name: str, value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    except orjson.JSONEncodeError as error:
        raise Refused(BAD_VALUE, f"{name} cannot be written as JSON: {error}") from None


_CLEAN: dict[ColumnType, Callable[[str, Any], Any]] = {
    "int": _int, "float": _float, "text": _text, "bool": _bool, "floats": _floats, "json": _json,
}  # fmt: skip


# -- one column


def _is_column(value: Any) -> TypeGuard[Array | Sequence[Any]]:
    return isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _rows_of(columns: Columns, rows: int) -> list[Document]:
    stretched = {n: v if _is_column(v) else [v] * rows for n, v in columns.items()}
    return [dict(zip(stretched, values, strict=True)) for values in zip(*stretched.values(), strict=True)]


def _column(value: Any, rows: int, arrow: pa.DataType, kind: ColumnType | None) -> pa.Array:
    """A whole column at once; raises Refused or an Arrow error when any value needs a closer look."""
    if value is None or kind is None:
        return pa.nulls(rows, arrow)
    clean = _CLEAN[kind]
    if not _is_column(value):
        return pa.repeat(pa.scalar(clean("value", value), arrow), rows)
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMPY_KINDS.get(kind, ""):
        return _NUMPY[kind](value)
    return pa.array([None if item is None else clean("value", item) for item in value], arrow)


_NUMPY_KINDS: dict[ColumnType, str] = {"int": "iu", "float": "fiu", "bool": "b", "floats": "f"}


def _int_array(value: Array) -> pa.Array:
    if value.dtype == np.uint64 and len(value) and int(value.max()) not in _INT64:
        raise Refused(BAD_VALUE, "an integer of more than 64 bits")
    return pa.array(np.ascontiguousarray(value, dtype=np.int64))


def _float_array(value: Array) -> pa.Array:
    numbers = np.ascontiguousarray(value, dtype=np.float64)
    if np.isinf(numbers).any():
        raise Refused(BAD_VALUE, "an infinite number")
    return pa.array(numbers, from_pandas=True)  # from_pandas: NaN is null


def _floats_array(value: Array) -> pa.Array:
    """(rows, width) to a list of float32 a row."""
    if value.ndim != 2:
        raise Refused(BAD_VALUE, "a list of numbers a row")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(value, dtype=np.float32)
    if np.isinf(numbers).any():
        raise Refused(BAD_VALUE, "an infinite number")
    offsets = np.arange(len(value) + 1, dtype=np.int32) * value.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers.ravel(), from_pandas=True))


_NUMPY: dict[ColumnType, Callable[[Array], pa.Array]] = {
    "int": _int_array,
    "float": _float_array,
    "bool": lambda value: pa.array(np.ascontiguousarray(value)),
    "floats": _floats_array,
}
