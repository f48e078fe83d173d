"""Where the making of candles from trades stands, per run and interval, and what the trades' coverage allows to say.

A candle is made only of contiguous coverage that holds it whole: after a jump the first, partly seen one is dropped,
and over what is missing there is none, because a repair will bring it. What the exchange does not have never comes:
candles over it are made of the trades there are and marked partial, and so are flat ones that show the close of such
a one. Inside it nothing was traded that anybody knows of, so no flat candle is made there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from models.candles import CandleState, Given, amend, columns_of, flush, fold, is_late, prepared
from models.market import INTERVAL_MS, Array, Batch, Span
from models.spans import clip, union

RUNS_KEPT = 8
SPANS_KEPT = 64  # of ids, a segment
BEFORE_MS = 2  # the first trade of a segment may lie so much before what is known whole


class Segment(msgspec.Struct, kw_only=True):
    """One pass over a stream: the contiguous span of trades seen, and the candles of each interval."""

    covered: Span
    states: dict[str, CandleState] = {}
    seen: list[Span] = []  # ids [from, to) of the trades folded
    lost: list[Span] = []  # ms; unrecoverable, as far as candles can still rest on it


class Folding(msgspec.Struct, kw_only=True):
    """The row of a symbol. Runs load their own ranges, so each has a segment; the newest RUNS_KEPT are kept.

    A row may become durable before the candles it speaks of: whoever recovers it sends `unsent` again.
    """

    segments: dict[str, Segment] = {}
    at: dict[str, int] = {}
    unsent: list[bytes] = []  # batches of candles that were not yet known to be on their topic when this was written


ALL_SENT = b'"unsent":[]'  # in the JSON of a row that has nothing to send again


@dataclass(frozen=True)
class Made:
    """Candles of one interval that are complete now, or different now.

    `partial`: they rest on trades that the exchange cannot serve. `revision`: how often they were amended.
    """

    interval: str
    columns: dict[str, Array]
    revision: int = 0
    partial: bool = False


@dataclass
class Folded:
    """What a batch made. Rows of the batch that came late: how many, and the places of those too late to amend."""

    candles: list[Made] = field(default_factory=list)
    late: int = 0
    too_late: list[int] = field(default_factory=list)


def fold_batch(folding: Folding, batch: Batch, intervals: tuple[str, ...]) -> Folded:
    """Fold a batch of trades into the row.

    Trades that were folded before change nothing; a batch that does not join the segment begins a new one, and so does
    one of which something is missing. A trade of a candle that was given out amends it.
    """
    if batch.covers is None:
        return Folded()
    start, end = batch.covers
    segment = folding.segments.get(batch.run)
    joins = segment is not None and segment.covered[0] <= start <= segment.covered[1]
    if segment is None or not joins:
        whole_from = start if batch.begins_a_load else start + 1
        segment = Segment(covered=(whole_from, whole_from))
    _read_older_form(segment)
    fresh, seen = unseen(segment.seen, batch.array("id"))
    if joins and end <= segment.covered[1] and not fresh.any():
        return Folded()
    segment.lost, segment.seen = union(segment.lost, batch.unrecoverable), seen
    folded = _fold_rows(segment, batch, fresh, intervals, end, strict=joins)
    segment.covered = (segment.covered[0], max(end, segment.covered[1]))
    _forget_lost(segment)
    if batch.missing:  # what lies over it is not known whole
        folded.candles = [_outside(made, list(batch.missing)) for made in folded.candles]
        segment = Segment(covered=(end, end))
    folding.segments.pop(batch.run, None)
    folding.segments[batch.run] = segment
    while len(folding.segments) > RUNS_KEPT:
        folding.segments.pop(next(iter(folding.segments)))
    folded.candles = [made for made in folded.candles if len(made.columns["ts"])]
    return folded


def _read_older_form(segment: Segment) -> None:
    """Rows of 0.2 and before kept the highest id of each interval, and no candle that could be amended."""
    highest = max((state.last_id for state in segment.states.values()), default=-1)
    if not segment.seen and highest >= 0:
        segment.seen = [(0, highest + 1)]
        segment.states = {i: msgspec.structs.replace(state, forgot=True) for i, state in segment.states.items()}


def unseen(seen: Sequence[Span], ids: Array) -> tuple[Array, list[Span]]:
    """(rows,) bool: true where an id is not in `seen`, half-open spans of ids, nor before it in `ids`; the new spans.

    Where the ids of a venue have holes only the newest SPANS_KEPT spans are told apart: what would fill an older hole
    counts as seen.
    """
    if (not seen or not len(ids) or ids[0] >= seen[-1][1]) and (np.diff(ids) > 0).all():
        fresh, new = np.ones(len(ids), dtype=np.bool_), ids
    else:
        fresh = np.zeros(len(ids), dtype=np.bool_)
        fresh[np.unique(ids, return_index=True)[1]] = True
        for start, end in seen:
            fresh &= (ids < start) | (ids >= end)
        new = np.sort(ids[fresh])
    cuts = np.flatnonzero(np.diff(new) != 1) + 1
    spans = union(seen, ((int(run[0]), int(run[-1]) + 1) for run in np.split(new, cuts) if len(run)))
    if len(spans) > SPANS_KEPT:
        spans = [(spans[0][0], spans[-SPANS_KEPT][1]), *spans[1 - SPANS_KEPT :]]
    return fresh, spans


def _fold_rows(
    segment: Segment, batch: Batch, fresh: Array, intervals: tuple[str, ...], end: int, *, strict: bool
) -> Folded:
    """The rows that are `fresh` into every interval; `strict`: a row from before the segment cannot be of it."""
    places, trades = np.flatnonzero(fresh), prepared(batch.arrays())
    if not fresh.all():
        trades = _chosen(trades, fresh)
    outside = trades["ts_ms"] < segment.covered[0] - BEFORE_MS if strict else np.zeros(len(places), dtype=np.bool_)
    late, too_late = outside.copy(), outside.copy()
    if outside.any():
        trades = _chosen(trades, ~outside)
    folded = Folded()
    for interval in intervals:
        candles, was_late, was_too_late = _fold_one(segment, trades, interval, end)
        folded.candles += candles
        late[~outside] |= was_late
        too_late[~outside] |= was_too_late
    folded.late, folded.too_late = int(late.sum()), places[too_late].tolist()
    return folded


def _fold_one(
    segment: Segment, trades: Mapping[str, Array], interval: str, end: int
) -> tuple[list[Made], Array, Array]:
    """The candles of one interval that close up to `end` or were amended; (rows,) bool: late, and too late."""
    size, before = INTERVAL_MS[interval], segment.states.get(interval)
    late = is_late(before, trades["ts_ms"])
    too_late, amended = np.zeros(len(late), dtype=np.bool_), list[Given]()
    state = before
    if state is not None and late.any():
        state, amended, too_late[late] = amend(state, _chosen(trades, late))
    rests_on = state.from_ts if state else 0
    state, by_trades = fold(state, trades, size)
    state, by_clock = flush(state, end)
    segment.states[interval] = state
    columns = {name: np.concatenate([by_trades[name], by_clock[name]]) for name in by_trades}
    traded = np.where(columns["trades"] > 0, columns["ts"], rests_on)
    made = _told(segment, interval, columns, np.maximum.accumulate(traded))
    for revision in sorted({one.revision for one in amended}):
        those = [one for one in amended if one.revision == revision]
        made += _told(segment, interval, columns_of(those), np.array([one.from_ts for one in those]), revision)
    return made, late, too_late


def _told(segment: Segment, interval: str, columns: dict[str, Array], rests_on: Array, revision: int = 0) -> list[Made]:
    """Of some candles those that may be told, the whole and the partial ones apart.

    Shapes: columns (candles,); rests_on (candles,), open time ms of the bucket whose trades a candle shows.
    """
    opens, ends = columns["ts"], columns["ts"] + INTERVAL_MS[interval]
    told = opens >= segment.covered[0]
    partial = np.zeros(len(opens), dtype=np.bool_)
    for lost_from, lost_to in segment.lost:
        partial |= (rests_on < lost_to) & (ends > lost_from)
        told &= (columns["trades"] > 0) | (opens >= lost_to) | (ends <= lost_from)
    if not partial.any():
        return [Made(interval, _chosen(columns, told), revision)]
    return [Made(interval, _chosen(columns, told & (partial == flag)), revision, flag) for flag in (False, True)]


def _forget_lost(segment: Segment) -> None:
    """Keep what a candle that is open, flat or amendable can still rest on."""
    if segment.lost:
        oldest = [min([state.from_ts, *(one.from_ts for one in state.given)]) for state in segment.states.values()]
        segment.lost = clip(segment.lost, min(oldest, default=0), max(end for _, end in segment.lost))


def _outside(made: Made, holes: list[Span]) -> Made:
    opens, size = made.columns["ts"], INTERVAL_MS[made.interval]
    keep = np.ones(len(opens), dtype=np.bool_)
    for start, end in holes:
        keep &= (opens + size <= start) | (opens >= end)
    return replace(made, columns=_chosen(made.columns, keep))


def _chosen(columns: Mapping[str, Array], chosen: Array) -> dict[str, Array]:
    return {name: column[chosen] for name, column in columns.items()}
