"""Readiness: a partition that stands still is named, one that has nothing to do is not."""

from __future__ import annotations

from faust.types import TP

from app.web.health import STANDS_STILL_S, Positions

ONE, TWO = TP("market.trades", 0), TP("market.trades", 1)


def test_a_partition_with_records_behind_an_unmoved_position_stands_still_after_a_minute() -> None:
    positions = Positions()
    assert positions.standing_still(0.0, {ONE: 5, TWO: 9}) == []
    assert positions.standing_still(STANDS_STILL_S - 1, {ONE: 5, TWO: 9}) == []
    assert positions.standing_still(STANDS_STILL_S, {ONE: 5, TWO: 9}) == [ONE, TWO]


def test_a_position_that_moves_is_given_its_minute_again() -> None:
    positions = Positions()
    positions.standing_still(0.0, {ONE: 5})
    assert positions.standing_still(50.0, {ONE: 6}) == []
    assert positions.standing_still(100.0, {ONE: 6}) == []
    assert positions.standing_still(110.0, {ONE: 6}) == [ONE]


def test_a_partition_that_has_caught_up_begins_anew() -> None:
    positions = Positions()
    positions.standing_still(0.0, {ONE: 5})
    assert positions.standing_still(70.0, {}) == []
    assert positions.standing_still(80.0, {ONE: 5}) == []
