"""The functions of AQL on arrays, objects and documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from adapters.arango_double.aql.aggregates import AGGREGATES, unique
from adapters.arango_double.values import equal, order_key, text, truth

if TYPE_CHECKING:
    from adapters.arango_double.aql.run import Run

Function = Callable[..., Any]
Json = dict[str, Any]


def _of_arrays(function: Function) -> Function:
    """Null and a warning where the first argument is no array."""

    def wrapped(run: Run, values: Any, *more: Any) -> Any:
        if not isinstance(values, list):
            run.warn(1563, "array expected")
            return None
        return function(values, *more)

    return wrapped


def _of_objects(function: Function) -> Function:
    def wrapped(run: Run, value: Any, *more: Any) -> Any:
        if not isinstance(value, dict):
            run.warn(1542, "invalid argument type: object expected")
            return None
        return function(value, *more)

    return wrapped


def _length(run: Run, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool):
        return int(value)
    return len(value) if isinstance(value, list | dict | str) else len(text(value))


def _names(told: tuple[Any, ...]) -> list[Any]:
    return list(chain.from_iterable(each if isinstance(each, list) else [each] for each in told))


def _keep(value: Json, *names: Any) -> Json:
    return {name: value[name] for name in _names(names) if name in value}


def _unset(value: Json, *names: Any) -> Json:
    gone = set(_names(names))
    return {name: item for name, item in value.items() if name not in gone}


def _merge(run: Run, *values: Any) -> Any:
    objects = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not all(isinstance(each, dict) for each in objects):
        run.warn(1542, "invalid argument type in call to function 'MERGE()'")
        return None
    return dict(chain.from_iterable(each.items() for each in objects))


def _merge_recursive(run: Run, *values: Any) -> Any:
    def merged(left: Any, right: Any) -> Any:
        if not (isinstance(left, dict) and isinstance(right, dict)):
            return right
        return left | {name: merged(left.get(name), item) for name, item in right.items()}

    objects = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    found: Json = {}
    for each in objects:
        found = merged(found, each)
    return found


def _attributes(value: Json, remove_internal: Any = False, sort: Any = False) -> list[str]:
    return sorted(name for name in value if not (truth(remove_internal) and name.startswith("_")))


def _values(value: Json, remove_internal: Any = False) -> list[Any]:
    return [item for name, item in value.items() if not (truth(remove_internal) and name.startswith("_"))]


def _zip(names: list[Any], values: Any) -> Json:
    return {text(name): value for name, value in zip(names, values, strict=False)}


def _slice(values: list[Any], start: Any, length: Any = None) -> list[Any]:
    start = int(start)
    start = max(len(values) + start, 0) if start < 0 else start
    if length is None:
        return values[start:]
    return values[start : start + int(length)] if int(length) >= 0 else values[start : int(length)]


def _nth(values: list[Any], at: Any) -> Any:
    return values[int(at)] if 0 <= int(at) < len(values) else None


def _has_item(values: list[Any], item: Any) -> bool:
    return any(equal(each, item) for each in values)


def _push(run: Run, values: Any, item: Any, is_unique: Any = False) -> list[Any] | None:
    if values is not None and not isinstance(values, list):
        return None
    there = values or []
    return there if truth(is_unique) and _has_item(there, item) else [*there, item]


def _unshift(run: Run, values: Any, item: Any, is_unique: Any = False) -> list[Any] | None:
    if values is not None and not isinstance(values, list):
        return None
    there = values or []
    return there if truth(is_unique) and _has_item(there, item) else [item, *there]


def _append(run: Run, values: Any, more: Any, is_unique: Any = False) -> list[Any] | None:
    joined = [*(values or []), *(more if isinstance(more, list) else [more])]
    return unique(joined) if truth(is_unique) else joined


def _without(values: list[Any], item: Any, limit: Any = None) -> list[Any]:
    found = []
    left = len(values) if limit is None else int(limit)
    for each in values:
        if left > 0 and equal(each, item):
            left -= 1
        else:
            found.append(each)
    return found


def _position(values: list[Any], item: Any, as_index: Any = False) -> Any:
    at = next((at for at, each in enumerate(values) if equal(each, item)), -1)
    return at if truth(as_index) else at >= 0


def _flatten(values: list[Any], depth: Any = 1) -> list[Any]:
    found: list[Any] = []
    for each in values:
        if isinstance(each, list) and depth > 0:
            found.extend(_flatten(each, depth - 1))
        else:
            found.append(each)
    return found


def _union(run: Run, *arrays: Any) -> list[Any]:
    return list(chain.from_iterable(arrays))


def _intersection(run: Run, first: list[Any], *others: list[Any]) -> list[Any]:
    keys = [{order_key(each) for each in other} for other in others]
    return unique([each for each in first if all(order_key(each) in key for key in keys)])


def _minus(run: Run, first: list[Any], *others: list[Any]) -> list[Any]:
    gone = {order_key(each) for other in others for each in other}
    return unique([each for each in first if order_key(each) not in gone])


def _percentile(values: list[Any], percent: Any, method: Any = "rank") -> Any:
    numbers = sorted(each for each in values if each is not None)
    if not numbers or not 0 < percent <= 100:
        return None
    if method == "interpolation":
        place = percent * (len(numbers) + 1) / 100
        low = int(place)
        if low >= len(numbers):
            return numbers[-1]
        return numbers[0] if low <= 0 else numbers[low - 1] + (place - low) * (numbers[low] - numbers[low - 1])
    return numbers[min(max(-int(-percent * len(numbers) // 100), 1), len(numbers)) - 1]


def _median(values: list[Any]) -> Any:
    numbers = sorted(each for each in values if each is not None)
    if not numbers:
        return None
    half = len(numbers) // 2
    return numbers[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2


def _document(run: Run, told: Any, key: Any = None) -> Any:
    """By id, by ids, or by a collection and keys."""
    if key is not None:
        keys = [each if "/" in text(each) else f"{told}/{each}" for each in (key if isinstance(key, list) else [key])]
        told = keys if isinstance(key, list) else keys[0]
    if isinstance(told, list):
        return [found for each in told if (found := run.document(each)) is not None]
    return run.document(told)


def _identifier(run: Run, told: Any) -> Json | None:
    name = told.get("_id") if isinstance(told, dict) else told
    collection, slash, key = text(name).partition("/")
    return {"collection": collection, "key": key} if slash else None


_MANY = 255
_AGGREGATES = (
    "SUM", "AVG", "AVERAGE", "MIN", "MAX", "VARIANCE", "VARIANCE_POPULATION", "VARIANCE_SAMPLE", "STDDEV",
    "STDDEV_POPULATION", "STDDEV_SAMPLE", "SORTED_UNIQUE", "COUNT_DISTINCT", "COUNT_UNIQUE", "UNIQUE",
)  # fmt: skip
FUNCTIONS: dict[str, tuple[int, int, Function]] = {
    **{name: (1, 1, _of_arrays(AGGREGATES[name])) for name in _AGGREGATES},
    "LENGTH": (1, 1, _length),
    "COUNT": (1, 1, _length),
    "FIRST": (1, 1, _of_arrays(lambda values: values[0] if values else None)),
    "LAST": (1, 1, _of_arrays(lambda values: values[-1] if values else None)),
    "NTH": (2, 2, _of_arrays(_nth)),
    "SLICE": (2, 3, _of_arrays(_slice)),
    "REVERSE": (1, 1, lambda run, value: value[::-1] if isinstance(value, list | str) else None),
    "SORTED": (1, 1, _of_arrays(partial(sorted, key=order_key))),
    "FLATTEN": (1, 2, _of_arrays(_flatten)),
    "PUSH": (2, 3, _push),
    "UNSHIFT": (2, 3, _unshift),
    "APPEND": (2, 3, _append),
    "POP": (1, 1, _of_arrays(lambda values: values[:-1])),
    "SHIFT": (1, 1, _of_arrays(lambda values: values[1:])),
    "POSITION": (2, 3, _of_arrays(_position)),
    "CONTAINS_ARRAY": (2, 3, _of_arrays(_position)),
    "REMOVE_VALUE": (2, 3, _of_arrays(_without)),
    "REMOVE_VALUES": (2, 2, _of_arrays(lambda values, gone: [each for each in values if not _has_item(gone, each)])),
    "UNION": (2, _MANY, _union),
    "UNION_DISTINCT": (2, _MANY, lambda run, *arrays: unique(_union(run, *arrays))),
    "INTERSECTION": (2, _MANY, _intersection),
    "MINUS": (2, _MANY, _minus),
    "MEDIAN": (1, 1, _of_arrays(_median)),
    "PERCENTILE": (2, 3, _of_arrays(_percentile)),
    "PRODUCT": (1, 1, _of_arrays(lambda values: math.prod(each for each in values if each is not None))),
    "KEEP": (2, _MANY, _of_objects(_keep)),
    "UNSET": (2, _MANY, _of_objects(_unset)),
    "HAS": (2, 2, lambda run, value, name: isinstance(value, dict) and text(name) in value),
    "ATTRIBUTES": (1, 3, _of_objects(_attributes)),
    "KEYS": (1, 3, _of_objects(_attributes)),
    "VALUES": (1, 2, _of_objects(_values)),
    "MERGE": (1, _MANY, _merge),
    "MERGE_RECURSIVE": (1, _MANY, _merge_recursive),
    "ZIP": (2, 2, _of_arrays(_zip)),
    "TRANSLATE": (2, 3, lambda run, value, table, default=None: table.get(
        text(value), value if default is None else default
    )),
    "DOCUMENT": (1, 2, _document),
    "PARSE_IDENTIFIER": (1, 1, _identifier),
    "PARSE_KEY": (1, 1, lambda run, told: (_identifier(run, told) or {}).get("key")),
    "PARSE_COLLECTION": (1, 1, lambda run, told: (_identifier(run, told) or {}).get("collection")),
}  # fmt: skip
