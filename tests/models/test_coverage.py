"""The ledger: what is stored stays stored, a hole is shown until a later batch fills it."""

from models.coverage import Coverage
from models.market import Batch, Span, empty_columns, pack_columns


def batch(
    covers: Span, missing: tuple[Span, ...] = (), unrecoverable: tuple[Span, ...] = (), asked: Span | None = None
) -> Batch:
    return Batch(
        venue="binance", symbol="BTCUSDT", channel="trades", source="history", run="r", ts_receipt_ms=0, covers=covers,
        missing=missing, unrecoverable=unrecoverable, asked=asked,
        columns=pack_columns("trades", empty_columns("trades")),
    )  # fmt: skip


def test_batches_that_join_become_one_span() -> None:
    ledger = Coverage()
    for covers in ((0, 10), (20, 30), (10, 20)):
        ledger.add(batch(covers))
    assert ledger.stored == [(0, 30)]
    assert ledger.gaps(0, 40) == [(30, 40)]


def test_a_hole_is_shown_until_a_later_batch_fills_it() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 30), missing=((10, 12),), unrecoverable=((20, 25),)))
    assert ledger.missing == [(10, 12)]
    assert ledger.unrecoverable == [(20, 25)]
    assert ledger.settled([(0, 30)])
    assert ledger.gaps(0, 30) == [(10, 12), (20, 25)]
    ledger.add(batch((10, 12)))
    assert ledger.missing == []


def test_a_repeated_batch_changes_nothing() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 30), missing=((10, 12),)))
    ledger.add(batch((10, 12)))
    before = ledger.within(0, 30)
    ledger.add(batch((0, 30), missing=((10, 12),)))
    assert ledger.within(0, 30) == before


def test_a_range_is_not_settled_while_something_is_under_way() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 10)))
    assert not ledger.settled([(0, 11)])


def test_what_lacks_before_the_last_stored_moment_of_a_load_is_a_hole() -> None:
    ledger = Coverage()
    for covers in ((5, 10), (20, 30)):
        ledger.add(batch(covers, asked=(0, 100)))
    assert ledger.holes() == [(0, 6), (10, 21)], "the part behind 30 is under way, or was stopped"


def test_a_load_that_is_settled_is_not_remembered() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 30), asked=(0, 100)))
    assert ledger.asked == [(0, 100)]
    ledger.add(batch((30, 100), unrecoverable=((40, 50),), asked=(0, 100)))
    assert ledger.asked == []


def test_what_lies_between_two_loads_was_never_asked_for_and_is_no_hole() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 10), asked=(0, 10)))
    ledger.add(batch((20, 30), asked=(20, 30)))
    assert ledger.holes() == []


def test_unreadable_spans_are_holes_and_unrecoverable_ones_are_not() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 30), missing=((5, 6),), unrecoverable=((10, 20),), asked=(0, 30)))
    assert ledger.holes() == [(5, 6)]


def test_a_page_whose_predecessor_is_lost_does_not_vouch_for_its_first_millisecond() -> None:
    ledger = Coverage()
    ledger.add(batch((0, 10), asked=(0, 100)))
    ledger.add(batch((10, 20), asked=(0, 100)))
    assert ledger.holes() == []
    ledger.add(batch((30, 40), asked=(0, 100)))
    assert ledger.stored == [(0, 20), (31, 40)]
    assert ledger.holes() == [(20, 31)]
