"""COLLECT and WINDOW."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.aggregates import AGGREGATES
from adapters.arango_double.aql.dates import duration_ms, milliseconds
from adapters.arango_double.aql.evaluate import Compiler, Evaluate, Row, Scope
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.values import order_key

Stage = Callable[[Iterable[Row]], Iterable[Row]]
_Aggregates = list[tuple[str, Callable[[Any], Any], Evaluate]]


def _aggregates(told: tuple[nodes.Aggregate, ...], compiler: Compiler, scope: Scope) -> _Aggregates:
    for each in told:
        if each.function not in AGGREGATES:
            raise ArangoError(1574, f"invalid aggregate expression: {each.function}()", status=400)
    return [(each.name, AGGREGATES[each.function], compiler.compile(each.of, scope)) for each in told]


def collected(clause: nodes.Collect, compiler: Compiler, scope: Scope, outer: Scope) -> tuple[Stage, Scope]:
    """The stage, and the names that are left behind it. Groups come in the order of their values."""
    groups = [(name, compiler.compile(value, scope)) for name, value in clause.groups]
    aggregates = _aggregates(clause.aggregates, compiler, scope)
    into_value = compiler.compile(clause.into_value, scope) if clause.into_value is not None else None
    kept = clause.keep or tuple(sorted(scope - outer))

    def member(row: Row) -> Any:
        return into_value(row) if into_value is not None else {name: row[name] for name in kept}

    def stage(rows: Iterable[Row]) -> Iterator[Row]:
        base: Row = {}
        members: dict[tuple[Any, ...], tuple[list[Any], list[Row]]] = {}
        for row in rows:
            base = base or {name: row[name] for name in outer}
            values = [value(row) for _, value in groups]
            members.setdefault(tuple(map(order_key, values)), (values, []))[1].append(row)
        if not groups and not members and (clause.count or clause.aggregates):
            members[()] = ([], [])
        for key in sorted(members):
            values, inside = members[key]
            made = {**base, **dict(zip([name for name, _ in groups], values, strict=True))}
            made |= {name: function([of(row) for row in inside]) for name, function, of in aggregates}
            if clause.count:
                made[clause.count] = len(inside)
            if clause.into:
                made[clause.into] = [member(row) for row in inside]
            yield made

    names = [name for name, _ in groups] + [each.name for each in clause.aggregates] + [clause.count, clause.into]
    return stage, outer | {name for name in names if name}


def windowed(clause: nodes.Window, compiler: Compiler, scope: Scope) -> Stage:
    bounds = compiler.constant(clause.bounds)
    if not isinstance(bounds, dict) or not bounds.keys() <= {"preceding", "following"}:
        raise ArangoError(
            1543 if not isinstance(bounds, dict) else 10, "WINDOW wants preceding and following", status=400
        )
    aggregates = _aggregates(clause.aggregates, compiler, scope)
    if clause.by is None:
        return _by_rows(_rows_bound(bounds.get("preceding", 0)), _rows_bound(bounds.get("following", 0)), aggregates)
    low, high = _range_bound(bounds.get("preceding", 0)), _range_bound(bounds.get("following", 0))
    is_date = any(isinstance(each, str) and each != "unbounded" for each in bounds.values())
    return _by_range(compiler.compile(clause.by, scope), low, high, is_date, aggregates, compiler)


def _rows_bound(told: Any) -> float:
    if told == "unbounded":
        return float("inf")
    if isinstance(told, bool) or not isinstance(told, int) or told < 0:
        raise ArangoError(10, 'WINDOW row spec is invalid; bounds must be positive integers or "unbounded"')
    return told


def _range_bound(told: Any) -> float:
    if told == "unbounded":
        return float("inf")
    found = duration_ms(told) if isinstance(told, str) else told
    if found is None or isinstance(found, bool) or not isinstance(found, int | float):
        raise ArangoError(10, "WINDOW range spec is invalid; bounds must be numbers or ISO 8601 durations")
    return found


def _by_rows(before: float, after: float, aggregates: _Aggregates) -> Stage:
    def stage(rows: Iterable[Row]) -> Iterator[Row]:
        found = list(rows)
        columns = [[of(row) for row in found] for _, _, of in aggregates]
        for at, row in enumerate(found):
            first, last = int(max(at - before, 0)), int(min(at + after, len(found) - 1)) + 1
            yield row | {
                name: function(column[first:last])
                for (name, function, _), column in zip(aggregates, columns, strict=True)
            }

    return stage


def _by_range(
    by: Evaluate, before: float, after: float, is_date: bool, aggregates: _Aggregates, compiler: Compiler
) -> Stage:
    """Rows come out in the order of `by`."""

    def place(row: Row) -> float | None:
        value = milliseconds(by(row)) if is_date else by(row)
        if isinstance(value, bool) or not isinstance(value, int | float):
            compiler.run.warn(1542, "WINDOW range value is no number")
            return None
        return value

    def stage(rows: Iterable[Row]) -> Iterator[Row]:
        placed = [(place(row), row) for row in rows]
        for value, row in placed:
            if value is None:
                yield row | {name: None for name, _, _ in aggregates}
        found = sorted(((value, row) for value, row in placed if value is not None), key=lambda pair: pair[0])
        places = [value for value, _ in found]
        columns = [[of(row) for _, row in found] for _, _, of in aggregates]
        for value, row in found:
            first, last = bisect_left(places, value - before), bisect_right(places, value + after)
            yield row | {
                name: function(column[first:last])
                for (name, function, _), column in zip(aggregates, columns, strict=True)
            }

    return stage
