"""Clauses -> stages, each from rows to rows; the last gives the result.

{} -> FOR -> FILTER -> SORT -> ... -> RETURN
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.changes import changed
from adapters.arango_double.aql.evaluate import Compiler, Evaluate, Row, Scope
from adapters.arango_double.aql.grouping import collected, windowed
from adapters.arango_double.aql.lookup import Lookup, lookups
from adapters.arango_double.aql.parser import parse
from adapters.arango_double.aql.run import Run
from adapters.arango_double.aql.traversal import traversed
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection
from adapters.arango_double.values import number_or_none, order_key, truth

Stage = Callable[[Iterable[Row]], Iterable[Row]]


def execute(query: str, run: Run, *, full_count: bool = False) -> list[Any]:
    """The result. Raises ArangoError with the server's numbers; what was written is the caller's to undo then."""
    parsed = parse(query)
    for name in run.bound:
        if name not in parsed.parameters:
            raise ArangoError(1552, f"bind parameter '{name}' was not declared in the query (while parsing)")
    for name in parsed.parameters:
        run.parameter(name)
    return _Executor(run).result(parsed.clauses, full_count=full_count)


class _Executor:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.compiler = Compiler(run, self._subquery)

    def result(self, clauses: tuple[nodes.Clause, ...], *, full_count: bool = False) -> list[Any]:
        last_limit = max((at for at, each in enumerate(clauses) if isinstance(each, nodes.Limit)), default=-1)
        stages, final = self._stages(clauses, frozenset(), last_limit if full_count else -1)
        result = final(_piped(stages, {}))
        if full_count and self.run.full_count is None:
            self.run.full_count = len(result)
        return result

    def _subquery(self, clauses: tuple[nodes.Clause, ...], scope: Scope) -> Evaluate:
        stages, final = self._stages(clauses, scope, -1)
        return lambda row: final(_piped(stages, row))

    def _stages(
        self, clauses: tuple[nodes.Clause, ...], scope: Scope, counted: int
    ) -> tuple[list[Stage], Callable[[Iterable[Row]], list[Any]]]:
        outer = scope
        stages: list[Stage] = []
        for at, clause in enumerate(clauses):
            match clause:
                case nodes.Return(value, distinct):
                    return stages, _returned(self.compiler.compile(value, scope), distinct)
                case nodes.For():
                    stages.append(self._for(clause, clauses[at + 1 :], scope))
                    scope |= {clause.variable}
                case nodes.Traverse():
                    stages.append(traversed(clause, self.compiler, scope))
                    scope |= set(clause.variables)
                case nodes.Collect():
                    stage, scope = collected(clause, self.compiler, scope, outer)
                    stages.append(stage)
                case nodes.Window():
                    stages.append(windowed(clause, self.compiler, scope))
                    scope |= {each.name for each in clause.aggregates}
                case nodes.Modify() | nodes.Upsert():
                    stages.append(changed(clause, self.compiler, scope))
                    scope |= {"OLD", "NEW"}
                case _:
                    stages.append(self._simple(clause, scope, is_counted=at == counted))
                    if isinstance(clause, nodes.Let):
                        scope |= {clause.name}
        return stages, _exhausted

    def _simple(self, clause: nodes.Clause, scope: Scope, *, is_counted: bool) -> Stage:
        match clause:
            case nodes.Filter(condition):
                return self._filter(self.compiler.compile(condition, scope))
            case nodes.Let(name, value):
                if name in scope:
                    raise ArangoError(1511, f"variable '{name}' is assigned multiple times (while parsing)")
                made = self.compiler.compile(value, scope)
                return lambda rows: ({**row, name: made(row)} for row in rows)
            case nodes.Sort(by):
                return _sort([(self.compiler.compile(value, scope), falls) for value, falls in by])
            case nodes.Limit(offset, count):
                return self._limit(
                    _count(self.compiler.constant(offset)), _count(self.compiler.constant(count)), is_counted
                )
        raise TypeError(clause)

    def _filter(self, condition: Evaluate) -> Stage:
        def stage(rows: Iterable[Row]) -> Iterator[Row]:
            for row in rows:
                if truth(condition(row)):
                    yield row
                else:
                    self.run.filtered += 1

        return stage

    def _limit(self, offset: int, count: int, is_counted: bool) -> Stage:
        def stage(rows: Iterable[Row]) -> Iterator[Row]:
            if not is_counted:
                return islice(iter(rows), offset, offset + count)
            everything = list(rows)
            self.run.full_count = len(everything)
            return iter(everything[offset : offset + count])

        return stage

    def _for(self, clause: nodes.For, rest: tuple[nodes.Clause, ...], scope: Scope) -> Stage:
        name = clause.variable
        if name in scope:
            raise ArangoError(1511, f"variable '{name}' is assigned multiple times (while parsing)")
        collection = self.compiler.collection_named(clause.source, scope)
        if collection is None:
            return self._for_values(name, self.compiler.compile(clause.source, scope))
        if collection.name in self.run.written:
            raise ArangoError(1579, "access after data-modification by AQL (while parsing)")
        found = lookups(name, rest, collection, self.compiler, scope)
        return self._for_documents(name, collection, found)

    def _for_documents(self, name: str, collection: Collection, found: list[Lookup]) -> Stage:
        def stage(rows: Iterable[Row]) -> Iterator[Row]:
            for row in rows:
                for document in self._documents(collection, found, row):
                    yield {**row, name: document}

        return stage

    def _documents(self, collection: Collection, found: list[Lookup], row: Row) -> Iterator[Any]:
        if not found:
            self.run.scanned_full += len(collection.documents)
            return collection.scan()
        keys = found[0].keys(row)
        self.run.scanned_index += len(keys)
        return (document for key in keys if (document := collection.get(key)) is not None)

    def _for_values(self, name: str, source: Evaluate) -> Stage:
        def stage(rows: Iterable[Row]) -> Iterator[Row]:
            for row in rows:
                values = source(row)
                if not isinstance(values, list):
                    self.run.warn(1563, "collection or array expected as operand to FOR loop")
                    continue
                for value in values:
                    yield {**row, name: value}

        return stage


def _piped(stages: list[Stage], row: Row) -> Iterable[Row]:
    rows: Iterable[Row] = [row]
    for stage in stages:
        rows = stage(rows)
    return rows


def _exhausted(rows: Iterable[Row]) -> list[Any]:
    for _ in rows:
        pass
    return []


def _returned(value: Evaluate, distinct: bool) -> Callable[[Iterable[Row]], list[Any]]:
    def result(rows: Iterable[Row]) -> list[Any]:
        if not distinct:
            return [value(row) for row in rows]
        found: dict[Any, Any] = {}
        for row in rows:
            each = value(row)
            found.setdefault(order_key(each), each)
        return list(found.values())

    return result


def _sort(by: list[tuple[Evaluate, bool]]) -> Stage:
    def stage(rows: Iterable[Row]) -> Iterable[Row]:
        found = list(rows)
        for value, falls in reversed(by):  # stable: the last criterion first
            found.sort(key=lambda row, value=value: order_key(value(row)), reverse=falls)  # type: ignore[misc]
        return found

    return stage


def _count(value: Any) -> int:
    found = number_or_none(value) if value is not None else 0
    if found is None or isinstance(value, bool) or found < 0:
        raise ArangoError(1504, "number out of range (while parsing)")
    return int(found)
