"""The report says what the store holds, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from adapters.stores import collections
from adapters.stores.sqlite import SqliteStore
from app.errors import UnknownRun
from app.report import lines, read_events, read_runs, run_report
from models.control import Workflow, plan, step_event
from models.coverage import Coverage
from models.market import CANDLE_COLUMNS, Span

START = 1_755_648_000_000  # 2025-08-20
STEP = 300_000
DAY = 86_400_000
SPECS = (
    collections.QUEUE_STATE, collections.TELEMETRY_EVENTS, collections.COVERAGE, collections.GRAPHS, collections.MODELS,
    collections.candles("5m"),
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with closing(SqliteStore(tmp_path / "store.db")) as opened:
        for spec in SPECS:
            opened.ensure(spec)
        yield opened


def a_run(store: SqliteStore, queue_id: str = "r1", state: str = "finished") -> Workflow:
    run = plan({
        "command": "start", "queue_id": queue_id, "symbol": "BTCUSDT", "time_range": "2025-08-20:2025-08-20",
        "requests": [{"target": name, "type": "api_candles_5m"} for name in ("loader-producer", "arango-connector")],
    })  # fmt: skip
    run.state = state  # type: ignore[assignment]
    for step in run.steps:
        step.state = "loading" if state == "running" else state  # type: ignore[assignment]
    keep(store, run)
    return run


def keep(store: SqliteStore, run: Workflow, version: int = 1) -> None:
    document = {
        "queue_id": run.queue_id,
        "status": run.state,
        "version": version,
        "updated_ms": int(run.created_at * 1000),
    }
    store.upsert("queue_state", [{**document, "state": msgspec.to_builtins(run)}])


def put_candles(store: SqliteStore, count: int, stored: list[Span], **holes: Any) -> None:
    columns = {name: np.zeros(count, dtype=dtype) for name, dtype in CANDLE_COLUMNS.items()}
    columns["ts"] = START + STEP * np.arange(count)
    store.upsert_columns(
        "candles_5m", {"venue": "binance", "symbol": "BTCUSDT", "source": "history", "version": 1, **columns}
    )
    of = {"venue": "binance", "symbol": "BTCUSDT"}
    ledger = msgspec.to_builtins(Coverage(stored=stored, **holes))
    store.upsert("coverage", [
        {**of, "channel": "candles_5m", "version": 1, "updated_ms": 0, **ledger}
    ])  # fmt: skip


def put_event(store: SqliteStore, offset: int, event: dict[str, Any]) -> None:
    document = {"topic": "queue-events", "partition": 0, "offset": offset, "ts_ms": 0, "event": event["event"]}
    store.upsert("telemetry_events", [{**document, "queue_id": event["queue_id"], "body": event}])


def text(report: dict[str, Any]) -> str:
    return "\n".join(lines(report, "http://127.0.0.1:1"))


def test_a_whole_day_is_complete_with_every_candle_counted(store: SqliteStore) -> None:
    a_run(store)
    put_candles(store, 288, [(START, START + DAY)])
    report = run_report(store, "r1")
    assert (report["state"], report["complete"]) == ("finished", True)
    assert "BTCUSDT candles_5m: 288 of 288 rows in candles_5m, coverage complete" in text(report)
    assert "Page:     http://127.0.0.1:1/" in text(report)


def test_a_hole_is_said_and_the_report_is_not_complete(store: SqliteStore) -> None:
    a_run(store)
    hole = (START + DAY - 12 * STEP, START + DAY)
    put_candles(store, 276, [(START, hole[0])], unrecoverable=[hole])
    report = run_report(store, "r1")
    assert report["complete"] is False
    assert report["streams"][0]["holes"] == [hole]
    assert "276 of 288 rows in candles_5m, coverage 95.83%; unrecoverable: 1 span, 3600 s" in text(report)


def test_rows_of_another_range_or_symbol_are_not_counted(store: SqliteStore) -> None:
    a_run(store)
    put_candles(store, 600, [(START, START + 600 * STEP)])
    assert run_report(store, "r1")["streams"][0]["rows"] == 288


def test_a_run_that_stored_nothing_yet_is_reported_as_such(store: SqliteStore) -> None:
    a_run(store, state="running")
    report = run_report(store, "r1")
    assert (report["complete"], report["streams"][0]["rows"], report["models"]) == (False, 0, [])
    assert "0 of 288 rows" in text(report)


def test_a_failed_step_is_named_with_its_sentence(store: SqliteStore) -> None:
    run = a_run(store, state="error")
    run.steps[0].error = "the exchange refused"
    keep(store, run, version=2)
    assert run_report(store, "r1")["error"] == "loader-producer api_candles_5m: the exchange refused"


def test_the_seconds_of_a_step_lie_between_its_first_and_last_word(store: SqliteStore) -> None:
    run = a_run(store)
    for offset, (said_s, status) in enumerate([(10.0, "started"), (12.5, "loading"), (14.0, "finished")]):
        put_event(store, offset, step_event(status, "r1", run.steps[0]) | {"timestamp": said_s})
    assert [step["seconds"] for step in run_report(store, "r1")["steps"]] == [4.0, None]


def test_events_come_in_the_order_of_the_topic_behind_an_offset(store: SqliteStore) -> None:
    run = a_run(store)
    for offset in (9, 2, 10):
        put_event(store, offset, step_event("loading", "r1", run.steps[0]))
    assert [event["offset"] for event in read_events(store, "r1")] == [2, 9, 10]
    assert [event["offset"] for event in read_events(store, "r1", after=9)] == [10]
    assert [event["offset"] for event in read_events(store, "r1", after=1, limit=2)] == [2, 9]


def test_following_a_run_reads_only_what_is_new(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(store)
    for offset in range(50):
        put_event(store, offset, step_event("loading", "r1", run.steps[0]))
    scan, read = store.scan, []

    def counted(*of: Any, **how: Any) -> Iterator[pa.RecordBatch]:
        for batch in scan(*of, **how):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(store, "scan", counted)
    followed: list[int] = []
    while page := read_events(store, "r1", after=followed[-1] if followed else -1, limit=7):
        followed += [event["offset"] for event in page]
    assert (followed, sum(read)) == (list(range(50)), 50)


def test_a_foreign_event_never_breaks_the_report_of_a_run(store: SqliteStore) -> None:
    run = a_run(store)
    known = step_event("started", "r1", run.steps[0]) | {"timestamp": 10.0}
    foreign: list[dict[str, Any]] = [
        {"extra": ["x"]}, {"extra": {"task": ["x"]}}, {"timestamp": "soon"}, {"timestamp": None}, {"extra": "task"},
    ]  # fmt: skip
    for offset, odd in enumerate([{}, *foreign, {"timestamp": 12.0}]):
        put_event(store, offset, known | odd)
    assert [step["seconds"] for step in run_report(store, "r1")["steps"]] == [2.0, None]


def test_an_event_stands_at_its_own_offset_whatever_it_says(store: SqliteStore) -> None:
    a_run(store)
    put_event(store, 7, {"event": "loading", "queue_id": "r1", "offset": 3})
    assert [event["offset"] for event in read_events(store, "r1")] == [7]


def test_runs_are_listed_the_newest_first(store: SqliteStore) -> None:
    for number, name in enumerate(("a", "b", "c")):
        run = a_run(store, name)
        run.created_at = float(number)
        keep(store, run, version=2)
    assert [run.queue_id for run in read_runs(store)] == ["c", "b", "a"]


def test_an_unknown_run_is_refused(store: SqliteStore) -> None:
    with pytest.raises(UnknownRun):
        run_report(store, "nope")


def test_an_empty_store_knows_no_runs(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "empty.db")) as empty:
        assert read_runs(empty) == []
        with pytest.raises(UnknownRun):
            run_report(empty, "r1")
