"""A partition that stands still although records wait is seen; one that moves, or has nothing to do, is not."""

from __future__ import annotations

from faust.types import TP

from app.positions import STANDS_STILL_S, Positions

ONE, OTHER = TP("market.trades", 1), TP("market.trades", 2)


def test_a_partition_that_stands_still_while_records_wait_is_seen() -> None:
    positions = Positions()
    positions.look(0.0, {ONE: 5, OTHER: 7})
    ages = positions.look(STANDS_STILL_S, {ONE: 5, OTHER: 8})
    assert ages == {ONE: STANDS_STILL_S, OTHER: 0.0}


def test_a_partition_that_moves_or_has_nothing_to_do_does_not_stand_still() -> None:
    positions = Positions()
    for second in range(0, 120, 10):
        assert max(positions.look(float(second), {ONE: second}).values()) == 0.0
    positions.look(130.0, {})
    assert positions.look(200.0, {ONE: 110}) == {ONE: 0.0}, "records wait there only now"
