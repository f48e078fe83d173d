"""A stream's coverage: which spans of time are stored, which are missing, which the exchange does not have."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from models import spans
from models.market import Batch, Span


class Coverage(msgspec.Struct, kw_only=True):
    """Disjoint sets of [start_ms, end_ms).

    `at` is the last applied offset per market topic and partition; `raw` that of the raw pages they were made from,
    so that who sent a page can see that it has arrived.
    """

    stored: list[Span] = []
    missing: list[Span] = []
    unrecoverable: list[Span] = []
    asked: list[Span] = []  # what loads went for and is not settled yet
    at: dict[str, int] = {}
    raw: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """Fold a stored batch. A span once stored stays stored; a hole closes when a later batch holds it."""
        if batch.origin:
            topic, partition, offset = batch.origin
            self.raw[f"{topic}-{partition}"] = offset
        if batch.covers is None:
            return
        if batch.asked and batch.asked not in self.asked:
            self.asked = [*self.asked, batch.asked]
        start, missing = batch.covers[0], list(batch.missing)
        if not batch.begins_a_load and not any(a < start <= b for a, b in [*self.stored, *self.unrecoverable]):
            missing.append((start, start + 1))  # what was before it is not here, and may hold trades of this moment too
        got = spans.subtract([batch.covers], [*missing, *batch.unrecoverable])
        self.stored = spans.union(self.stored, got)
        self.missing = spans.subtract(spans.union(self.missing, missing), self.stored)
        self.unrecoverable = spans.subtract(spans.union(self.unrecoverable, batch.unrecoverable), self.stored)
        # One that is settled whole can have no hole any more, so the list stays as short as what is under way.
        self.asked = [span for span in self.asked if not self.settled([span]) or spans.clip(self.missing, *span)]

    def settled(self, asked: Iterable[Span]) -> bool:
        """True when every asked moment is stored, missing or unrecoverable: nothing is under way."""
        return not spans.subtract(asked, [*self.stored, *self.missing, *self.unrecoverable])

    def gaps(self, start: int, end: int) -> list[Span]:
        """What of [start, end) is not stored."""
        return spans.subtract([(start, end)], self.stored)

    def gaps_besides(self, start: int, end: int) -> list[Span]:
        """What of [start, end) is neither stored nor known to be unrecoverable."""
        return spans.subtract([(start, end)], [*self.stored, *self.unrecoverable])

    def holes(self) -> list[Span]:
        """What should be here and is not: unreadable spans, and what lacks of a range that was asked.

        A load goes from the start of its range to the end, so the part behind the last stored moment is no hole: it is
        under way, or the load was stopped.
        """
        there = ((start, spans.clip(self.stored, start, end)) for start, end in self.asked)
        passed = [(start, inside[-1][1]) for start, inside in there if inside]
        return spans.subtract(spans.union(passed, self.missing), [*self.stored, *self.unrecoverable])

    def within(self, start: int, end: int) -> Coverage:
        return Coverage(
            stored=spans.clip(self.stored, start, end),
            missing=spans.clip(self.missing, start, end),
            unrecoverable=spans.clip(self.unrecoverable, start, end),
        )


def stream_name(venue: str, symbol: str, channel: str) -> str:
    return f"{venue}:{symbol}:{channel}"
