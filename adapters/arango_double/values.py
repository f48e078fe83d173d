"""AQL's values: their order, equality and conversions.

The order of types is null < bool < number < string < array < object; a missing attribute is null. Strings follow the
server's collation (ICU root), which is exact here for ASCII and by code point for other letters.
"""

from __future__ import annotations

import math
import re
from typing import Any

import orjson

# ICU's root order of ASCII: white space, punctuation, symbols, digits, letters with the small one first.
_ASCII_ORDER = "\t\n\v\f\r _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789"
_PRIMARY = {ord(char): at + 1 for at, char in enumerate(_ASCII_ORDER + "abcdefghijklmnopqrstuvwxyz")}
_PRIMARY |= {code - 32: weight for code, weight in _PRIMARY.items() if ord("a") <= code <= ord("z")}
_WHOLE_AS_FLOAT = re.compile(rb"[0-9]\.0*[],}\s]|[0-9][eE]")


def order_key(value: Any) -> tuple[Any, ...]:
    """A tuple that sorts as the server sorts `value` and is equal where AQL's `==` is true."""
    kind = type(value)
    if kind is str:
        return (3, value.translate(_PRIMARY), value.swapcase())
    if kind is int or kind is float:
        return (2, value)
    if value is None:
        return (0,)
    if kind is bool:
        return (1, value)
    if kind is list or kind is tuple:
        return (4, tuple(order_key(item) for item in value))
    return (5, _ObjectKey(value))


class _ObjectKey:
    """Objects compare attribute by attribute in the order of names; one that is missing counts as null."""

    __slots__ = ("value",)

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def _pair(self, other: _ObjectKey) -> tuple[list[Any], list[Any]]:
        names = sorted(self.value.keys() | other.value.keys())
        return [order_key(self.value.get(n)) for n in names], [order_key(other.value.get(n)) for n in names]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ObjectKey):
            return NotImplemented
        mine, theirs = self._pair(other)
        return mine == theirs

    def __lt__(self, other: _ObjectKey) -> bool:
        mine, theirs = self._pair(other)
        return mine < theirs

    def __hash__(self) -> int:
        return hash(frozenset((name, order_key(item)) for name, item in self.value.items() if item is not None))


def equal(left: Any, right: Any) -> bool:
    if type(left) is type(right) and not isinstance(left, list | dict):
        return bool(left == right)
    return order_key(left) == order_key(right)


def compare(left: Any, right: Any) -> int:
    """-1, 0 or 1."""
    mine, theirs = order_key(left), order_key(right)
    return (mine > theirs) - (mine < theirs) if mine != theirs else 0


def truth(value: Any) -> bool:
    """As AQL's TO_BOOL: an array and an object are true even when empty."""
    return bool(value) or isinstance(value, list | dict)


def number(value: Any) -> int | float:
    """As AQL's TO_NUMBER where an operator wants a number: what is none counts as 0."""
    found = number_or_none(value)
    return 0 if found is None else found


def number_or_none(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if value is None:
        return 0
    if isinstance(value, str):
        return _number_in(value)
    if isinstance(value, list):
        return 0 if not value else number_or_none(value[0]) if len(value) == 1 else None
    return None


def _number_in(text: str) -> int | float | None:
    text = text.strip()
    if not text:
        return 0
    if not re.fullmatch(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return None
    return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)


def text(value: Any) -> str:
    """As AQL's TO_STRING."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return dumps(value).decode()


def finite(value: float) -> int | float | None:
    """A result of arithmetic: what is no number is null."""
    return value if isinstance(value, int) or math.isfinite(value) else None


def whole(value: Any) -> Any:
    """Doubles without a fraction become whole numbers, as they come back from the server: 1.0 is 1."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    return value


def loads(body: bytes) -> Any:
    """The value in `body`. Raises orjson.JSONDecodeError."""
    value = orjson.loads(body)
    return whole(value) if _WHOLE_AS_FLOAT.search(body) else value


def dumps(value: Any) -> bytes:
    return orjson.dumps(whole(value))
