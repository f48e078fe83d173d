"""A batch is stored once, the better candle wins, and the ledger never promises what is not stored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adapters.stores import collections
from adapters.stores.base import BAD_KEY, WriteResult
from adapters.stores.sqlite import SqliteStore
from agents import store as agent
from agents.store import describe, has_arrived, store_all, store_batch
from models.coverage import Coverage
from models.market import CANDLE_COLUMNS, Batch, decode_batch, encode_batch, pack_columns

MINUTE = 60_000
SPEC = collections.candles("1m")


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    opened = SqliteStore(tmp_path / "store.db")
    opened.ensure(SPEC)
    opened.ensure(collections.COVERAGE)
    return opened


def candles(close: float = 1.0, rows: int = 3, source: str = "history", symbol: str = "BTCUSDT") -> Batch:
    columns = {name: np.full(rows, close).astype(dtype) for name, dtype in CANDLE_COLUMNS.items()}
    columns["ts"] = np.arange(rows) * MINUTE
    return Batch(
        venue="binance", symbol=symbol, channel="candles_1m", source=source, run="r", ts_receipt_ms=0,
        origin=("raw.candles", 1, 7), covers=(0, rows * MINUTE) if source == "history" else None,
        columns=pack_columns("candles_1m", columns),
    )  # fmt: skip


def closes(store: SqliteStore) -> list[float]:
    return [row["close"] for batch in store.scan(SPEC.name) for row in batch.to_pylist()]


def test_a_repeated_batch_changes_nothing(store: SqliteStore) -> None:
    for _ in range(2):
        assert store_batch(store, SPEC.name, [candles()])[1] == []
    assert closes(store) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("order", [("history", "aggregated"), ("aggregated", "history")])
def test_the_exchanges_own_candle_outranks_the_one_made_from_trades(store: SqliteStore, order: tuple[str, str]) -> None:
    for source in order:
        store_batch(store, SPEC.name, [candles(2.0 if source == "history" else 1.0, source=source)])
    assert closes(store) == [2.0, 2.0, 2.0]


def test_the_ledger_is_stored_with_what_it_speaks_of(store: SqliteStore) -> None:
    store_batch(store, SPEC.name, [candles()])
    [document] = store.get("coverage", ["binance.BTCUSDT.candles_1m"])
    assert document is not None
    assert document["stored"] == [[0, 3 * MINUTE]]
    assert document["raw"] == {"raw.candles-1": 7}


def test_two_runs_of_one_stream_stored_together_are_both_in_its_ledger(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.outside, "store", lambda: store)
    monkeypatch.setattr(agent, "collection_of", lambda _channel: SPEC.name)
    other = msgspec.structs.replace(candles(), run="other", covers=(60 * MINUTE, 63 * MINUTE))
    ledgers = [ledger for _, ledger, _ in store_all([candles(), other, candles()])]
    assert ledgers[-1].stored == [(0, 3 * MINUTE), (60 * MINUTE, 63 * MINUTE)]


def test_refused_rows_are_missing_not_stored(store: SqliteStore) -> None:
    ledger, letters = store_batch(store, SPEC.name, [candles(symbol="BTC:USDT")])
    assert [letter.number for letter in letters] == [BAD_KEY] * 3
    assert (ledger.stored, ledger.missing) == ([], [(0, 3 * MINUTE)])


def test_a_refused_row_goes_with_its_document_and_closes_its_hole_when_it_is_sent_again(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.upsert_columns

    def refusing(collection: str, columns: Any) -> WriteResult:
        kept = {n: np.delete(c, 4) if isinstance(c, np.ndarray) else c for n, c in columns.items()}
        return replace(write(collection, kept), errors=[(4, 1233, "bad")])

    first = candles()
    ts = first.array("ts") + 3 * MINUTE
    second = msgspec.structs.replace(
        first, covers=(3 * MINUTE, 6 * MINUTE), columns={**first.columns, "ts": ts.tobytes()}
    )
    monkeypatch.setattr(store, "upsert_columns", refusing)
    ledger, [letter] = store_batch(store, SPEC.name, [first, second])
    assert (letter.part, letter.number, letter.document["ts"]) == (1, 1233, 4 * MINUTE)
    assert (ledger.stored, ledger.missing) == (
        [(0, 4 * MINUTE), (5 * MINUTE, 6 * MINUTE)], [(4 * MINUTE, 5 * MINUTE)],
    )  # fmt: skip
    assert b'"ts":240000' in letter.headers()["document"]

    monkeypatch.setattr(store, "upsert_columns", write)
    ledger, letters = store_batch(store, SPEC.name, [decode_batch(encode_batch(letter.batch))])
    assert (ledger.stored, ledger.missing, letters) == ([(0, 6 * MINUTE)], [], [])
    assert len(closes(store)) == 6


def test_a_load_has_arrived_when_its_last_page_is_in_the_ledger() -> None:
    ledger = Coverage(raw={"raw.trades-2": 9})
    assert has_arrived(ledger, [{"position": ["raw.trades-2", 9]}, {"position": None}, {}])
    assert not has_arrived(ledger, [{"position": ["raw.trades-2", 10]}])
    assert not has_arrived(ledger, [{"position": ["raw.trades-0", 0]}])


def test_holes_are_told_to_a_person() -> None:
    assert describe([(5_000, 10_000), (20_000, 21_500)]) == "2 spans, 6.5 s in all, from 1970-01-01T00:00:05Z on"
