"""What bench/live.py makes of the topics: every frame with the first row that has applied it."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import RunFailed
from bench.live import Phase, held, joined

S = 10**9


def test_a_frame_is_as_late_as_the_first_row_that_has_applied_it() -> None:
    received = {b"a": [np.array([[1, 1 * S], [2, 2 * S]]), np.array([[3, 3 * S]])]}
    at_ns, late_ms = joined(received, {b"a": [(1, 1_010), (3, 3_005), (3, 9_000)]})
    assert at_ns.tolist() == [1 * S, 2 * S, 3 * S]
    assert late_ms.tolist() == [10.0, 1_005.0, 5.0]


def test_a_frame_that_no_row_has_is_an_error() -> None:
    with pytest.raises(RunFailed, match="1 frames of a are in no row"):
        joined({b"a": [np.array([[1, S], [2, S]])]}, {b"a": [(1, 1_001)]})


@pytest.mark.parametrize(("later_ms", "behind_s", "is_held"), [(0, 0.0, True), (10, 0.0, False), (0, 1.0, False)])
def test_a_rate_is_held_when_neither_the_feed_waits_nor_the_rows_come_later_and_later(
    later_ms: int, behind_s: float, is_held: bool
) -> None:
    at_ns = np.arange(60) * S
    assert held(Phase(1.0, 0, 60 * S, behind_s), at_ns, 20.0 + later_ms * np.arange(60)) is is_held
