"""A partition that stands still although records wait is seen; one that moves, or has nothing to do, is not."""

from __future__ import annotations

import pytest
from faust.types import TP

from app.positions import BEHIND_FOR_S, BEHIND_RECORDS, STANDS_STILL_S, Behind, Positions
from app.telemetry import BEHIND

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


def test_r14_a_reader_at_half_the_speed_of_its_topic_is_said_to_be_behind_until_it_has_caught_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    behind, written, read, said_at = Behind(), 0, 0, None
    for second in range(1_800):  # ten minutes at twice the capacity, then a calm
        written += 100 if second < 600 else 0
        read = min(written, read + 50)
        behind.look(float(second), {"market.trades": written - read, "market.candles": 1})
        if said_at is None and behind.said:
            said_at = second
    assert said_at == (BEHIND_RECORDS // 50 - 1) + BEHIND_FOR_S
    assert [record.message for record in caplog.records] == [
        "market.trades is read too slowly: 1000 records wait for this worker. Nothing is lost; start another worker of "
        "this role, or follow fewer symbols",
        "market.trades is read as fast as it is written again",
    ]
    assert BEHIND.labels("market.trades")._value.get() == 0


def test_r14_a_burst_that_is_soon_read_is_no_alert(caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    for second in range(100):
        behind.look(float(second), {"market.trades": 10_000 if second % 10 < 9 else 0})
    assert not caplog.records
