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
    at: dict[str, int] = {}
    raw: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """Fold a stored batch. A span once stored stays stored; a hole closes when a later batch holds it."""
        if batch.origin:
            topic, partition, offset = batch.origin
            self.raw[f"{topic}-{partition}"] = offset
        if batch.covers is None:
            return
        got = spans.subtract([batch.covers], [*batch.missing, *batch.unrecoverable])
        self.stored = spans.union(self.stored, got)
        self.missing = spans.subtract(spans.union(self.missing, batch.missing), self.stored)
        self.unrecoverable = spans.subtract(spans.union(self.unrecoverable, batch.unrecoverable), self.stored)

    def settled(self, asked: Iterable[Span]) -> bool:
        """True when every asked moment is stored, missing or unrecoverable: nothing is under way."""
        return not spans.subtract(asked, [*self.stored, *self.missing, *self.unrecoverable])

    def gaps(self, start: int, end: int) -> list[Span]:
        """What of [start, end) is not stored."""
        return spans.subtract([(start, end)], self.stored)

    def gaps_besides(self, start: int, end: int) -> list[Span]:
        """What of [start, end) is neither stored nor known to be unrecoverable."""
        return spans.subtract([(start, end)], [*self.stored, *self.unrecoverable])

    def within(self, start: int, end: int) -> Coverage:
        return Coverage(
            stored=spans.clip(self.stored, start, end),
            missing=spans.clip(self.missing, start, end),
            unrecoverable=spans.clip(self.unrecoverable, start, end),
        )


def stream_name(venue: str, symbol: str, channel: str) -> str:
    return f"{venue}:{symbol}:{channel}"
