"""/_api/import: many documents in one body, as JSON lines, as an array, or as a header and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from adapters.arango_double import documents
from adapters.arango_double.calls import Answer, Call, wrong_method
from adapters.arango_double.documents import Options
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection
from adapters.arango_double.values import dumps, loads

Json = dict[str, Any]
_MODES = {"error": "conflict", "update": "update", "replace": "replace", "ignore": "ignore"}
_BAD_EDGE = "missing '_from' or '_to' attribute"


@dataclass
class _Result:
    complete: bool
    created: int = 0
    errors: int = 0
    empty: int = 0
    updated: int = 0
    ignored: int = 0
    details: list[str] = field(default_factory=list)

    def refuse(self, refused: ArangoError, text: str) -> None:
        """Raises it where one bad document ends all."""
        if self.complete:
            raise refused
        self.errors += 1
        self.details.append(text)


def bulk_import(call: Call) -> Answer:
    if call.method != "POST":
        raise wrong_method()
    name = call.query.get("collection")
    if not name:
        raise ArangoError(1204, "'collection' is missing, expecting /_api/import?collection=<identifier>[&type=<type>]")
    found = call.database.collection(name)
    mode = _MODES.get(call.query.get("onDuplicate", "error"))
    if mode is None:
        raise ArangoError(400, "invalid value for 'onDuplicate'")
    if call.flag("overwrite"):
        call.server.change("truncate", call.database.name, found.name)
    result = _Result(call.flag("complete"))
    options = Options(overwrite_mode=mode)  # type: ignore[arg-type]
    for at, told in enumerate(_told(call, result)):
        _one(call, found, at, told, options, result)
    counts = {name: getattr(result, name) for name in ("created", "errors", "empty", "updated", "ignored")}
    details = {"details": result.details} if call.flag("details") else {}
    return Answer({"error": False, **counts, **details}, 201)


def _told(call: Call, result: _Result) -> Iterator[Any]:
    """The values of the body; what cannot be read is counted."""
    kind = call.query.get("type", "")
    if kind == "auto":
        kind = "array" if call.body.lstrip()[:1] == b"[" else "documents"
    match kind:
        case "documents":
            yield from _lines(call.body.split(b"\n"), result)
        case "array" | "list":
            if not call.body.strip():
                raise ArangoError(400, "expecting a JSON array in the request")
            value = call.json()
            if not isinstance(value, list):
                raise ArangoError(400, "expecting a JSON array in the request")
            yield from value
        case "" | "none":
            yield from _rows(call, result)
        case _:
            raise ArangoError(400, "invalid value for 'type'")


def _lines(lines: list[bytes], result: _Result) -> Iterator[Any]:
    if lines and not lines[-1].strip():
        lines.pop()
    for at, line in enumerate(lines, 1):
        if not line.strip():
            result.empty += 1
            continue
        try:
            yield loads(line)
        except orjson.JSONDecodeError as bad:
            result.refuse(
                ArangoError(600, f"VPackError error: {bad}"), f"at position {at}: invalid JSON type (expecting object)"
            )


def _rows(call: Call, result: _Result) -> Iterator[Any]:
    """`["a", "b"]` in the first line, values in the others."""
    lines = call.body.split(b"\n")
    names = _array(lines[0]) if lines else None
    if names is None:
        raise ArangoError(400, "no JSON array found in second line")
    for values in _lines(lines[1:], result):
        if not isinstance(values, list) or len(values) != len(names):
            result.refuse(ArangoError(400), "wrong number of JSON values")
            continue
        yield dict(zip(names, values, strict=True))


def _array(line: bytes) -> list[str] | None:
    try:
        value = loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _one(call: Call, found: Collection, at: int, told: Any, options: Options, result: _Result) -> None:
    if not isinstance(told, dict):
        result.refuse(ArangoError(1227), f"at position {at + 1}: invalid JSON type (expecting object)")
        return
    offending = f"offending document: {dumps(told).decode()}"
    if found.is_edge:
        for name, prefix in (("_from", "fromPrefix"), ("_to", "toPrefix")):
            if prefix in call.query and isinstance(told.get(name), str) and "/" not in told[name]:
                told[name] = f"{call.query[prefix]}/{told[name]}"
        if not isinstance(told.get("_from"), str) or not isinstance(told.get("_to"), str):
            result.refuse(ArangoError(1233), f"at position {at + 1}: {_BAD_EDGE}, {offending}")
            return
    try:
        if call.state.item_faults is not None:
            call.state.item_faults(told)
        existed = told.get("_key") in found.documents
        documents.insert(call.unit, found, told, options)
    except ArangoError as refused:
        short = ArangoError(refused.number) if refused.number == 1210 else refused
        text = f"at position {at}: creating document failed with error '{short.text}', {offending}"
        result.refuse(short, text)
        return
    if not existed:
        result.created += 1
    elif options.overwrite_mode == "ignore":
        result.ignored += 1
    else:
        result.updated += 1
