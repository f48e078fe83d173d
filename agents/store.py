"""Batches become documents: market.trades, market.candles -> store_batches -> the store, coverage_by_stream.

Exactly once in effect: every row has a deterministic key, and a candle with a lower version never replaces a better
one. The ledger becomes durable with the rows it speaks of or after them, so that it never promises what is not stored.
A row that the store refuses goes to dead-letters as a batch of its own, with the document and the store's error number,
and leaves a hole in the ledger; sent again, it closes that hole. No offset is committed before that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np

from adapters.stores import collections
from adapters.stores.base import Store
from app import outside, topics
from app.core import Message, consumes, consumes_together, dead_letter
from app.errors import RunFailed
from app.telemetry import ROWS
from app.work import Finished, Job, work
from models import spans
from models.control import CONNECTOR, Json
from models.coverage import Coverage, stream_name
from models.market import (
    INTERVAL_MS,
    TRADE_CHANNELS,
    Batch,
    Span,
    decode_batch,
    encode_batch,
    instant_text,
    interval_of,
    joined,
    pack_columns,
    runs_of,
    versions_of,
)
from tables.coverage_by_stream import coverage_by_stream

log = logging.getLogger(__name__)

POLL_S = 0.2
QUIET_S = 5.0  # nothing waits on the topics and the ledger stands still: what is not settled by now is missing


@consumes_together(topics.market_trades, topics.market_candles)
async def store_batches(messages: list[Message]) -> None:
    """Write batches, then their ledgers."""
    batches = [decode_batch(message.value) for message in messages]
    for run, ledger, letters in await asyncio.to_thread(store_all, batches):  # it may wait for the store
        for letter in letters:
            message = messages[run[letter.part]]
            headers = {**message.headers, **letter.headers()}
            await dead_letter(message, letter.reason, value=encode_batch(letter.batch), headers=headers)
        batch, message = batches[run[-1]], messages[run[-1]]
        ledger.at[f"{message.topic}-{message.partition}"] = message.offset
        coverage_by_stream.put(stream_name(batch.venue, batch.symbol, batch.channel), ledger, of=message)
        ROWS.labels("store_batches").inc(sum(len(batches[place]) for place in run))


@consumes(topics.queue_events)
async def keep_events(message: Message) -> None:
    """Every event as a document of telemetry_events, keyed by its position."""
    fact = msgspec.json.decode(message.value)
    document = {
        "topic": message.topic, "partition": message.partition, "offset": message.offset,
        "ts_ms": int(message.ts_s * 1000), "queue_id": str(fact.get("queue_id") or "-"),
        "event": str(fact.get("event")), "body": fact,
    }  # fmt: skip
    result = await asyncio.to_thread(outside.store().upsert, "telemetry_events", [document])
    for _, number, why in result.errors:
        await dead_letter(message, f"telemetry_events refused it: {why}", headers={"error_number": b"%d" % number})


@cache
def collection_of(channel: str) -> str:
    """The collection of a channel's rows, created when it is not there."""
    spec = {"trades": collections.TRADES, "fills": collections.FILLS}.get(channel)
    spec = spec or collections.candles(interval_of(channel))
    outside.store().ensure(spec)
    return spec.name


@dataclass(frozen=True)
class Letter:
    """A row that the store refused, as a batch that can be sent again; `part` of the run it came with."""

    part: int
    batch: Batch
    document: Json
    number: int
    reason: str

    def headers(self) -> dict[str, bytes]:
        return {"document": msgspec.json.encode(self.document), "error_number": b"%d" % self.number}


def store_all(batches: Sequence[Batch]) -> list[tuple[list[int], Coverage, list[Letter]]]:
    """Together; for each run of batches its places, the ledger, and what was refused. Raises StoreBusy, StoreError."""
    store, done = outside.store(), []
    collections_of = {batch.channel: collection_of(batch.channel) for batch in batches}
    with store.together():
        for run in runs_of(batches):
            parts = [batches[place] for place in run]
            ledger, letters = store_batch(store, collections_of[parts[0].channel], parts)
            done.append((run, ledger, letters))
    return done


def store_batch(store: Store, collection: str, parts: Sequence[Batch]) -> tuple[Coverage, list[Letter]]:
    """The rows of a run, then its ledger, in which refused rows are missing; the ledger, and what was refused.

    The ledger in the store is the truth, because it is written with or after the rows; the table mirrors it.
    Raises StoreBusy, StoreError.
    """
    batch, letters = joined(parts), list[Letter]()
    with store.together():
        if len(batch):
            columns: dict[str, Any] = {"venue": batch.venue, "symbol": batch.symbol, **batch.arrays()}
            if batch.channel not in TRADE_CHANNELS:
                columns |= {"source": batch.source, "version": versions_of(batch)}
            letters = _letters(collection, parts, columns, store.upsert_columns(collection, columns).errors)
            if letters and batch.covers:
                holes = spans.clip(
                    spans.union([_hole(letter.batch) for letter in letters], batch.missing), *batch.covers
                )
                batch = msgspec.structs.replace(batch, missing=tuple(holes))
        ledger = outside.read_coverage(store, batch.symbol, batch.channel, batch.venue)
        ledger.add(batch)
        if batch.covers:
            result = store.upsert("coverage", [{
                "venue": batch.venue, "symbol": batch.symbol, "channel": batch.channel,
                "updated_ms": int(time.time() * 1000),
                "stored": ledger.stored, "missing": ledger.missing, "unrecoverable": ledger.unrecoverable,
                "asked": ledger.asked, "raw": ledger.raw,
            }])  # fmt: skip
            for _, _, why in result.errors:  # then it claims nothing
                log.error("the ledger of %s %s was refused: %s", batch.symbol, batch.channel, why)
    return ledger, letters


def _letters(
    collection: str, parts: Sequence[Batch], columns: Mapping[str, Any], errors: Sequence[tuple[int, int, str]]
) -> list[Letter]:
    """One for each refused row; sent again it closes its hole where the hole is its alone."""
    ends = np.cumsum([len(part) for part in parts])
    found = []
    for row, number, why in errors:
        part = int(np.searchsorted(ends, row, side="right"))
        at = row - int(ends[part]) + len(parts[part])
        own = {name: column[at : at + 1] for name, column in parts[part].arrays().items()}
        alone = msgspec.structs.replace(parts[part], columns=pack_columns(parts[part].channel, own), missing=())
        document = {name: c[row].item() if isinstance(c, np.ndarray) else c for name, c in columns.items()}
        found.append(Letter(part, alone, document, number, f"{collection} refused a row (error {number}): {why}"))
    holes = Counter(_hole(letter.batch) for letter in found)

    def covering(batch: Batch) -> Batch:
        start, end = _hole(batch)
        covers = None if batch.covers is None else (start, end if holes[start, end] == 1 else start)
        return msgspec.structs.replace(batch, covers=covers, asked=covers, unrecoverable=())

    return [replace(letter, batch=covering(letter.batch)) for letter in found]


def _hole(batch: Batch) -> Span:
    """The time that is missing without a batch's first row."""
    if batch.channel in TRADE_CHANNELS:
        start = int(batch.array("ts_ms")[0])
        return start, start + 1
    start = int(batch.array("ts")[0])
    return start, start + INTERVAL_MS[interval_of(batch.channel)]


@work(CONNECTOR)
async def persist(job: Job) -> Finished:
    """Wait until every page of the load is stored and the ledger has settled the asked range.

    Holes are an error unless the caller allows them.
    """
    step = job.step
    assert step.range_ms is not None
    start, end = step.range_ms
    store = outside.store()
    collection = await asyncio.to_thread(collection_of, step.channel)
    time_column = "ts_ms" if step.channel == "trades" else "ts"
    eq = {"venue": step.venue, "symbol": step.symbol}
    quiet = Quiet(step.channel)
    while True:
        ledger = await asyncio.to_thread(outside.read_coverage, store, step.symbol, step.channel, step.venue)
        known = ledger.within(start, end)
        await job.report(progress=spans.length(known.stored) / (end - start), message=f"until {time_column} is covered")
        # A page that was lost on its way never arrives: then nothing waits anywhere, and the ledger shows the hole.
        if (has_arrived(ledger, step.inputs) and ledger.settled([(start, end)])) or quiet.for_long(ledger):
            break
        await asyncio.sleep(POLL_S)
    known.missing = known.gaps_besides(start, end)
    rows = await asyncio.to_thread(store.count, collection, eq=eq, lo=start, hi=end)
    holes = {"missing": known.missing, "unrecoverable": known.unrecoverable}
    extra = {"collection": collection, **{name: found for name, found in holes.items() if found}}
    if (known.missing or known.unrecoverable) and not step.params.get("allow_missing"):
        text = "; ".join(f"{name} {describe(found)}" for name, found in holes.items() if found)
        raise RunFailed(f"{step.symbol} {step.channel}: {text}; `allow_missing` finishes with the list instead")
    return Finished(rows, f"{rows} rows in {collection}", extra)


class Quiet:
    """Tells when nothing of a channel is under way any more, so that waiting longer changes nothing."""

    def __init__(self, channel: str) -> None:
        self._topics = (topics.raw_for(channel), topics.market_for(channel))
        self._seen: Coverage | None = None
        self._since = time.monotonic()

    def for_long(self, ledger: Coverage) -> bool:
        if ledger != self._seen or any(topics.waiting(topic) for topic in self._topics):
            self._seen, self._since = ledger, time.monotonic()
        return time.monotonic() - self._since > QUIET_S


def has_arrived(ledger: Coverage, inputs: list[Json]) -> bool:
    """True when the last page that each load sent is among what the ledger speaks of."""
    sent = [load["position"] for load in inputs if load.get("position")]
    return all(ledger.raw.get(place, -1) >= offset for place, offset in sent)


def describe(found: list[tuple[int, int]]) -> str:
    """Spans for a person: how many, how long, the first."""
    seconds = spans.length(found) / 1000
    return (
        f"{len(found)} span{'s' if len(found) > 1 else ''}, {seconds:g} s in all, from {instant_text(found[0][0])} on"
    )
