"""AQL text -> a Query: the clauses, by recursive descent."""

from __future__ import annotations

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.expressions import Expressions
from adapters.arango_double.aql.nodes import Clause, Expression
from adapters.arango_double.errors import ArangoError, not_implemented

_DIRECTIONS = ("OUTBOUND", "INBOUND", "ANY")
_PATHS = ("SHORTEST_PATH", "K_SHORTEST_PATHS", "K_PATHS", "ALL_SHORTEST_PATHS")


def parse(query: str) -> nodes.Query:
    """Raises 1501, 1502, and 9 for what the double does not know."""
    if not query.strip():
        raise ArangoError(1502)
    parser = _Parser(query)
    clauses = parser.clauses(is_top=True)
    if parser.token.kind != "end":
        raise parser.fail()
    return nodes.Query(clauses, frozenset(parser.parameters))


class _Parser(Expressions):
    def clauses(self, *, is_top: bool = False) -> tuple[Clause, ...]:
        if self.take("WITH"):  # for clusters: the collections of traversals; they are found without it
            self._collection()
            while self.take(",") or self.token.kind in ("name", "bind"):
                self._collection()
        found: list[Clause] = []
        while not (self.token.kind == "end" or self.is_at(")")):
            found.append(self._clause())
            if isinstance(found[-1], nodes.Return):
                break
        is_complete = bool(found) and (
            isinstance(found[-1], nodes.Return) or any(isinstance(each, nodes.Modify | nodes.Upsert) for each in found)
        )
        if not is_complete:
            raise self.fail()
        return tuple(found)

    def _clause(self) -> Clause:  # noqa: PLR0911 -- one per clause
        word = self.token.value if self.token.kind == "keyword" else ""
        match word:
            case "FOR":
                return self._for()
            case "FILTER":
                self.next()
                return nodes.Filter(self.expression())
            case "LET":
                self.next()
                name = self.name()
                self.want("=")
                return nodes.Let(name, self.expression())
            case "SORT":
                return self._sort()
            case "LIMIT":
                return self._limit()
            case "COLLECT":
                return self._collect()
            case "WINDOW":
                return self._window()
            case "RETURN":
                self.next()
                is_distinct = self.take("DISTINCT")
                return nodes.Return(self.expression(), is_distinct)
            case "UPSERT":
                return self._upsert()
            case "INSERT" | "UPDATE" | "REPLACE" | "REMOVE":
                return self._modify()
        raise self.fail()

    # -- FOR -----------------------------------------------------------------------------------------------

    def _for(self) -> Clause:
        self.next()
        if self.is_at("[", "{"):
            raise not_implemented("destructuring in FOR")
        names = [self.name()]
        while self.take(","):
            names.append(self.name())
        self.want("IN")
        if self.is_at(*_PATHS, *_DIRECTIONS):
            return self._traverse(names, None)
        source = self.expression()
        if self.is_at(*_PATHS, *_DIRECTIONS):
            return self._traverse(names, source)
        if len(names) > 1:
            raise self.fail()
        if self.is_word("SEARCH"):
            raise not_implemented("SEARCH")
        self._options()  # hints for the optimizer
        return nodes.For(names[0], source)

    def _traverse(self, names: list[str], depth: Expression | None) -> Clause:
        direction = str(self.token.value)
        for word in (direction, self.peek().value):
            if word in _PATHS:
                raise not_implemented(str(word))
        if len(names) > 3:
            raise self.fail()
        self.next()
        is_range = isinstance(depth, nodes.Binary) and depth.operator == ".."
        low = depth.left if isinstance(depth, nodes.Binary) and is_range else depth or nodes.Value(1)
        high = depth.right if isinstance(depth, nodes.Binary) and is_range else low
        start = self.expression()
        if self.is_at("TO"):
            raise not_implemented("shortest paths")
        graph, edges = None, []
        if self.take("GRAPH"):
            graph = nodes.Value(self.name()) if self.token.kind == "name" else self.expression()
        else:
            edges.append(self._edges(direction))
            while self.take(","):
                edges.append(self._edges(direction))
        prune = None
        if self.take_word("PRUNE"):
            if self.token.kind == "name" and self.peek().value == "=":
                raise not_implemented("PRUNE with a variable")
            prune = self.expression()
        return nodes.Traverse(tuple(names), low, high, direction, start, graph, tuple(edges), prune, self._options())

    def _edges(self, direction: str) -> tuple[str, Expression]:
        if self.is_at(*_DIRECTIONS):
            direction = str(self.next().value)
        return direction, self._collection()

    def _collection(self) -> Expression:
        if self.token.kind == "bind":
            self.parameters.add(self.token.value)
            return nodes.Parameter(str(self.next().value))
        if self.token.kind == "string":
            return nodes.Name(str(self.next().value))
        return nodes.Name(self.name())

    def _options(self) -> Expression | None:
        return self.expression() if self.take_word("OPTIONS") else None

    # -- SORT, LIMIT, COLLECT, WINDOW ----------------------------------------------------------------------

    def _sort(self) -> Clause:
        self.next()
        by = []
        while True:
            value = self.expression()
            falls = self.take("DESC")
            if not falls:
                self.take("ASC")
            by.append((value, falls))
            if not self.take(","):
                return nodes.Sort(tuple(by))

    def _limit(self) -> Clause:
        self.next()
        first = self.expression()
        return nodes.Limit(first, self.expression()) if self.take(",") else nodes.Limit(nodes.Value(0), first)

    def _collect(self) -> Clause:
        self.next()
        groups: list[tuple[str, Expression]] = []
        while self.token.kind == "name" and self.peek().value == "=":
            groups.append(self._assigned())
            if not self.take(","):
                break
        aggregates = self._aggregates() if self.take("AGGREGATE") else ()
        into, into_value, keep, count = "", None, [], ""
        if self.take("WITH"):
            if not self.take_word("COUNT"):
                raise self.fail()
            self.want("INTO")
            count = self.name()
        elif self.take("INTO"):
            into = self.name()
            if self.take("="):
                into_value = self.expression()
            elif self.take_word("KEEP"):
                keep.append(self.name())
                while self.take(","):
                    keep.append(self.name())
        self._options()
        if not (groups or aggregates or into or count):
            raise self.fail()
        return nodes.Collect(tuple(groups), aggregates, into, into_value, tuple(keep), count)

    def _assigned(self) -> tuple[str, Expression]:
        name = self.name()
        self.want("=")
        return name, self.expression()

    def _aggregates(self) -> tuple[nodes.Aggregate, ...]:
        found = []
        while True:
            name, value = self._assigned()
            if not isinstance(value, nodes.Call):
                raise ArangoError(1574, "aggregate expression must be a function call", status=400)
            argument = value.arguments[0] if value.arguments else nodes.Value(None)
            found.append(nodes.Aggregate(name, value.name, argument))
            if not self.take(","):
                return tuple(found)

    def _window(self) -> Clause:
        self.next()
        first = self.expression()
        by, bounds = (first, self.expression()) if self.take("WITH") else (None, first)
        self.want("AGGREGATE")
        return nodes.Window(by, bounds, self._aggregates())

    # -- changes -------------------------------------------------------------------------------------------

    def _modify(self) -> Clause:
        verb = str(self.next().value)
        if verb in ("INSERT", "REMOVE"):
            document = self.expression(7)  # binds more than IN does
            return nodes.Modify(verb, document, self._target(), options=self._options())
        document, key = self.expression(7), None
        if self.take("WITH"):
            key, document = document, self.expression(7)
        return nodes.Modify(verb, document, self._target(), key, self._options())

    def _upsert(self) -> Clause:
        self.next()
        if self.is_at("FILTER"):
            raise not_implemented("UPSERT FILTER")
        example = self.expression(7)
        self.want("INSERT")
        insert = self.expression(7)
        if not self.is_at("UPDATE", "REPLACE"):
            raise self.fail()
        verb = str(self.next().value)
        change = self.expression(7)
        return nodes.Upsert(example, insert, verb, change, self._target(), self._options())

    def _target(self) -> Expression:
        if not self.take("IN", "INTO"):
            raise self.fail()
        return self._collection()
