"""Rows of two sides side by side: columns in, columns, counts and sentences out; nothing is read here.

Exact: a value that differs in its last bit differs. NaN equals NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.market import Array, Span, empty_columns

Columns = dict[str, Array]


@dataclass(frozen=True)
class Comparison:
    """Rows of two sides under the same keys. `sentences` are made only when read."""

    compared: int
    count: int
    sentences: Iterable[str]


def compare(
    left: Mapping[str, Array], right: Mapping[str, Array], key: str, left_name: str, right_name: str
) -> Comparison:
    """Field by field, exactly; NaN equals NaN. Both sides sorted by `key`, each key once."""
    common, at_left, at_right = np.intersect1d(left[key], right[key], assume_unique=True, return_indices=True)
    only_left = np.setdiff1d(left[key], common, assume_unique=True)
    only_right = np.setdiff1d(right[key], common, assume_unique=True)
    differing: list[tuple[str, Array]] = []
    for name in left:
        a, b = left[name][at_left], right[name][at_right]
        unequal = (a != b) & ~((a != a) & (b != b))  # noqa: PLR0124 (NaN is what differs from itself)
        if unequal.any():
            differing.append((name, np.flatnonzero(unequal)))

    def sentences() -> Iterator[str]:
        yield from (f"{key} {k}: in {left_name}, not in {right_name}" for k in only_left.tolist())
        yield from (f"{key} {k}: in {right_name}, not in {left_name}" for k in only_right.tolist())
        for name, where in differing:
            for i in where.tolist():
                a, b = left[name][at_left[i]].item(), right[name][at_right[i]].item()
                yield f"{key} {common[i]}: {name} is {a!r} in {left_name} and {b!r} in {right_name}"

    count = len(only_left) + len(only_right) + sum(len(where) for _, where in differing)
    return Comparison(len(common), count, sentences())


def once(columns: Columns, key: str) -> tuple[Columns, int, list[int]]:
    """Rows sorted by key, each key once; how many were repeats; the keys whose repeats do not agree."""
    if not len(columns[key]):
        return columns, 0, []
    if not (columns[key][1:] > columns[key][:-1]).all():
        order = np.argsort(columns[key], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    again = np.concatenate([[False], columns[key][1:] == columns[key][:-1]])
    if not again.any():
        return columns, 0, []
    unequal = np.zeros(len(again), dtype=np.bool_)
    for column in columns.values():
        unequal[1:] |= (column[1:] != column[:-1]) & ~((column[1:] != column[1:]) & (column[:-1] != column[:-1]))
    disagreeing = np.unique(columns[key][again & unequal]).tolist()
    return {name: column[~again] for name, column in columns.items()}, int(again.sum()), disagreeing


def concat(parts: list[Columns], channel: str) -> Columns:
    """The rows of all parts, one after the other, in a channel's columns."""
    empty = empty_columns(channel)
    return {name: np.concatenate([part[name] for part in parts]) for name in empty} if parts else empty


def inside_of(times: Array, covered: Sequence[Span]) -> Array:
    """True where a time lies in one of the spans (sorted, disjoint). Shapes: (n,) -> (n,)."""
    if not covered:
        return np.zeros(len(times), dtype=np.bool_)
    edges = np.array([edge for span in covered for edge in span], dtype=np.int64)
    inside: Array = np.searchsorted(edges, times, side="right") % 2 == 1
    return inside


def grid(covered: Sequence[Span], step_ms: int) -> Array:
    """The open times of the candles that begin inside the spans."""
    parts = [np.arange(-(-start // step_ms) * step_ms, end, step_ms, dtype=np.int64) for start, end in covered]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
