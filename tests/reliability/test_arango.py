"""R26: conflicts, partial batches, bad documents, outages and the end of processes lose and double nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.stores import collections
from adapters.stores.arango import ArangoStore
from adapters.stores.arango_batches import Patience
from adapters.stores.base import CollectionSpec
from agents.store import Letter, store_batch
from app.errors import StoreBusy
from models.coverage import Coverage
from models.market import TRADE_COLUMNS, Batch, pack_columns
from tests.arango import PASSWORD, Double, DoubleInThread, address, open_store, settings_of
from tests.end_to_end.test_load import BTC, LOAD, begin, verify
from tests.processes import Broker, Worker, wait_for

ROWS, PART = 6_000, 300
EAGER = Patience(first_s=0.001, most_s=0.01, in_all_s=0.1)  # gives up soon, so that outages reach the caller
PLAN = """
seed: 3
faults:
  - {kind: unavailable, path: /_api/document/trades, share: 0.1}
  - {kind: cut_after, path: /_api/document/trades, share: 0.1}
  - {kind: conflict, share: 0.1, attempts: 2}
  - {kind: bad, share: 0.01, number: 1620}
  - {kind: outage, path: /_api/document/trades, after: 5, times: 15}
  - {kind: outage, path: /_api/document/trades, after: 30, times: 15}
  - {kind: outage, path: /_api/document/coverage, after: 10, times: 15}
"""


def batches() -> list[Batch]:
    """Trades one a millisecond in pages of PART; each page begins with the last rows of the one before it."""
    made = []
    for start in range(0, ROWS, PART):
        ids = np.arange(max(0, start - 20), start + PART)
        columns = {name: np.ones(len(ids), dtype) for name, dtype in TRADE_COLUMNS.items()}
        columns |= {"id": ids, "ts_ms": ids.astype(np.int64), "price": ids / 7}
        typed = {name: columns[name].astype(dtype) for name, dtype in TRADE_COLUMNS.items()}
        made.append(Batch(
            venue="binance", symbol="BTCUSDT", channel="trades", source="history", run="r", ts_receipt_ms=0,
            origin=("raw.trades", 0, start // PART), covers=(start, start + PART), asked=(0, ROWS),
            columns=pack_columns("trades", typed),
        ))  # fmt: skip
    return made


def until_stored(store: ArangoStore, batch: Batch) -> tuple[Coverage, list[Letter]]:
    """As the worker does: again for as long as the store is busy."""
    for _ in range(200):
        try:
            return store_batch(store, "trades", [batch])
        except StoreBusy:
            continue
    raise AssertionError("the store was busy 200 times")


def test_r26_every_good_document_is_stored_once_and_every_bad_one_is_a_letter(tmp_path: Path) -> None:
    with DoubleInThread(tmp_path / "data") as double:
        there = address(double.url, "")
        with closing(ArangoStore(there, patience=EAGER, batch_rows=100)) as store:
            for spec in (collections.TRADES, collections.COVERAGE):
                store.ensure(spec)
            double.show(PLAN)
            ledger, refused = Coverage(), set[int]()
            for batch in batches():
                ledger, letters = until_stored(store, batch)
                refused |= {letter.document["id"] for letter in letters}
                assert {letter.number for letter in letters} <= {1620}
            made = dict(double.made())
            double.show("")
            rows = [row for part in store.scan("trades", eq=BTC) for row in part.to_pylist()]
            [stored] = store.get("coverage", ["binance.BTCUSDT.trades"])
        assert {"unavailable", "cut_after", "conflict", "bad", "outage"} <= set(made)
        assert 20 < len(refused) < 120
        assert [row["id"] for row in rows] == sorted(set(range(ROWS)) - refused)
        assert all(row["price"] == row["id"] / 7 for row in rows)
        missing = {ms for start, end in ledger.missing for ms in range(start, end)}
        unsure = {ms + 1 for ms in refused if (ms + 1) % PART == 0} - {ROWS}  # a page behind a hole: its first moment
        assert missing == refused | unsure
        assert stored is not None
        assert [tuple(span) for span in stored["stored"]] == ledger.stored


def test_r26_of_writers_who_race_for_one_document_the_highest_version_stays(tmp_path: Path) -> None:
    spec = CollectionSpec(
        name="raced", key=("k",), key_format="{k}", columns={"k": "text", "ts": "int", "version": "int", "by": "int"},
        series=(), version="version",
    )  # fmt: skip
    with DoubleInThread(tmp_path / "data") as double:
        double.show("faults: [{kind: conflict, share: 0.5, attempts: 3}]")
        with closing(ArangoStore(address(double.url, ""), patience=EAGER)) as store, ThreadPoolExecutor(3) as threads:
            store.ensure(spec)

            def write(by: int) -> None:
                for version in range(by, 30, 3):
                    documents = [{"k": f"k{n}", "ts": n, "version": version, "by": by} for n in range(8)]
                    while True:
                        try:
                            assert not store.upsert("raced", documents).errors
                            break
                        except StoreBusy:
                            continue

            list(threads.map(write, range(3)))
            rows = [row for part in store.scan("raced") for row in part.to_pylist()]
    assert [(row["k"], row["version"], row["by"]) for row in rows] == [(f"k{n}", 29, 2) for n in range(8)]


@pytest.mark.timeout(240)  # on a busy machine; alone it takes some 15 s
def test_r26_a_killed_server_and_a_killed_worker_in_the_sink_lose_and_double_nothing(
    tmp_path: Path, start_exchange: Callable[..., Any]
) -> None:
    double = Double(tmp_path / "arango")
    own = address(double.url, PASSWORD)
    worker = Worker(tmp_path, start_exchange(), broker=Broker(tmp_path), **settings_of(own))
    try:
        begin(worker, "k", "2025-08-20:2025-08-22", LOAD)
        with closing(open_store(own)) as store:
            wait_for(lambda: "trades" in store.collections() and store.count("trades") > 5_000, 60, worker.said)
        double.kill()
        wait_for(lambda: "store_batches waits" in worker.said(), 60, worker.said)
        worker.kill()
        double.start()
        worker.start_again()
        assert worker.wait_for_end("k", 120)["status"] == "finished", worker.said()
        code, document = verify(worker, "k")
        assert code == 0, [check for check in document["checks"] if check["differences"]]
    finally:
        worker.kill()
        double.kill()
