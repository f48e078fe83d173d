"""Tokens -> expressions, by the power with which operators bind (Pratt)."""

from __future__ import annotations

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.lexer import Token, tokens, unexpected
from adapters.arango_double.aql.nodes import Expression
from adapters.arango_double.errors import ArangoError, not_implemented

# operator: (binding power, as in the server's grammar)
_POWERS = {
    "?": 1, "||": 3, "OR": 3, "&&": 4, "AND": 4, "==": 6, "!=": 6, "IN": 7, "NOT": 7, "LIKE": 8, "=~": 8, "!~": 8,
    "ALL": 8, "ANY": 8, "NONE": 8, "<": 9, ">": 9, "<=": 9, ">=": 9, "..": 10, "+": 11, "-": 11, "*": 12, "/": 12,
    "%": 12,
}  # fmt: skip
_UNARY_POWER = 13
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "IN", "NOT IN")
_MAX_DEPTH = 100


class Expressions:
    """A parser of expressions; the clauses build on it (parser.py)."""

    def __init__(self, query: str) -> None:
        self.query, self._tokens, self._at, self._depth = query, tokens(query), 0, 0
        self.parameters: set[str] = set()

    # -- tokens --------------------------------------------------------------------------------------------

    @property
    def token(self) -> Token:
        return self._tokens[self._at]

    def next(self) -> Token:
        found = self._tokens[self._at]
        self._at += found.kind != "end"
        return found

    def peek(self, ahead: int = 1) -> Token:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def fail(self) -> ArangoError:
        return unexpected(self.query, self.token)

    def is_at(self, *values: str) -> bool:
        return self.token.kind in ("op", "keyword") and self.token.value in values

    def take(self, *values: str) -> bool:
        found = self.is_at(*values)
        if found:
            self.next()
        return found

    def want(self, value: str) -> None:
        if not self.take(value):
            raise self.fail()

    def is_word(self, word: str) -> bool:
        """A word that is no keyword everywhere, like OPTIONS."""
        return self.token.kind == "name" and self.token.value.upper() == word

    def take_word(self, word: str) -> bool:
        found = self.is_word(word)
        if found:
            self.next()
        return found

    def name(self) -> str:
        if self.token.kind != "name":
            raise self.fail()
        return str(self.next().value)

    # -- expressions ---------------------------------------------------------------------------------------

    def expression(self, power: int = 0) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ArangoError(1524, "query nesting is too deep", status=400)
        left = self._operand()
        while True:
            token = self.token
            mine = _POWERS.get(token.value, 0) if token.kind in ("op", "keyword") else 0
            if mine <= power or (token.value == "NOT" and self.peek().value not in ("IN", "LIKE")):
                break
            if token.value in ("ALL", "ANY", "NONE") and self.peek().value not in (*_COMPARISONS, "NOT"):
                break
            left = self._joined(left, mine)
        self._depth -= 1
        return left

    def _joined(self, left: Expression, power: int) -> Expression:
        operator = str(self.next().value)
        if operator == "?":
            return self._ternary(left)
        quantifier = ""
        if operator in ("ALL", "ANY", "NONE"):
            quantifier, operator = operator, str(self.next().value)
        if operator == "NOT":
            operator = f"NOT {self.next().value}"
        operator = {"OR": "||", "AND": "&&"}.get(operator, operator)
        return nodes.Binary(operator, left, self.expression(power), quantifier)

    def _ternary(self, condition: Expression) -> Expression:
        if self.take(":"):
            return nodes.Ternary(condition, None, self.expression(0))
        then = self.expression(0)
        self.want(":")
        return nodes.Ternary(condition, then, self.expression(0))

    def _operand(self) -> Expression:
        if self.is_at("!", "NOT", "-", "+"):
            operator = str(self.next().value)
            return nodes.Unary("!" if operator == "NOT" else operator, self.expression(_UNARY_POWER))
        return self._suffixed(self._primary())

    def _primary(self) -> Expression:  # noqa: PLR0911 -- one per kind
        token = self.token
        if token.kind in ("number", "string"):
            return nodes.Value(self.next().value)
        if token.kind == "bind":
            self.parameters.add(token.value)
            return nodes.Parameter(str(self.next().value))
        if self.is_at("TRUE", "FALSE", "NULL"):
            return nodes.Value({"TRUE": True, "FALSE": False, "NULL": None}[str(self.next().value)])
        if self.take("("):
            return self._parenthesis()
        if self.take("["):
            return nodes.Array(tuple(self._items("]")))
        if self.take("{"):
            return self._object()
        if token.kind == "name":
            return self._named()
        if token.kind == "keyword" and self.peek().value == "(" and token.value in ("LIKE",):
            return self._named()
        raise self.fail()

    def _named(self) -> Expression:
        name = str(self.next().value)
        if self.is_at("::"):
            raise not_implemented("user-defined functions")
        if not self.take("("):
            return nodes.Name(name)
        return nodes.Call(name.upper(), tuple(self._items(")")))

    def _items(self, closing: str) -> list[Expression]:
        items: list[Expression] = []
        while not self.take(closing):
            items.append(self._subquery() if self._starts_query() and closing == ")" else self.expression())
            if not self.take(","):
                self.want(closing)
                break
        return items

    def _starts_query(self) -> bool:
        return self.is_at("FOR", "RETURN", "LET", "INSERT", "UPDATE", "REPLACE", "REMOVE", "UPSERT", "FILTER", "WITH")

    def _parenthesis(self) -> Expression:
        inner = self._subquery() if self._starts_query() else self.expression()
        self.want(")")
        return inner

    def _subquery(self) -> Expression:
        return nodes.Subquery(self.clauses())

    def clauses(self) -> tuple[nodes.Clause, ...]:
        raise NotImplementedError

    def _object(self) -> Expression:
        pairs: list[tuple[Expression, Expression]] = []
        while not self.take("}"):
            pairs.append(self._pair())
            if not self.take(","):
                self.want("}")
                break
        return nodes.Object(tuple(pairs))

    def _pair(self) -> tuple[Expression, Expression]:
        key: Expression
        if self.take("["):
            key = self.expression()
            self.want("]")
        elif self.token.kind == "bind":
            self.parameters.add(self.token.value)
            key = nodes.Parameter(str(self.next().value))
        elif self.token.kind in ("name", "string", "keyword"):
            token = self.next()
            raw = self.query[token.at : token.at + len(str(token.value))] if token.kind == "keyword" else token.value
            key = nodes.Value(raw)
            if token.kind == "name" and self.is_at(",", "}"):
                return key, nodes.Name(token.value)
        else:
            raise self.fail()
        self.want(":")
        return key, self.expression()

    # -- what follows an operand ---------------------------------------------------------------------------

    def _suffixed(self, of: Expression) -> Expression:
        while True:
            if self.take("."):
                of = nodes.Attribute(of, self._attribute_name())
            elif self.is_at("[") and self.peek().value in ("*", "?") and self.peek().kind == "op":
                return self._expansion(of)
            elif self.take("["):
                of = nodes.Indexed(of, self.expression())
                self.want("]")
            else:
                return of

    def _attribute_name(self) -> Expression:
        token = self.token
        if token.kind == "bind":
            self.parameters.add(token.value)
            return nodes.Parameter(str(self.next().value))
        if token.kind not in ("name", "keyword"):
            raise self.fail()
        self.next()
        return nodes.Value(
            self.query[token.at : token.at + len(token.value)] if token.kind == "keyword" else token.value
        )

    def _expansion(self, of: Expression) -> Expression:
        self.want("[")
        if self.next().value == "?" or self.is_at("*"):
            raise not_implemented("the operators [?] and [**]")
        condition = self.expression() if self.take("FILTER") else None
        if self.is_at("LIMIT"):
            raise not_implemented("LIMIT inside [*]")
        each: Expression = self.expression() if self.take("RETURN") else nodes.Name("CURRENT")
        self.want("]")
        return nodes.Expansion(of, condition, self._suffixed(each))
