"""Which documents a FOR need not read: those that an equality in its FILTERs rules out, by an index.

The FILTER itself stays, so that a look-up changes what is read and never what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.evaluate import Compiler, Row, Scope
from adapters.arango_double.storage import Collection


@dataclass(frozen=True)
class Lookup:
    keys: Callable[[Row], list[str]]


def lookups(
    variable: str, rest: tuple[nodes.Clause, ...], collection: Collection, compiler: Compiler, scope: Scope
) -> list[Lookup]:
    found = []
    for condition in _conjuncts(rest):
        sides = _equality(variable, condition)
        if sides is None or _uses(sides[2], variable):
            continue
        field, operator, other = sides
        by = _keys_by(collection, field)
        if by is not None:
            value = compiler.compile(other, scope)
            found.append((field != "_key", Lookup(_many(by, value) if operator == "IN" else _one(by, value))))
    return [lookup for _, lookup in sorted(found, key=lambda pair: pair[0])]


def _conjuncts(rest: tuple[nodes.Clause, ...]) -> Iterator[nodes.Expression]:
    for clause in rest:
        if not isinstance(clause, nodes.Filter):
            return
        pending = [clause.condition]
        while pending:
            each = pending.pop()
            if isinstance(each, nodes.Binary) and each.operator == "&&":
                pending += [each.right, each.left]
            else:
                yield each


def _equality(variable: str, condition: nodes.Expression) -> tuple[str, str, nodes.Expression] | None:
    if not isinstance(condition, nodes.Binary) or condition.quantifier or condition.operator not in ("==", "IN"):
        return None
    for mine, other in ((condition.left, condition.right), (condition.right, condition.left)):
        match mine:
            case nodes.Attribute(nodes.Name(name), nodes.Value(str() as field)) if name == variable:
                return field, condition.operator, other
        if condition.operator == "IN":
            return None
    return None


def _uses(expression: Any, variable: str) -> bool:
    if isinstance(expression, nodes.Name):
        return expression.name == variable
    if isinstance(expression, nodes.Subquery):
        return True  # not looked into
    if isinstance(expression, tuple):
        return any(_uses(each, variable) for each in expression)
    return hasattr(expression, "__dataclass_fields__") and any(
        _uses(getattr(expression, name), variable) for name in expression.__dataclass_fields__
    )


def _keys_by(collection: Collection, field: str) -> Callable[[Any], list[str]] | None:
    if field == "_key":
        return lambda value: [value] if isinstance(value, str) else []
    if field == "_id":
        prefix = f"{collection.name}/"
        return lambda value: [value.removeprefix(prefix)] if isinstance(value, str) and value.startswith(prefix) else []
    for index in collection.indexes:
        if field in index.buckets:
            return lambda value: list(index.keys(field, value))
    return None


def _one(by: Callable[[Any], list[str]], value: Callable[[Row], Any]) -> Callable[[Row], list[str]]:
    return lambda row: by(value(row))


def _many(by: Callable[[Any], list[str]], value: Callable[[Row], Any]) -> Callable[[Row], list[str]]:
    def keys(row: Row) -> list[str]:
        values = value(row)
        return list(dict.fromkeys(key for each in values for key in by(each))) if isinstance(values, list) else []

    return keys
