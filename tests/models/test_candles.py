"""Candles from trades equal a naive decimal implementation and the recorded candles of the exchange."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candles import CandleState, amend, columns_of, flush, fold, is_late, kept
from models.market import CANDLE_COLUMNS, Array

MINUTE = 60_000


@dataclass(frozen=True)
class Trade:
    id: int
    ts_ms: int
    price: Decimal
    size: Decimal
    buyer_is_maker: bool
    trades: int


def columns(trades: Sequence[Trade]) -> dict[str, Array]:
    return {
        "id": np.array([t.id for t in trades], dtype=np.int64),
        "ts_ms": np.array([t.ts_ms for t in trades], dtype=np.int64),
        "price": np.array([float(t.price) for t in trades], dtype=np.float64),
        "size": np.array([float(t.size) for t in trades], dtype=np.float64),
        "buyer_is_maker": np.array([t.buyer_is_maker for t in trades], dtype=np.bool_),
        "trades": np.array([t.trades for t in trades], dtype=np.int64),
    }


def naive(trades: Sequence[Trade], up_to_ms: int) -> list[dict[str, Any]]:
    """One trade after the other in decimals; buckets that end at or before `up_to_ms`."""
    if not trades:
        return []
    found = []
    close = Decimal(0)
    for ts in range(trades[0].ts_ms // MINUTE * MINUTE, up_to_ms - MINUTE + 1, MINUTE):
        inside = [t for t in trades if ts <= t.ts_ms < ts + MINUTE]
        prices = [t.price for t in inside] or [close]
        close = prices[-1]
        bought = [t for t in inside if not t.buyer_is_maker]
        found.append({
            "ts": ts, "open": float(prices[0]), "high": float(max(prices)), "low": float(min(prices)),
            "close": float(close), "volume": float(sum(t.size for t in inside)),
            "quote_volume": float(sum(t.price * t.size for t in inside)), "trades": sum(t.trades for t in inside),
            "taker_buy_volume": float(sum(t.size for t in bought)),
            "taker_buy_quote_volume": float(sum(t.price * t.size for t in bought)), "closed": True,
        })  # fmt: skip
    return found


def rows(candles: dict[str, Array]) -> list[dict[str, Any]]:
    assert {name: column.dtype for name, column in candles.items()} == {
        n: np.dtype(t) for n, t in CANDLE_COLUMNS.items()
    }
    return [
        dict(zip(candles, values, strict=True)) for values in zip(*(c.tolist() for c in candles.values()), strict=True)
    ]


def fold_all(batches: Sequence[Sequence[Trade]]) -> tuple[CandleState, list[dict[str, Any]]]:
    """As the table does it: the state travels as JSON between two batches."""
    state = CandleState(interval_ms=MINUTE)
    closed = []
    for batch in batches:
        state, candles = fold(state, columns(batch), MINUTE)
        assert len(state.given) <= kept(MINUTE)
        state = msgspec.json.decode(msgspec.json.encode(state), type=CandleState)
        closed += rows(candles)
    return state, closed


@st.composite
def tapes(draw: st.DrawFn) -> list[Trade]:
    """Trades with rising ids and times that do not fall, prices and sizes of any magnitude an exchange has."""
    places = draw(st.integers(0, 8))
    price = st.integers(1, 10**9).map(lambda n: Decimal(n).scaleb(-places))
    size = st.integers(0, 10**15).map(lambda n: Decimal(n).scaleb(-draw(st.integers(4, 8))))
    steps = draw(st.lists(st.sampled_from([0, 1, 700, 30_000, 60_000, 200_000]), max_size=40))
    ts, trades = 1_700_000_000_000, []
    for n, step in enumerate(steps):
        ts += step
        trades.append(Trade(5 + 2 * n, ts, draw(price), draw(size), draw(st.booleans()), draw(st.integers(1, 9))))
    return trades


def cuts(draw: st.DrawFn, trades: Sequence[Trade]) -> Iterator[Sequence[Trade]]:
    places = sorted(draw(st.lists(st.integers(0, len(trades)), max_size=6)))
    for start, end in zip([0, *places], [*places, len(trades)], strict=True):
        yield trades[start:end]


def some_trades() -> list[Trade]:
    return [
        Trade(1, 0, Decimal("1.1"), Decimal("0.1"), False, 1),
        Trade(2, 59_999, Decimal("1.3"), Decimal("0.2"), True, 2),
        Trade(3, 60_000, Decimal("1.2"), Decimal("0.3"), False, 1),
        Trade(4, 240_000, Decimal("1.4"), Decimal("0.4"), True, 5),
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_cut_into_batches_gives_the_candles_of_the_naive_decimal_way(data: st.DataObject) -> None:
    trades = data.draw(tapes())
    state, closed = fold_all(list(cuts(data.draw, trades)))
    up_to = (trades[-1].ts_ms if trades else 0) + data.draw(st.integers(0, 5)) * MINUTE
    _, by_clock = flush(state, up_to)
    assert closed + rows(by_clock) == naive(trades, up_to)


def test_a_candle_closes_with_the_first_trade_at_its_end_and_not_before() -> None:
    trades = some_trades()
    state, closed = fold(None, columns(trades[:2]), MINUTE)
    assert len(closed["ts"]) == 0
    state, closed = fold(state, columns(trades[2:3]), MINUTE)
    assert rows(closed) == naive(trades, 60_000)


def test_buckets_without_trades_are_flat_at_the_last_price() -> None:
    _, closed = fold(None, columns(some_trades()), MINUTE)
    flat = [row for row in rows(closed) if row["trades"] == 0]
    assert [row["ts"] for row in flat] == [120_000, 180_000]
    assert all(row[name] == 1.2 for row in flat for name in ("open", "high", "low", "close"))
    assert all(row["volume"] == row["quote_volume"] == row["taker_buy_volume"] == 0 for row in flat)


def test_flush_closes_up_to_the_known_time_and_later_trades_go_on_from_there() -> None:
    trades = some_trades()
    state, _ = fold(None, columns(trades[:1]), MINUTE)
    state, first = flush(state, 119_999)
    assert [row["ts"] for row in rows(first)] == [0]
    state, again = flush(state, 119_999)
    assert rows(again) == []
    state, rest = fold(state, columns(trades[2:]), MINUTE)
    assert rows(rest)[0] == naive(trades, 120_000)[1]


def test_before_the_first_trade_there_is_no_candle() -> None:
    state, closed = flush(CandleState(interval_ms=MINUTE), 10 * MINUTE)
    assert rows(closed) == []
    assert state.ts is None


def test_a_late_trade_amends_the_candle_of_its_time_and_the_flat_ones_that_show_its_price() -> None:
    late = Trade(5, 119_000, Decimal("9"), Decimal("7"), False, 1)
    state, closed = fold(None, columns(some_trades()), MINUTE)
    before = rows(closed)
    assert is_late(state, columns([late])["ts_ms"]).tolist() == [True]
    state, amended, too_late = amend(state, columns([late]))
    assert [(one.ts, one.revision) for one in amended] == [(60_000, 1), (120_000, 1), (180_000, 1)]
    in_order = [*some_trades()[:3], late, some_trades()[3]]
    assert [before[0], *rows(columns_of(amended))] == naive(in_order, 240_000)
    assert not too_late.any()
    _, last = flush(state, 300_000)
    assert rows(last) == naive(in_order, 300_000)[-1:], "the open candle has not changed"


def test_a_late_trade_behind_a_flat_candle_that_is_open_moves_its_price() -> None:
    state, _ = fold(None, columns(some_trades()[:2]), MINUTE)
    state, _ = flush(state, 120_000)
    late = Trade(3, 61_000, Decimal("5"), Decimal("1"), True, 1)
    state, amended, _ = amend(state, columns([late]))
    assert [(one.ts, one.trades, one.revision) for one in amended] == [(60_000, 1, 1)]
    _, flat = flush(state, 180_000)
    assert rows(flat) == naive([*some_trades()[:2], late], 180_000)[-1:]


def test_a_trade_of_a_candle_that_is_not_kept_any_more_is_too_late() -> None:
    many = [Trade(n, n * MINUTE, Decimal(n), Decimal(1), False, 1) for n in range(1, kept(MINUTE) + 3)]
    state, _ = fold(None, columns(many), MINUTE)
    late = [
        Trade(100, MINUTE + 1, Decimal(7), Decimal(1), False, 1),
        Trade(101, 6 * MINUTE, Decimal(7), Decimal(1), False, 1),
    ]
    state, amended, too_late = amend(state, columns(late))
    assert too_late.tolist() == [True, False]
    assert [one.ts for one in amended] == [6 * MINUTE]


def test_a_trade_before_the_first_one_makes_the_candles_between_them() -> None:
    trades = some_trades()
    state, _ = fold(None, columns(trades[3:]), MINUTE)
    state, amended, _ = amend(state, columns(trades[:3]))
    assert rows(columns_of(amended)) == naive(trades, 240_000)
    assert {one.revision for one in amended} == {0}


def test_rows_without_a_trade_count_count_as_one() -> None:
    bare = {name: column for name, column in columns(some_trades()).items() if name != "trades"}
    _, closed = fold(None, bare, MINUTE)
    assert closed["trades"].tolist() == [2, 1, 0, 0]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_order_inside_a_batch_makes_no_difference(data: st.DataObject) -> None:
    trades = data.draw(tapes())
    assert fold_all([data.draw(st.permutations(trades))]) == fold_all([trades])


def test_a_state_of_another_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="60000 ms"):
        fold(CandleState(interval_ms=MINUTE), columns([]), 300_000)


# -- recorded trades against recorded candles

RECORDED = Path(os.environ.get("RECORDED_DATA", "")) if os.environ.get("RECORDED_DATA") else None
DAY = "2026-04-10"


def csv_of(path: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        return list(csv.DictReader(io.TextIOWrapper(file)))


def recorded_trades(path: Path) -> dict[str, Array]:
    lines = csv_of(path)
    first, last = ([int(line[name]) for line in lines] for name in ("first_trade_id", "last_trade_id"))
    return {
        "id": np.array([int(line["agg_trade_id"]) for line in lines]),
        "ts_ms": np.array([int(line["transact_time"]) for line in lines]),
        "price": np.array([float(line["price"]) for line in lines]),
        "size": np.array([float(line["quantity"]) for line in lines]),
        "buyer_is_maker": np.array([line["is_buyer_maker"] == "true" for line in lines]),
        "trades": np.array(last) - np.array(first) + 1,
    }


@pytest.mark.skipif(
    RECORDED is None or not (RECORDED / "aggtrades/um" / DAY).is_dir(), reason="RECORDED_DATA has no trades of the day"
)
def test_candles_of_recorded_trades_equal_the_recorded_candles_to_the_known_extent() -> None:
    """The README of the data: 14,269 traded minutes, 14,132 of equal volume, 13,920 equal in all fields.

    The rest are minutes whose trades the futures exchange leaves out of its aggregates (liquidations).
    """
    assert RECORDED is not None
    traded = volume_equal = all_equal = flat = flat_equal = 0
    for path in sorted((RECORDED / "aggtrades/um" / DAY).glob("**/*.zip")):
        trades = recorded_trades(path)
        symbol = path.name.split("-")[0]
        state = None
        made: dict[int, dict[str, Any]] = {}
        for start in range(0, len(trades["id"]), 1_000):
            batch = {name: column[start : start + 1_000] for name, column in trades.items()}
            state, closed = fold(state, batch, MINUTE)
            made |= {row["ts"]: row for row in rows(closed)}
        assert state is not None
        _, closed = flush(state, int(trades["ts_ms"][0]) // 86_400_000 * 86_400_000 + 86_400_000)
        made |= {row["ts"]: row for row in rows(closed)}
        for line in csv_of(RECORDED / f"klines/um/1m_daily/{symbol}/{symbol}-1m-{DAY}.zip"):
            row = made.get(int(line["open_time"]))
            expected = {
                "open": float(line["open"]), "high": float(line["high"]), "low": float(line["low"]),
                "close": float(line["close"]), "volume": float(line["volume"]), "trades": int(line["count"]),
                "taker_buy_volume": float(line["taker_buy_volume"]),
            }  # fmt: skip
            same = row is not None and all(row[name] == value for name, value in expected.items())
            if expected["trades"] == 0:
                flat += 1
                flat_equal += same
                continue
            traded += 1
            volume_equal += row is not None and row["volume"] == expected["volume"]
            all_equal += same
            if same and row is not None:
                assert row["quote_volume"] == float(line["quote_volume"])
                assert row["taker_buy_quote_volume"] == float(line["taker_buy_quote_volume"])
    assert (traded, volume_equal, all_equal) == (14_269, 14_132, 13_920)
    assert (flat, flat_equal) == (131, 131)
