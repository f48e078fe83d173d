"""Proof of delivery: what the exchange served, what the topics carried and what the store holds, row by row.

    raw.* pages, parsed again  =  market.* batches  =  the store's rows  =  what the coverage ledger says
    candles made from trades   =  the exchange's candles
    graph and model            =  their meta document and manifest

Reads only, beside a running worker or without one. Repeated pages (a crash between a page and its checkpoint) are
legal, but must agree. Works on slices of some 500,000 rows, so a month of trades fits in a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.embedded_log.file import Record, partition_of
from adapters.records import RecordReader
from adapters.stores import collections, graphs
from adapters.stores.base import Store
from app.errors import ExchangeError, RunFailed
from app.outside import VENUE, parser, read_coverage
from app.report import read_run, streams_of
from app.verify_rows import Columns, compare, concat, grid, inside_of, once
from models import spans
from models.control import BUILDER, TRAINER, Step, Workflow, graph_name
from models.gnn.artifact import load_artifact
from models.gnn.graph import data_hash
from models.market import (
    CANDLE_COLUMNS,
    INTERVAL_MS,
    MADE_OF_TRADES,
    TRADE_COLUMNS,
    Array,
    Batch,
    PageInfo,
    Span,
    decode_batch,
    decode_page_info,
    empty_columns,
    instant_text,
    interval_of,
    stream_key,
    versions_of,
)

Json = dict[str, Any]

SLICE_ROWS = 500_000
WHOLE_UP_TO_MS = 3_600_000  # loads begin at full hours, so candles up to an hour are always seen whole


class Market(NamedTuple):
    """One symbol of one venue."""

    venue: str
    symbol: str

    def __str__(self) -> str:
        return self.symbol if self.venue == VENUE else f"{self.venue}:{self.symbol}"


@dataclass
class Check:
    """One comparison: what was compared, how much of it, and where it does not agree."""

    name: str
    subject: str
    limit: int  # of the differences that are spelled out
    compared: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differ(self, count: int, examples: Iterable[str]) -> None:
        """Count differences and keep the first of them, `limit` in all."""
        self.differences += count
        self.examples += islice(examples, max(0, min(count, self.limit - len(self.examples))))

    def facts(self) -> Json:
        return {name: value for name, value in vars(self).items() if name != "limit"}


def verify_run(store: Store, open_log: Callable[[], RecordReader], queue_id: str, *, limit: int = 20) -> Json:
    """Every check of a run, with at most `limit` differences spelled out per check. Raises UnknownRun, SetupRefused."""
    run = read_run(store, queue_id)
    with open_log() as log:
        checks: list[Check] = []
        for venue, symbol, channel, asked in streams_of(run):
            market = Market(venue, symbol)
            stream = _Stream(store, log, market, channel, asked, limit)
            checks += stream.checks(may_lack=_allows_missing(run, market, channel))
            if channel == "trades":
                checks += _candles_from_trades(store, log, market, asked, limit)
    checks += [_graph(store, run, step, limit) for step in run.steps if step.target == BUILDER]
    checks += [_artifact(step, limit) for step in run.steps if step.target == TRAINER]
    notes = [] if not run.live else [f"the run is {run.state}: what is under way shows as a difference"]
    return {
        "queue_id": queue_id, "state": run.state, "differences": sum(check.differences for check in checks),
        "notes": notes, "checks": [check.facts() for check in checks],
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


class _Stream:
    """Raw pages, batches, stored rows and ledger of one symbol's channel over the asked spans."""

    def __init__(
        self, store: Store, log: RecordReader, market: Market, channel: str, asked: list[Span], limit: int
    ) -> None:
        self.store, self.log, self.market, self.channel = store, log, market, channel
        self.asked = asked
        self.key, self.time, _ = _shape(channel)
        self.ledger = read_coverage(store, market.symbol, channel, market.venue).within(asked[0][0], asked[-1][1])
        subject = f"{market} {channel}"
        self.served = Check("pages = batches", subject, limit)
        self.stored = Check("batches = store", subject, limit)
        self.sound = Check("store has each row once, in step with the ledger", subject, limit)
        self.covered = Check("ledger = pages", subject, limit)

    def checks(self, *, may_lack: bool) -> list[Check]:
        """The four checks of a stream; `may_lack`: rows that were served but unreadable are told, not counted."""
        pages = index(self.log, PAGES, self.market, self.channel)
        batches = index(self.log, BATCHES, self.market, self.channel)
        settled: list[Span] = []
        last: tuple[int, int] | None = None  # key and time of the row before this slice
        for part in self._slices():
            raw = read(self.log, PAGES, self.market, self.channel, pages, part)
            market = read(self.log, BATCHES, self.market, self.channel, batches, part)
            stored, doubled, _ = once(stored_rows(self.store, self.market, self.channel, part), self.key)
            self.sound.differ(doubled, (f"{doubled} rows are stored twice",))
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
            eq = {"venue": self.market.venue, "symbol": self.market.symbol}
            rows = self.store.count(collection, eq=eq, lo=start, hi=end) if there else 0
            pieces = rows // SLICE_ROWS + 1
            edges = [start + (end - start) * n // pieces for n in range(pieces + 1)]
            yield from pairwise(edges)

    def _compare(self, check: Check, left: Slice, right: Columns, left_name: str, right_name: str) -> None:
        found = compare(left.rows, right, self.key, left_name, right_name)
        check.compared += found.compared
        check.differ(found.count, found.sentences)
        again = (f"{self.key} {key}: repeated in {left_name} with other values" for key in left.disagreeing)
        check.differ(len(left.disagreeing), again)

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
        self.sound.differ(len(keys), (f"{self.key} {key} {what}" for key in keys.tolist()))

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
                self.sound.differ(1, (lost,))
        return int(ids[-1]), int(times[-1])

    def _check_ledger(self, settled: list[Span], pages: list[Place], may_lack: bool) -> None:
        """What the ledger calls stored is what the pages settle; what lacks is a difference unless it was allowed."""
        check, ledger = self.covered, self.ledger
        check.compared = len(pages)
        asked_stored = spans.subtract(self.asked, spans.subtract(self.asked, ledger.stored))
        if forgotten := self._expired(pages):
            check.notes.append(f"pages before {instant_text(forgotten)} are past their retention and were not compared")
        else:
            _spans_differ(check, spans.subtract(asked_stored, settled), "is stored, but no page covers it")
        _spans_differ(check, spans.subtract(settled, asked_stored), "is on a page, but not in the ledger")
        unsettled = spans.subtract(self.asked, [*ledger.stored, *ledger.missing, *ledger.unrecoverable])
        _spans_differ(check, unsettled, "was asked for and is neither stored nor known to lack")
        for kind, found in (("missing", ledger.missing), ("unrecoverable", ledger.unrecoverable)):
            if kind == "missing" and not may_lack:
                _spans_differ(check, found, "was served, but could not be read (see dead-letters)")
            else:
                check.notes += [f"{kind}: {_span(span)}" for span in found]

    def _expired(self, pages: list[Place]) -> int | None:
        """Where the oldest kept page begins, if older ones were removed by retention."""
        topic = PAGES.topic(self.channel)
        partition = partition_of(stream_key(*self.market), self.log.topics()[topic])
        first = next(self.log.records(topic, partition), None)
        if first is None or first.offset == 0:
            return None
        return min((place.covers[0] for place in pages), default=self.asked[-1][1])


def _spans_differ(check: Check, found: list[Span], what: str) -> None:
    check.differ(len(found), (f"{_span(span)} {what}" for span in found))


# --- candles made from trades -----------------------------------------------------------------------------------------


def _candles_from_trades(
    store: Store, log: RecordReader, market: Market, asked: list[Span], limit: int
) -> Iterator[Check]:
    """Per interval that was made: equal to the exchange's candles where those were loaded, and to the store.

    Of an amended candle the best version counts. Partial ones are flagged as such, and equal nothing.
    """
    made: dict[str, list[Columns]] = {}
    for record in _records(log, "market.candles", market):
        batch = batch_head(record)
        if batch.symbol == market.symbol and batch.source in MADE_OF_TRADES and batch.source != "partial":
            columns = {**batch.arrays(), "version": versions_of(batch)}
            inside = inside_of(columns["ts"], asked)
            made.setdefault(batch.channel, []).append({name: column[inside] for name, column in columns.items()})
    for channel, parts in sorted(made.items()):
        rows, _, disagreeing = once(_best(parts), "ts")
        subject, whole = f"{market} {channel}", (asked[0][0], asked[-1][1])
        held = Check("candles from trades = store", subject, limit)
        stored, _, _ = once(stored_rows(store, market, channel, whole, made_too=True), "ts")
        _compare_made(held, rows, stored, "the store")
        unknown = np.setdiff1d(rows["ts"], stored["ts"]).tolist()
        held.differ(len(unknown), (f"{instant_text(ts)}: made of trades, not in the store" for ts in unknown))
        held.differ(len(disagreeing), (f"{instant_text(ts)}: made twice with other values" for ts in disagreeing))
        yield held
        if pages := index(log, PAGES, market, channel):
            equal = Check("candles from trades = the exchange's", subject, limit)
            theirs = read(log, PAGES, market, channel, pages, whole).rows
            _compare_made(equal, rows, theirs, "the exchange's")
            covered = spans.subtract(asked, read_coverage(store, market.symbol, "trades", market.venue).gaps(*whole))
            _check_none_lacks(equal, rows, theirs, channel, covered)
            yield equal


def _compare_made(check: Check, made: Columns, other: Columns, name: str) -> None:
    """The candles that both sides have are the same."""
    both = np.intersect1d(made["ts"], other["ts"], assume_unique=True)
    ours, theirs = (
        {column: values[np.isin(side["ts"], both)] for column, values in side.items()} for side in (made, other)
    )
    for column, values in theirs.items():  # what a venue does not say of its candles is not compared
        unsaid = values == -1 if column == "trades" else np.isnan(values) if values.dtype.kind == "f" else None
        ours[column] = ours[column] if unsaid is None else np.where(unsaid, values, ours[column])
    found = compare(ours, theirs, "ts", "the candles from trades", name)
    check.compared += found.compared
    check.differ(found.count, found.sentences)


def _check_none_lacks(check: Check, made: Columns, theirs: Columns, channel: str, covered: list[Span]) -> None:
    """Each of the exchange's candles that the stored trades hold whole was made from them too."""
    step = INTERVAL_MS[interval_of(channel)]
    if step > WHOLE_UP_TO_MS:
        check.notes.append("longer than an hour: one that a load begins in the middle of is not made")
        return
    traded = theirs["ts"][theirs["volume"] > 0]
    if not len(traded):
        return
    held = inside_of(theirs["ts"], covered) & inside_of(theirs["ts"] + step - 1, covered)
    held &= theirs["ts"] >= traded[0]  # before the first trade there is no candle to make
    lacking = np.setdiff1d(theirs["ts"][held], made["ts"]).tolist()
    check.differ(len(lacking), (f"{instant_text(ts)}: its trades are stored, no candle was made" for ts in lacking))


# --- graph and model --------------------------------------------------------------------------------------------------


def _graph(store: Store, run: Workflow, step: Step, limit: int) -> Check:
    """The stored graph is the one its document names, made of the candles that are stored."""
    name = graph_name(step)
    check = Check("graph = its document = the stored candles", name, limit)
    document = store.get("graphs", [name])[0] if "graphs" in store.collections() else None
    if document is None:
        if step.state == "finished":
            check.differ(1, ("the step is finished, but there is no such graph",))
        return check
    if (maker := document["spec"].get("queue_id")) != run.queue_id:
        check.notes.append(f"made by run {maker}; its candles are that run's")
    try:
        graph = graphs.read_graph(store, name)
    except RunFailed as error:
        check.differ(1, (str(error),))
        return check
    check.compared = len(graph.ts) + len(graph.edge_src)
    for what, rows in (("vertices", len(graph.ts)), ("edges", len(graph.edge_src))):
        if rows != document[what]:
            check.differ(1, (f"{rows} {what} are stored, the document says {document[what]}",))
    if maker == run.queue_id and step.range_ms:
        market = Market(step.venue, step.symbol)
        stored = stored_rows(store, market, f"candles_{step.interval}", step.range_ms, made_too=True)
        closed = {column: values[stored["closed"]] for column, values in stored.items()}
        if data_hash(closed, graph.spec, step.symbol) != graph.data_hash:
            check.differ(1, ("it was made of other candles than those that are stored now",))
    return check


def _artifact(step: Step, limit: int) -> Check:
    """Every file of the published model is the one its manifest names."""
    check = Check("artifact = its manifest", step.type, limit)
    if step.state != "finished":
        check.notes.append(f"the step is {step.state}: there is no artifact to check")
        return check
    try:
        check.compared = len(load_artifact(Path(step.extra["artifact"])).tensors)
    except RunFailed as error:
        check.differ(1, (str(error),))
    return check


def _best(parts: list[Columns]) -> Columns:
    """Candles with their versions: of each time those of the highest, repeats kept, without the version."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort([columns["version"], columns["ts"]])
    columns = {name: column[order] for name, column in columns.items()}
    versions, ts = columns.pop("version"), columns["ts"]
    highest = versions[np.searchsorted(ts, ts, side="right") - 1]
    return {name: column[versions == highest] for name, column in columns.items()}


# --- rows -------------------------------------------------------------------------------------------------------------


def stored_rows(store: Store, market: Market, channel: str, part: Span, *, made_too: bool = False) -> Columns:
    """The store's rows of [start, end), sorted by key, repeats kept; `made_too`: candles from trades as well."""
    key, _, types = _shape(channel)
    collection = collection_of(channel)
    if collection not in store.collections():
        return empty_columns(channel)
    names = [*types] if channel == "trades" or made_too else [*types, "source"]
    eq = {"venue": market.venue, "symbol": market.symbol}
    parts = []
    for batch in store.scan(collection, eq=eq, lo=part[0], hi=part[1], columns=names):
        kept = batch
        if "source" in names:
            kept = batch.filter(pc.invert(pc.is_in(batch.column("source"), pa.array(MADE_OF_TRADES))))
        parts.append({
            name: kept.column(name).to_numpy(zero_copy_only=False).astype(dtype) for name, dtype in types.items()
        })  # fmt: skip
    rows = concat(parts, channel)
    order = np.argsort(rows[key], kind="stable")
    return {name: column[order] for name, column in rows.items()}


def collection_of(channel: str) -> str:
    return collections.TRADES.name if channel == "trades" else collections.candles(interval_of(channel)).name


def _shape(channel: str) -> tuple[str, str, dict[str, str]]:
    """Key column, time column and column types of a channel."""
    return ("id", "ts_ms", TRADE_COLUMNS) if channel == "trades" else ("ts", "ts", CANDLE_COLUMNS)


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One kind of record about a stream: its area of topics, what its head says, and what it holds and settles."""

    area: str
    head: Callable[[Record], PageInfo | Batch]
    contents: Callable[[Record], tuple[Columns, list[Span]]]

    def topic(self, channel: str) -> str:
        return f"{self.area}.{'trades' if channel == 'trades' else 'candles'}"


def page_head(record: Record) -> PageInfo:
    return decode_page_info(_header(record, "page"))


def page_contents(record: Record) -> tuple[Columns, list[Span]]:
    """A raw page, parsed again: its rows and what it settles."""
    info = page_head(record)
    try:
        parsed = parser(info.venue).parse(info, record.value or b"")
    except ExchangeError:
        return empty_columns(info.channel), []
    return parsed.columns, spans.subtract([info.covers], [*parsed.missing, *parsed.unrecoverable])


def batch_head(record: Record) -> Batch:
    return decode_batch(record.value or b"")


def batch_contents(record: Record) -> tuple[Columns, list[Span]]:
    return batch_head(record).arrays(), []


PAGES = Source("raw", page_head, page_contents)
BATCHES = Source("market", batch_head, batch_contents)


@dataclass(frozen=True)
class Place:
    """A record of a topic that speaks of a span of a stream."""

    offset: int
    covers: Span


@dataclass
class Slice:
    """What lies on a topic about [start, end) of a stream: rows once each, and what their pages settle."""

    rows: Columns
    disagreeing: list[int]  # keys whose repeats are not the same
    settled: list[Span]  # what the pages cover and could be read


def index(log: RecordReader, source: Source, market: Market, channel: str) -> list[Place]:
    """Where a topic speaks of a stream: offset and span of each record that has one."""
    found = []
    for record in _records(log, source.topic(channel), market):
        head = source.head(record)
        if (head.symbol, head.channel) == (market.symbol, channel) and head.covers:
            found.append(Place(record.offset, head.covers))
    return found


def read(log: RecordReader, source: Source, market: Market, channel: str, places: list[Place], part: Span) -> Slice:
    """The rows of a slice as a topic carries them. A page's last millisecond may lie behind what it covers."""
    key, time, types = _shape(channel)
    near = {p.offset for p in places if p.covers[0] < part[1] and p.covers[1] >= part[0]}
    parts: list[Columns] = []
    settled: list[Span] = []
    for record in records_at(log, source.topic(channel), market, near):
        columns, settles = source.contents(record)
        inside = (columns[time] >= part[0]) & (columns[time] < part[1])
        parts.append({name: columns[name] if inside.all() else columns[name][inside] for name in types})
        settled += spans.clip(settles, *part)
    rows, _, disagreeing = once(concat(parts, channel), key)
    return Slice(rows, disagreeing, spans.union(settled))


def records_at(log: RecordReader, topic: str, market: Market, offsets: set[int]) -> Iterator[Record]:
    """The records of a symbol's partition at these offsets, in order."""
    if not offsets:
        return
    last = max(offsets)
    for record in _records(log, topic, market, min(offsets)):
        if record.offset in offsets:
            yield record
        if record.offset >= last:
            return


def _records(log: RecordReader, topic: str, market: Market, start: int | None = None) -> Iterator[Record]:
    key = stream_key(*market)
    partition = partition_of(key, log.topics()[topic])
    return (record for record in log.records(topic, partition, start) if record.key == key)


def _header(record: Record, name: str) -> bytes:
    return next((value for key, value in record.headers if key == name), b"")


def _span(span: Span) -> str:
    return f"{instant_text(span[0])} .. {instant_text(span[1])}"


def _allows_missing(run: Workflow, market: Market, channel: str) -> bool:
    stream = (*market, channel)
    same = (step for step in run.steps if (step.venue, step.symbol, step.channel) == stream)
    return any(step.params.get("allow_missing") for step in same)
