"""Stored rows over HTTP: pages that lose nothing between them, and the same rows as JSON and as Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.stores import collections
from adapters.stores.base import Store
from adapters.stores.sqlite import SqliteStore
from app.outside import VENUE
from app.report import describe_coverage
from app.web.stored import newest_rows, to_arrow, to_json
from models.coverage import Coverage

TRADES = 3_000
rng = np.random.default_rng(7)
TIMES = np.sort(rng.integers(0, 400, TRADES)) * 10 + 1_000_000  # many trades in one millisecond, and empty ones


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = SqliteStore(tmp_path_factory.mktemp("store") / "store.db")
    store.ensure(collections.TRADES)
    for symbol, rows in (("BTCUSDT", TRADES), ("ETHUSDT", 5)):
        store.upsert_columns(
            "trades",
            {
                "venue": VENUE, "symbol": symbol, "id": np.arange(rows), "ts_ms": TIMES[:rows],
                "price": rng.random(rows), "size": rng.random(rows), "quote_size": rng.random(rows),
                "buyer_is_maker": rng.random(rows) > 0.5, "trades": np.ones(rows, dtype=np.int64),
            },
        )  # fmt: skip
    yield store
    store.close()


def page(store: Store, start: int, end: int, limit: int, symbol: str = "BTCUSDT") -> tuple[pa.Table, int | None]:
    return newest_rows(store, collections.TRADES, symbol, start, end, limit)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4_500), st.integers(1, 4_500), st.integers(1, 1_500))
def test_pages_from_the_newest_back_hold_every_row_of_the_range_once(
    store: Store, start: int, length: int, limit: int
) -> None:
    start += 999_900
    end: int | None = start + length
    found: list[int] = []
    while end is not None:
        rows, end = page(store, start, end, limit)
        ids = rows.column("id").to_pylist()
        assert ids == sorted(ids)
        found = ids + found
    assert found == [i for i, ts in enumerate(TIMES.tolist()) if start <= ts < start + length]


def test_a_page_holds_the_newest_rows_and_ends_on_a_whole_millisecond(store: Store) -> None:
    rows, before = page(store, 0, 1 << 53, 10)
    times = rows.column("ts_ms").to_pylist()
    assert rows.column("id").to_pylist()[-1] == TRADES - 1
    assert len(rows) >= 10
    assert before == times[0]
    assert times.count(times[0]) == (times[0] == TIMES).sum()


def test_the_first_page_of_all_says_that_nothing_lies_before_it(store: Store) -> None:
    rows, before = page(store, 0, 1 << 53, 5, "ETHUSDT")
    assert len(rows) == 5
    assert before is None


def test_what_was_never_stored_is_an_empty_page(store: Store) -> None:
    for spec in (collections.TRADES, collections.candles("1h")):
        rows, before = newest_rows(store, spec, "XRPUSDT", 0, 1 << 53, 10)
        assert (len(rows), before) == (0, None)
        assert to_arrow(rows, {"symbol": "XRPUSDT"})


def test_json_and_arrow_say_the_same(store: Store) -> None:
    rows, _ = page(store, 0, 1 << 53, 20)
    facts: dict[str, Any] = {"venue": VENUE, "symbol": "BTCUSDT"}
    as_json = orjson.loads(to_json(rows, facts, "/trades/BTCUSDT?end=5"))
    with pa.ipc.open_stream(to_arrow(rows, facts)) as reader:
        table = reader.read_all()
    assert table.to_pylist() == as_json["rows"]
    assert table.schema.metadata == {name.encode(): text.encode() for name, text in facts.items()}
    assert (as_json["symbol"], as_json["earlier"]) == ("BTCUSDT", "/trades/BTCUSDT?end=5")


def test_coverage_is_described_by_its_extent_or_by_what_was_asked() -> None:
    ledger = Coverage(stored=[(0, 60), (80, 100)], missing=[(60, 70)], unrecoverable=[(70, 80)])
    shown = describe_coverage("binance:BTCUSDT:trades", ledger)
    assert (shown["start_ms"], shown["end_ms"], shown["stored_share"]) == (0, 100, 0.8)
    assert describe_coverage("binance:BTCUSDT:trades", ledger, (0, 200))["stored_share"] == 0.4
    assert describe_coverage("binance:BTCUSDT:trades", Coverage())["stored_share"] == 0.0
