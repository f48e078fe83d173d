"""Whatever the order of arrival, records go on by id, each once, and only a hole that is given up lets one lack."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.ordering import InOrder, Mark


def mark(number: int, done: bool = True) -> Mark:
    return Mark(number, number, number + 1, number, done=done)


@given(st.permutations(range(1, 12)), st.lists(st.integers(0, 11), max_size=10))
def test_any_order_with_any_repeats_goes_on_by_id(order: list[int], repeats: list[int]) -> None:
    records: InOrder[int] = InOrder(1)
    given_out = [item for number in [*order, *repeats] for _, item in records.offer(mark(number), number)]
    assert given_out == list(range(1, 12))
    assert (records.hole, records.waiting) == (None, 0)


@given(st.sets(st.integers(1, 30)), st.integers(1, 30))
def test_what_was_fetched_is_not_given_out_again(arrived: set[int], fetched_to: int) -> None:
    records: InOrder[int] = InOrder(1)
    live = [item for number in sorted(arrived) for _, item in records.offer(mark(number), number)]
    from_id = len(live) + 1
    behind = [item for _, item in records.passed(max(fetched_to, len(live)))]
    fetched = list(range(from_id, fetched_to + 1))
    out = [*live, *fetched, *behind]
    assert out == list(range(1, len(out) + 1))


def test_a_hole_is_what_lacks_in_front_of_the_first_that_waits() -> None:
    records: InOrder[str] = InOrder(3)
    records.offer(mark(9), "9")
    records.offer(mark(7), "7")
    assert records.hole == (3, 7)
    behind, ready = records.give_up()
    assert (behind.first, [item for _, item in ready]) == (7, ["7"])
    assert records.hole == (8, 9)


def test_a_candle_that_runs_shows_that_those_before_it_should_be_done() -> None:
    records: InOrder[str] = InOrder(5)
    assert [item for _, item in records.offer(mark(5, done=False), "5 runs")] == ["5 runs"]
    assert records.hole is None
    records.offer(mark(6, done=False), "6 runs")
    assert records.hole == (5, 6)
    assert [item for _, item in records.offer(mark(5), "5")] == ["5"]
    assert records.hole is None
