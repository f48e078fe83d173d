"""The syntax tree: expressions and clauses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# -- expressions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    value: Any


@dataclass(frozen=True)
class Name:
    """A variable, or else a collection."""

    name: str


@dataclass(frozen=True)
class Parameter:
    """`@value`; with `@name`, a collection."""

    name: str


@dataclass(frozen=True)
class Attribute:
    of: Expression
    name: Expression  # a Value, or a Parameter


@dataclass(frozen=True)
class Indexed:
    of: Expression
    index: Expression


@dataclass(frozen=True)
class Expansion:
    """`of[* FILTER ... RETURN ...].rest`: `each` is evaluated with CURRENT."""

    of: Expression
    filter: Expression | None
    each: Expression


@dataclass(frozen=True)
class Array:
    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Object:
    pairs: tuple[tuple[Expression, Expression], ...]


@dataclass(frozen=True)
class Call:
    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Unary:
    operator: str
    of: Expression


@dataclass(frozen=True)
class Binary:
    """`quantifier` is ALL, ANY or NONE where the left side is an array to compare item by item."""

    operator: str
    left: Expression
    right: Expression
    quantifier: str = ""


@dataclass(frozen=True)
class Ternary:
    """`condition ?: other` has no `then`."""

    condition: Expression
    then: Expression | None
    other: Expression


@dataclass(frozen=True)
class Subquery:
    clauses: tuple[Clause, ...]


Expression = (
    Value
    | Name
    | Parameter
    | Attribute
    | Indexed
    | Expansion
    | Array
    | Object
    | Call
    | Unary
    | Binary
    | Ternary
    | Subquery
)

# -- clauses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class For:
    variable: str
    source: Expression


@dataclass(frozen=True)
class Traverse:
    """`variables` are vertex, edge and path, as far as they are named."""

    variables: tuple[str, ...]
    low: Expression
    high: Expression
    direction: str
    start: Expression
    graph: Expression | None
    edges: tuple[tuple[str, Expression], ...]  # (direction, collection)
    prune: Expression | None = None
    options: Expression | None = None


@dataclass(frozen=True)
class Filter:
    condition: Expression


@dataclass(frozen=True)
class Sort:
    by: tuple[tuple[Expression, bool], ...]  # (value, whether it falls)


@dataclass(frozen=True)
class Limit:
    offset: Expression
    count: Expression


@dataclass(frozen=True)
class Let:
    name: str
    value: Expression


@dataclass(frozen=True)
class Aggregate:
    name: str
    function: str
    of: Expression


@dataclass(frozen=True)
class Collect:
    groups: tuple[tuple[str, Expression], ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    into: str = ""
    into_value: Expression | None = None
    keep: tuple[str, ...] = ()
    count: str = ""


@dataclass(frozen=True)
class Window:
    """With `by` a range of values around each row's, without it a number of rows."""

    by: Expression | None
    bounds: Expression
    aggregates: tuple[Aggregate, ...]


@dataclass(frozen=True)
class Return:
    value: Expression
    distinct: bool = False


@dataclass(frozen=True)
class Modify:
    """`verb` is INSERT, UPDATE, REPLACE or REMOVE; `key` names the document where `document` does not."""

    verb: str
    document: Expression
    collection: Expression
    key: Expression | None = None
    options: Expression | None = None


@dataclass(frozen=True)
class Upsert:
    example: Expression
    insert: Expression
    verb: str
    change: Expression
    collection: Expression
    options: Expression | None = None


Clause = For | Traverse | Filter | Sort | Limit | Let | Collect | Window | Return | Modify | Upsert


@dataclass(frozen=True)
class Query:
    clauses: tuple[Clause, ...]
    parameters: frozenset[str] = field(default_factory=frozenset)
