"""The functions of AQL that the double has: numbers, strings, types; those of arrays and objects in collections.py.

A function gets the run (for warnings) and its arguments as values.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adapters.arango_double.aql import dates, functions_of_many
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.values import finite, number_or_none, text, truth, whole

if TYPE_CHECKING:
    from adapters.arango_double.aql.run import Run

Function = Callable[..., Any]


def _numeric(function: Callable[..., float]) -> Function:
    """Of numbers; null where one is none or the result is none."""

    def wrapped(run: Run, *arguments: Any) -> Any:
        numbers = [number_or_none(argument) for argument in arguments]
        if any(each is None for each in numbers):
            return None
        try:
            return finite(function(*numbers))
        except (ValueError, OverflowError, ZeroDivisionError):
            return None

    return wrapped


def _round(value: float) -> float:
    return math.floor(value + 0.5)


def _concat(run: Run, *arguments: Any) -> str:
    parts = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
    return "".join(text(part) for part in parts)


def _concat_separator(run: Run, separator: Any, *arguments: Any) -> str:
    parts = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
    return text(separator).join(text(part) for part in parts if part is not None)


def _substring(run: Run, value: Any, offset: Any, length: Any = None) -> str:
    told, start = text(value), int(number_or_none(offset) or 0)
    start = max(len(told) + start, 0) if start < 0 else start
    return told[start:] if length is None else told[start : start + max(int(number_or_none(length) or 0), 0)]


def _split(run: Run, value: Any, separator: Any = None, limit: Any = None) -> list[str]:
    told = text(value)
    if separator is None:
        return [told]
    marks = separator if isinstance(separator, list) else [separator]
    parts = re.split("|".join(re.escape(text(mark)) for mark in marks), told) if marks != [""] else list(told)
    return parts if limit is None else parts[: int(limit)]


def _substitute(run: Run, value: Any, search: Any, replacement: Any = "", limit: Any = None) -> str:
    told = text(value)
    if isinstance(search, dict):
        pairs, limit = {name: text(new) for name, new in search.items()}, replacement if replacement != "" else None
    elif isinstance(search, list):
        new = replacement if isinstance(replacement, list) else [replacement] * len(search)
        pairs = {text(old): text(new[at]) if at < len(new) else "" for at, old in enumerate(search)}
    else:
        pairs = {text(search): text(replacement)}
    pattern = "|".join(re.escape(old) for old in pairs)
    return re.sub(pattern, lambda match: pairs[match.group()], told, count=0 if limit is None else int(limit))


def _trimmed(side: str) -> Function:
    def function(run: Run, value: Any, chars: Any = None) -> str:
        strip: str = getattr(text(value), side)("\t\n\r " if chars is None or isinstance(chars, int) else text(chars))
        return strip

    return function


def _find(backwards: bool) -> Function:
    def function(run: Run, value: Any, search: Any, start: Any = None, end: Any = None) -> int:
        told = text(value)
        stop = len(told) if end is None else int(end) + 1
        return (told.rfind if backwards else told.find)(text(search), int(start or 0), stop)

    return function


def _starts_with(run: Run, value: Any, prefix: Any, least: Any = 1) -> bool:
    if not isinstance(prefix, list):
        return text(value).startswith(text(prefix))
    return sum(text(value).startswith(text(each)) for each in prefix) >= int(number_or_none(least) or 0)


def _like(run: Run, value: Any, pattern: Any, ignore_case: Any = False) -> bool:
    return like(text(value), text(pattern), truth(ignore_case))


def like(value: str, pattern: str, ignore_case: bool = False) -> bool:
    """% stands for any characters, _ for one, a backslash takes the next one as it is."""
    parts = re.findall(r"\\.|.", pattern, flags=re.S)
    expression = "".join(
        ".*" if part == "%" else "." if part == "_" else re.escape(part[-1]) for part in parts
    )  # fmt: skip
    return re.fullmatch(expression, value, re.S | (re.I if ignore_case else 0)) is not None


def _contains(run: Run, value: Any, search: Any, as_index: Any = False) -> Any:
    at = text(value).find(text(search))
    return at if truth(as_index) else at >= 0


def _to_number(run: Run, value: Any) -> Any:
    return number_or_none(value) or 0


def _to_array(run: Run, value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]


def _typename(run: Run, value: Any) -> str:
    return next(name for name, kind in _TYPES.items() if kind(value))


_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _is(kind: str) -> Function:
    return lambda run, value: _TYPES[kind](value)


def _fail(run: Run, reason: Any = "") -> None:
    raise ArangoError(1569, f"FAIL({text(reason)}) called")


def _assert(run: Run, condition: Any, reason: Any) -> bool:
    if not truth(condition):
        raise ArangoError(1593, text(reason), status=400)
    return True


def _sleep(run: Run, seconds: Any) -> None:
    """Blocks the whole double, as nothing else runs beside a query here."""
    time.sleep(min(float(number_or_none(seconds) or 0), 5.0))


def _range(run: Run, low: Any, high: Any, step: Any = None) -> list[Any] | None:
    start, stop = number_or_none(low) or 0, number_or_none(high) or 0
    by = number_or_none(step) if step is not None else (1 if start <= stop else -1)
    if not by or (stop - start) * by < 0:
        return None
    count = math.floor((stop - start) / by + 1e-9) + 1
    return [whole(start + at * by) for at in range(count)]


def _hash(name: str) -> Function:
    return lambda run, value: hashlib.new(name, text(value).encode(), usedforsecurity=False).hexdigest()


def _coalesce(run: Run, *values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _regex_test(run: Run, value: Any, pattern: Any, ignore_case: Any = False) -> bool:
    return re.search(text(pattern), text(value), re.I if truth(ignore_case) else 0) is not None


_MANY = 255
# name: (fewest arguments, most, function)
FUNCTIONS: dict[str, tuple[int, int, Function]] = {
    # numbers
    "ABS": (1, 1, _numeric(abs)),
    "FLOOR": (1, 1, _numeric(math.floor)),
    "CEIL": (1, 1, _numeric(math.ceil)),
    "ROUND": (1, 1, _numeric(_round)),
    "SQRT": (1, 1, _numeric(math.sqrt)),
    "POW": (2, 2, _numeric(lambda base, power: float(base) ** power)),
    "EXP": (1, 1, _numeric(math.exp)),
    "EXP2": (1, 1, _numeric(lambda value: 2.0**value)),
    "LOG": (1, 1, _numeric(math.log)),
    "LOG2": (1, 1, _numeric(math.log2)),
    "LOG10": (1, 1, _numeric(math.log10)),
    "SIN": (1, 1, _numeric(math.sin)),
    "COS": (1, 1, _numeric(math.cos)),
    "TAN": (1, 1, _numeric(math.tan)),
    "PI": (0, 0, lambda run: math.pi),
    "RAND": (0, 0, lambda run: random.random()),
    "RANGE": (2, 3, _range),
    # strings
    "CONCAT": (1, _MANY, _concat),
    "CONCAT_SEPARATOR": (2, _MANY, _concat_separator),
    "SUBSTRING": (2, 3, _substring),
    "LEFT": (2, 2, lambda run, value, count: text(value)[: int(count)]),
    "RIGHT": (2, 2, lambda run, value, count: text(value)[-int(count) :] if int(count) else ""),
    "UPPER": (1, 1, lambda run, value: text(value).upper()),
    "LOWER": (1, 1, lambda run, value: text(value).lower()),
    "CHAR_LENGTH": (1, 1, lambda run, value: len(text(value))),
    "TRIM": (1, 2, _trimmed("strip")),
    "LTRIM": (1, 2, _trimmed("lstrip")),
    "RTRIM": (1, 2, _trimmed("rstrip")),
    "SPLIT": (1, 3, _split),
    "SUBSTITUTE": (2, 4, _substitute),
    "FIND_FIRST": (2, 4, _find(False)),
    "FIND_LAST": (2, 4, _find(True)),
    "CONTAINS": (2, 3, _contains),
    "STARTS_WITH": (2, 3, _starts_with),
    "LIKE": (2, 3, _like),
    "REGEX_TEST": (2, 3, _regex_test),
    "MD5": (1, 1, _hash("md5")),
    "SHA1": (1, 1, _hash("sha1")),
    "SHA256": (1, 1, _hash("sha256")),
    # types
    "TO_NUMBER": (1, 1, _to_number),
    "TO_STRING": (1, 1, lambda run, value: text(value)),
    "TO_BOOL": (1, 1, lambda run, value: truth(value)),
    "TO_ARRAY": (1, 1, _to_array),
    "TYPENAME": (1, 1, _typename),
    "IS_NULL": (1, 1, _is("null")),
    "IS_BOOL": (1, 1, _is("bool")),
    "IS_NUMBER": (1, 1, _is("number")),
    "IS_STRING": (1, 1, _is("string")),
    "IS_ARRAY": (1, 1, _is("array")),
    "IS_LIST": (1, 1, _is("array")),
    "IS_OBJECT": (1, 1, _is("object")),
    "IS_DOCUMENT": (1, 1, _is("object")),
    "NOT_NULL": (1, _MANY, _coalesce),
    # the rest
    "NOOPT": (1, 1, lambda run, value: value),
    "PASSTHRU": (1, 1, lambda run, value: value),
    "FAIL": (0, 1, _fail),
    "ASSERT": (2, 2, _assert),
    "SLEEP": (1, 1, _sleep),
    **dates.FUNCTIONS,
    **functions_of_many.FUNCTIONS,
}
