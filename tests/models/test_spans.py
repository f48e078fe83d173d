"""Spans behave as sets of milliseconds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from models import spans

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def moments(found: list[tuple[int, int]]) -> set[int]:
    return {moment for start, end in found for moment in range(start, end)}


def is_normal(found: list[tuple[int, int]]) -> bool:
    return all(a < b for a, b in found) and all(x[1] < y[0] for x, y in pairwise(found))


@given(SPANS, SPANS)
def test_a_union_holds_what_either_holds(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    both = spans.union(left, right)
    assert moments(both) == moments(left) | moments(right)
    assert is_normal(both)


@given(SPANS, SPANS)
def test_a_difference_holds_only_what_the_first_holds(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    rest = spans.subtract(left, right)
    assert moments(rest) == moments(left) - moments(right)
    assert is_normal(rest)


@given(SPANS, st.integers(0, 60), st.integers(0, 60))
def test_clipping_keeps_what_lies_inside(found: list[tuple[int, int]], start: int, end: int) -> None:
    assert moments(spans.clip(found, start, end)) == moments(found) & set(range(start, end))


def test_touching_spans_are_one() -> None:
    assert spans.union([(0, 5)], [(5, 9)]) == [(0, 9)]
    assert spans.length([(0, 5), (7, 9)]) == 7
