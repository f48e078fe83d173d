"""Proof of delivery: what the exchange served, what the topics carried and what the store holds, row by row.

    raw.* pages, parsed again  =  market.* batches  =  the store's rows  =  what the coverage ledger says
    candles made from trades   =  the exchange's candles
    graph and model            =  their meta document and manifest

Reads only, beside a running worker or without one. Repeated pages (a crash between a page and its checkpoint) are
legal, but must agree. Works on slices of some 500,000 rows, so a month of trades fits in a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from adapters.embedded_log.file import Record, partition_of
from adapters.embedded_log.reader import LogReader
from adapters.stores import collections, graphs
from adapters.stores.base import Store
from app.errors import ExchangeError, RunFailed
from app.outside import VENUE, parser, read_coverage
from app.report import read_run, streams_of
from app.topic_state import instant
from models import spans
from models.control import BUILDER, TRAINER, Step, Workflow, graph_name
from models.gnn.artifact import load_artifact
from models.gnn.graph import data_hash
from models.market import (
    CANDLE_COLUMNS,
    INTERVAL_MS,
    TRADE_COLUMNS,
    Array,
    Span,
    decode_batch,
    decode_page_info,
    empty_columns,
    interval_of,
    stream_key,
)

Json = dict[str, Any]
Columns = dict[str, Array]

SLICE_ROWS = 500_000
AGGREGATED = "aggregated"
WHOLE_UP_TO_MS = 3_600_000  # loads begin at full hours, so candles up to an hour are always seen whole


@dataclass
class Check:
    """One comparison: what was compared, how much of it, and where it does not agree."""

    name: str
    subject: str
    compared: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differ(self, count: int, examples: Iterable[str], limit: int) -> None:
        """Count differences and keep the first of them, `limit` in all."""
        self.differences += count
        self.examples += islice(examples, max(0, min(count, limit - len(self.examples))))


def verify_run(store: Store, log_path: Path, queue_id: str, *, limit: int = 20) -> Json:
    """Every check of a run, with at most `limit` differences spelled out per check. Raises UnknownRun, SetupRefused."""
    run = read_run(store, queue_id)
    with LogReader(log_path) as log:
        checks: list[Check] = []
        for symbol, channel, asked in streams_of(run):
            stream = _Stream(store, log, symbol, channel, asked, limit)
            checks += stream.checks(may_lack=_allows_missing(run, symbol, channel))
            if channel == "trades":
                checks += _candles_from_trades(store, log, symbol, asked, limit)
    checks += [_graph(store, run, step) for step in run.steps if step.target == BUILDER]
    checks += [_artifact(step) for step in run.steps if step.target == TRAINER]
    notes = [] if not run.live else [f"the run is {run.state}: what is under way shows as a difference"]
    return {
        "queue_id": queue_id, "state": run.state, "differences": sum(check.differences for check in checks),
        "notes": notes, "checks": [vars(check) for check in checks],
    }  # fmt: skip


def lines(found: Json) -> Iterator[str]:
    """The table, then what differs."""
    yield f"Run {found['queue_id']}: {found['state']}"
    yield from (f"  note: {note}" for note in found["notes"])
    width = max((len(c["name"]) + len(c["subject"]) for c in found["checks"]), default=0) + 2
    for check in found["checks"]:
        name = f"{check['subject']}: {check['name']}"
        verdict = "agree" if not check["differences"] else f"{check['differences']:,} DIFFERENCES"
        yield f"  {name:<{width}}  {check['compared']:>12,}  {verdict}"
        yield from (f"      note: {note}" for note in check["notes"])
        yield from (f"      {example}" for example in check["examples"])
        if (more := check["differences"] - len(check["examples"])) > 0 and check["examples"]:
            yield f"      and {more:,} more"
    yield "nothing lost, nothing doubled" if not found["differences"] else f"{found['differences']:,} differences"


# --- one stream -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A record of a topic that speaks of a span of a stream."""

    offset: int
    covers: Span


@dataclass
class Slice:
    """What lies on a topic about [start, end) of a stream: rows once each, and what their pages settle."""

    rows: Columns
    repeats: int
    disagreeing: list[int]  # keys whose repeats are not the same
    settled: list[Span]  # what the pages cover and could be read


class _Stream:
    """Raw pages, batches, stored rows and ledger of one symbol's channel over the asked spans."""

    def __init__(self, store: Store, log: LogReader, symbol: str, channel: str, asked: list[Span], limit: int) -> None:
        self.store, self.log, self.symbol, self.channel = store, log, symbol, channel
        self.asked, self.limit = asked, limit
        self.key, self.time, self.types = _shape(channel)
        self.ledger = read_coverage(store, symbol, channel).within(asked[0][0], asked[-1][1])
        kind = "trades" if channel == "trades" else "candles"
        self.raw, self.market = f"raw.{kind}", f"market.{kind}"
        subject = f"{symbol} {channel}"
        self.served = Check("pages = batches", subject)
        self.stored = Check("batches = store", subject)
        self.sound = Check("store has each row once, in step with the ledger", subject)
        self.covered = Check("ledger = pages", subject)

    def checks(self, *, may_lack: bool) -> list[Check]:
        """The four checks of a stream; `may_lack`: rows that were served but unreadable are told, not counted."""
        pages = index(self.log, self.raw, self.symbol, self.page_span)
        batches = index(self.log, self.market, self.symbol, self._batch_span)
        settled: list[Span] = []
        last: tuple[int, int] | None = None  # key and time of the row before this slice
        for part in self._slices():
            raw = self.read(self.raw, pages, part, self.page_rows)
            market = self.read(self.market, batches, part, self._batch_rows)
            stored, doubled, _ = once(stored_rows(self.store, self.symbol, self.channel, part), self.key)
            self.sound.differ(doubled, (f"{doubled} rows are stored twice",), self.limit)
            self._compare(self.served, raw, market.rows, "the pages", "the batches")
            self._compare(self.stored, market, stored, "the batches", "the store")
            last = self._check_stored(stored, part, last)
            settled = spans.union(settled, raw.settled)
        self._check_ledger(settled, pages, may_lack)
        return [self.served, self.stored, self.sound, self.covered]

    def _slices(self) -> Iterator[Span]:
        """The asked spans, cut so that a piece holds about SLICE_ROWS rows."""
        collection = collection_of(self.channel)
        there = collection in self.store.collections()
        for start, end in self.asked:
            eq = {"venue": VENUE, "symbol": self.symbol}
            rows = self.store.count(collection, eq=eq, lo=start, hi=end) if there else 0
            pieces = rows // SLICE_ROWS + 1
            edges = [start + (end - start) * n // pieces for n in range(pieces + 1)]
            yield from pairwise(edges)

    def page_span(self, record: Record) -> Span | None:
        info = decode_page_info(_header(record, "page"))
        return info.covers if (info.symbol, info.channel) == (self.symbol, self.channel) else None

    def _batch_span(self, record: Record) -> Span | None:
        batch = decode_batch(record.value or b"")
        return batch.covers if (batch.symbol, batch.channel) == (self.symbol, self.channel) else None

    def page_rows(self, record: Record) -> tuple[Columns, list[Span]]:
        """A raw page, parsed again: its rows and what it settles."""
        info = decode_page_info(_header(record, "page"))
        try:
            parsed = parser().parse(info, record.value or b"")
        except ExchangeError:
            return empty_columns(self.channel), []
        return parsed.columns, spans.subtract([info.covers], [*parsed.missing, *parsed.unrecoverable])

    def _batch_rows(self, record: Record) -> tuple[Columns, list[Span]]:
        batch = decode_batch(record.value or b"")
        return batch.arrays(), []

    def read(
        self, topic: str, places: list[Place], part: Span, rows_of: Callable[[Record], tuple[Columns, list[Span]]]
    ) -> Slice:
        """The rows of a slice as a topic carries them. A page's last millisecond may lie behind what it covers."""
        near = {p.offset for p in places if p.covers[0] < part[1] and p.covers[1] >= part[0]}
        parts: list[Columns] = []
        settled: list[Span] = []
        for record in records_at(self.log, topic, self.symbol, near):
            columns, settles = rows_of(record)
            inside = (columns[self.time] >= part[0]) & (columns[self.time] < part[1])
            parts.append({name: columns[name] if inside.all() else columns[name][inside] for name in self.types})
            settled += spans.clip(settles, *part)
        rows, repeats, disagreeing = once(concat(parts, self.channel), self.key)
        return Slice(rows, repeats, disagreeing, spans.union(settled))

    def _compare(self, check: Check, left: Slice, right: Columns, left_name: str, right_name: str) -> None:
        found = compare(left.rows, right, self.key, left_name, right_name)
        check.compared += found.compared
        check.differ(found.count, found.sentences, self.limit)
        again = (f"{self.key} {key}: repeated in {left_name} with other values" for key in left.disagreeing)
        check.differ(len(left.disagreeing), again, self.limit)

    def _check_stored(self, rows: Columns, part: Span, last: tuple[int, int] | None) -> tuple[int, int] | None:
        """Candles on their grid; trade ids without a gap that the ledger does not know of."""
        self.sound.compared += len(rows[self.key])
        ledger = self.ledger  # a readable row may share its millisecond with one that lacks
        known = inside_of(rows[self.time], spans.union(ledger.stored, ledger.missing, ledger.unrecoverable))
        self._keys_differ(rows[self.key][~known], "is stored, but the ledger knows nothing of its time")
        if self.channel == "trades":
            return self._check_ids(rows, last)
        step = INTERVAL_MS[interval_of(self.channel)]
        expected = grid(spans.clip(self.ledger.stored, *part), step)
        self._keys_differ(np.setdiff1d(expected, rows[self.key]), "is stored after the ledger, but there is no candle")
        return None

    def _keys_differ(self, keys: Array, what: str) -> None:
        self.sound.differ(len(keys), (f"{self.key} {key} {what}" for key in keys.tolist()), self.limit)

    def _check_ids(self, rows: Columns, last: tuple[int, int] | None) -> tuple[int, int] | None:
        """Ids of stored neighbours follow on each other, unless the time between them is not covered."""
        ids, times = rows["id"], rows["ts_ms"]
        if not len(ids):
            return last
        if last is not None:
            ids, times = np.concatenate([[last[0]], ids]), np.concatenate([[last[1]], times])
        for at in np.flatnonzero(np.diff(ids) != 1).tolist():
            between = (int(times[at]), int(times[at + 1]) + 1)
            if not spans.subtract([between], self.ledger.stored):
                lost = f"trade ids {ids[at] + 1} to {ids[at + 1] - 1} lack, though their time is covered"
                self.sound.differ(1, (lost,), self.limit)
        return int(ids[-1]), int(times[-1])

    def _check_ledger(self, settled: list[Span], pages: list[Place], may_lack: bool) -> None:
        """What the ledger calls stored is what the pages settle; what lacks is a difference unless it was allowed."""
        check, ledger = self.covered, self.ledger
        check.compared = len(pages)
        asked_stored = spans.subtract(self.asked, spans.subtract(self.asked, ledger.stored))
        if forgotten := self._expired(pages):
            check.notes.append(f"pages before {instant(forgotten)} are past their retention and were not compared")
        else:
            self._spans_differ(check, spans.subtract(asked_stored, settled), "is stored, but no page covers it")
        self._spans_differ(check, spans.subtract(settled, asked_stored), "is on a page, but not in the ledger")
        unsettled = spans.subtract(self.asked, [*ledger.stored, *ledger.missing, *ledger.unrecoverable])
        self._spans_differ(check, unsettled, "was asked for and is neither stored nor known to lack")
        for kind, found in (("missing", ledger.missing), ("unrecoverable", ledger.unrecoverable)):
            if kind == "missing" and not may_lack:
                self._spans_differ(check, found, "was served, but could not be read (see dead-letters)")
            else:
                check.notes += [f"{kind}: {_span(span)}" for span in found]

    def _expired(self, pages: list[Place]) -> int | None:
        """Where the oldest kept page begins, if older ones were removed by retention."""
        partition = partition_of(stream_key(VENUE, self.symbol), self.log.topics()[self.raw])
        first = next(self.log.records(self.raw, partition), None)
        if first is None or first.offset == 0:
            return None
        return min((place.covers[0] for place in pages), default=self.asked[-1][1])

    def _spans_differ(self, check: Check, found: list[Span], what: str) -> None:
        check.differ(len(found), (f"{_span(span)} {what}" for span in found), self.limit)


# --- candles made from trades -----------------------------------------------------------------------------------------


def _candles_from_trades(store: Store, log: LogReader, symbol: str, asked: list[Span], limit: int) -> Iterator[Check]:
    """Per interval that was made: equal to the exchange's candles where those were loaded, and to the store."""
    made: dict[str, list[Columns]] = {}
    for record in _records(log, "market.candles", symbol):
        batch = decode_batch(record.value or b"")
        if batch.symbol == symbol and batch.source == AGGREGATED:
            columns = batch.arrays()
            inside = inside_of(columns["ts"], asked)
            made.setdefault(batch.channel, []).append({name: column[inside] for name, column in columns.items()})
    for channel, parts in sorted(made.items()):
        rows, _, disagreeing = once(concat(parts, channel), "ts")
        subject, whole = f"{symbol} {channel}", (asked[0][0], asked[-1][1])
        held = Check("candles from trades = store", subject)
        stored, _, _ = once(stored_rows(store, symbol, channel, whole, made_too=True), "ts")
        _compare_made(held, rows, stored, "the store", limit)
        unknown = np.setdiff1d(rows["ts"], stored["ts"]).tolist()
        held.differ(len(unknown), (f"{instant(ts)}: made of trades, not in the store" for ts in unknown), limit)
        held.differ(len(disagreeing), (f"{instant(ts)}: made twice with other values" for ts in disagreeing), limit)
        yield held
        stream = _Stream(store, log, symbol, channel, asked, limit)
        if pages := index(log, stream.raw, symbol, stream.page_span):
            equal = Check("candles from trades = the exchange's", subject)
            theirs = stream.read(stream.raw, pages, whole, stream.page_rows).rows
            _compare_made(equal, rows, theirs, "the exchange's", limit)
            covered = spans.subtract(asked, read_coverage(store, symbol, "trades").gaps(*whole))
            _check_none_lacks(equal, rows, theirs, channel, covered, limit)
            yield equal


def _compare_made(check: Check, made: Columns, other: Columns, name: str, limit: int) -> None:
    """The candles that both sides have are the same."""
    both = np.intersect1d(made["ts"], other["ts"], assume_unique=True)
    ours, theirs = (
        {column: values[np.isin(side["ts"], both)] for column, values in side.items()} for side in (made, other)
    )
    found = compare(ours, theirs, "ts", "the candles from trades", name)
    check.compared += found.compared
    check.differ(found.count, found.sentences, limit)


def _check_none_lacks(
    check: Check, made: Columns, theirs: Columns, channel: str, covered: list[Span], limit: int
) -> None:
    """Each of the exchange's candles that the stored trades hold whole was made from them too."""
    step = INTERVAL_MS[interval_of(channel)]
    if step > WHOLE_UP_TO_MS:
        check.notes.append("longer than an hour: one that a load begins in the middle of is not made")
        return
    traded = theirs["ts"][theirs["trades"] > 0]
    if not len(traded):
        return
    held = inside_of(theirs["ts"], covered) & inside_of(theirs["ts"] + step - 1, covered)
    held &= theirs["ts"] >= traded[0]  # before the first trade there is no candle to make
    lacking = np.setdiff1d(theirs["ts"][held], made["ts"]).tolist()
    check.differ(len(lacking), (f"{instant(ts)}: its trades are stored, no candle was made" for ts in lacking), limit)


# --- graph and model --------------------------------------------------------------------------------------------------


def _graph(store: Store, run: Workflow, step: Step) -> Check:
    """The stored graph is the one its document names, made of the candles that are stored."""
    name = graph_name(step)
    check = Check("graph = its document = the stored candles", name)
    document = store.get("graphs", [name])[0] if "graphs" in store.collections() else None
    if document is None:
        if step.state == "finished":
            check.differ(1, ("the step is finished, but there is no such graph",), 1)
        return check
    if (maker := document["spec"].get("queue_id")) != run.queue_id:
        check.notes.append(f"made by run {maker}; its candles are that run's")
    try:
        graph = graphs.read_graph(store, name)
    except RunFailed as error:
        check.differ(1, (str(error),), 1)
        return check
    check.compared = len(graph.ts) + len(graph.edge_src)
    for what, rows in (("vertices", len(graph.ts)), ("edges", len(graph.edge_src))):
        if rows != document[what]:
            check.differ(1, (f"{rows} {what} are stored, the document says {document[what]}",), 2)
    if maker == run.queue_id and step.range_ms:
        stored = stored_rows(store, step.symbol, f"candles_{step.interval}", step.range_ms, made_too=True)
        closed = {column: values[stored["closed"]] for column, values in stored.items()}
        if data_hash(closed, graph.spec, step.symbol) != graph.data_hash:
            check.differ(1, ("it was made of other candles than those that are stored now",), 3)
    return check


def _artifact(step: Step) -> Check:
    """Every file of the published model is the one its manifest names."""
    check = Check("artifact = its manifest", step.type)
    if step.state != "finished":
        check.notes.append(f"the step is {step.state}: there is no artifact to check")
        return check
    try:
        check.compared = len(load_artifact(Path(step.extra["artifact"])).tensors)
    except RunFailed as error:
        check.differ(1, (str(error),), 1)
    return check


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Rows of two sides under the same keys. `sentences` are made only when read."""

    compared: int
    count: int
    sentences: Iterable[str]


def compare(
    left: Mapping[str, Array], right: Mapping[str, Array], key: str, left_name: str, right_name: str
) -> Comparison:
    """Field by field, exactly; NaN equals NaN. Both sides sorted by `key`, each key once."""
    common, at_left, at_right = np.intersect1d(left[key], right[key], assume_unique=True, return_indices=True)
    only_left = np.setdiff1d(left[key], common, assume_unique=True)
    only_right = np.setdiff1d(right[key], common, assume_unique=True)
    differing: list[tuple[str, Array]] = []
    for name in left:
        a, b = left[name][at_left], right[name][at_right]
        unequal = (a != b) & ~((a != a) & (b != b))  # noqa: PLR0124 (NaN is what differs from itself)
        if unequal.any():
            differing.append((name, np.flatnonzero(unequal)))

    def sentences() -> Iterator[str]:
        yield from (f"{key} {k}: in {left_name}, not in {right_name}" for k in only_left.tolist())
        yield from (f"{key} {k}: in {right_name}, not in {left_name}" for k in only_right.tolist())
        for name, where in differing:
            for i in where.tolist():
                a, b = left[name][at_left[i]].item(), right[name][at_right[i]].item()
                yield f"{key} {common[i]}: {name} is {a!r} in {left_name} and {b!r} in {right_name}"

    count = len(only_left) + len(only_right) + sum(len(where) for _, where in differing)
    return Comparison(len(common), count, sentences())


def once(columns: Columns, key: str) -> tuple[Columns, int, list[int]]:
    """Rows sorted by key, each key once; how many were repeats; the keys whose repeats do not agree."""
    if not len(columns[key]):
        return columns, 0, []
    if not (columns[key][1:] > columns[key][:-1]).all():
        order = np.argsort(columns[key], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    again = np.concatenate([[False], columns[key][1:] == columns[key][:-1]])
    if not again.any():
        return columns, 0, []
    unequal = np.zeros(len(again), dtype=np.bool_)
    for column in columns.values():
        unequal[1:] |= (column[1:] != column[:-1]) & ~((column[1:] != column[1:]) & (column[:-1] != column[:-1]))
    disagreeing = np.unique(columns[key][again & unequal]).tolist()
    return {name: column[~again] for name, column in columns.items()}, int(again.sum()), disagreeing


def concat(parts: list[Columns], channel: str) -> Columns:
    if not parts:
        return empty_columns(channel)
    return {name: np.concatenate([part[name] for part in parts]) for name in _shape(channel)[2]}


def stored_rows(store: Store, symbol: str, channel: str, part: Span, *, made_too: bool = False) -> Columns:
    """The store's rows of [start, end), sorted by key, repeats kept; `made_too`: candles from trades as well."""
    key, _, types = _shape(channel)
    collection = collection_of(channel)
    if collection not in store.collections():
        return empty_columns(channel)
    names = [*types] if channel == "trades" or made_too else [*types, "source"]
    eq = {"venue": VENUE, "symbol": symbol}
    parts = []
    for batch in store.scan(collection, eq=eq, lo=part[0], hi=part[1], columns=names):
        kept = batch.filter(pc.not_equal(batch.column("source"), AGGREGATED)) if "source" in names else batch
        parts.append({
            name: kept.column(name).to_numpy(zero_copy_only=False).astype(dtype) for name, dtype in types.items()
        })  # fmt: skip
    rows = concat(parts, channel)
    order = np.argsort(rows[key], kind="stable")
    return {name: column[order] for name, column in rows.items()}


def inside_of(times: Array, covered: Sequence[Span]) -> Array:
    """True where a time lies in one of the spans (sorted, disjoint). Shapes: (n,) -> (n,)."""
    if not covered:
        return np.zeros(len(times), dtype=np.bool_)
    edges = np.array([edge for span in covered for edge in span], dtype=np.int64)
    inside: Array = np.searchsorted(edges, times, side="right") % 2 == 1
    return inside


def grid(covered: Sequence[Span], step_ms: int) -> Array:
    """The open times of the candles that begin inside the spans."""
    parts = [np.arange(-(-start // step_ms) * step_ms, end, step_ms, dtype=np.int64) for start, end in covered]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def collection_of(channel: str) -> str:
    return collections.TRADES.name if channel == "trades" else collections.candles(interval_of(channel)).name


def _shape(channel: str) -> tuple[str, str, dict[str, str]]:
    """Key column, time column and column types of a channel."""
    return ("id", "ts_ms", TRADE_COLUMNS) if channel == "trades" else ("ts", "ts", CANDLE_COLUMNS)


# --- records ----------------------------------------------------------------------------------------------------------


def index(log: LogReader, topic: str, symbol: str, span_of: Callable[[Record], Span | None]) -> list[Place]:
    """Where a topic speaks of a stream: offset and span of each record that has one."""
    return [Place(record.offset, span) for record in _records(log, topic, symbol) if (span := span_of(record))]


def records_at(log: LogReader, topic: str, symbol: str, offsets: set[int]) -> Iterator[Record]:
    """The records of a symbol's partition at these offsets, in order."""
    if not offsets:
        return
    last = max(offsets)
    for record in _records(log, topic, symbol, min(offsets)):
        if record.offset in offsets:
            yield record
        if record.offset >= last:
            return


def _records(log: LogReader, topic: str, symbol: str, start: int | None = None) -> Iterator[Record]:
    key = stream_key(VENUE, symbol)
    partition = partition_of(key, log.topics()[topic])
    return (record for record in log.records(topic, partition, start) if record.key == key)


def _header(record: Record, name: str) -> bytes:
    return next((value for key, value in record.headers if key == name), b"")


def _span(span: Span) -> str:
    return f"{instant(span[0])} .. {instant(span[1])}"


def _allows_missing(run: Workflow, symbol: str, channel: str) -> bool:
    return any(
        step.params.get("allow_missing") for step in run.steps if step.symbol == symbol and step.channel == channel
    )
