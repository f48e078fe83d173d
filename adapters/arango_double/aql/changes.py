"""INSERT, UPDATE, REPLACE, REMOVE and UPSERT: what is read is read first, then row by row is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from adapters.arango_double import documents
from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.evaluate import Compiler, Row, Scope
from adapters.arango_double.aql.run import Run
from adapters.arango_double.documents import Options
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.indexes import attribute
from adapters.arango_double.storage import Collection
from adapters.arango_double.values import equal

Json = dict[str, Any]
Stage = Callable[[Iterable[Row]], Iterable[Row]]
_NAMES = {
    "overwriteMode": "overwrite_mode", "keepNull": "keep_null", "mergeObjects": "merge_objects",
    "ignoreRevs": "ignore_revs", "versionAttribute": "version_attribute",
}  # fmt: skip
_OTHERS = {"ignoreErrors", "waitForSync", "exclusive", "overwrite", "refillIndexCaches", "indexHint", "forceIndexHint"}


def _options(told: Any) -> tuple[Options, bool]:
    """(options, whether errors are ignored). Raises 10 for an option that is not known."""
    if not isinstance(told, dict) or not told.keys() <= _NAMES.keys() | _OTHERS:
        raise ArangoError(10, f"the OPTIONS of a change are {', '.join(sorted(_NAMES.keys() | _OTHERS))}")
    named = {_NAMES[name]: value for name, value in told.items() if name in _NAMES}
    if told.get("overwrite") and "overwrite_mode" not in named:
        named["overwrite_mode"] = "replace"
    return Options(return_new=True, return_old=True, **named), bool(told.get("ignoreErrors", False))


def _target(told: nodes.Expression, compiler: Compiler) -> Collection:
    """Raises 1203, 1579."""
    name = told.name if isinstance(told, nodes.Name) else compiler.run.parameter(getattr(told, "name", ""))
    collection = compiler.run.collection(name)
    if collection.name in compiler.run.written:
        raise ArangoError(1579, "access after data-modification by AQL (while parsing)")
    compiler.run.written.add(collection.name)
    return collection


def changed(clause: nodes.Modify | nodes.Upsert, compiler: Compiler, scope: Scope) -> Stage:
    """Behind it OLD and NEW have names."""
    if isinstance(clause, nodes.Upsert):
        return _upserted(clause, compiler, scope)
    return _modified(clause, compiler, scope)


def _modified(clause: nodes.Modify, compiler: Compiler, scope: Scope) -> Stage:
    document = compiler.compile(clause.document, scope)
    named = compiler.compile(clause.key, scope) if clause.key is not None else document
    options, ignores = _options(compiler.constant(clause.options, {}))
    collection = _target(clause.collection, compiler)
    run = compiler.run

    def change(row: Row) -> Json:
        if clause.verb == "INSERT":
            return _inserted(run, collection, document(row), options)
        told = named(row)
        key = documents.key_of(collection, told)
        revision = told.get("_rev") if isinstance(told, dict) else None
        if clause.verb == "REMOVE":
            return documents.remove(run.unit, collection, key, options, revision)
        new = document(row)
        if isinstance(new, dict) and not options.ignore_revs:
            new = {**new, "_rev": revision}
        return _change(clause.verb)(run.unit, collection, key, new, options)

    return _each(change, run, ignores)


def _upserted(clause: nodes.Upsert, compiler: Compiler, scope: Scope) -> Stage:
    example, insert = compiler.compile(clause.example, scope), compiler.compile(clause.insert, scope)
    change_to = compiler.compile(clause.change, scope | {"OLD"})
    options, ignores = _options(compiler.constant(clause.options, {}))
    collection = _target(clause.collection, compiler)
    run = compiler.run

    def change(row: Row) -> Json:
        old = _like(collection, example(row))
        if old is None:
            return _inserted(run, collection, insert(row), options)
        return _change(clause.verb)(run.unit, collection, old["_key"], change_to({**row, "OLD": old}), options)

    return _each(change, run, ignores)


def _change(verb: str) -> Callable[..., Json]:
    return documents.update if verb == "UPDATE" else documents.replace


def _inserted(run: Run, collection: Collection, document: Any, options: Options) -> Json:
    return documents.insert(run.unit, collection, document, options)


def _like(collection: Collection, example: Any) -> Json | None:
    """The first document with all attributes of `example`."""
    if not isinstance(example, dict):
        raise ArangoError(1227)
    if isinstance(example.get("_key"), str):
        found = collection.get(example["_key"])
        candidates: Iterable[Json] = [found] if found is not None else []
    else:
        candidates = collection.scan()
    wanted = list(_paths(example))
    for document in candidates:
        if all(equal(attribute(document, path), value) for path, value in wanted):
            return document
    return None


def _paths(example: Json, under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in example.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{under}{name}.")
        else:
            yield under + name, value


def _each(change: Callable[[Row], Json], run: Run, ignores: bool) -> Stage:
    def stage(rows: Iterable[Row]) -> list[Row]:
        found = []
        for row in list(rows):
            try:
                result = change(row)
            except ArangoError as refused:
                if ignores:
                    run.writes_ignored += 1
                    continue
                raise ArangoError(refused.number, f"AQL: {refused.text} (while executing)") from refused
            run.writes_executed += 1
            found.append({**row, "OLD": result.get("old"), "NEW": result.get("new")})
        return found

    return stage
