"""Checked Arrow rows as ArangoDB documents and back.

A document is its `_key`, the declared columns as they are named (a `json` column as the object it is, so that AQL sees
into it), and undeclared fields beside them. `_version` is the version plus one, 0 for none: what the server compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from adapters.stores.base import Document
from adapters.stores.shape import EXTRA, Shape

RANK = "_version"
_OWN = ("_id", "_rev", "_from", "_to", RANK)  # what the server and this adapter add


def encode(shape: Shape, batch: pa.RecordBatch) -> list[Document]:
    """A document a row, ready for orjson."""
    spec = shape.spec
    values = {name: _values(batch.column(name), spec.columns[name] == "json") for name in spec.columns}
    keys = _formatted(spec.key_format, spec.key, values, len(batch))
    head: dict[str, Sequence[Any]] = {"_key": keys}
    if spec.ends is not None:
        for name, form in (("_from", spec.ends.source), ("_to", spec.ends.target)):
            head[name] = _formatted(f"{spec.ends.vertices}/{form}", tuple(spec.columns), values, len(batch))
    if spec.version is not None:
        head[RANK] = [0 if version is None else version + 1 for version in values[spec.version]]
    names = (*head, *values)
    # No Python between the rows: this is most of what a document costs us (`python -m bench.arango`).
    rows = zip(*head.values(), *values.values(), strict=True)
    documents: list[Document] = list(map(dict, map(zip, repeat(names), rows)))
    extra = batch.column(EXTRA)
    if extra.null_count < len(extra):
        for document, text in zip(documents, extra.to_pylist(), strict=True):
            own = orjson.loads(text) if text else {}
            document.update({name: value for name, value in own.items() if name not in document and name not in _OWN})
    return documents


def decode(shape: Shape, stored: Document) -> Document:
    """What a caller sees of a stored document: `_key`, every declared column, the undeclared fields."""
    columns = {name: _plain(kind, stored.get(name)) for name, kind in shape.spec.columns.items()}
    more = {name: value for name, value in stored.items() if name not in columns and name not in _OWN}
    return {"_key": stored["_key"], **columns, **more}


def same(shape: Shape, new: Document, stored: Document) -> bool:
    """True when writing `new` over `stored` would change nothing."""
    plain = orjson.loads(orjson.dumps(new))
    there = {name: value for name, value in stored.items() if name not in ("_id", "_rev")}
    if any(plain.get(name) != there.get(name) for name in plain.keys() | there.keys()):
        return False
    loose = [n for n in plain if shape.spec.columns.get(n, "json") == "json"]  # there, 1 is not true
    return all(_canonical(plain[name]) == _canonical(there.get(name)) for name in loose)


def arrow(shape: Shape, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Rows of values in the order of `names` as one batch of declared types."""
    columns: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(names)
    fields = [pa.field("_key", pa.string()) if n == "_key" else shape.schema.field(n) for n in names]
    arrays = [
        _array(shape.spec.columns.get(f.name, "text"), f.type, values)
        for f, values in zip(fields, columns, strict=True)
    ]
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _values(column: pa.Array, is_json: bool) -> list[Any]:
    """A column as Python values; the fast ways for what has no nulls, and for text that repeats."""
    if pa.types.is_string(column.type):
        coded = column.dictionary_encode()
        texts = coded.dictionary.to_pylist()
        if is_json:
            texts = [orjson.Fragment(text) for text in texts]
        if column.null_count == 0:
            return [texts[code] for code in coded.indices.to_numpy().tolist()]
        return [None if code is None else texts[code] for code in coded.indices.to_pylist()]
    if column.null_count == 0 and not pa.types.is_nested(column.type):
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    if pa.types.is_list(column.type) and column.null_count == 0 and column.flatten().null_count == 0:
        flat = column.flatten().to_numpy()
        ends = column.offsets.to_numpy() - column.offsets[0].as_py()
        return [part.tolist() for part in np.split(flat, ends[1:-1])] if len(column) else []
    listed: list[Any] = column.to_pylist()
    return listed


def _formatted(form: str, names: Sequence[str], values: Mapping[str, Sequence[Any]], rows: int) -> list[str]:
    used = [name for name in names if f"{{{name}}}" in form or f"{{{name}:" in form]
    for name in list(used):
        if rows and len(set(values[name])) == 1:  # one symbol's batch: its text is no part of the work
            form = form.replace(f"{{{name}}}", str(values[name][0]))
            used = [other for other in used if other != name or f"{{{name}:" in form]
    for place, name in enumerate(used):
        form = form.replace(f"{{{name}}}", f"{{{place}}}").replace(f"{{{name}:", f"{{{place}:")
    if not used:
        return [form] * rows
    return list(map(form.format, *(values[name] for name in used)))


def _plain(kind: str, value: Any) -> Any:
    """JSON has one kind of number: 1.0 comes back as 1."""
    if value is None:
        return None
    if kind == "float":
        return float(value)
    if kind == "floats":
        return [None if item is None else float(item) for item in value]
    return value


def _array(kind: str, arrow_type: pa.DataType, values: Sequence[Any]) -> pa.Array:
    if kind == "float":
        return pa.array(np.array(values, dtype=np.float64), from_pandas=True)  # None becomes NaN becomes null
    if kind == "floats":
        return pa.array([_plain(kind, value) for value in values], arrow_type)
    if kind == "json":
        texts = [None if v is None else orjson.dumps(v, option=orjson.OPT_SORT_KEYS).decode() for v in values]
        return pa.array(texts, arrow_type)
    return pa.array(values, arrow_type)


def _canonical(value: Any) -> bytes:
    return orjson.dumps(_whole(value), option=orjson.OPT_SORT_KEYS)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
