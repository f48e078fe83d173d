"""One seeded tape of trades per symbol, from which everything a simulated exchange shows is derived.

Trades come in bursts, volatility clusters and has a daily and a weekly rhythm, the symbols move together; the
direction of the next hour is a coin toss. Prices and sizes are whole ticks and lots, so candles made from the
tape agree with its trades to the last digit.

Promise: same seed, same trades, whatever was asked before and in whatever order. A day is made when it is asked
for (about 20 ms for BTCUSDT) and at most `_DAYS_KEPT` days of trades stay in memory. The tape has a first day and
no end; what lies in the future of the exchange's clock is the exchange's to hide.

Model: log volatility is the sum of two first-order autoregressions per driver (half-lives of 8 h and 40 min), one
driver common to all symbols and one of each symbol's own; the arrival rate follows the volatility; a trade starts
a burst or follows the one before it within milliseconds (a branching process, branching ratio `_FOLLOWS`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.market import INTERVAL_MS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DAY_MS = 86_400_000
MINUTE_MS = 60_000
FIRST_DAY_MS = 1_754_006_400_000  # 2025-08-01T00:00Z

_MINUTES = 1440
_DAYS_KEPT = 10  # days of trades in memory, all symbols together: under 40 MB; with many symbols two of each
_CANDLE_DAYS_KEPT = 400  # days of 1m candles in memory, all symbols together: under 50 MB
_FOLLOWS = 0.5  # share of trades that follow another one within milliseconds
_SAME_MS = 0.55  # share of the followers that print in the same millisecond
_SINGLES_EXTRA = 0.6  # single trades beyond the first, per aggregate
_HALF_LIVES_MIN = (480.0, 40.0)  # of log volatility
_VOL_SPREADS = (0.45, 0.35)  # stationary standard deviation of each part of log volatility
_MINUTE_SIGMA = 0.00055  # of log returns at average volatility; 0.4 a year
_PULL_PER_DAY = 0.02  # towards the listing price: keeps an endless tape in range


@dataclass(frozen=True)
class Listing:
    """What an exchange says about a symbol, and how lively the tape makes it."""

    symbol: str
    base: str
    quote: str
    price_decimals: int
    size_decimals: int
    price: float  # of the first minute
    trades_per_day: int
    typical_lots: float  # median size in lots
    beta: float  # how much of the common move it takes
    own: float  # size of its own move, in units of the common one
    levels: int = 1000  # of the order book, a side, far from the best price


LISTINGS: tuple[Listing, ...] = (
    Listing("BTCUSDT", "BTC", "USDT", 2, 5, 113_500.0, 39_000, 450.0, 1.0, 0.35),
    Listing("ETHUSDT", "ETH", "USDT", 2, 4, 3_650.0, 26_000, 900.0, 1.25, 0.6),
    Listing("SOLUSDT", "SOL", "USDT", 2, 3, 172.0, 14_000, 1_500.0, 1.4, 0.8),
    Listing("BNBUSDT", "BNB", "USDT", 2, 3, 760.0, 8_000, 250.0, 0.8, 0.6),
    Listing("XRPUSDT", "XRP", "USDT", 4, 1, 2.95, 12_000, 2_500.0, 1.2, 0.9),
)


def listings(count: int, lively: float = 1.0) -> tuple[Listing, ...]:
    """The first `count` symbols of the market; those behind LISTINGS are quiet and called S005USDT, S006USDT, ...

    `lively`: times as many trades as usual, which makes it another market.
    """
    quiet = (
        Listing(f"S{number:03}USDT", f"S{number:03}", "USDT", 4, 1, 1.0 + number % 90, 3_000, 400.0, 1.1, 0.9, 150)
        for number in range(len(LISTINGS), count)
    )
    return tuple(
        replace(listing, trades_per_day=round(listing.trades_per_day * lively))
        for listing in (*LISTINGS[:count], *quiet)
    )


@dataclass(frozen=True)
class Trades:
    """Aggregate trades in order of id: columns of shape (rows,), ids and prices whole numbers.

    `price` in ticks of 10^-price_decimals quote, `size` in lots of 10^-size_decimals base.
    """

    id: Ints
    ts_ms: Ints
    price: Ints
    size: Ints
    first: Ints  # id of the first and of the last single trade
    last: Ints
    buyer_is_maker: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id)

    def rows(self, start: int, end: int) -> Trades:
        return Trades(*(getattr(self, name)[start:end] for name in _TRADE_FIELDS))

    def singles(self) -> Trades:
        """The single trades behind the aggregates, their sizes adding up to them; `first` and `last` are the id."""
        fills = self.last - self.first + 1
        owner = np.repeat(np.arange(len(self)), fills)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(fills) - fills, fills)
        size, of = self.size[owner], fills[owner]
        single = self.first[owner] + place
        return Trades(
            id=single,
            ts_ms=self.ts_ms[owner],
            price=self.price[owner],
            size=size * (place + 1) // of - size * place // of,
            first=single,
            last=single,
            buyer_is_maker=self.buyer_is_maker[owner],
        )


_TRADE_FIELDS = tuple(Trades.__dataclass_fields__)


def join(parts: Sequence[Trades]) -> Trades:
    return Trades(*(np.concatenate([getattr(part, name) for part in parts]) for name in _TRADE_FIELDS))


@dataclass(frozen=True)
class Candles:
    """Candles in order of open time: columns of shape (rows,), whole numbers.

    Prices in ticks, volumes in lots, quote volumes in ticks times lots.
    """

    ts_ms: Ints
    open: Ints
    high: Ints
    low: Ints
    close: Ints
    volume: Ints
    quote_volume: Ints
    trades: Ints
    taker_buy_volume: Ints
    taker_buy_quote_volume: Ints

    def __len__(self) -> int:
        return len(self.ts_ms)

    def rows(self, start: int, end: int) -> Candles:
        return Candles(*(getattr(self, name)[start:end] for name in _CANDLE_FIELDS))


_CANDLE_FIELDS = tuple(Candles.__dataclass_fields__)


@dataclass(frozen=True)
class _State:
    """All that a day needs to know of the days before it. Vectors run over the drivers or the symbols."""

    log_vol: Floats  # (2, 1 + symbols): each half-life, common driver first
    log_price: Floats  # (symbols,), of the middle
    next_id: Ints  # (symbols,)
    next_single: Ints  # (symbols,)


@dataclass(frozen=True)
class _Skeleton:
    """A day, minute by minute, before its trades are drawn."""

    log_price: Floats  # (symbols, 1441): at each minute's edge
    sigma: Floats  # (symbols, 1440): standard deviation of the minute's log return
    rows: Ints  # (symbols,): trades of the day
    state: _State  # at its start
    end_vol: Floats  # (2, 1 + symbols): log volatility of its last minute


@dataclass
class Tape:
    """The market of a seed. `crowded`: (symbol, ts_ms, rows): that many trades are moved into one millisecond."""

    seed: int = 7
    listings: tuple[Listing, ...] = LISTINGS
    first_day_ms: int = FIRST_DAY_MS
    crowded: list[tuple[str, int, int]] = field(default_factory=list)
    _states: list[_State] = field(default_factory=list, repr=False)
    _trades: OrderedDict[tuple[int, int], Trades] = field(default_factory=OrderedDict, repr=False)
    _candles: OrderedDict[tuple[int, int], Candles] = field(default_factory=OrderedDict, repr=False)
    _skeletons: OrderedDict[int, _Skeleton] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        symbols = len(self.listings)
        spread = np.array(_VOL_SPREADS)[:, None]
        self._states.append(
            _State(
                log_vol=spread * self._random(-1, 0).standard_normal((2, 1 + symbols)),
                log_price=np.log([listing.price for listing in self.listings]),
                next_id=np.ones(symbols, np.int64),
                next_single=np.ones(symbols, np.int64),
            )
        )

    def listing(self, symbol: str) -> Listing | None:
        return next((listing for listing in self.listings if listing.symbol == symbol), None)

    def crowd(self, symbol: str, ts_ms: int, rows: int) -> None:
        """Move the `rows` trades from `ts_ms` on into that one millisecond; candles follow."""
        self.crowded.append((symbol, ts_ms, rows))
        self._trades.clear()
        self._candles.clear()

    def trades(self, symbol: str, start_ms: int, end_ms: int) -> Trades:
        """All trades of `[start_ms, end_ms)`; memory grows with the range."""
        parts = [cut_by_time(self.trades_of_day(symbol, day), start_ms, end_ms) for day in self._days(start_ms, end_ms)]
        return join(parts) if parts else self.trades_of_day(symbol, 0).rows(0, 0)

    def reach(self, ts_ms: int) -> None:
        """Go through the days up to `ts_ms`, so that the first question about it is answered at once."""
        self._state(max(self.day_of(ts_ms), 0))

    def day_of(self, ts_ms: int) -> int:
        return (ts_ms - self.first_day_ms) // DAY_MS

    def day_of_id(self, symbol: str, trade_id: int, last_day: int) -> int | None:
        """The day that holds `trade_id`; None when it lies behind `last_day`."""
        index = self._index(symbol)
        while len(self._states) < last_day + 2 and self._states[-1].next_id[index] <= trade_id:
            self._state(len(self._states))
        day = bisect_right(self._states, trade_id, key=lambda state: int(state.next_id[index])) - 1
        return max(day, 0) if day <= last_day else None

    def day_of_single(self, symbol: str, single_id: int, last_day: int) -> int | None:
        """The day that holds the single trade `single_id`; None when it lies behind `last_day`."""
        index = self._index(symbol)
        while len(self._states) < last_day + 2 and self._states[-1].next_single[index] <= single_id:
            self._state(len(self._states))
        day = bisect_right(self._states, single_id, key=lambda state: int(state.next_single[index])) - 1
        return max(day, 0) if day <= last_day else None

    def trades_of_day(self, symbol: str, day: int) -> Trades:
        """Day 0 is the first one; columns are shared with the cache: do not write to them."""
        index = self._index(symbol)
        key = (index, day)
        if key not in self._trades:
            self._trades[key] = self._draw(index, day)
            if len(self._trades) > max(_DAYS_KEPT, 2 * len(self.listings)):
                self._trades.popitem(last=False)
        self._trades.move_to_end(key)
        return self._trades[key]

    def candles(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> Candles:
        """Candles that open in `[start_ms, end_ms)`; a minute without trades is flat at the last price."""
        step = INTERVAL_MS[interval]
        days = self._days(start_ms, end_ms)
        parts = [fold(self._minutes(symbol, day), step) for day in days] or [
            self._minutes(symbol, 0).rows(0, 0),
        ]
        whole = Candles(*(np.concatenate([getattr(part, name) for part in parts]) for name in _CANDLE_FIELDS))
        first, last = np.searchsorted(whole.ts_ms, [start_ms, end_ms])
        return whole.rows(int(first), int(last))

    def candle_until(self, symbol: str, interval: str, now_ms: int) -> Candles:
        """The candle in the making at `now_ms`, from its trades up to and including `now_ms`."""
        step = INTERVAL_MS[interval]
        open_ms = now_ms - now_ms % step
        trades = self.trades(symbol, open_ms, now_ms + 1)
        minutes = candles_of(trades, open_ms, 1 + (now_ms - open_ms) // MINUTE_MS, self._close_before(symbol, open_ms))
        return fold(minutes, step)

    def _minutes(self, symbol: str, day: int) -> Candles:
        key = (self._index(symbol), day)
        if key not in self._candles:
            start_ms = self.first_day_ms + day * DAY_MS
            trades = self.trades_of_day(symbol, day)
            opens_flat = trades.ts_ms[0] >= start_ms + MINUTE_MS
            before = self._close_before(symbol, start_ms) if opens_flat else 0
            self._candles[key] = candles_of(trades, start_ms, _MINUTES, before)
            if len(self._candles) > _CANDLE_DAYS_KEPT:
                self._candles.popitem(last=False)
        self._candles.move_to_end(key)
        return self._candles[key]

    def _close_before(self, symbol: str, ts_ms: int) -> int:
        """Price of the last trade before `ts_ms`; before the first trade of all, that trade's own price."""
        for day in range(self.day_of(ts_ms - 1), -1, -1):
            trades = self.trades_of_day(symbol, day)
            rows = int(np.searchsorted(trades.ts_ms, ts_ms))
            if rows:
                return int(trades.price[rows - 1])
        return int(self.trades_of_day(symbol, 0).price[0])

    def _days(self, start_ms: int, end_ms: int) -> range:
        return range(max(self.day_of(start_ms), 0), self.day_of(end_ms - 1) + 1) if end_ms > start_ms else range(0)

    def _index(self, symbol: str) -> int:
        return next(index for index, listing in enumerate(self.listings) if listing.symbol == symbol)

    def _random(self, day: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, day + 1, part])

    def _state(self, day: int) -> _State:
        while len(self._states) <= day:
            skeleton = self._skeleton(len(self._states) - 1)
            singles = skeleton.rows + (skeleton.rows * _SINGLES_EXTRA).astype(np.int64)
            self._states.append(
                _State(
                    log_vol=skeleton.end_vol,
                    log_price=skeleton.log_price[:, -1].copy(),  # a view would keep the whole day
                    next_id=skeleton.state.next_id + skeleton.rows,
                    next_single=skeleton.state.next_single + singles,
                )
            )
        return self._states[day]

    def _skeleton(self, day: int) -> _Skeleton:
        if day not in self._skeletons:
            self._skeletons[day] = self._draw_skeleton(day)
            if len(self._skeletons) > 2:  # the days on both sides of a midnight
                self._skeletons.popitem(last=False)
        return self._skeletons[day]

    def _draw_skeleton(self, day: int) -> _Skeleton:
        state, random, symbols = self._state(day), self._random(day, 0), len(self.listings)
        log_vol = _autoregress(random, state.log_vol)
        sigma = _MINUTE_SIGMA * np.exp(log_vol.sum(axis=0) - 0.16) * rhythm(_MINUTES)
        moves = sigma * random.standard_normal((1 + symbols, _MINUTES))
        beta = np.array([listing.beta for listing in self.listings])[:, None]
        own = np.array([listing.own for listing in self.listings])[:, None]
        home = np.log([listing.price for listing in self.listings])
        pull = (home - state.log_price)[:, None] * (_PULL_PER_DAY / _MINUTES)
        returns = beta * moves[0] + own * moves[1:] + pull
        path = np.concatenate([np.zeros((symbols, 1)), returns.cumsum(axis=1)], axis=1) + state.log_price[:, None]
        rate = np.array([listing.trades_per_day for listing in self.listings])
        liveliness = np.exp(0.07 * random.standard_normal(symbols)) * _weekday_rate(day + self.first_day_ms // DAY_MS)
        return _Skeleton(
            log_price=path,
            sigma=np.sqrt((beta * sigma[0]) ** 2 + (own * sigma[1:]) ** 2),
            rows=np.maximum((rate * liveliness).astype(np.int64), 1),
            state=state,
            end_vol=log_vol[:, :, -1].copy(),
        )

    def _draw(self, index: int, day: int) -> Trades:
        """The trades of one symbol and day: times, then prices along the minute path, then sizes and ids."""
        skeleton, random, listing = self._skeleton(day), self._random(day, 1 + index), self.listings[index]
        rows = int(skeleton.rows[index])
        ts, burst, place = _times(random, rows, skeleton.sigma[index])
        side = np.where(random.random(rows) < 0.5, 1, -1)[burst]
        middle = _middle(random, ts, skeleton.log_price[index], skeleton.sigma[index])
        scale = 10**listing.price_decimals
        price = np.rint(np.exp(middle) * scale).astype(np.int64) + side * (1 + np.minimum(place, 4))
        size = np.maximum(np.rint(listing.typical_lots * np.exp(1.6 * random.standard_normal(rows))), 1)
        extra = np.bincount(random.integers(0, rows, int(rows * _SINGLES_EXTRA)), minlength=rows)
        size = np.maximum(size, extra + 1)  # a lot at least for each single trade
        last = int(skeleton.state.next_single[index]) - 1 + np.cumsum(extra + 1)
        trades = Trades(
            id=int(skeleton.state.next_id[index]) + np.arange(rows),
            ts_ms=self.first_day_ms + day * DAY_MS + ts,
            price=np.maximum(price, 1),
            size=size.astype(np.int64),
            first=last - extra,
            last=last,
            buyer_is_maker=side < 0,
        )
        return self._crowd(trades, listing.symbol)

    def _crowd(self, trades: Trades, symbol: str) -> Trades:
        for crowded, ts_ms, rows in self.crowded:
            start = int(np.searchsorted(trades.ts_ms, ts_ms))
            if crowded == symbol and start < len(trades) and trades.ts_ms[0] <= ts_ms:
                ts = trades.ts_ms.copy()
                ts[start : start + rows] = ts_ms
                trades = replace(trades, ts_ms=ts)
        return trades


def decimals(values: Ints, places: int) -> list[str]:
    """Whole numbers of 10^-places as text with eight places: (1234, 2) is "12.34000000"."""
    template = f"%d.%0{places}d" + "0" * (8 - places)
    unit = 10**places
    return [template % pair for pair in zip((values // unit).tolist(), (values % unit).tolist(), strict=True)]


def cut_by_time(trades: Trades, start_ms: int, end_ms: int) -> Trades:
    first, last = np.searchsorted(trades.ts_ms, [start_ms, end_ms])
    return trades.rows(int(first), int(last))


def candles_of(trades: Trades, start_ms: int, minutes: int, close_before: int) -> Candles:
    """1m candles of `minutes` minutes from `start_ms` on; flat at the last price where nothing traded."""
    slot = (trades.ts_ms - start_ms) // MINUTE_MS
    filled, first = np.unique(slot, return_index=True)
    last = np.append(first[1:], len(slot)) - 1
    quote = trades.price * trades.size
    taker = ~trades.buyer_is_maker

    def total(column: Ints) -> Ints:
        sums = np.zeros(minutes, np.int64)
        if len(filled):
            sums[filled] = np.add.reduceat(column, first)
        return sums

    position = np.searchsorted(filled, np.arange(minutes), side="right") - 1  # last filled minute so far
    closes = np.append(trades.price[last] if len(filled) else np.zeros(0, np.int64), close_before)
    close = closes[position]  # -1 takes the appended one
    columns = {name: close.copy() for name in ("open", "high", "low")}
    if len(filled):
        columns["open"][filled] = trades.price[first]
        columns["high"][filled] = np.maximum.reduceat(trades.price, first)
        columns["low"][filled] = np.minimum.reduceat(trades.price, first)
    return Candles(
        ts_ms=start_ms + MINUTE_MS * np.arange(minutes),
        close=close,
        volume=total(trades.size),
        quote_volume=total(quote),
        trades=total(trades.last - trades.first + 1),
        taker_buy_volume=total(trades.size * taker),
        taker_buy_quote_volume=total(quote * taker),
        **columns,
    )


def fold(candles: Candles, step_ms: int) -> Candles:
    """Coarser candles; opens, highs and lows only of minutes with trades, where there are any."""
    if step_ms == MINUTE_MS or not len(candles):
        return candles
    slot = candles.ts_ms // step_ms
    _, first = np.unique(slot, return_index=True)
    last = np.append(first[1:], len(slot)) - 1
    traded = candles.trades > 0
    some = np.add.reduceat(traded.astype(np.int64), first) > 0
    index = np.arange(len(slot))
    first_traded = np.minimum.reduceat(np.where(traded, index, len(slot)), first)
    opens = np.where(some, candles.open[np.minimum(first_traded, len(slot) - 1)], candles.open[first])
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    high = np.maximum.reduceat(np.where(traded, candles.high, lowest), first)
    low = np.minimum.reduceat(np.where(traded, candles.low, highest), first)
    sums = {
        name: np.add.reduceat(getattr(candles, name), first)
        for name in ("volume", "quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
    }
    return Candles(
        ts_ms=slot[first] * step_ms,
        open=opens,
        high=np.where(some, high, candles.high[first]),
        low=np.where(some, low, candles.low[first]),
        close=candles.close[last],
        **sums,
    )


def rhythm(minutes: int) -> Floats:
    """Mean 1 over the day: quiet around 04:00 UTC, busiest around 15:00 UTC. Shape (minutes,)."""
    hour = np.arange(minutes) * (24 / minutes)
    wave = 1 + 0.35 * np.cos(2 * np.pi * (hour - 15.5) / 24) + 0.15 * np.cos(4 * np.pi * (hour - 14.5) / 24)
    return np.asarray(wave / wave.mean())


def _weekday_rate(epoch_day: int) -> float:
    """Saturdays and Sundays trade less; day 0 of the epoch was a Thursday."""
    return 0.88 if (epoch_day + 3) % 7 >= 5 else 1.05


def _autoregress(random: np.random.Generator, state: Floats) -> Floats:
    """Both parts of log volatility over a day, from `state` of shape (2, drivers); shape (2, drivers, 1440)."""
    decay = 0.5 ** (1 / np.array(_HALF_LIVES_MIN))[:, None, None]
    noise = np.array(_VOL_SPREADS)[:, None, None] * np.sqrt(1 - decay**2)
    powers = decay ** np.arange(1, _MINUTES + 1)
    shocks = noise * random.standard_normal((*state.shape, _MINUTES))
    return np.asarray(powers * (state[:, :, None] + np.cumsum(shocks / powers, axis=2)))


def _times(random: np.random.Generator, rows: int, sigma: Floats) -> tuple[Ints, Ints, Ints]:
    """Milliseconds of the day in order; for each row the number of its burst and its place in it."""
    weight = (sigma / sigma.mean()) ** 0.7 * np.exp(0.5 * random.standard_normal(_MINUTES))
    minute = np.searchsorted(np.cumsum(weight) / weight.sum(), random.random(rows), side="right")
    start = np.sort(np.minimum(minute, _MINUTES - 1) * MINUTE_MS + random.integers(0, MINUTE_MS, rows))
    leads = random.random(rows) >= _FOLLOWS
    leads[0] = True
    index = np.arange(rows)
    leader = np.maximum.accumulate(np.where(leads, index, 0))
    wait = np.where(random.random(rows) < _SAME_MS, 0, 1 + random.exponential(25.0, rows)).astype(np.int64)
    waited = np.cumsum(wait)
    ts = np.minimum(start[leader] + waited - waited[leader], DAY_MS - 1)
    order = np.argsort(ts, kind="stable")
    return ts[order], leader[order], (index - leader)[order]


def _middle(random: np.random.Generator, ts: Ints, path: Floats, sigma: Floats) -> Floats:
    """Log price at each trade: the minute path with a bridge between its edges. Shape (rows,)."""
    minute = ts // MINUTE_MS
    into = (ts - minute * MINUTE_MS) / MINUTE_MS
    steps = np.diff(ts, prepend=ts[0]) / MINUTE_MS
    walk = np.cumsum(np.sqrt(steps) * random.standard_normal(len(ts)))
    edges = np.interp(np.arange(_MINUTES + 1) * MINUTE_MS, ts, walk)
    bridge = walk - edges[minute] - into * (edges[minute + 1] - edges[minute])
    return np.asarray(path[minute] + into * (path[minute + 1] - path[minute]) + bridge * sigma[minute])
