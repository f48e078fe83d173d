"""The functions of AGGREGATE: all values of a group -> one value. Nulls do not count, except in LENGTH."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adapters.arango_double.values import finite, order_key

Values = Sequence[Any]


def _numbers(values: Values) -> list[int | float] | None:
    """None where one of them is no number: the result is null then."""
    found = [value for value in values if value is not None]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in found):
        return None
    return found


def _sum(values: Values) -> Any:
    numbers = _numbers(values)
    return None if numbers is None else finite(sum(numbers))


def _average(values: Values) -> Any:
    numbers = _numbers(values)
    return finite(sum(numbers) / len(numbers)) if numbers else None


def _least(values: Values) -> Any:
    return min((value for value in values if value is not None), key=order_key, default=None)


def _greatest(values: Values) -> Any:
    return max((value for value in values if value is not None), key=order_key, default=None)


def _variance(values: Values, spared: int) -> Any:
    numbers = _numbers(values)
    if not numbers or len(numbers) <= spared:
        return None
    mean = math.fsum(numbers) / len(numbers)
    return finite(math.fsum((each - mean) ** 2 for each in numbers) / (len(numbers) - spared))


def _deviation(values: Values, spared: int) -> Any:
    variance = _variance(values, spared)
    return None if variance is None else math.sqrt(variance)


def unique(values: Values) -> list[Any]:
    """In the order of their first appearance."""
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault(order_key(value), value)
    return list(found.values())


def _sorted_unique(values: Values) -> list[Any]:
    return sorted(unique(values), key=order_key)


def _bits(fold: Callable[[int, int], int]) -> Callable[[Values], Any]:
    def function(values: Values) -> Any:
        numbers = [value for value in values if value is not None]
        if not numbers or not all(isinstance(each, int) and 0 <= each < 2**32 for each in numbers):
            return None
        result = numbers[0]
        for each in numbers[1:]:
            result = fold(result, each)
        return result

    return function


AGGREGATES: dict[str, Callable[[Values], Any]] = {
    "LENGTH": len,
    "COUNT": len,
    "SUM": _sum,
    "AVG": _average,
    "AVERAGE": _average,
    "MIN": _least,
    "MAX": _greatest,
    "VARIANCE": lambda values: _variance(values, 0),
    "VARIANCE_POPULATION": lambda values: _variance(values, 0),
    "VARIANCE_SAMPLE": lambda values: _variance(values, 1),
    "STDDEV": lambda values: _deviation(values, 0),
    "STDDEV_POPULATION": lambda values: _deviation(values, 0),
    "STDDEV_SAMPLE": lambda values: _deviation(values, 1),
    "UNIQUE": unique,
    "SORTED_UNIQUE": _sorted_unique,
    "COUNT_DISTINCT": lambda values: len(unique(values)),
    "COUNT_UNIQUE": lambda values: len(unique(values)),
    "PUSH": list,
    "BIT_AND": _bits(lambda left, right: left & right),
    "BIT_OR": _bits(lambda left, right: left | right),
    "BIT_XOR": _bits(lambda left, right: left ^ right),
}
