"""Batches become documents: market.trades, market.candles -> store_batches -> the store, coverage_by_stream.

Exactly once in effect: every row has a deterministic key, and a candle with a lower version never replaces a better
one. The ledger becomes durable with the rows it speaks of, so that it never promises what is not stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

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
from models.market import TRADE_CHANNELS, Batch, decode_batch, interval_of, joined, runs_of, versions_of
from tables.coverage_by_stream import coverage_by_stream

POLL_S = 0.2
QUIET_S = 5.0  # nothing waits on the topics and the ledger stands still: what is not settled by now is missing


@consumes_together(topics.market_trades, topics.market_candles)
async def store_batches(messages: list[Message]) -> None:
    """Write batches, then their ledgers."""
    batches = [decode_batch(message.value) for message in messages]
    for run, ledger, refused in await asyncio.to_thread(store_all, batches):  # it may wait for the store
        for place, why in refused.items():
            await dead_letter(messages[place], why)
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
    await asyncio.to_thread(outside.store().upsert, "telemetry_events", [document])


@cache
def collection_of(channel: str) -> str:
    """The collection of a channel's rows, created when it is not there."""
    spec = {"trades": collections.TRADES, "fills": collections.FILLS}.get(channel)
    spec = spec or collections.candles(interval_of(channel))
    outside.store().ensure(spec)
    return spec.name


def store_all(batches: Sequence[Batch]) -> list[tuple[list[int], Coverage, dict[int, str]]]:
    """In one transaction; for each run of batches its places, the ledger, and why rows were refused, by place.

    Raises StoreBusy, StoreError.
    """
    store, done = outside.store(), []
    collections_of = {batch.channel: collection_of(batch.channel) for batch in batches}
    with store.together():
        for run in runs_of(batches):
            parts = [batches[place] for place in run]
            collection = collections_of[parts[0].channel]
            ledger, why = store_batch(store, collection, joined(parts))
            refused = {run[0]: why} if why else {}
            if why and len(run) > 1:  # whose rows they were
                said = [store_batch(store, collection, part) for part in parts]
                ledger, refused = said[-1][0], {place: why for place, (_, why) in zip(run, said, strict=True) if why}
            done.append((run, ledger, refused))
    return done


def store_batch(store: Store, collection: str, batch: Batch) -> tuple[Coverage, str]:
    """Rows and ledger together; the ledger, and why rows were refused, if any were: then the batch's span is missing.

    The ledger in the store is the truth, because it commits with the rows; the table mirrors it.
    Raises StoreBusy, StoreError.
    """
    refused = ""
    with store.together():
        if len(batch):
            columns: dict[str, Any] = {"venue": batch.venue, "symbol": batch.symbol, **batch.arrays()}
            if batch.channel not in TRADE_CHANNELS:
                columns |= {"source": batch.source, "version": versions_of(batch)}
            if errors := store.upsert_columns(collection, columns).errors:
                refused = f"{collection} refused {len(errors)} rows, the first: {errors[0][2]}"
                batch = msgspec.structs.replace(batch, missing=(batch.covers,) if batch.covers else ())
        ledger = outside.read_coverage(store, batch.symbol, batch.channel, batch.venue)
        ledger.add(batch)
        if batch.covers:
            store.upsert("coverage", [{
                "venue": batch.venue, "symbol": batch.symbol, "channel": batch.channel,
                "updated_ms": int(time.time() * 1000),
                "stored": ledger.stored, "missing": ledger.missing, "unrecoverable": ledger.unrecoverable,
                "asked": ledger.asked, "raw": ledger.raw,
            }])  # fmt: skip
    return ledger, refused


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
    return f"{len(found)} span{'s' if len(found) > 1 else ''}, {seconds:g} s in all, first at {found[0][0]} ms"
