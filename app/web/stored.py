"""Stored data over HTTP: candles, trades, coverage, models; JSON, or an Arrow stream of the same rows.

A page holds the newest rows of its range, newest last, and never cuts a millisecond in two; so the page before it ends
where it begins, nothing is lost between them, and it may hold a few rows more than `limit`.
Stores block: every read runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlencode

import numpy as np
import orjson
import pyarrow as pa
from aiohttp import web

from adapters.stores import collections
from adapters.stores.base import CollectionSpec, Store
from app import outside
from app.errors import StreamForgeError
from app.report import describe_coverage
from app.web.calls import answer, call
from app.web.parameters import Parameters, read_interval, read_symbol
from models.control import Json
from tables.coverage_by_stream import coverage_by_stream

ARROW = "application/vnd.apache.arrow.stream"
ROWS_PER_PAGE = 1_000
MOST_AS_JSON, MOST_AS_ARROW = 10_000, 200_000


class NotThere(StreamForgeError):
    http_status = 404


@call("/candles/{symbol}/{interval}")
async def show_candles(request: web.Request, symbol: str, interval: str) -> web.Response:
    """Candles whose open time lies in [start, end); `venue` where it is not binance."""
    spec = collections.candles(read_interval(interval))
    return await answer_rows(request, spec, read_symbol(symbol), interval=interval)


@call("/trades/{symbol}")
async def show_trades(request: web.Request, symbol: str) -> web.Response:
    """Trades of [start, end); `venue` where it is not binance."""
    return await answer_rows(request, collections.TRADES, read_symbol(symbol))


@call("/coverage")
async def list_coverage(_request: web.Request) -> web.Response:
    """Every stream with what of it is stored, missing, unrecoverable."""
    known = coverage_by_stream.seen.items()
    return answer({"streams": [describe_coverage(name, ledger) for name, ledger in known]})


@call("/coverage/{stream}")
async def show_coverage(request: web.Request, stream: str) -> web.Response:
    """One stream, `venue:symbol:channel`; `start` and `end` cut it."""
    query = Parameters(request.query, "start", "end")
    start, end = query.range_ms()
    ledger = coverage_by_stream.seen.get(stream)
    if ledger is None:
        raise NotThere(f"nothing of a stream {stream!r} was loaded; GET /coverage lists what was")
    asked = (start, end) if "start" in request.query and "end" in request.query else None
    return answer(describe_coverage(stream, ledger.within(start, end), asked))


@call("/models")
async def list_models(request: web.Request) -> web.Response:
    """Trained models, newest last, without their metrics."""
    query = Parameters(request.query, "start", "end", "limit")
    start, end = query.range_ms()
    limit = query.whole("limit", ROWS_PER_PAGE, 1, MOST_AS_JSON)
    found = await asyncio.to_thread(_newest_models, outside.store(), start, end, limit)
    return answer({"models": found})


@call("/models/{model}/{version}")
async def show_model(_request: web.Request, model: str, version: str) -> web.Response:
    """One model with its metrics."""
    [document] = await asyncio.to_thread(outside.store().get, "models", [f"{model}.{version}"])
    if document is None:
        raise NotThere(f"no model is called {model!r} in version {version!r}; GET /models lists them")
    return answer(document)


async def answer_rows(request: web.Request, spec: CollectionSpec, symbol: str, **facts: str) -> web.Response:
    """A page of a series as the caller wants to have it."""
    as_arrow = ARROW in request.headers.get("Accept", "")
    query = Parameters(request.query, "start", "end", "limit", "venue")
    start, end = query.range_ms()
    venue = query.text("venue", outside.VENUE)
    limit = query.whole("limit", ROWS_PER_PAGE, 1, MOST_AS_ARROW if as_arrow else MOST_AS_JSON)
    said = {"venue": venue, "symbol": symbol, **facts}

    def read() -> tuple[bytes, str | None]:
        table, before = newest_rows(outside.store(), spec, symbol, start, end, limit, venue)
        earlier = _earlier(request, start, before, limit)
        return (to_arrow(table, said) if as_arrow else to_json(table, said, earlier)), earlier

    body, earlier = await asyncio.to_thread(read)
    headers = {"Link": f'<{earlier}>; rel="prev"'} if earlier else None
    kind = ARROW if as_arrow else "application/json"
    return web.Response(body=body, content_type=kind, charset=None if as_arrow else "utf-8", headers=headers)


def newest_rows(
    store: Store, spec: CollectionSpec, symbol: str, start: int, end: int, limit: int, venue: str = outside.VENUE
) -> tuple[pa.Table, int | None]:
    """The newest rows of [start, end), oldest first, and where the page before them ends; None when it is the first."""
    columns = [name for name in spec.columns if name not in spec.series]
    time = spec.time or "ts"
    if spec.name not in store.collections():
        return pa.table({name: [] for name in columns}), None
    eq = {"venue": venue, "symbol": symbol}

    def scan(lo: int, hi: int, most: int | None, desc: bool = False) -> pa.Table:
        batches = list(store.scan(spec.name, eq=eq, lo=lo, hi=hi, columns=columns, desc=desc, limit=most))
        return pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in columns})

    newest = scan(start, end, limit, desc=True)
    if len(newest) < limit:
        return newest.take(np.arange(len(newest))[::-1]), None
    oldest_ms = newest.column(time)[-1].as_py()
    newer = np.flatnonzero(newest.column(time).to_numpy() > oldest_ms)[::-1]
    page = pa.concat_tables([scan(oldest_ms, oldest_ms + 1, None), newest.take(newer)])
    return page, oldest_ms if len(scan(start, oldest_ms, 1)) else None


def to_json(table: pa.Table, facts: Json, earlier: str | None) -> bytes:
    return orjson.dumps({**facts, "rows": table.to_pylist(), "earlier": earlier})


def to_arrow(table: pa.Table, facts: dict[str, str]) -> bytes:
    """An Arrow IPC stream; what is the same for every row stands in the schema's metadata."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(facts)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _newest_models(store: Store, start: int, end: int, limit: int) -> Sequence[Json]:
    columns = [name for name in collections.MODELS.columns if name != "metrics"]
    batches = store.scan("models", lo=start, hi=end, columns=columns, desc=True, limit=limit)
    return [row for batch in batches for row in batch.to_pylist()][::-1]


def _earlier(request: web.Request, start: int, before: int | None, limit: int) -> str | None:
    """The address of the page before this one."""
    said = {"venue": request.query["venue"]} if "venue" in request.query else {}
    query = urlencode({"start": start, "end": before, "limit": limit, **said})
    return None if before is None else f"{request.path}?{query}"
