"""Trades become candles, batch by batch, equal to the exchange's own: market.trades -> fold -> candles.

How trades are cut into batches makes no difference to the candles that stand in the end, nor does the order in which
they come: a trade lies in the bucket of its own time, and inside a bucket the ids say what is first and last.
A candle closes when a trade at or past its end arrives (`fold`), or when all trades up to a time are known to be here
(`flush`); it is never given out before. A trade that comes later than that amends it (`amend`): it is given out again,
with the next revision. A trade that is given twice counts twice: which were
folded before is for `models.folding` to know.

Sums are exact: prices and sizes are decimals of at most 8 places, so sizes add up as whole numbers of 1e-8 and
price x size as whole numbers of 1e-16, of any length; floats appear only when a candle is given out.
As on Binance, a bucket without a trade between others is a flat candle: open = high = low = close = the last price,
no volume, `trades` 0. Before the first trade there is no candle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np

from models.market import CANDLE_COLUMNS, Array

AMENDED_FOR_MS = 5 * 60_000

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


class Given(msgspec.Struct, frozen=True, array_like=True):
    """A candle that was given out, with what it takes to amend it. Sums as in `CandleState`."""

    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: str = "0"
    quote_volume: str = "0"
    taker_buy_volume: str = "0"
    taker_buy_quote_volume: str = "0"
    trades: int = 0
    first_id: int = -1  # of the trades that made `open` and `close`; -1: a flat candle
    last_id: int = -1
    from_ts: int = 0  # open time of the bucket whose trades it rests on: its own, or of a flat candle an earlier one
    revision: int = 0  # how often it was amended


class CandleState(msgspec.Struct, frozen=True, kw_only=True):
    """The candle in the making, and the last ones given out. Sums are whole numbers as text: JSON stops at 2**53."""

    interval_ms: int
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
    first_id: int = -1  # of the trades that made `open` and `close`
    last_id: int = -1
    from_ts: int = 0  # open time of the bucket of the last trade
    given: tuple[Given, ...] = ()  # one a bucket up to `ts`, oldest first
    forgot: bool = False  # there were others before `given`


Candles = dict[str, Array]


def prepared(trades: Mapping[str, Array]) -> dict[str, Array]:
    """Trades with what `fold` works on, so that several intervals need it once.

    Adds `units`, `bought_units` (sizes as whole 1e-8) and the parts of price x size: see `_quote_parts`. What was
    prepared before is given back.
    """
    if "units" in trades:
        return dict(trades)
    size, price = _units(trades["size"]), _units(trades["price"])
    bought = ~trades["buyer_is_maker"].astype(np.bool_)  # the buyer was the aggressor
    rows = {**trades, "units": size, "bought_units": np.where(bought, size, 0)}
    for name, part in _quote_parts(price, size).items():
        rows[name] = part
        rows[f"bought_{name}"] = np.where(bought, part, 0)
    return rows


def kept(interval_ms: int) -> int:
    """How many candles stay amendable after they were given out: some minutes of them, two at least."""
    return max(2, AMENDED_FOR_MS // interval_ms)


def fold(state: CandleState | None, trades: Mapping[str, Array], interval_ms: int) -> tuple[CandleState, Candles]:
    """Fold trades (columns of TRADE_COLUMNS, none of them folded before) into the state; the candles that closed.

    Trades of buckets that were given out are passed over: `is_late` tells which these are, `amend` takes them.
    `trades`, the number of single trades a row stands for, is 1 where the column is missing. The mapping may be what
    `prepared` made of one.

    Shapes: every column (rows,); returned columns are those of CANDLE_COLUMNS, (candles,), in order of time.
    Raises ValueError for a state of another interval.
    """
    state = state or CandleState(interval_ms=interval_ms)
    if state.interval_ms != interval_ms:
        raise ValueError(f"this state makes candles of {state.interval_ms} ms, not of {interval_ms} ms")
    late = is_late(state, trades["ts_ms"])
    if late.all():
        return state, _no_candles()
    rows = _in_order(_chosen(prepared(trades), ~late), interval_ms)
    buckets = rows["ts_ms"] // interval_ms * interval_ms
    made = _join(state, _make(rows, buckets))
    closed, given = _give_out(made, int(made["ts"][-1]), interval_ms)
    return _keep_last(state, made, given), closed


def is_late(state: CandleState | None, ts_ms: Array) -> Array:
    """(rows,) bool: true for trades of a bucket that was given out."""
    if state is None or state.ts is None:
        return np.zeros(len(ts_ms), dtype=np.bool_)
    late: Array = ts_ms < state.ts
    return late


def flush(state: CandleState, up_to_ms: int) -> tuple[CandleState, Candles]:
    """Close every bucket that ends at or before `up_to_ms`: all trades before that time should have been folded."""
    edge = up_to_ms // state.interval_ms * state.interval_ms
    if state.ts is None or state.ts >= edge:
        return state, _no_candles()
    candles, given = _give_out(_open_candle(state), edge, state.interval_ms)
    empty = CandleState(
        interval_ms=state.interval_ms, ts=edge, from_ts=state.from_ts,
        open=state.close, high=state.close, low=state.close, close=state.close, **_kept(state, given),
    )  # fmt: skip
    return empty, candles


def amend(state: CandleState, trades: Mapping[str, Array]) -> tuple[CandleState, list[Given], Array]:
    """Fold late trades into candles that were given out; those that are different now, and (rows,) bool: too late.

    A candle whose price is that of an amended one (it is flat) is amended with it. A bucket that was not given out,
    because it lay before the first trade, is given out now with revision 0.
    """
    assert state.ts is not None
    size, given, changed = state.interval_ms, list(state.given), set[int]()
    buckets = trades["ts_ms"] // size * size
    oldest = given[0].ts if given else state.ts
    too_late: Array = (buckets < oldest) & state.forgot
    if not too_late.all():
        rows = _in_order(_chosen(prepared(trades), ~too_late), size)
        made = _make(rows, rows["ts_ms"] // size * size)
        first = int(made["ts"][0])
        if first < oldest:
            given = [*_flat(first, oldest, size), *given]
            changed = {*range((oldest - first) // size)}
        for place, late in enumerate(_as_given(made)):
            at = (int(made["ts"][place]) - given[0].ts) // size
            given[at] = _merged(given[at], late)
            changed.add(at)
        _carry_prices(given, changed)
    before = {one.ts for one in state.given}
    for at in changed:
        if given[at].ts in before:
            given[at] = msgspec.structs.replace(given[at], revision=given[at].revision + 1)
    amended = [given[at] for at in sorted(changed)]
    keeps = kept(size)
    state = msgspec.structs.replace(state, given=tuple(given[-keeps:]), forgot=state.forgot or len(given) > keeps)
    if given and not state.traded:
        price = given[-1].close
        state = msgspec.structs.replace(
            state, open=price, high=price, low=price, close=price, from_ts=given[-1].from_ts
        )
    return state, amended, too_late


def columns_of(given: Sequence[Given]) -> Candles:
    """Candles as columns of CANDLE_COLUMNS."""
    columns: dict[str, Any] = {name: [getattr(one, name) for one in given] for name in (*_PRICES, "ts", "trades")}
    columns |= {name: [int(getattr(one, name)) / units for one in given] for name, units in _SUMS.items()}
    columns["closed"] = [True] * len(given)
    return {name: np.array(columns[name], dtype) for name, dtype in CANDLE_COLUMNS.items()}


# Between here and the end candles in the making are columns too: prices as float64, sums as lists of Python integers.


def _chosen(rows: Mapping[str, Array], chosen: Array) -> Mapping[str, Array]:
    return rows if chosen.all() else {name: column[chosen] for name, column in rows.items()}


def _in_order(rows: Mapping[str, Array], interval_ms: int) -> Mapping[str, Array]:
    """By bucket, then by id."""
    ids, buckets = rows["id"], rows["ts_ms"] // interval_ms
    steps = np.diff(buckets)
    if (steps >= 0).all() and ((np.diff(ids) > 0) | (steps > 0)).all():
        return rows
    order = np.lexsort([ids, buckets])
    return {name: column[order] for name, column in rows.items()}


def _make(rows: Mapping[str, Array], buckets: Array) -> dict[str, Any]:
    """One candle a run of equal buckets."""
    prices = rows["price"]
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
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
        "first_id": rows["id"][starts],
        "last_id": rows["id"][ends],
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
        both = {n: before[n] + made[n] if n in _SUMS else np.concatenate([before[n], made[n]]) for n in made}
        return both | {"from_ts": state.from_ts}
    if state.traded:
        if state.first_id < made["first_id"][0]:
            made["open"][0], made["first_id"][0] = state.open, state.first_id
        if state.last_id > made["last_id"][0]:
            made["close"][0], made["last_id"][0] = state.close, state.last_id
        made["high"][0] = max(state.high, made["high"][0])
        made["low"][0] = min(state.low, made["low"][0])
        made["trades"][0] += state.trades
        for name in _SUMS:
            made[name][0] += before[name][0]
    return made


def _open_candle(state: CandleState) -> dict[str, Any]:
    """The candle in the making as columns of length 1; a flat one keeps the bucket it rests on."""
    return {
        "ts": np.array([state.ts], dtype=np.int64),
        **{name: np.array([getattr(state, name)]) for name in _PRICES},
        **{name: [int(getattr(state, name))] for name in _SUMS},
        **{name: np.array([getattr(state, name)]) for name in ("trades", "first_id", "last_id")},
        "from_ts": state.from_ts,
    }


def _keep_last(state: CandleState, made: Mapping[str, Any], given: list[Given]) -> CandleState:
    last: dict[str, Any] = {name: float(made[name][-1]) for name in _PRICES}
    last |= {name: str(made[name][-1]) for name in _SUMS}
    last |= {name: int(made[name][-1]) for name in ("ts", "trades", "first_id", "last_id")}
    return CandleState(interval_ms=state.interval_ms, traded=True, from_ts=last["ts"], **last, **_kept(state, given))


def _kept(state: CandleState, given: list[Given]) -> dict[str, Any]:
    """The newest candles given out, and whether there were others."""
    keeps, there = kept(state.interval_ms), [*state.given, *given]
    return {"given": tuple(there[-keeps:]), "forgot": state.forgot or len(there) > keeps}


def _give_out(made: Mapping[str, Any], end_ms: int, interval_ms: int) -> tuple[Candles, list[Given]]:
    """Every bucket from the first made to before `end_ms`, those without trades flat; and the newest to be kept.

    One more than is kept comes along where there are more, so that it is seen that some are forgotten.
    """
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
    first = max(0, len(grid) - kept(interval_ms) - 1)
    given = []
    if len(grid):
        used = _as_given(made, int(source[first]), int(source[-1]) + 1)
        for ts, at, is_own in zip(grid[first:].tolist(), source[first:].tolist(), own[first:].tolist(), strict=True):
            one = used[at - int(source[first])]
            given.append(one if is_own else _flat_after(one, ts))
    return {name: candles[name].astype(dtype) for name, dtype in CANDLE_COLUMNS.items()}, given


def _as_given(made: Mapping[str, Any], start: int = 0, end: int | None = None) -> list[Given]:
    names = ("ts", *_PRICES, *_SUMS, "trades", "first_id", "last_id", "ts")  # the last is `from_ts`
    part = [made[name][start:end] for name in names]
    values = [[*map(str, p)] if name in _SUMS else p.tolist() for name, p in zip(names, part, strict=True)]
    found = [Given(*row) for row in zip(*values, strict=True)]
    if start == 0 and found and not found[0].trades:  # the open candle had no trade
        found[0] = msgspec.structs.replace(found[0], from_ts=made["from_ts"])
    return found


def _flat(start_ms: int, end_ms: int, interval_ms: int) -> list[Given]:
    """Buckets of which nothing is known yet."""
    return [Given(ts, 0.0, 0.0, 0.0, 0.0, from_ts=ts) for ts in range(start_ms, end_ms, interval_ms)]


def _flat_after(before: Given, ts: int, revision: int = 0) -> Given:
    price = before.close
    return Given(ts, price, price, price, price, from_ts=before.from_ts, revision=revision)


def _merged(one: Given, late: Given) -> Given:
    """A candle with the trades of another of its bucket."""
    if not one.trades:
        return msgspec.structs.replace(late, revision=one.revision)
    opened, closed = (one if one.first_id < late.first_id else late), (one if one.last_id > late.last_id else late)
    return msgspec.structs.replace(
        one, open=opened.open, first_id=opened.first_id, close=closed.close, last_id=closed.last_id,
        high=max(one.high, late.high), low=min(one.low, late.low), trades=one.trades + late.trades,
        **{name: str(int(getattr(one, name)) + int(getattr(late, name))) for name in _SUMS},
    )  # fmt: skip


def _carry_prices(given: list[Given], changed: set[int]) -> None:
    """Flat candles behind a changed one show its close."""
    for at in range(min(changed) + 1, len(given)):
        one, before = given[at], given[at - 1]
        if not one.trades and (one.close, one.from_ts) != (before.close, before.from_ts):
            given[at] = _flat_after(before, one.ts, one.revision)
            changed.add(at)


def _no_candles() -> Candles:
    return {name: np.empty(0, dtype) for name, dtype in CANDLE_COLUMNS.items()}
