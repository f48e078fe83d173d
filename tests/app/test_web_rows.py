"""Tables over HTTP: pages by key, and only rows of partitions that are ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from adapters.embedded_log.file import partition_of
from app import topics
from app.web.rows import page_of
from tables import rows
from tables.coverage_by_stream import coverage_by_stream
from tables.tasks import tasks


@given(st.sets(st.text(min_size=1, max_size=5)), st.integers(1, 7))
def test_pages_hold_every_key_once_in_order(keys: set[str], limit: int) -> None:
    found: list[str] = []
    more = True
    while more:
        page, more = page_of(sorted(keys), found[-1] if found else "", limit)
        assert len(page) <= limit
        found += page
    assert found == sorted(keys)


def test_a_ledger_lies_with_the_messages_of_its_symbol() -> None:
    for symbol in ("BTCUSDT", "ETHUSDT", "XRPUSDT"):
        partition = partition_of(f"binance:{symbol}".encode(), coverage_by_stream.partitions)
        for channel in ("trades", "candles_5m"):
            assert coverage_by_stream.partition_of(f"binance:{symbol}:{channel}") == partition


def test_rows_of_partitions_that_went_away_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"run.{number}" for number in range(40)]
    mine = {0, 2}

    def actives() -> set[TP]:
        changelog = topics.changelog(tasks.name)
        return {TP(changelog, number) for number in mine} | {TP("market.trades", 1)}

    app: Any = SimpleNamespace(assignor=SimpleNamespace(assigned_actives=actives))
    monkeypatch.setattr(rows, "app", app)
    monkeypatch.setattr(tasks, "table", {key.encode(): b"{}" for key in keys})
    kept = tasks.seen.keys()
    assert kept == sorted(key for key in keys if partition_of(key.encode(), tasks.partitions) in mine)
    assert 0 < len(kept) < len(keys)
    assert tasks.seen.raw(next(key for key in keys if key not in kept)) is None


def test_a_replica_shows_the_rows_of_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "replica", {"run.1": b"{}", "run.0": b"[]"})
    assert tasks.seen.keys() == ["run.0", "run.1"]
    assert tasks.seen.raw("run.0") == b"[]"
