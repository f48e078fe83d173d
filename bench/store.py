"""What the embedded store costs: `python -m bench.store`.

Trades per second written in batches, alone and in a thread beside a busy event loop, and the seconds to read a month.
The reference is a plain table, a row a trade, written by apsw's executemany in transactions of the same size.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import numpy as np

from adapters.stores.base import Store
from adapters.stores.collections import TRADES, candles
from adapters.stores.sqlite import SqliteStore
from bench.measure import median_seconds, report, seconds
from models.market import TRADE_COLUMNS, Array

MONTH_TRADES = 1_100_000
MONTH_CANDLES = 8_640
GOAL_TRADES_PER_S = 150_000
GOAL_MONTH_READ_S = 2.0
EQ = {"venue": "binance", "symbol": "BTCUSDT"}
Write = Callable[[int, int], object]  # rows [start, end) of the tape
WriteColumns = Callable[[dict[str, Array]], None]


def tape(rows: int) -> dict[str, Array]:
    """A month of trades of the size and look of BTCUSDT's."""
    random = np.random.default_rng(7)
    price = np.round(60_000 + np.cumsum(random.normal(size=rows)), 2)
    size = np.round(random.exponential(0.01, rows), 5) + 0.00001
    columns = {
        "id": np.arange(3_000_000_017, 3_000_000_017 + rows),
        "ts_ms": 1_755_648_000_000 + np.cumsum(random.integers(0, 4_700, rows)),
        "price": price, "size": size, "quote_size": price * size,
        "buyer_is_maker": random.random(rows) < 0.5, "trades": random.integers(1, 5, rows),
    }  # fmt: skip
    return {name: columns[name].astype(dtype) for name, dtype in TRADE_COLUMNS.items()}


@contextmanager
def our_store(columns: dict[str, Array]) -> Iterator[tuple[SqliteStore, Write]]:
    with TemporaryDirectory() as folder, closing(SqliteStore(Path(folder) / "store.db")) as store:
        store.ensure(TRADES)
        yield (
            store,
            lambda start, end: store.upsert_columns("trades", EQ | {n: c[start:end] for n, c in columns.items()}),
        )


@contextmanager
def plain_table() -> Iterator[WriteColumns]:
    """A row a trade, as SQLite's documentation would have it."""
    with TemporaryDirectory() as folder, closing(apsw.Connection(str(Path(folder) / "plain.db"))) as connection:
        connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE trades (series INTEGER, id INTEGER, ts_ms INTEGER, price REAL, size REAL, quote_size REAL, "
            "buyer_is_maker INTEGER, trades INTEGER, PRIMARY KEY (series, id)) WITHOUT ROWID; "
            "CREATE INDEX trades_time ON trades (series, ts_ms)"
        )

        def write(columns: dict[str, Array]) -> None:
            rows = zip(*(columns[name].tolist() for name in TRADE_COLUMNS), strict=True)
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO trades VALUES (1, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")

        yield write


def sliced(write: WriteColumns, columns: dict[str, Array]) -> Write:
    return lambda start, end: write({name: column[start:end] for name, column in columns.items()})


def write_all(write: Write, rows: int, batch: int) -> None:
    for start in range(0, rows, batch):
        write(start, min(start + batch, rows))


@contextmanager
def busy_loop() -> Iterator[None]:
    """Another thread that never waits, as an event loop under load."""
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            sum(range(1_000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure_writes(columns: dict[str, Array], batch: int, repeats: int) -> bool:
    rows = len(columns["id"])
    ours, plain = [], []
    for _ in range(repeats):  # in turns, so that both meet the same machine
        with our_store(columns) as (_, write):
            ours.append(seconds(lambda write=write: write_all(write, rows, batch)))  # type: ignore[misc]
        with plain_table() as write:
            plain_write = sliced(write, columns)
            plain.append(seconds(lambda write=plain_write: write_all(write, rows, batch)))  # type: ignore[misc]
    fast, reference = rows / float(np.median(ours)), rows / float(np.median(plain))
    return report(
        f"trades written, batches of {batch}", fast, "trades/s", ratio=fast / reference, goal=GOAL_TRADES_PER_S
    )


def measure_writes_beside_a_busy_loop(columns: dict[str, Array]) -> None:
    with our_store(columns) as (_, write), busy_loop():
        fast = 20_000 / seconds(lambda: write_all(write, 20_000, 1_000))
    with plain_table() as write_columns, busy_loop():
        reference = 20_000 / seconds(lambda: write_all(sliced(write_columns, columns), 20_000, 1_000))
    report("trades written beside a busy thread", fast, "trades/s", ratio=fast / reference)


def measure_reads(columns: dict[str, Array], repeats: int) -> bool:
    rows = len(columns["id"])
    with our_store(columns) as (store, write):
        write_all(write, rows, 5_000)
        repeat = rows / seconds(lambda: write_all(write, rows, 5_000))
        report("trades written again, nothing changes", repeat, "trades/s")
        month = median_seconds(lambda: [*store.scan("trades", eq=EQ, columns=list(TRADE_COLUMNS))], repeats)
        ok = report(f"month of {rows} trades read", month, "s", goal=GOAL_MONTH_READ_S, less=True)
        last = median_seconds(lambda: [*store.scan("trades", eq=EQ, desc=True, limit=1_000)], 20 * repeats)
        report("last 1000 trades read", last * 1000, "ms")
        report_candles(store, repeats)
    return ok


def report_candles(store: Store, repeats: int) -> None:
    spec = candles("5m")
    store.ensure(spec)
    ts = 1_755_648_000_000 + 300_000 * np.arange(MONTH_CANDLES)
    price = np.linspace(100, 110, MONTH_CANDLES)
    prices = dict.fromkeys(("open", "high", "low", "close", "volume", "quote_volume"), price)
    rest = {"taker_buy_volume": price, "taker_buy_quote_volume": price, "trades": ts // 7}
    whole: dict[str, Any] = EQ | {"ts": ts, **prices, **rest, "closed": True, "source": "history", "version": 3}
    report("month of 8640 candles written", seconds(lambda: store.upsert_columns(spec.name, whole)) * 1000, "ms")
    month = median_seconds(lambda: [*store.scan(spec.name, eq=EQ)], 5 * repeats)
    report("month of 8640 candles read", month * 1000, "ms")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trades", type=int, default=MONTH_TRADES, help="rows of the month")
    arguments.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    options = arguments.parse_args()
    columns = tape(options.trades)
    measure_writes_beside_a_busy_loop(columns)
    reached = [measure_reads(columns, options.repeats)]
    reached += [measure_writes(columns, batch, options.repeats) for batch in (5_000, 1_000)]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
