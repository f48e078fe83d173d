"""R04, R05, R06: a book in sync equals the exchange's at every update id, and any other book is not there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.order_book import CHAINS, Book, BookSync, Diff, Snapshot
from tests.books import KnownBook, known_books, top_of


def chain_of(known: KnownBook) -> str:
    return "binance" if known.step == 1 else "binance_um"


class Watched:
    """A BookSync that is held against the exchange's own book whenever it moves."""

    def __init__(self, known: KnownBook) -> None:
        self.known, self.moves = known, list[int]()
        self.sync = BookSync(CHAINS[chain_of(known)], self._moved)

    def _moved(self, book: Book) -> None:
        assert self.sync.state == "live"
        assert book.at > (self.moves[-1] if self.moves else -1)
        self.moves.append(book.at)
        assert top_of(book) == self.known.top(self.known.number(book.at))

    def take(self, *received: Diff | Snapshot) -> None:
        for one in received:
            if isinstance(one, Snapshot):
                self.sync.snapshot(one)
            else:
                self.sync.diff(one)
            assert (self.sync.book is not None) == (self.sync.state == "live")


def cuts_of(known: KnownBook, data: st.DataObject) -> list[int]:
    """Where one diff ends and the next begins; the last at the end."""
    return [*sorted(data.draw(st.sets(st.integers(1, len(known) - 1), max_size=12))), len(known)]


@given(known_books, st.data())
def test_r04_no_book_is_published_before_sync_and_then_it_equals_the_exchange_at_every_update_id(
    known: KnownBook, data: st.DataObject
) -> None:
    watched = Watched(known)
    diffs = known.diffs(cuts_of(known, data))
    arrives = data.draw(st.integers(0, len(diffs)))  # the snapshot, behind so many diffs
    begins = data.draw(st.integers(0, len(diffs) - 1))  # the stream was opened so late
    number = data.draw(st.integers(0, len(known)))  # older or newer than what has been buffered
    stream = [*diffs[begins:arrives], known.snapshot(number), *diffs[max(begins, arrives) :]]
    watched.take(*stream)
    reached = number * known.step
    lost = diffs[begins].previous or 0
    if lost <= reached:
        assert watched.sync.state == "live"
        assert watched.moves == [diff.last for diff in diffs[begins:] if diff.last > reached]
    else:
        assert (watched.moves, watched.sync.wants_snapshot) == ([], True)


@given(known_books, st.data())
def test_r04_repeated_and_overlapping_diffs_change_nothing(known: KnownBook, data: st.DataObject) -> None:
    watched = Watched(known)
    watched.take(known.diff(0, 1), known.snapshot(1))
    end = 1
    for back, size in data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), max_size=12)):
        after = max(0, end - back)
        last = min(after + size, len(known))
        watched.take(known.diff(min(after, last - 1), last))
        end = max(end, last)
    assert watched.sync.state == "live"
    assert watched.sync.book
    assert watched.sync.book.at == end * known.step


@given(known_books, st.data())
def test_r05_a_missed_diff_is_found_at_the_next_message_and_only_a_snapshot_heals_it(
    known: KnownBook, data: st.DataObject
) -> None:
    cuts = [1, 2, 3, *sorted(data.draw(st.sets(st.integers(4, len(known)), max_size=8)))]
    diffs = known.diffs(cuts)
    dropped = data.draw(st.integers(1, len(diffs) - 2))
    watched, other = Watched(known), Watched(known)
    for each in (watched, other):
        each.take(diffs[0], known.snapshot(1))
    other.take(*diffs[1:])
    watched.take(*diffs[1:dropped])
    assert watched.sync.state == "live", "nobody can know yet"
    watched.take(diffs[dropped + 1])
    assert (watched.sync.state, watched.sync.wants_snapshot) == ("stale", True)
    watched.take(*diffs[dropped + 2 :])
    assert watched.sync.state == "stale", "no later diff heals it"
    watched.take(known.snapshot(data.draw(st.integers(cuts[dropped], cuts[-1]))))
    assert (watched.sync.state, other.sync.state) == ("live", "live")
    assert top_of(watched.sync.book or Book(known.snapshot(0))) == known.top(cuts[-1])


prices = st.integers(1, 20).map(float)
levels = st.lists(st.tuples(prices, st.sampled_from([0.0, 1.0, 2.0])), max_size=5)


@given(st.lists(st.tuples(levels, levels), max_size=30))
def test_r06_best_bid_is_below_best_ask_or_the_book_is_invalid(fuzzed: list[tuple[list, list]]) -> None:  # type: ignore[type-arg]
    seen: list[Book] = []
    sync = BookSync(CHAINS["binance"], seen.append)
    sync.diff(Diff(100, 0, [], [], first=100))
    sync.snapshot(Snapshot(100, [(10.0, 1.0)], [(11.0, 1.0)], bids_whole=True, asks_whole=True))
    bids, asks = {10.0: 1.0}, {11.0: 1.0}
    for number, (bid_levels, ask_levels) in enumerate(fuzzed, 101):
        told = len(seen)
        sync.diff(Diff(number, 0, bid_levels, ask_levels, first=number))
        bids, asks = bids | dict(bid_levels), asks | dict(ask_levels)
        best_bid = max((price for price, size in bids.items() if size), default=0.0)
        best_ask = min((price for price, size in asks.items() if size), default=99.0)
        if best_bid >= best_ask:
            assert (sync.state, sync.book, len(seen), sync.wants_snapshot) == ("invalid", None, told, True)
            return
        assert (sync.state, len(seen)) == ("live", told + 1)


def test_r06_an_invalid_book_comes_back_with_a_snapshot_from_behind_the_fault() -> None:
    sync = BookSync(CHAINS["binance"])
    sync.diff(Diff(100, 0, [], [], first=100))
    sync.snapshot(Snapshot(100, [(10.0, 1.0)], [(11.0, 1.0)]))
    sync.diff(Diff(101, 0, [(11.0, 1.0)], [], first=101))
    assert sync.state == "invalid"
    sync.diff(Diff(102, 0, [], [(11.0, 0.0)], first=102))
    assert sync.state == "invalid"
    sync.snapshot(Snapshot(102, [(11.0, 1.0)], [(12.0, 1.0)]))
    assert sync.state == "live"
