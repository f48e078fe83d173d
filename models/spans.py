"""Sets of half-open time spans: sorted, disjoint, never touching. The arithmetic of the coverage ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.market import Span


def union(*sets: Iterable[Span]) -> list[Span]:
    """All that any of the sets holds; touching spans become one."""
    merged: list[Span] = []
    for start, end in sorted(span for spans in sets for span in spans):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """What is in `spans` and not in `taken`."""
    left: list[Span] = []
    holes = union(taken)
    for start, end in union(spans):
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if hole_start > start:
                left.append((start, hole_start))
            start = hole_end
            if start >= end:
                break
        if start < end:
            left.append((start, end))
    return left


def clip(spans: Iterable[Span], start: int, end: int) -> list[Span]:
    """The part of `spans` inside [start, end)."""
    return union((max(a, start), min(b, end)) for a, b in spans)


def length(spans: Sequence[Span]) -> int:
    return sum(end - start for start, end in spans)
