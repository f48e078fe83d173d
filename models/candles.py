"""Trades become candles, batch by batch, equal to the exchange's own: market.trades -> fold -> candles.

How trades are cut into batches makes no difference, and a trade that was folded before changes nothing: the state
carries the last id it has seen. A candle closes when a trade at or past its end arrives (`fold`), or when all trades up
to a time are known to be here (`flush`); it is never given out before, and never changes afterwards.

Sums are exact: prices and sizes are decimals of at most 8 places, so sizes add up as whole numbers of 1e-8 and
price x size as whole numbers of 1e-16, of any length; floats appear only when a candle is given out.
As on Binance, a bucket without a trade between others is a flat candle: open = high = low = close = the last price,
no volume, `trades` 0. Before the first trade there is no candle.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np

from models.market import CANDLE_COLUMNS, Array

_SIZE_UNITS = 10**8  # of a size or price
_QUOTE_UNITS = 10**16  # of a price x size
_ROUNDS_RIGHT = 2.0**51  # below this a decimal's nearest float times 1e8 rounds back to the decimal
_INT64_MAX = 2**63 - 1
_HALF_BITS = 26  # of a price in 1e-8, which has at most 51
_SUMS = {
    "volume": _SIZE_UNITS, "quote_volume": _QUOTE_UNITS,
    "taker_buy_volume": _SIZE_UNITS, "taker_buy_quote_volume": _QUOTE_UNITS,
}  # fmt: skip
_PRICES = ("open", "high", "low", "close")


class CandleState(msgspec.Struct, frozen=True, kw_only=True):
    """The candle in the making. Sums are whole numbers as text, because JSON readers stop at 2**53."""

    interval_ms: int
    last_id: int = -1
    ts: int | None = None  # open time of the bucket in the making; everything before it has been given out
    traded: bool = False  # false: no trade in this bucket yet, and all four prices are the last close
    open: float = 0.0
    high: float = 0.0
    low: float = 0.0
    close: float = 0.0
    volume: str = "0"  # 1e-8 base
    quote_volume: str = "0"  # 1e-16 quote
    taker_buy_volume: str = "0"
    taker_buy_quote_volume: str = "0"
    trades: int = 0


Candles = dict[str, Array]


def prepared(trades: Mapping[str, Array]) -> dict[str, Array]:
    """Trades with what `fold` works on, so that several intervals need it once.

    Adds `units`, `bought_units` (sizes as whole 1e-8) and the parts of price x size: see `_quote_parts`.
    """
    size, price = _units(trades["size"]), _units(trades["price"])
    bought = ~trades["buyer_is_maker"].astype(np.bool_)  # the buyer was the aggressor
    rows = {**trades, "units": size, "bought_units": np.where(bought, size, 0)}
    for name, part in _quote_parts(price, size).items():
        rows[name] = part
        rows[f"bought_{name}"] = np.where(bought, part, 0)
    return rows


def fold(state: CandleState | None, trades: Mapping[str, Array], interval_ms: int) -> tuple[CandleState, Candles]:
    """Fold trades (columns of TRADE_COLUMNS, in order of id) into the state; returns it and the candles that closed.

    A row whose id is not above all ids before it is a repeat and skipped. `trades`, the number of single trades a row
    stands for, is 1 where the column is missing. A trade whose time lies before the bucket in the making (an
    exchange's times do not fall with rising ids) counts into that bucket: a candle given out never changes.

    `trades` may be what `prepared` made of them.

    Shapes: every column (rows,); returned columns are those of CANDLE_COLUMNS, (candles,), in order of time.
    """
    state = state or CandleState(interval_ms=interval_ms)
    if state.interval_ms != interval_ms:
        raise ValueError(f"this state makes candles of {state.interval_ms} ms, not of {interval_ms} ms")
    fresh = _fresh(trades["id"], state.last_id)
    if not fresh.any():
        return state, _no_candles()
    rows = trades if "units" in trades else prepared(trades)
    if not fresh.all():
        rows = {name: column[fresh] for name, column in rows.items()}
    buckets = _buckets(rows["ts_ms"], state)
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    made = _join(state, _make(rows, buckets, starts))
    return _keep_last(made, interval_ms, int(rows["id"][-1])), _give_out(made, int(made["ts"][-1]), interval_ms)


def flush(state: CandleState, up_to_ms: int) -> tuple[CandleState, Candles]:
    """Close every bucket that ends at or before `up_to_ms`: all trades before that time have been folded."""
    edge = up_to_ms // state.interval_ms * state.interval_ms
    if state.ts is None or state.ts >= edge:
        return state, _no_candles()
    candles = _give_out(_open_candle(state), edge, state.interval_ms)
    empty = CandleState(
        interval_ms=state.interval_ms, last_id=state.last_id, ts=edge,
        open=state.close, high=state.close, low=state.close, close=state.close,
    )  # fmt: skip
    return empty, candles


# Between here and the end candles in the making are columns too: prices as float64, sums as lists of Python integers.


def _fresh(ids: Array, last_id: int) -> Array:
    """(rows,) bool: true where the id is above `last_id` and every id before it."""
    highest = np.maximum.accumulate(np.concatenate([[last_id], ids]))
    fresh: Array = ids > highest[:-1]
    return fresh


def _buckets(ts_ms: Array, state: CandleState) -> Array:
    buckets = ts_ms // state.interval_ms * state.interval_ms
    if state.ts is not None:
        buckets = np.maximum(buckets, state.ts)
    rising: Array = np.maximum.accumulate(buckets)
    return rising


def _make(rows: Mapping[str, Array], buckets: Array, starts: Array) -> dict[str, Any]:
    """One candle a run of equal buckets."""
    prices = rows["price"]
    ends = np.append(starts[1:], len(prices)) - 1
    count = rows.get("trades", np.ones(len(prices), dtype=np.int64))
    return {
        "ts": buckets[starts],
        "open": prices[starts],
        "high": np.maximum.reduceat(prices, starts),
        "low": np.minimum.reduceat(prices, starts),
        "close": prices[ends],
        "volume": _sum(rows["units"], starts),
        "quote_volume": _quote_sums(rows, "", starts),
        "taker_buy_volume": _sum(rows["bought_units"], starts),
        "taker_buy_quote_volume": _quote_sums(rows, "bought_", starts),
        "trades": np.add.reduceat(count, starts),
    }


def _units(values: Array) -> Array:
    """Decimals as whole numbers of 1e-8: int64, or Python integers where those do not do."""
    scaled = values * 1e8
    if float(np.abs(scaled).max(initial=0)) < _ROUNDS_RIGHT:
        whole: Array = np.rint(scaled).astype(np.int64)
        return whole
    # The shortest text of a float is the exchange's text again, up to 15 digits.
    exact = [int(Decimal(repr(value)).scaleb(8).to_integral_value()) for value in values.tolist()]
    return np.array(exact, dtype=object)


def _quote_parts(price: Array, size: Array) -> dict[str, Array]:
    """price x size as two columns of int64, the product being high * 2**26 + low.

    Where a part does not fit it is a column of Python integers, and the other is zero.
    """
    if object not in (price.dtype, size.dtype):
        high, low = price >> _HALF_BITS, price & (2**_HALF_BITS - 1)
        largest = int(np.abs(size).max(initial=0))
        if largest * max(int(np.abs(high).max(initial=0)), 2**_HALF_BITS) <= _INT64_MAX:
            return {"quote_high": high * size, "quote_low": low * size}
    whole = price.astype(object) * size.astype(object)
    return {"quote_high": np.zeros(len(whole), dtype=np.int64), "quote_low": whole}


def _quote_sums(rows: Mapping[str, Array], which: str, starts: Array) -> list[int]:
    high, low = (_sum(rows[f"{which}quote_{part}"], starts) for part in ("high", "low"))
    return [(a << _HALF_BITS) + b for a, b in zip(high, low, strict=True)]


def _sum(values: Array, starts: Array) -> list[int]:
    """Exact sums of the runs that begin at `starts`."""
    if values.dtype != object and int(np.abs(values).max()) * len(values) > _INT64_MAX:
        values = values.astype(object)
    sums: list[int] = np.add.reduceat(values, starts).tolist()
    return sums


def _join(state: CandleState, made: dict[str, Any]) -> dict[str, Any]:
    """The candle in the making before, or into, the first of those made now."""
    if state.ts is None:
        return made
    before = _open_candle(state)
    if state.ts < made["ts"][0]:
        return {n: before[n] + made[n] if n in _SUMS else np.concatenate([before[n], made[n]]) for n in made}
    if state.traded:
        made["open"][0] = state.open
        made["high"][0] = max(state.high, made["high"][0])
        made["low"][0] = min(state.low, made["low"][0])
        made["trades"][0] += state.trades
        for name in _SUMS:
            made[name][0] += before[name][0]
    return made


def _open_candle(state: CandleState) -> dict[str, Any]:
    """The candle in the making as columns of length 1."""
    return {
        "ts": np.array([state.ts], dtype=np.int64),
        **{name: np.array([getattr(state, name)]) for name in _PRICES},
        **{name: [int(getattr(state, name))] for name in _SUMS},
        "trades": np.array([state.trades]),
    }


def _keep_last(made: Mapping[str, Any], interval_ms: int, last_id: int) -> CandleState:
    last: dict[str, Any] = {name: float(made[name][-1]) for name in _PRICES}
    last |= {name: str(made[name][-1]) for name in _SUMS}
    last |= {"ts": int(made["ts"][-1]), "trades": int(made["trades"][-1])}
    return CandleState(interval_ms=interval_ms, last_id=last_id, traded=True, **last)


def _give_out(made: Mapping[str, Any], end_ms: int, interval_ms: int) -> Candles:
    """Every bucket from the first made to before `end_ms`; those without trades are flat."""
    grid = np.arange(int(made["ts"][0]), end_ms, interval_ms, dtype=np.int64)
    source = np.searchsorted(made["ts"], grid, side="right") - 1
    own = made["ts"][source] == grid
    candles: dict[str, Array] = {"ts": grid, "closed": np.ones(len(grid), dtype=np.bool_)}
    for name in _PRICES:
        candles[name] = np.where(own, made[name][source], made["close"][source])
    for name, units in _SUMS.items():
        floats = np.array([value / units for value in made[name]])  # Python's division of integers rounds correctly
        candles[name] = np.where(own, floats[source], 0.0)
    candles["trades"] = np.where(own, made["trades"][source], 0)
    return {name: candles[name].astype(dtype) for name, dtype in CANDLE_COLUMNS.items()}


def _no_candles() -> Candles:
    return {name: np.empty(0, dtype) for name, dtype in CANDLE_COLUMNS.items()}
