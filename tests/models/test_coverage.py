"""The ledger: what is stored stays stored, a hole is shown until a later batch fills it."""

from models.coverage import Coverage
from models.market import Batch, Span, empty_columns, pack_columns


def batch(covers: Span, missing: tuple[Span, ...] = (), unrecoverable: tuple[Span, ...] = ()) -> Batch:
    return Batch(
        venue="binance", symbol="BTCUSDT", channel="trades", source="history", run="r", ts_receipt_ms=0, covers=covers,
        missing=missing, unrecoverable=unrecoverable, columns=pack_columns("trades", empty_columns("trades")),
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
