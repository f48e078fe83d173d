"""A book is in sync or not there: what the chain of update ids proves, and what a snapshot leaves unknown."""

from __future__ import annotations

import pytest

from models.order_book import CHAINS, DEPTH, MOST_LEVELS, MOST_WAITING, Book, BookSync, Diff, Snapshot
from tests.books import top_of


def snapshot(last: int = 100) -> Snapshot:
    return Snapshot(last, [(10.0, 1.0), (9.0, 2.0)], [(11.0, 1.0), (12.0, 2.0)], bids_whole=True, asks_whole=True)


def spot(first: int, last: int, bids: object = (), asks: object = ()) -> Diff:
    return Diff(last, 1000 + last, list(bids), list(asks), first=first)  # type: ignore[call-overload]


def um(previous: int, last: int, first: int) -> Diff:
    return Diff(last, 1000 + last, [], [], first=first, previous=previous)


def okx(previous: int | None, last: int, ts_ms: int = 5) -> Diff:
    return Diff(last, ts_ms, [], [], previous=previous)


@pytest.mark.parametrize(
    ("venue", "diff", "place"),
    [
        ("binance", spot(101, 105), "next"),
        ("binance", spot(90, 105), "next"),  # the snapshot fell inside it
        ("binance", spot(100, 101), "next"),
        ("binance", spot(102, 105), "gap"),
        ("binance", spot(90, 100), "old"),
        ("binance", spot(90, 99), "old"),
        ("binance_um", um(100, 180, first=140), "next"),  # ids of other symbols lie between
        ("binance_um", um(90, 105, first=95), "next"),
        ("binance_um", um(101, 180, first=102), "gap"),
        ("binance_um", um(60, 100, first=95), "old"),
        ("okx", okx(100, 123), "next"),
        ("okx", okx(100, 100), "next"),  # keep-alive
        ("okx", okx(100, 3), "next"),  # ids start again after maintenance
        ("okx", okx(90, 123), "next"),
        ("okx", okx(101, 123), "gap"),
        ("okx", okx(90, 95), "old"),
        ("okx", okx(3, 7, ts_ms=6_000), "gap"),  # the new start itself was lost: lower ids, long after
        ("binance", Diff(100, 6_000, [], [], first=99), "gap"),  # the book's id must have been wrong
        ("okx", okx(None, 0), "next"),  # recordings of 2022 carry no ids
    ],
)
def test_a_venues_chain_says_which_diff_is_the_next_one(venue: str, diff: Diff, place: str) -> None:
    assert CHAINS[venue](diff, 100, 5) == place


def test_a_diff_that_names_nothing_to_follow_is_a_gap() -> None:
    nameless = Diff(101, 0, [], [])
    assert CHAINS["binance"](nameless, 100, 0) == CHAINS["binance_um"](nameless, 100, 0) == "gap"


def live(venue: str = "binance", moves: list[int] | None = None) -> BookSync:
    sync = BookSync(CHAINS[venue], lambda book: (moves if moves is not None else []).append(book.at))
    sync.diff(spot(90, 100))
    sync.snapshot(snapshot())
    assert sync.state == "live"
    return sync


def test_quantities_are_absolute_and_nothing_removes_what_is_not_there() -> None:
    sync = live()
    sync.diff(spot(101, 101, bids=[(10.0, 5.0), (9.0, 0.0), (8.0, 0.0)], asks=[(10.5, 0.25)]))
    assert sync.book
    assert top_of(sync.book) == ([(10.0, 5.0)], [(10.5, 0.25), (11.0, 1.0), (12.0, 2.0)])


def test_a_snapshot_that_ends_where_a_diff_ends_is_in_sync_at_once() -> None:
    moves: list[int] = []
    sync = live(moves=moves)
    assert moves == []
    assert sync.book
    assert (sync.book.at, sync.book.ts_ms) == (100, 1100)


def test_a_snapshot_newer_than_all_diffs_waits_for_the_one_that_goes_on_from_it() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.diff(spot(90, 95))
    sync.snapshot(snapshot())
    assert (sync.state, sync.book, sync.wants_snapshot) == ("stale", None, False)
    sync.diff(spot(96, 103))
    assert sync.book
    assert sync.book.at == 103


def test_a_snapshot_older_than_the_diffs_is_not_used_and_a_newer_one_is_wanted() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.diff(spot(105, 110))
    assert sync.wants_snapshot
    sync.snapshot(snapshot())
    assert (sync.book, sync.wants_snapshot) == (None, True)
    sync.snapshot(snapshot(107))
    assert sync.book
    assert sync.book.at == 110


def test_a_snapshot_alone_is_not_in_sync() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.snapshot(snapshot())
    assert (sync.state, sync.book) == ("stale", None)


def test_a_crossed_snapshot_is_invalid() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.diff(spot(90, 100))
    sync.snapshot(Snapshot(100, [(11.0, 1.0)], [(11.0, 1.0)]))
    assert (sync.state, sync.book, sync.wants_snapshot) == ("invalid", None, True)


def test_waiting_diffs_are_bounded_and_a_snapshot_from_before_them_is_then_too_old() -> None:
    sync = BookSync(CHAINS["binance"])
    for number in range(101, 102 + MOST_WAITING):
        sync.diff(spot(number, number))
    sync.snapshot(snapshot())
    assert (sync.book, sync.wants_snapshot) == (None, True)
    sync.snapshot(snapshot(101))
    assert sync.book
    assert sync.book.at == 101 + MOST_WAITING


def deep(last: int, best_bid: int, levels: int = 2 * DEPTH) -> Snapshot:
    """`levels` a side, cut there."""
    bids = [(float(best_bid - n), 1.0) for n in range(levels)]
    return Snapshot(last, bids, [(float(best_bid + 1 + n), 1.0) for n in range(levels)])


def test_levels_behind_the_snapshot_are_unknown_rather_than_zero() -> None:
    book = Book(deep(100, 1000))
    book.apply(spot(101, 101, bids=[(float(price), 0.0) for price in range(1000, 970, -1)] + [(900.0, 3.0)]))
    assert book.bids.top() == [(float(price), 1.0) for price in range(970, 960, -1)], "900 has unknown ones before it"
    assert book.thin
    book.apply(spot(102, 102, bids=[(float(price), 0.0) for price in range(970, 960, -1)] + [(899.0, 3.0)]))
    assert book.bids.top() == [(900.0, 3.0)], "the best price alone is known there"


def test_a_thin_book_stays_live_until_a_newer_snapshot_makes_it_deep() -> None:
    moves: list[int] = []
    sync = BookSync(CHAINS["binance"], lambda book: moves.append(book.at))
    sync.diff(spot(90, 100))
    sync.snapshot(deep(100, 1000))
    sync.diff(spot(101, 101, bids=[(float(price), 0.0) for price in range(1000, 970, -1)]))
    assert (sync.state, sync.wants_snapshot) == ("live", True)
    sync.diff(spot(102, 102))
    sync.diff(spot(103, 103))
    sync.snapshot(deep(102, 970))
    assert (sync.state, sync.wants_snapshot) == ("live", False)
    assert sync.book
    assert len(sync.book.bids.top()) == DEPTH
    assert (sync.book.at, moves) == (103, [101, 102, 103]), "no diff is told of twice"


def test_a_gap_ends_the_wait_for_a_deeper_book_too() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.diff(spot(90, 100))
    sync.snapshot(deep(100, 1000))
    sync.diff(spot(101, 101, bids=[(float(price), 0.0) for price in range(1000, 970, -1)]))
    sync.diff(spot(105, 105))
    sync.snapshot(deep(102, 970))
    assert (sync.state, sync.book, sync.wants_snapshot) == ("stale", None, True)


def test_a_side_is_bounded_and_forgets_its_far_end() -> None:
    book = Book(Snapshot(100, [(10.0, 1.0)], [], asks_whole=True))
    for last in range(101, 401):
        book.apply(spot(last, last, asks=[(11.0 + 100 * last + n, 1.0) for n in range(100)]))
        assert len(book.asks) <= 2 * MOST_LEVELS
    assert not book.asks.whole
    assert book.asks.top()[0] == (11.0 + 100 * 101, 1.0)
    assert len(book.asks.top()) == DEPTH


def test_prices_that_are_gone_do_not_pile_up() -> None:
    book = Book(snapshot())
    for last in range(101, 1101):
        book.apply(spot(last, last, bids=[(float(last % 7), 1.0)], asks=[(float(last), 1.0), (last - 1.0, 0.0)]))
    assert top_of(book) == ([(10.0, 1.0), (9.0, 2.0), *[(float(n), 1.0) for n in range(6, -1, -1)]],
                            [(11.0, 1.0), (12.0, 2.0), (1100.0, 1.0)])  # fmt: skip
    assert len(book.asks._sizes) < 100
