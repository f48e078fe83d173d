"""The tape: same seed, same market; candles that agree with the trades; a market worth learning from."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.exchanges.tape import (
    DAY_MS,
    FIRST_DAY_MS,
    LISTINGS,
    MINUTE_MS,
    Candles,
    Tape,
    Trades,
    candles_of,
    fold,
)
from models.market import INTERVAL_MS

TAPE = Tape(7)
MONTH = (FIRST_DAY_MS + DAY_MS, FIRST_DAY_MS + 31 * DAY_MS)


def same(one: Trades | Candles, other: Trades | Candles) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def test_the_same_seed_gives_the_same_trades_in_whatever_order_they_are_asked_for() -> None:
    forwards, backwards = Tape(3), Tape(3)
    days = [forwards.trades_of_day("ETHUSDT", day) for day in range(14)]  # more than are kept
    assert all(same(backwards.trades_of_day("ETHUSDT", day), days[day]) for day in reversed(range(14)))
    assert same(forwards.trades_of_day("ETHUSDT", 0), days[0])
    assert not same(Tape(4).trades_of_day("ETHUSDT", 0), days[0])


def test_ids_and_times_run_on_over_days_without_a_jump() -> None:
    trades = TAPE.trades("SOLUSDT", FIRST_DAY_MS, FIRST_DAY_MS + 3 * DAY_MS)
    assert (np.diff(trades.id) == 1).all()
    assert trades.id[0] == 1
    assert (np.diff(trades.ts_ms) >= 0).all()
    assert (trades.first[1:] == trades.last[:-1] + 1).all()
    assert (trades.last >= trades.first).all()
    assert (trades.price > 0).all()
    assert (trades.size > 0).all()


def test_a_day_is_found_by_any_of_its_ids() -> None:
    for day in (0, 1, 5):
        trades = TAPE.trades_of_day("XRPUSDT", day)
        for trade_id in (int(trades.id[0]), int(trades.id[-1])):
            assert TAPE.day_of_id("XRPUSDT", trade_id, last_day=9) == day
    assert TAPE.day_of_id("XRPUSDT", 10**12, last_day=9) is None
    assert TAPE.day_of_id("XRPUSDT", 0, last_day=9) == 0


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_a_month_of_bitcoin_fits_the_weight_of_a_minute(seed: int) -> None:
    """At 4 per page of 1,000 trades: under 6,000, whichever 30 days."""
    tape = Tape(seed)
    first = [int(tape.trades_of_day("BTCUSDT", day).id[0]) for day in (1, 31, 70, 100)]
    assert 1_100_000 <= first[1] - first[0] <= 1_250_000
    assert 1_100_000 <= first[3] - first[2] <= 1_250_000


@pytest.mark.parametrize("interval", ["1m", "5m", "15m", "1h", "4h", "1d"])
@pytest.mark.parametrize("symbol", ["BTCUSDT", "BNBUSDT"])
def test_candles_agree_with_the_trades_to_the_last_digit(interval: str, symbol: str) -> None:
    step, span = INTERVAL_MS[interval], (FIRST_DAY_MS + 2 * DAY_MS, FIRST_DAY_MS + 4 * DAY_MS)
    trades, candles = TAPE.trades(symbol, *span), TAPE.candles(symbol, interval, *span)
    assert candles.ts_ms.tolist() == list(range(*span, step))
    close = None
    for i, ts in enumerate(candles.ts_ms.tolist()):
        start, end = np.searchsorted(trades.ts_ms, [ts, ts + step])
        got = [int(getattr(candles, f.name)[i]) for f in fields(Candles)]
        if start == end:
            flat = int(candles.close[i])
            assert got == [ts, flat, flat, flat, flat, 0, 0, 0, 0, 0]
            assert close in (None, flat)
            continue
        t = trades.rows(int(start), int(end))
        quote, taker = t.price * t.size, ~t.buyer_is_maker
        close = int(t.price[-1])
        assert got == [
            ts, t.price[0], t.price.max(), t.price.min(), close, t.size.sum(), quote.sum(),
            (t.last - t.first + 1).sum(), t.size[taker].sum(), quote[taker].sum(),
        ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30 * MINUTE_MS - 1), st.integers(1, 10**7), st.integers(1, 10**6), st.booleans()))
)
def test_folding_fine_candles_is_making_coarse_ones(rows: list[tuple[int, int, int, bool]]) -> None:
    rows.sort(key=lambda row: row[0])
    index = np.arange(len(rows))
    ts, price, size = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    trades = Trades(index, ts, price, size, index, index, np.array([row[3] for row in rows], bool))
    coarse = fold(candles_of(trades, 0, 30, 77), 5 * MINUTE_MS)
    for i in range(6):
        inside = (ts >= i * 5 * MINUTE_MS) & (ts < (i + 1) * 5 * MINUTE_MS)
        assert coarse.volume[i] == size[inside].sum()
        assert coarse.trades[i] == inside.sum()
        if inside.any():
            assert (coarse.open[i], coarse.close[i]) == (price[inside][0], price[inside][-1])
            assert (coarse.high[i], coarse.low[i]) == (price[inside].max(), price[inside].min())
        else:
            before = price[ts < i * 5 * MINUTE_MS]
            assert coarse.open[i] == coarse.close[i] == (before[-1] if len(before) else 77)


def test_the_candle_in_the_making_holds_the_trades_so_far() -> None:
    now = FIRST_DAY_MS + DAY_MS + 12 * 3_600_000 + 3 * MINUTE_MS + 21_417
    making = TAPE.candle_until("BTCUSDT", "5m", now)
    trades = TAPE.trades("BTCUSDT", now - now % (5 * MINUTE_MS), now + 1)
    assert making.ts_ms.tolist() == [now - now % (5 * MINUTE_MS)]
    assert making.trades.tolist() == [(trades.last - trades.first + 1).sum()]
    assert making.close.tolist() == [trades.price[-1]]


def test_trades_cluster_in_time() -> None:
    """Far more pairs within a millisecond, and a far more uneven count per minute, than by chance."""
    trades = TAPE.trades_of_day("BTCUSDT", 4)
    assert (np.diff(trades.ts_ms) == 0).mean() > 0.15
    per_minute = np.bincount((trades.ts_ms - trades.ts_ms[0] // DAY_MS * DAY_MS) // MINUTE_MS, minlength=1440)
    assert per_minute.var() > 3 * per_minute.mean()


def test_volatility_is_predictable_and_direction_is_not() -> None:
    closes = np.log(TAPE.candles("BTCUSDT", "5m", *MONTH).close)
    returns = np.diff(closes)[: 719 * 12].reshape(-1, 12)
    volatility, direction = np.log(np.sqrt((returns**2).sum(axis=1))), returns.sum(axis=1)
    calm = volatility > np.median(volatility)
    assert np.corrcoef(volatility[:-1], volatility[1:])[0, 1] > 0.4
    assert (calm[:-1] == calm[1:]).mean() > 0.65
    assert abs((np.sign(direction[:-1]) == np.sign(direction[1:])).mean() - 0.5) < 0.06  # 3 standard errors
    assert ((returns.ravel() - returns.mean()) ** 4).mean() / returns.var() ** 2 > 4  # fat tails


def test_symbols_move_together_but_not_as_one() -> None:
    span = (MONTH[0], MONTH[0] + 10 * DAY_MS)
    returns = [np.diff(np.log(TAPE.candles(listing.symbol, "15m", *span).close)) for listing in LISTINGS]
    pairs = np.corrcoef(returns)[np.triu_indices(len(LISTINGS), 1)]
    assert (pairs > 0.3).all()
    assert (pairs < 0.95).all()


def test_the_day_has_a_rhythm() -> None:
    hours = TAPE.candles("BTCUSDT", "1h", *MONTH).trades.reshape(30, 24).mean(axis=0)
    assert hours[13:18].mean() > 1.4 * hours[2:7].mean()
