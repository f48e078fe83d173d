"""The embedded store's own promises: one file, many readers, a killed process, a full disk, a foreign file."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.stores import sqlite_blocks
from adapters.stores.collections import COVERAGE, TELEMETRY_EVENTS, TRADES
from adapters.stores.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore
from app.errors import StoreBusy, StoreError
from models.market import Array

WRITER = """
import sys
import numpy as np
from adapters.stores.collections import TRADES
from adapters.stores.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
store.ensure(TRADES)
for start in range(0, 10**9, 100):
    ids = np.arange(start, start + 100)
    store.upsert_columns("trades", {"venue": "v", "symbol": "S", "id": ids, "ts_ms": ids})
    print(start + 100, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(path)) as opened:
        opened.ensure(TRADES)
        yield opened


def trades(ids: Array, *, symbol: str = "S", **more: Any) -> dict[str, Any]:
    return {"venue": "v", "symbol": symbol, "id": ids, "ts_ms": ids * 10, **more}


def write_thousands(store: SqliteStore, start: int, end: int) -> None:
    for at in range(start, end, 1_000):
        store.upsert_columns("trades", trades(np.arange(at, at + 1_000)))


def stored_ids(store: SqliteStore, **how: Any) -> list[int]:
    return [n for batch in store.scan("trades", columns=["id"], **how) for n in batch.column("id").to_pylist()]


def test_what_was_acknowledged_outlives_a_killed_writer(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(30):
        acknowledged = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    acknowledged = int((writer.stdout.read().split() or [acknowledged])[-1])
    with closing(SqliteStore(path)) as store:
        ids = stored_ids(store)
    assert ids[:acknowledged] == list(range(acknowledged))
    assert ids == list(range(len(ids)))
    assert len(ids) - acknowledged in (0, 100)  # the one batch that was stored but not yet acknowledged


def test_another_process_reads_while_this_one_writes(store: SqliteStore, path: Path) -> None:
    store.upsert_columns("trades", trades(np.arange(5)))
    reader = (
        "import sys; from adapters.stores.sqlite import SqliteStore; s = SqliteStore(sys.argv[1], read_only=True)\n"
        "for line in sys.stdin: print(s.count('trades', eq={'symbol': line.strip()}), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(symbol: str) -> int:
            print(symbol, file=process.stdin, flush=True)
            return int(process.stdout.readline())  # type: ignore[union-attr]

        assert ask("S") == 5
        store.upsert_columns("trades", trades(np.arange(7)))
        store.upsert_columns("trades", trades(np.arange(3), symbol="NEW"))
        assert [ask("S"), ask("NEW")] == [7, 3]


def test_a_read_only_store_opens_a_closed_file_and_refuses_to_write(store: SqliteStore, path: Path) -> None:
    store.upsert_columns("trades", trades(np.arange(5)))
    store.close()
    with closing(SqliteStore(path, read_only=True)) as reader:
        assert stored_ids(reader) == [0, 1, 2, 3, 4]
        with pytest.raises(StoreError, match="read only"):
            reader.upsert_columns("trades", trades(np.arange(6)))
    with pytest.raises(StoreError, match="closed"):
        store.count("trades")


def test_threads_write_and_read_side_by_side(store: SqliteStore) -> None:
    store.ensure(TELEMETRY_EVENTS)
    done = threading.Event()

    def write(thread: int) -> int:
        created = 0
        for start in range(0, 2_000, 50):
            created += store.upsert_columns("trades", trades(np.arange(start, start + 50), symbol=f"S{thread}")).created
            event = {"topic": "t", "partition": thread, "offset": start, "ts_ms": start, "queue_id": "q", "body": {}}
            created += store.upsert("telemetry_events", [event]).created
        return created

    def read() -> int:
        last = 0
        while not done.is_set():
            ids = stored_ids(store, eq={"symbol": "S1"})
            assert ids == list(range(len(ids)))
            assert len(ids) % 50 == 0
            assert len(ids) >= last
            last = len(ids)
        return last

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        created = list(pool.map(write, range(3)))
        done.set()
        assert all(reader.result() <= 2_000 for reader in readers)
    assert created == [2_040] * 3
    assert (store.count("trades"), store.count("telemetry_events", eq={"queue_id": "q"})) == (6_000, 120)


def test_a_writer_that_waits_too_long_for_another_says_when_to_try_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.stores.sqlite._BUSY_TIMEOUT_MS", 20)
    with closing(SqliteStore(path)) as store:
        store.ensure(TRADES)
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy) as busy:
            store.upsert_columns("trades", trades(np.arange(3)))
        assert busy.value.retry_after_s > 0
        other.execute("ROLLBACK")
        other.close()
        assert store.upsert_columns("trades", trades(np.arange(3))).created == 3


# -- files that cannot be used


def test_a_full_disk_is_a_clear_error_and_nothing_acknowledged_is_lost(store: SqliteStore) -> None:
    store.upsert_columns("trades", trades(np.arange(1_000)))
    assert store._writer is not None
    pages = store._writer.execute("PRAGMA page_count").get
    store._writer.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite's own way to run out of space
    with pytest.raises(StoreError, match="full: free space"):
        write_thousands(store, 1_000, 10_000)
    kept = stored_ids(store)
    assert kept == list(range(len(kept)))
    assert len(kept) >= 1_000
    store._writer.execute("PRAGMA max_page_count = 1073741823")
    assert store.upsert_columns("trades", trades(np.arange(10_000))).created == 10_000 - len(kept)


def test_a_file_of_someone_else_is_left_as_it_is(path: Path) -> None:
    for content in (b"a diary, not a database. " * 100, b""):
        path.write_bytes(content)
        if not content:  # an empty SQLite file with a table of another application
            other = apsw.Connection(str(path))
            other.execute("CREATE TABLE diary (day)")
            other.close()
        before = path.read_bytes()
        for read_only in (False, True):
            with pytest.raises(StoreError, match="another path"):
                SqliteStore(path, read_only=read_only)
        assert path.read_bytes() == before


def test_a_file_of_a_newer_version_is_refused(store: SqliteStore, path: Path) -> None:
    store.close()
    newer = apsw.Connection(str(path))
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert newer.execute("PRAGMA application_id").get == APPLICATION_ID
    newer.close()
    with pytest.raises(StoreError, match="newer StreamForge"):
        SqliteStore(path)


def test_a_damaged_file_is_named_and_not_answered_from(store: SqliteStore, path: Path) -> None:
    write_thousands(store, 0, 20_000)
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StoreError, match="damaged"), closing(SqliteStore(path)) as damaged:
        stored_ids(damaged)


def test_a_store_that_was_never_made_cannot_be_read(path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        SqliteStore(path, read_only=True)
    assert not path.exists()


def test_names_that_differ_by_case_only_are_refused(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="by case only"):
        store.count("Trades")


# -- layout


def test_a_repeat_writes_nothing_to_the_file(store: SqliteStore) -> None:
    store.ensure(COVERAGE)
    ledger = {"venue": "v", "symbol": "S", "channel": "trades", "version": 1, "stored": [[0, 5]]}
    assert store._writer is not None
    for _ in range(2):
        store.upsert_columns("trades", trades(np.arange(3_000), price=np.arange(3_000) / 7))
        store.upsert("coverage", [ledger])
        changes = store._writer.total_changes()
    store.upsert_columns("trades", trades(np.arange(3_000), price=np.arange(3_000) / 7))
    store.upsert("coverage", [ledger])
    assert store._writer.total_changes() == changes


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 20_000), max_size=40, unique=True),
    times=st.lists(st.integers(0, 300), min_size=40, max_size=40),
    desc=st.booleans(),
    batch_rows=st.integers(1, 7),
)
def test_scans_are_in_order_of_time_whatever_the_order_of_ids(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], times: list[int], desc: bool, batch_rows: int
) -> None:
    expected = sorted(zip(times, ids, strict=False), reverse=desc)
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(SqliteStore(tmp_path_factory.mktemp("scan") / "store.db")) as store,
    ):
        patch.setattr(sqlite_blocks, "BATCH_ROWS", batch_rows)
        store.ensure(TRADES)
        columns = {
            "venue": "v",
            "symbol": "S",
            "id": np.array(ids, np.int64),
            "ts_ms": np.array(times[: len(ids)], np.int64),
        }
        store.upsert_columns("trades", columns)
        batches = list(store.scan("trades", columns=["ts_ms", "id"], desc=desc))
    assert [tuple(row.values()) for batch in batches for row in batch.to_pylist()] == expected
    assert all(0 < len(batch) <= batch_rows for batch in batches)


def test_a_scan_left_half_way_can_be_closed_and_the_store_too(store: SqliteStore, path: Path) -> None:
    store.upsert_columns("trades", trades(np.arange(70_000)))
    scan = store.scan("trades")
    assert len(next(scan)) == sqlite_blocks.BATCH_ROWS
    store.close()
    scan.close()  # type: ignore[attr-defined]
    with closing(SqliteStore(path)) as again:
        assert again.count("trades") == 70_000


def test_inside_a_transaction_one_reads_what_one_has_written_and_others_do_not(store: SqliteStore) -> None:
    with store.together():
        store.upsert_columns("trades", trades(np.arange(3)))
        assert store.count("trades") == 3
        with ThreadPoolExecutor(1) as other:
            assert other.submit(store.count, "trades").result(10) == 0
    assert store.count("trades") == 3
