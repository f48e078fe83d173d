"""Where the making of candles from trades stands, per run and interval, and what the trades' coverage allows to say.

A candle is made only of contiguous coverage that holds it whole: after a jump the first, partly seen one is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from models.candles import CandleState, flush, fold, prepared
from models.market import INTERVAL_MS, Array, Batch, Span

RUNS_KEPT = 8


class Segment(msgspec.Struct, kw_only=True):
    """One pass over a stream: the contiguous span of trades seen, and the open candle of each interval."""

    covered: Span
    states: dict[str, CandleState] = {}


class Folding(msgspec.Struct, kw_only=True):
    """The row of a symbol. Runs load their own ranges, so each has a segment; the newest RUNS_KEPT are kept.

    A row may become durable before the candles it speaks of: whoever recovers it sends `unsent` again.
    """

    segments: dict[str, Segment] = {}
    at: dict[str, int] = {}
    unsent: list[bytes] = []  # batches of candles that were not yet known to be on their topic when this was written


def fold_batch(folding: Folding, batch: Batch, intervals: tuple[str, ...]) -> dict[str, dict[str, Array]]:
    """Fold a batch of trades into the row; the candles that are complete now, as columns per interval.

    A batch that was folded before changes nothing; one that does not join the segment begins a new one, and so does
    one with a hole.
    """
    if batch.covers is None:
        return {}
    start, end = batch.covers
    segment = folding.segments.get(batch.run)
    if segment and end <= segment.covered[1] and start >= segment.covered[0] and not _is_news(segment, batch):
        return {}
    if segment is None or start > segment.covered[1] or start < segment.covered[0]:
        whole_from = start if batch.begins_a_load else start + 1
        segment = Segment(covered=(whole_from, whole_from))
    holes = [*batch.missing, *batch.unrecoverable]
    trades = prepared(batch.arrays())
    closed = {interval: _fold_one(segment, trades, interval, end) for interval in intervals}
    segment.covered = (segment.covered[0], end)
    if holes:  # what lies over the hole is not known whole
        closed = {i: _outside(columns, holes, INTERVAL_MS[i]) for i, columns in closed.items()}
        segment = Segment(covered=(end, end))
    folding.segments.pop(batch.run, None)
    folding.segments[batch.run] = segment
    while len(folding.segments) > RUNS_KEPT:
        folding.segments.pop(next(iter(folding.segments)))
    return {interval: columns for interval, columns in closed.items() if len(columns["ts"])}


def _is_news(segment: Segment, batch: Batch) -> bool:
    """Whether the batch has trades behind those folded: many can share the millisecond in which a batch ends."""
    known = max((state.last_id for state in segment.states.values()), default=-1)
    return bool(len(batch)) and int(batch.array("id")[-1]) > known


def _fold_one(segment: Segment, trades: Mapping[str, Array], interval: str, end: int) -> dict[str, Array]:
    """The candles of one interval that close up to `end`, those from before the segment's start left out."""
    size = INTERVAL_MS[interval]
    state, by_trades = fold(segment.states.get(interval), trades, size)
    state, by_clock = flush(state, end)
    segment.states[interval] = state
    columns = {name: np.concatenate([by_trades[name], by_clock[name]]) for name in by_trades}
    whole = columns["ts"] >= segment.covered[0]
    return {name: column[whole] for name, column in columns.items()}


def _outside(columns: Mapping[str, Array], holes: list[Span], size: int) -> dict[str, Array]:
    keep = np.ones(len(columns["ts"]), dtype=np.bool_)
    for start, end in holes:
        keep &= (columns["ts"] + size <= start) | (columns["ts"] >= end)
    return {name: column[keep] for name, column in columns.items()}
