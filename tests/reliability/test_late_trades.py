"""R24: a late trade amends its candle or is put aside, and is counted. R03: candles over lost trades say so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.stores import collections
from adapters.stores.sqlite import SqliteStore
from agents import candles as agent
from agents.candles import candles_of
from agents.store import store_batch
from app.core import Message
from app.telemetry import TRADES_LATE
from models.folding import Folded, Folding, fold_batch
from models.market import Batch, Span, decode_batch, encode_batch, pack_columns, versions_of

MINUTE, DAY = 60_000, 86_400_000
INTERVALS = ("1m", "3m")
END = 5 * MINUTE
PLACE = ("market.trades", 0, 0)

Trade = tuple[int, int, float]  # (id, ts_ms, price)


def batch_of(trades: Sequence[Trade], covers: Span, lost: tuple[Span, ...] = ()) -> Batch:
    ids, times, prices = (np.array(column) for column in zip(*trades, strict=True)) if trades else np.empty((3, 0))
    columns: dict[str, Any] = {
        "id": ids, "ts_ms": times, "price": prices, "size": prices / 64, "quote_size": prices**2 / 64,
        "buyer_is_maker": prices % 2 == 0, "trades": np.ones(len(prices)),
    }  # fmt: skip
    return Batch(
        venue="binance", symbol="BTCUSDT", channel="trades", source="live", run="r", ts_receipt_ms=0, covers=covers,
        asked=(0, DAY), unrecoverable=lost, columns=pack_columns("trades", columns),
    )  # fmt: skip


def as_they_come(trades: Sequence[Trade], sizes: Sequence[int]) -> list[Batch]:
    """Batches of so many trades, each saying that all before its newest trade is here; then the clock closes all."""
    batches, told, rest = [], 0, list(trades)
    for size in sizes:
        now, rest = rest[:size], rest[size:]
        to = max([told, *(ts for _, ts, _ in now)])
        batches.append(batch_of(now, (told, to)))
        told = to
    return [*batches, batch_of(rest, (told, END))]


class Reader:
    """Whoever reads market.candles: keeps the versions, and the rows of the highest one."""

    def __init__(self) -> None:
        self.folding, self.folded = Folding(), [Folded()]
        self.rows: dict[tuple[str, int], tuple[Any, ...]] = {}
        self.versions: dict[tuple[str, int], list[int]] = {}
        self.partial: dict[tuple[str, int], bool] = {}

    def take(self, *batches: Batch) -> Reader:
        for batch in batches:
            self.folded.append(fold_batch(self.folding, batch, INTERVALS))
            self.folding = msgspec.json.decode(msgspec.json.encode(self.folding), type=Folding)
            for made in self.folded[-1].candles:
                candles = candles_of(made, batch, PLACE)
                columns = [candles.array(name).tolist() for name in candles.columns]
                for version, *row in zip(versions_of(candles).tolist(), *columns, strict=True):
                    key = (made.interval, row[0])
                    self.versions.setdefault(key, []).append(version)
                    self.rows[key], self.partial[key] = tuple(row), made.partial
        return self


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, END - 1), st.integers(1, 64)), min_size=1, max_size=20),
    st.randoms(use_true_random=False), st.lists(st.integers(1, 6), max_size=8), st.booleans(),
)  # fmt: skip
def test_r24_any_order_of_arrival_makes_the_candles_of_the_sorted_trades_and_their_versions_rise(
    market: list[tuple[int, int]], chance: random.Random, sizes: list[int], repeats: bool
) -> None:
    in_order = [(n, ts, float(price)) for n, (ts, price) in enumerate(sorted(market))]
    come = in_order + (chance.sample(in_order, len(in_order) // 2) if repeats else [])
    chance.shuffle(come)
    expected = Reader().take(batch_of(in_order, (0, END)))
    got = Reader().take(*as_they_come(come, sizes))
    assert got.rows == expected.rows
    assert all(below < above for seen in got.versions.values() for below, above in pairwise(seen))
    assert not any(folded.too_late for folded in got.folded)


def minutes(count: int) -> Batch:
    return batch_of([(n, n * MINUTE, 10.0 + n) for n in range(count)], (0, count * MINUTE))


@pytest.mark.parametrize("late_ms", [1, MINUTE, 4 * MINUTE - 1])
def test_r24_a_trade_that_is_late_by_little_amends_its_candle(late_ms: int) -> None:
    edge = 20 * MINUTE
    reader = Reader().take(minutes(20), batch_of([(20, edge - late_ms, 99.0)], (edge, edge)))
    opened = (edge - late_ms) // MINUTE * MINUTE
    [made] = [made for made in reader.folded[-1].candles if made.interval == "1m"]
    assert (made.columns["ts"].tolist(), made.columns["high"].tolist(), made.revision) == ([opened], [99.0], 1)
    assert (reader.folded[-1].late, reader.folded[-1].too_late) == (1, [])


@pytest.mark.parametrize("late_ms", [30 * MINUTE, DAY])
def test_r24_a_trade_that_is_late_by_much_is_said_to_be_too_late(late_ms: int) -> None:
    edge = 2_000 * MINUTE
    reader = Reader().take(minutes(2_000), batch_of([(2_000, edge - late_ms, 99.0)], (edge, edge)))
    assert reader.folded[-1] == Folded([], late=1, too_late=[0])


async def test_r24_late_trades_are_counted_and_those_too_late_are_put_aside_with_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aside: list[tuple[Batch, str]] = []

    async def put_aside(_message: Message, reason: str, value: bytes) -> None:
        aside.append((decode_batch(value), reason))

    monkeypatch.setattr(agent, "dead_letter", put_aside)
    ends = [TRADES_LATE.labels("binance", end) for end in ("amended", "dead letter")]
    before = [count._value.get() for count in ends]
    batch = batch_of([(1, 1, 1.0), (2, 2, 2.0), (3, 3, 3.0)], (0, 4))
    message = Message("market.trades", 0, 7, b"binance:BTCUSDT", encode_batch(batch), {}, 0.0)
    await agent.count_late(Folded([], late=3, too_late=[1]), batch, message)
    assert [count._value.get() - was for count, was in zip(ends, before, strict=True)] == [2, 1]
    [(rows, reason)] = aside
    assert (rows.array("id").tolist(), rows.covers) == ([2], None)
    assert "1 of BTCUSDT's trades, the first of 1970-01-01T00:00:00.002Z; load that hour again" in reason


def test_r24_in_the_store_a_lower_version_never_replaces_a_higher(tmp_path: Any) -> None:
    store = SqliteStore(tmp_path / "store.db")
    spec = collections.candles("1m")
    for one in (spec, collections.COVERAGE):
        store.ensure(one)
    folding, sent = Folding(), []
    late = batch_of([(20, 19 * MINUTE, 99.0)], (20 * MINUTE, 20 * MINUTE))
    for batch in (minutes(20), late):
        sent += [candles_of(made, batch, PLACE) for made in fold_batch(folding, batch, ("1m",)).candles]
    for batch in [*sent, *sent[:1]]:  # the first comes again after a crash
        store_batch(store, spec.name, [batch])
    rows = [row for batch in store.scan(spec.name) for row in batch.to_pylist()]
    assert [row["high"] for row in rows] == [*(10.0 + n for n in range(19)), 99.0]
    theirs = msgspec.structs.replace(sent[0], source="history")
    store_batch(store, spec.name, [theirs])
    store_batch(store, spec.name, [sent[-1]])
    assert [row["source"] for batch in store.scan(spec.name) for row in batch.to_pylist()] == ["history"] * 20


def test_r03_a_candle_over_lost_trades_is_made_of_those_there_are_and_flagged() -> None:
    lost = (MINUTE + 10_000, MINUTE + 20_000)
    trades = [(1, 0, 5.0), (2, MINUTE, 6.0), (9, MINUTE + 30_000, 7.0), (10, 2 * MINUTE, 8.0)]
    reader = Reader().take(batch_of(trades, (0, 6 * MINUTE), (lost,)))
    assert {ts // MINUTE: flag for (interval, ts), flag in reader.partial.items() if interval == "1m"} == {
        0: False, 1: True, 2: False, 3: False, 4: False, 5: False,
    }  # fmt: skip
    assert reader.partial["3m", 0]
    assert reader.partial["3m", 3 * MINUTE], "flat behind a partial one"
    assert reader.versions["1m", MINUTE][0] < 10**15 < reader.versions["1m", 0][0], "any whole one replaces it"


def test_r03_inside_lost_trades_no_candle_is_invented_and_a_flat_one_behind_them_is_flagged() -> None:
    lost = (MINUTE + 10_000, 3 * MINUTE + 10_000)
    reader = Reader().take(
        batch_of([(1, 0, 5.0), (2, MINUTE, 6.0)], (0, MINUTE + 5_000)),
        batch_of([], (MINUTE + 5_000, 5 * MINUTE), (lost,)),
        batch_of([(9, 6 * MINUTE, 7.0)], (5 * MINUTE, 8 * MINUTE)),
    )
    assert {ts // MINUTE: flag for (interval, ts), flag in reader.partial.items() if interval == "1m"} == {
        0: False, 1: True, 4: True, 5: True, 6: False, 7: False,
    }  # fmt: skip
    assert reader.folding.segments["r"].lost == [(MINUTE + 10_000, 3 * MINUTE + 10_000)]
