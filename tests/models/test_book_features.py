"""The numbers of a book against hand-made examples and against the same formulas over whole arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.book_features import FEATURES, BookFeatures, Levels
from models.market import BOOK_COLUMNS

BIDS = [(99.0, 3.0), (98.0, 1.0), (97.0, 2.0), (96.0, 1.0), (95.0, 1.0), (94.0, 8.0)]
ASKS = [(101.0, 1.0), (102.0, 1.0), (103.0, 1.0), (104.0, 1.0), (105.0, 2.0), (106.0, 10.0)]


def row(bids: Levels, asks: Levels, whole: tuple[bool, bool] = (True, True)) -> dict[str, float]:
    return dict(zip(FEATURES, BookFeatures().features(bids, asks, whole), strict=True))


def test_the_features_are_the_columns_behind_time_and_update_id() -> None:
    assert ("ts_ms", "update_id", *FEATURES) == tuple(BOOK_COLUMNS)


def test_a_book_by_hand() -> None:
    assert row(BIDS, ASKS) == pytest.approx(
        {
            "bid": 99.0, "bid_size": 3.0, "ask": 101.0, "ask_size": 1.0, "spread": 2.0, "mid": 100.0,
            "microprice": (101 * 3 + 99 * 1) / 4,  # more waits at the bid: the next price is nearer the ask
            "imbalance_1": (3 - 1) / 4, "imbalance_5": (8 - 6) / 14, "imbalance_20": 0.0, "ofi": 0.0,
        }
    )  # fmt: skip


def test_depth_that_is_not_all_known_has_no_imbalance() -> None:
    found = row(BIDS, ASKS, whole=(True, False))
    assert found["imbalance_5"] == pytest.approx(2 / 14)
    assert math.isnan(found["imbalance_20"])


@pytest.mark.parametrize(("bids", "asks"), [([], ASKS), (BIDS, []), ([], [])])
def test_an_empty_side_leaves_what_needs_it_unknown(bids: Levels, asks: Levels) -> None:
    found = row(bids, asks)
    assert all(math.isnan(found[name]) for name in ("spread", "mid", "microprice"))
    assert found["imbalance_1"] == (1.0 if bids else -1.0) or not (bids or asks)


@pytest.mark.parametrize(
    ("bid", "ask", "ofi"),
    [
        ((99.0, 5.0), (101.0, 1.0), 2.0),  # 2 more wait at the bid
        ((99.0, 3.0), (101.0, 4.0), -3.0),  # 3 more wait at the ask
        ((100.0, 0.5), (101.0, 1.0), 0.5),  # a better bid: all of it came
        ((98.0, 9.0), (101.0, 1.0), -3.0),  # the bid went: all of it left
        ((99.0, 3.0), (100.0, 2.0), -2.0),  # a better ask
        ((99.0, 3.0), (102.0, 7.0), 1.0),  # the ask was taken
        ((100.0, 2.0), (103.0, 1.0), 3.0),
        ((99.0, 3.0), (101.0, 1.0), 0.0),
    ],
)
def test_order_flow_imbalance_by_hand(bid: tuple[float, float], ask: tuple[float, float], ofi: float) -> None:
    features = BookFeatures()
    features.features(BIDS, ASKS)
    assert features.features([bid], [ask])[-1] == ofi


def test_flow_over_a_time_out_of_sync_is_not_made_up() -> None:
    features = BookFeatures()
    features.features(BIDS, ASKS)
    features.forget()
    assert features.features([(50.0, 1.0)], [(51.0, 1.0)])[-1] == 0.0


sizes = st.integers(1, 64).map(lambda n: n / 4)  # sums of quarters are exact in any order
side = st.lists(sizes, min_size=1, max_size=20)
books = st.tuples(st.integers(40, 50), side, st.integers(51, 60), side)


@given(st.lists(books, min_size=1, max_size=20), st.integers(0, 19))
def test_incremental_equals_batch_and_no_row_knows_what_comes_later(drawn: list[Any], cut: int) -> None:
    tops = [
        ([(float(bid - n), size) for n, size in enumerate(b)], [(float(ask + n), size) for n, size in enumerate(a)])
        for bid, b, ask, a in drawn
    ]
    one, again = BookFeatures(), BookFeatures()
    rows = [one.features(*top) for top in tops]
    np.testing.assert_array_equal(np.array(rows), batch(tops))
    assert [again.features(*top) for top in tops[:cut]] == rows[:cut]


def batch(tops: list[tuple[Levels, Levels]]) -> np.ndarray[Any, Any]:
    """The same formulas over the whole series at once. Shapes: (diffs, len(FEATURES))."""
    (bid, b), (ask, a) = ((np.array([top[n][0] for top in tops]).T) for n in (0, 1))

    def total(n: int, depth: int) -> np.ndarray[Any, Any]:
        return np.array([sum(size for _, size in top[n][:depth]) for top in tops])

    columns = [bid, b, ask, a, ask - bid, (ask + bid) / 2, (ask * b + bid * a) / (b + a)]
    for depth in (1, 5, 20):
        wanted, offered = total(0, depth), total(1, depth)
        columns.append((wanted - offered) / (wanted + offered))
    up, down = np.diff(bid) >= 0, np.diff(bid) <= 0
    lower, higher = np.diff(ask) <= 0, np.diff(ask) >= 0
    flow = up * b[1:] - down * b[:-1] - lower * a[1:] + higher * a[:-1]
    return np.column_stack([*columns, np.concatenate([[0.0], flow])])
