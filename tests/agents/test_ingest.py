"""A load asks only for what is not stored, and goes on behind its checkpoint."""

from agents.ingest import ALIGN_MS, remaining

H = ALIGN_MS


def test_a_gap_is_asked_for_from_its_full_hour() -> None:
    assert remaining([(5 * H + 7, 6 * H)], (0, 10 * H), None) == [(5 * H, 6 * H)]


def test_a_load_never_asks_before_its_own_start() -> None:
    assert remaining([(H + 9, 2 * H)], (H + 5, 10 * H), None) == [(H + 5, 2 * H)]


def test_gaps_that_meet_after_alignment_are_one() -> None:
    assert remaining([(0, H + 1), (H + 5, 2 * H)], (0, 2 * H), None) == [(0, 2 * H)]


def test_nothing_is_asked_where_all_is_stored() -> None:
    assert remaining([], (0, 10 * H), None) == []


def test_a_resumed_load_goes_on_with_its_gap_and_what_lies_behind_it() -> None:
    cursor = {"gap": [2 * H, 4 * H], "page": {}}
    assert remaining([(0, H), (3 * H, 4 * H), (6 * H, 7 * H)], (0, 10 * H), cursor) == [(2 * H, 4 * H), (6 * H, 7 * H)]
