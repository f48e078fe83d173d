"""AQL text -> tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from adapters.arango_double.errors import ArangoError

KEYWORDS = frozenset(
    [
        "AGGREGATE",
        "ALL",
        "ALL_SHORTEST_PATHS",
        "AND",
        "ANY",
        "ASC",
        "COLLECT",
        "DESC",
        "DISTINCT",
        "FALSE",
        "FILTER",
        "FOR",
        "GRAPH",
        "IN",
        "INBOUND",
        "INSERT",
        "INTO",
        "K_PATHS",
        "K_SHORTEST_PATHS",
        "LET",
        "LIKE",
        "LIMIT",
        "NONE",
        "NOT",
        "NULL",
        "OR",
        "OUTBOUND",
        "REMOVE",
        "REPLACE",
        "RETURN",
        "SHORTEST_PATH",
        "SORT",
        "TRUE",
        "UPDATE",
        "UPSERT",
        "WINDOW",
        "WITH",
    ]
)
Kind = Literal["keyword", "name", "number", "string", "bind", "op", "end"]

_TOKEN = re.compile(
    r"""(?P<blank>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<number>(?:0[xX][0-9a-fA-F]+|0[bB][01]+|(?:[0-9]+(?:\.(?!\.)[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))
    |(?P<bind>@@?[A-Za-z0-9_]+)
    |(?P<name>[$]?[A-Za-z_][A-Za-z0-9_]*)
    |(?P<tick>`(?:\\.|[^`\\])*`|´(?:\\.|[^´\\])*´)
    |(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |(?P<op>==|!=|<=|>=|=~|!~|&&|\|\||\.\.\.|\.\.|::|[-+*/%<>!?:.,()\[\]{}=])""",
    re.X | re.S,
)
# How the server names what it did not expect.
_NAMES = {
    "=": "assignment", ",": "comma", "(": "(", ")": ")", "[": "[", "]": "]", "{": "{", "}": "}", "+": "+ operator",
    "-": "- operator", "*": "* operator", "/": "/ operator", "%": "% operator", "==": "== operator",
    "!=": "!= operator", "<": "< operator", ">": "> operator", "<=": "<= operator", ">=": ">= operator",
    "&&": "AND operator", "||": "OR operator", "!": "NOT operator", "?": "?", ":": ":", "..": "..", "=~": "=~ operator",
    "!~": "!~ operator",
}  # fmt: skip
_DECLARATIONS = frozenset(["FOR", "LET", "FILTER", "RETURN", "COLLECT", "SORT", "LIMIT", "WINDOW"])


@dataclass(frozen=True)
class Token:
    """`value` is the name, the number or the string; of a keyword and an operator its text in capitals."""

    kind: Kind
    value: Any
    at: int


def tokens(query: str) -> list[Token]:
    """Ends with a token of the kind "end". Raises 1501."""
    found: list[Token] = []
    at = 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise syntax_error(query, at, f"unexpected character {query[at]!r}")
        if match.lastgroup != "blank":
            found.append(_token(match))
        at = match.end()
    return [*found, Token("end", None, len(query))]


def _token(match: re.Match[str]) -> Token:  # noqa: PLR0911 -- one per kind
    text, at = match.group(), match.start()
    match match.lastgroup:
        case "number":
            if text[:2].lower() in ("0x", "0b"):
                return Token("number", int(text, 0), at)
            return Token("number", float(text) if re.search(r"[.eE]", text) else int(text), at)
        case "bind":
            return Token("bind", text[1:], at)
        case "name":
            is_keyword = text.upper() in KEYWORDS
            return Token("keyword", text.upper(), at) if is_keyword else Token("name", text, at)
        case "tick":
            return Token("name", _unescaped(text[1:-1]), at)
        case "string":
            return Token("string", _unescaped(text[1:-1]), at)
    return Token("op", text, at)


def _unescaped(inner: str) -> str:
    if "\\" not in inner:
        return inner

    def plain(match: re.Match[str]) -> str:
        escape = match.group()
        if escape[1] in '"\\/bfnrtu':
            decoded: str = orjson.loads(f'"{escape}"')
            return decoded
        return escape[1]

    return re.sub(r"\\u[0-9a-fA-F]{4}|\\.", plain, inner, flags=re.S)


def syntax_error(query: str, at: int, what: str) -> ArangoError:
    before = query[:at]
    line, column = before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1
    near = query[at:] if len(query) - at <= 32 else query[at : at + 32] + "..."
    return ArangoError(1501, f"syntax error, {what} near '{near}' at position {line}:{column}")


def unexpected(query: str, token: Token) -> ArangoError:
    match token.kind:
        case "keyword":
            name = f"{token.value} declaration" if token.value in _DECLARATIONS else f"{token.value} keyword"
        case "op":
            name = _NAMES.get(token.value, token.value)
        case "number":
            name = "integer number" if isinstance(token.value, int) else "number"
        case kind:
            name = {
                "name": "identifier", "string": "quoted string", "bind": "bind parameter", "end": "end of query string",
            }[kind]  # fmt: skip
    return syntax_error(query, token.at, f"unexpected {name}")
