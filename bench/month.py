"""A month, stage by stage: `python -m bench.month`. Prints the seconds of each stage, and one ratio.

The ratio: raw pages that lie on their topics already -> normalized -> candles -> stored, by the real worker, against
the ceiling, the same bytes decoded and written to SQLite by a plain loop without Faust, in the same run. Both are
repeated in turn and their medians compared; 1 would mean that the flow costs nothing. Two ceilings: a plain table with
a row a trade (`executemany`), and our own store, which is faster and so the harder one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from adapters.embedded_log.file import Record
from adapters.embedded_log.log import Log
from adapters.embedded_log.reader import LogReader
from adapters.exchanges.base import Parsed
from adapters.exchanges.binance import BinanceSpot
from adapters.stores import collections
from adapters.stores.sqlite import SqliteStore
from app.children import Children
from app.outside import coverage_key
from app.pipelines import Stages, usual
from bench.measure import report, seconds
from bench.store import plain_table
from models.market import PageInfo, decode_page_info

GOAL = 0.5
SYMBOL, INTERVAL, RUN = "BTCUSDT", "5m", "month"
EQ = {"venue": "binance", "symbol": SYMBOL}
RAW, MARKET = ("raw.candles", "raw.trades"), ("market.candles", "market.trades")
POLL_S, WITHIN_S = 0.2, 900.0

Json = dict[str, Any]
Pages = Sequence[tuple[PageInfo, Record]]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--range", default="2025-08-20:2025-09-19")
    arguments.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_all_stages(folder / "stages", said.range)
        pages = read_pages(folder / "stages" / "log.db")
        print(f"raw pages: {len(pages):,}, {sum(len(page.value or b'') for _, page in pages) / 1e6:.0f} MB")
        plain, own, flow = [], [], []
        for number in range(said.repeats):  # in turns, so that all meet the same machine
            plain.append(seconds(lambda: plain_loop(pages)))
            own.append(seconds(lambda number=number: loop_into_store(folder / f"own{number}.db", pages)))  # type: ignore[misc]
            flow.append(whole_flow(folder / f"flow{number}", pages))
            print(
                f"repeat {number + 1}: plain {plain[-1]:.2f} s, own store {own[-1]:.2f} s, whole flow {flow[-1]:.2f} s"
            )
    harder = median(own) / median(flow)
    report("whole flow of a month against a plain loop into our own store", harder, "of the ceiling", ratio=harder)
    ratio = median(plain) / median(flow)
    return not report("whole flow of a month against a plain loop", ratio, "of the ceiling", ratio=ratio, goal=GOAL)


def run_all_stages(folder: Path, time_range: str) -> None:
    """The whole job on the simulated exchange; prints what each step and each model took."""
    folder.mkdir()
    with Children(folder) as children:
        worker = children.start_worker(children.start_exchange(None))
        worker.start(usual(SYMBOL, time_range, INTERVAL, Stages(), queue_id=RUN))
        wait_for(lambda: any(e["target"] == "queue-manager" and e["finished"] for e in events(folder)), children)
    began: dict[str, float] = {}
    for event in events(folder):
        step = f"{event['target']} {event['type']}"
        if event["status"] == "started":
            began[step] = event["timestamp"]
        elif event["finished"] and step in began:
            took = event["timestamp"] - began[step]
            print(f"{step:36} {took:7.2f} s  {event['records_written']:>10,} records  {event['status']}")
    for model, took in models_of(events(folder)):
        print(f"    {model:32} {took:7.2f} s")


def models_of(found: Sequence[Json]) -> Iterator[tuple[str, float]]:
    """What each part of the training took: from its first word to the next part's (words come every half second)."""
    name, since = "start of torch", 0.0
    for event in found:
        if event["target"] != "gnn-trainer":
            continue
        extra, now = event["extra"], event["timestamp"]
        part = f"{extra['model']} on {extra.get('label')}" if extra.get("epoch") is not None else name
        if since and (part != name or event["finished"]):
            yield name, now - since
            since = now
        name, since = part, since or now


def plain_loop(pages: Pages) -> None:
    """Decode and write row by row into a plain table, in transactions of a page; candles are decoded only."""
    exchange = BinanceSpot("http://127.0.0.1:9")
    with plain_table() as write:
        for info, page in pages:
            parsed = exchange.parse(info, page.value or b"")
            if info.channel == "trades":
                write(parsed.columns)


def loop_into_store(path: Path, pages: Pages) -> None:
    """The same through our own store."""
    exchange = BinanceSpot("http://127.0.0.1:9")
    specs = {"trades": collections.TRADES, f"candles_{INTERVAL}": collections.candles(INTERVAL)}
    with closing(SqliteStore(path)) as store:
        for spec in specs.values():
            store.ensure(spec)
        for info, page in pages:
            parsed: Parsed = exchange.parse(info, page.value or b"")
            rest: Json = {} if info.channel == "trades" else {"source": "history", "version": 3}
            store.upsert_columns(specs[info.channel].name, {**EQ, **parsed.columns, **rest})


def whole_flow(folder: Path, pages: Pages) -> float:
    """Seconds from the first batch on its topic to the last row stored, by a worker that finds the pages there."""
    folder.mkdir()
    with Children(folder) as children:
        children.start_worker("")  # makes the topics
    asyncio.run(fill(folder / "log.db", pages))
    asked = {info.channel: info.asked or info.covers for info, _ in pages}
    with Children(folder) as children:
        children.start_worker("")
        wait_for((folder / "store.db").exists, children)
        store = SqliteStore(folder / "store.db", read_only=True)
        wait_for(lambda: all(is_stored(store, channel, span) for channel, span in asked.items()), children)
        last_ms = max(ledger(store, channel)["updated_ms"] for channel in asked)
    reader = LogReader(folder / "log.db")
    first_ms = min(next(iter(reader.records(topic))).ts_ms for topic in MARKET)
    return float(last_ms - first_ms) / 1000


async def fill(path: Path, pages: Pages) -> None:
    """Put the pages on their topics again."""
    log = Log.open(path)
    for at in range(0, len(pages), 50):
        await asyncio.gather(
            *(log.append(page.topic, page.key, page.value, headers=page.headers) for _, page in pages[at : at + 50])
        )
    log.close()


def read_pages(path: Path) -> Pages:
    records = [record for topic in RAW for record in LogReader(path).records(topic)]
    return [(decode_page_info(dict(record.headers)["page"]), record) for record in records]


def is_stored(store: SqliteStore, channel: str, span: tuple[int, int]) -> bool:
    [found] = store.get("coverage", [coverage_key(SYMBOL, channel)])
    return found is not None and [list(span)] == [list(s) for s in found["stored"]]


def ledger(store: SqliteStore, channel: str) -> Json:
    [found] = store.get("coverage", [coverage_key(SYMBOL, channel)])
    assert found is not None
    return found


def events(folder: Path) -> list[Json]:
    return [json.loads(record.value or b"{}") for record in LogReader(folder / "log.db").records("queue-events")]


def wait_for(condition: Callable[[], bool], children: Children) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        children.check()
        if time.monotonic() > until:
            raise TimeoutError(f"not within {WITHIN_S:g} s")
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
