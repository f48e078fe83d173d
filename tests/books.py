"""An exchange small enough to know every state of its book: what tests hold our books against."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from models.market import Level
from models.order_book import DEPTH, Book, Diff, Snapshot

Change = tuple[str, float, float]  # side, price, size
Top = tuple[list[Level], list[Level]]


class KnownBook:
    """Update ids 1 to n, one change each; `shared`: only every seventh id is this symbol's, as on futures."""

    def __init__(self, changes: list[Change], shared: bool = False) -> None:
        self.changes, self.step = changes, 7 if shared else 1

    def __len__(self) -> int:
        return len(self.changes)

    def state(self, number: int) -> dict[str, dict[float, float]]:
        sides: dict[str, dict[float, float]] = {"bids": {40.0: 1.0}, "asks": {60.0: 1.0}}
        for side, price, size in self.changes[:number]:
            sides[side][price] = size
        return {side: {price: size for price, size in levels.items() if size} for side, levels in sides.items()}

    def top(self, number: int) -> Top:
        state = self.state(number)
        return sorted(state["bids"].items(), reverse=True)[:DEPTH], sorted(state["asks"].items())[:DEPTH]

    def snapshot(self, number: int) -> Snapshot:
        state = self.state(number)
        bids, asks = sorted(state["bids"].items(), reverse=True), sorted(state["asks"].items())
        return Snapshot(number * self.step, bids, asks, bids_whole=True, asks_whole=True)

    def diff(self, after: int, last: int) -> Diff:
        """Changes after+1 .. last in one, absolute."""
        found: dict[str, dict[float, float]] = {"bids": {}, "asks": {}}
        for side, price, size in self.changes[after:last]:
            found[side][price] = size
        return Diff(
            last * self.step, 1000 + last, list(found["bids"].items()), list(found["asks"].items()),
            first=after * self.step + 1, previous=after * self.step,
        )  # fmt: skip

    def diffs(self, cuts: list[int]) -> list[Diff]:
        return [self.diff(after, last) for after, last in pairwise([0, *cuts])]

    def number(self, update_id: int) -> int:
        return update_id // self.step


sizes = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
changes = st.one_of(
    st.tuples(st.just("bids"), st.integers(1, 50).map(float), sizes),
    st.tuples(st.just("asks"), st.integers(51, 100).map(float), sizes),
)
known_books = st.builds(KnownBook, st.lists(changes, min_size=4, max_size=60), st.booleans())


def top_of(book: Book) -> Top:
    return book.bids.top(), book.asks.top()
