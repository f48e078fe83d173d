"""Expressions -> functions of a row: the names in scope are checked once, the values looked up each time."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.functions import FUNCTIONS, like
from adapters.arango_double.aql.nodes import Expression
from adapters.arango_double.aql.run import Run
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.values import compare, equal, finite, number, order_key, text, truth

Row = dict[str, Any]
Evaluate = Callable[[Row], Any]
Scope = frozenset[str]


class Subqueries(Protocol):
    """Makes a subquery's clauses a function of the row around it."""

    def __call__(self, clauses: tuple[nodes.Clause, ...], scope: Scope) -> Evaluate: ...


class Compiler:
    def __init__(self, run: Run, subqueries: Subqueries) -> None:
        self.run, self._subqueries = run, subqueries

    def compile(self, expression: Expression, scope: Scope) -> Evaluate:  # noqa: PLR0911, PLR0912 -- one line per kind
        """Raises 1203 for a name that is neither variable nor collection, 1540, 1541, 1551."""
        match expression:
            case nodes.Value(value):
                return lambda row: value
            case nodes.Name(name):
                return self._name(name, scope)
            case nodes.Parameter(name):
                return self._parameter(name)
            case nodes.Attribute(of, name):
                return _attribute(self.compile(of, scope), self.compile(name, scope)({}))
            case nodes.Indexed(of, index):
                inner, at = self.compile(of, scope), self.compile(index, scope)
                return lambda row: _at(inner(row), at(row))
            case nodes.Expansion():
                return self._expansion(expression, scope)
            case nodes.Array(items):
                made = [self.compile(item, scope) for item in items]
                return lambda row: [item(row) for item in made]
            case nodes.Object(pairs):
                both = [(self.compile(name, scope), self.compile(value, scope)) for name, value in pairs]
                return lambda row: {text(name(row)): value(row) for name, value in both}
            case nodes.Call():
                return self._call(expression, scope)
            case nodes.Unary(sign, of):
                return _unary(sign, self.compile(of, scope))
            case nodes.Binary():
                return self._binary(expression, scope)
            case nodes.Ternary(condition, then, other):
                return self._ternary(condition, then, other, scope)
            case nodes.Subquery(clauses):
                return self._subqueries(clauses, scope)

    def constant(self, expression: Expression | None, default: Any = None) -> Any:
        """The value of what depends on no row. Raises 1203 where it does."""
        return default if expression is None else self.compile(expression, frozenset())({})

    def _name(self, name: str, scope: Scope) -> Evaluate:
        if name in scope:
            return operator.itemgetter(name)
        collection = self.run.database.collections.get(name)
        if collection is None:
            raise ArangoError(1203, f"collection or view not found: {name}")
        return lambda row: list(collection.scan())

    def _parameter(self, name: str) -> Evaluate:
        value = self.run.parameter(name)
        if name.startswith("@"):
            collection = self.run.collection(value)
            return lambda row: list(collection.scan())
        return lambda row: value

    def _expansion(self, expression: nodes.Expansion, scope: Scope) -> Evaluate:
        of, inside = self.compile(expression.of, scope), scope | {"CURRENT"}
        each = self.compile(expression.each, inside)
        condition = self.compile(expression.filter or nodes.Value(True), inside)

        def expanded(row: Row) -> list[Any]:
            values = of(row)
            rows: Iterator[Row] = (
                ({**row, "CURRENT": value} for value in values) if isinstance(values, list) else iter(())
            )
            return [each(inner) for inner in rows if truth(condition(inner))]

        return expanded

    def _call(self, call: nodes.Call, scope: Scope) -> Evaluate:
        if call.name not in FUNCTIONS:
            if call.name in _OTHER_FUNCTIONS:
                raise not_implemented(f"the function {call.name}()")
            raise ArangoError(1540, f"usage of unknown function '{call.name}()' (while parsing)")
        fewest, most, function = FUNCTIONS[call.name]
        if not fewest <= len(call.arguments) <= most:
            raise ArangoError(
                1541,
                f"invalid number of arguments for function '{call.name}()', expected number of arguments: minimum: "
                f"{fewest}, maximum: {most} (while parsing)",
            )
        run = self.run
        if call.name in ("LENGTH", "COUNT") and isinstance(call.arguments[0], nodes.Name | nodes.Parameter):
            collection = self.collection_named(call.arguments[0], scope)
            if collection is not None:
                return lambda row: len(collection.documents)
        arguments = [self.compile(argument, scope) for argument in call.arguments]
        if call.name == "DOCUMENT" and (found := self.collection_named(call.arguments[0], scope)):
            arguments[0] = lambda row: found.name
        return lambda row: function(run, *[argument(row) for argument in arguments])

    def collection_named(self, expression: Expression, scope: Scope) -> Any:
        """The collection that `expression` names, if it names one."""
        match expression:
            case nodes.Name(name) if name not in scope:
                return self.run.database.collections.get(name)
            case nodes.Parameter(name) if name.startswith("@"):
                return self.run.collection(self.run.parameter(name))
        return None

    def _binary(self, binary: nodes.Binary, scope: Scope) -> Evaluate:
        left, right = self.compile(binary.left, scope), self.compile(binary.right, scope)
        if binary.operator == "&&":
            return lambda row: right(row) if truth(value := left(row)) else value
        if binary.operator == "||":
            return lambda row: value if truth(value := left(row)) else right(row)
        if binary.operator in _ARITHMETIC:
            return self._arithmetic(binary.operator, left, right)
        if binary.operator == "..":
            return lambda row: _range(left(row), right(row))
        function = _COMPARISONS[binary.operator]
        if binary.quantifier:
            return _quantified(binary.quantifier, function, left, right)
        return lambda row: function(left(row), right(row))

    def _arithmetic(self, sign: str, left: Evaluate, right: Evaluate) -> Evaluate:
        function, run = _ARITHMETIC[sign], self.run

        def arithmetic(row: Row) -> Any:
            mine, theirs = left(row), right(row)
            if not (type(mine) in (int, float) and type(theirs) in (int, float)):
                mine, theirs = number(mine), number(theirs)
            if theirs == 0 and sign in "/%":
                run.warn(1562, "division by zero")
                return None
            try:
                return finite(function(mine, theirs))
            except OverflowError:
                return None

        return arithmetic

    def _ternary(self, condition: Expression, then: Expression | None, other: Expression, scope: Scope) -> Evaluate:
        test, otherwise = self.compile(condition, scope), self.compile(other, scope)
        if then is None:
            return lambda row: value if truth(value := test(row)) else otherwise(row)
        chosen = self.compile(then, scope)
        return lambda row: chosen(row) if truth(test(row)) else otherwise(row)


def _attribute(of: Evaluate, name: Any) -> Evaluate:
    if isinstance(name, list):  # @path with ["a", "b"] is .a.b
        for part in name[:-1]:
            of = _attribute(of, part)
        name = name[-1]

    def attribute(row: Row) -> Any:
        value = of(row)
        return value.get(name) if isinstance(value, dict) else None

    return attribute


def _at(value: Any, index: Any) -> Any:
    if isinstance(value, dict):
        return value.get(text(index))
    if isinstance(value, list) and isinstance(index, int | float | str):
        at = int(number(index))
        return value[at] if -len(value) <= at < len(value) else None
    return None


def _unary(sign: str, of: Evaluate) -> Evaluate:
    match sign:
        case "!":
            return lambda row: not truth(of(row))
        case "-":
            return lambda row: -number(of(row))
    return lambda row: number(of(row))


def _range(low: Any, high: Any) -> list[int]:
    first, last = int(number(low)), int(number(high))
    return list(range(first, last + 1)) if first <= last else list(range(first, last - 1, -1))


def _remainder(left: float, right: float) -> float:
    """With the sign of the left side, as in C."""
    return int(math.fmod(left, right)) if isinstance(left, int) and isinstance(right, int) else math.fmod(left, right)


def _is_in(left: Any, right: Any) -> bool:
    if not isinstance(right, list):
        return False
    key = order_key(left)
    return any(order_key(each) == key for each in right)


def _matches(left: Any, right: Any) -> bool:
    import re

    return re.search(text(right), text(left)) is not None


def _fast(function: Callable[[Any, Any], bool], wanted: Callable[[int], bool]) -> Callable[[Any, Any], bool]:
    """Numbers directly, the rest by the order of types."""

    def comparison(left: Any, right: Any) -> bool:
        if type(left) in (int, float) and type(right) in (int, float):
            return function(left, right)
        return wanted(compare(left, right))

    return comparison


def _quantified(quantifier: str, function: Callable[[Any, Any], bool], left: Evaluate, right: Evaluate) -> Evaluate:
    fold = _FOLDS[quantifier]

    def quantified(row: Row) -> bool:
        values, other = left(row), right(row)
        return isinstance(values, list) and fold(function(value, other) for value in values)

    return quantified


_FOLDS: dict[str, Callable[[Iterable[bool]], bool]] = {
    "ALL": all,
    "ANY": any,
    "NONE": lambda found: not any(found),
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": _remainder,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": equal,
    "!=": lambda left, right: not equal(left, right),
    "<": _fast(operator.lt, lambda order: order < 0),
    "<=": _fast(operator.le, lambda order: order <= 0),
    ">": _fast(operator.gt, lambda order: order > 0),
    ">=": _fast(operator.ge, lambda order: order >= 0),
    "IN": _is_in,
    "NOT IN": lambda left, right: not _is_in(left, right),
    "LIKE": lambda left, right: like(text(left), text(right)),
    "NOT LIKE": lambda left, right: not like(text(left), text(right)),
    "=~": _matches,
    "!~": lambda left, right: not _matches(left, right),
}
# The server has these; the double does not.
_OTHER_FUNCTIONS = frozenset(
    [
        "ANALYZER",
        "BM25",
        "BOOST",
        "PHRASE",
        "TFIDF",
        "TOKENS",
        "NGRAM_MATCH",
        "NGRAM_SIMILARITY",
        "LEVENSHTEIN_DISTANCE",
        "LEVENSHTEIN_MATCH",
        "GEO_DISTANCE",
        "GEO_CONTAINS",
        "GEO_INTERSECTS",
        "GEO_POINT",
        "GEO_POLYGON",
        "GEO_LINESTRING",
        "GEO_AREA",
        "GEO_EQUALS",
        "DISTANCE",
        "NEAR",
        "WITHIN",
        "WITHIN_RECTANGLE",
        "IS_IN_POLYGON",
        "FULLTEXT",
        "CALL",
        "APPLY",
        "V8",
        "VERSION",
        "CURRENT_USER",
        "CURRENT_DATABASE",
        "COLLECTIONS",
        "COLLECTION_COUNT",
        "MATCHES",
        "UNSET_RECURSIVE",
        "KEEP_RECURSIVE",
        "JSON_STRINGIFY",
        "JSON_PARSE",
        "UUID",
        "RANDOM_TOKEN",
        "SOUNDEX",
        "ENCODE_URI_COMPONENT",
        "TO_BASE64",
        "TO_HEX",
        "CRC32",
        "FNV64",
        "SHA512",
        "HASH",
        "CHECK_DOCUMENT",
        "DATE_FORMAT",
        "DATE_COMPARE",
        "DATE_DAYOFYEAR",
        "DATE_ISOWEEK",
        "DATE_ISOWEEKYEAR",
        "DATE_LEAPYEAR",
        "DATE_QUARTER",
        "DATE_DAYS_IN_MONTH",
        "DATE_LOCALTOUTC",
        "DATE_UTCTOLOCAL",
        "DATE_TIMEZONE",
        "DATE_TIMEZONES",
        "DATE_ROUND",
        "DECAY_GAUSS",
        "DECAY_EXP",
        "DECAY_LINEAR",
        "COSINE_SIMILARITY",
        "L1_DISTANCE",
        "L2_DISTANCE",
        "MINHASH",
        "OUTERSECTION",
        "INTERLEAVE",
        "REPLACE_NTH",
        "JACCARD",
        "BIT_AND",
        "BIT_OR",
        "BIT_XOR",
        "BIT_NEGATE",
        "BIT_TEST",
        "BIT_POPCOUNT",
        "BIT_SHIFT_LEFT",
        "BIT_SHIFT_RIGHT",
        "ASIN",
        "ACOS",
        "ATAN",
        "ATAN2",
        "RADIANS",
        "DEGREES",
        "REGEX_MATCHES",
        "REGEX_SPLIT",
        "REGEX_REPLACE",
        "WARN",
        "FIRST_LIST",
        "FIRST_DOCUMENT",
        "IS_DATESTRING",
        "IS_KEY",
        "IS_IPV4",
        "IPV4_FROM_NUMBER",
        "IPV4_TO_NUMBER",
        "EXISTS",
        "MIN_MATCH",
        "IN_RANGE",
        "ENTRIES",
        "REPEAT",
        "IS_SAME_COLLECTION",
        "SORTED_UNIQUE_BY",
        "TO_CHAR",
        "ZIP_WITH",
        "REMOVE_NTH",
        "VALUE",
        "SUBSTRING_BYTES",
        "GEO_MULTIPOINT",
        "GEO_MULTILINESTRING",
        "GEO_MULTIPOLYGON",
        "MINHASH_COUNT",
        "MINHASH_ERROR",
        "NTH_VALUE",
        "SCHEMA_GET",
        "SCHEMA_VALIDATE",
        "DECODE_REV",
        "SHARD_ID",
    ]
)
