"""The order book of a seeded tape: a function of time, so that diffs, snapshots and best prices agree by construction.

The best prices lead the tape: shortly before each trade they move to where it prints, so a buy prints at the best ask
and a sell at the best bid. Behind them stand levels whose presence, size and lifetime are hashes of their price; they
change only at ticks (every `step_ms`). Nothing is stored: any moment can be asked for in any order.

Update ids: 20 at each tick and one at each move of the best prices, so `u` is a function of time too, never falls,
and is shared by depth events, snapshots and bookTicker. Prices in ticks, sizes in lots, times in UTC ms.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.exchanges.tape import DAY_MS, Ints, Listing, Tape

Hashes = npt.NDArray[np.uint64]

_FIRST_UPDATE_ID = 5_000_000_000_000
_IDS_PER_TICK = 20
_FINE = 100  # levels a side close to the best price
_BUSY_TRADES_PER_DAY = 5_000  # such symbols have an event every 100 ms, others every second
_RANGE = 0.01  # of the price: how far the levels of a side reach
_LEAD_MS = (5, 200)  # how long before a trade the best prices move to it
_QUOTE_DAYS_KEPT, _TICKS_KEPT, _CELLS_KEPT = 2, 8, 4


@dataclass(frozen=True)
class Side:
    """Levels of one side, best first; columns of shape (levels,)."""

    prices: Ints
    sizes: Ints


@dataclass(frozen=True)
class Snapshot:
    update_id: int
    bids: Side
    asks: Side


@dataclass(frozen=True)
class Diff:
    """What a tick changed: absolute sizes, 0 removes; bids descending, asks ascending, never without a level."""

    ts_ms: int
    first_id: int
    last_id: int
    bids: Side
    asks: Side


@dataclass(frozen=True)
class Best:
    ts_ms: int
    update_id: int
    bid: int
    bid_size: int
    ask: int
    ask_size: int


@dataclass(frozen=True)
class _Quotes:
    """Moves of the best prices over a day; columns of shape (trades,), move i belongs to trade `id[i]`."""

    ts_ms: Ints
    bid: Ints
    ask: Ints
    id: Ints


@dataclass(frozen=True)
class _Levels:
    """What may stand in the book between two ticks: prices rising, sizes at least 1."""

    prices: Ints
    sizes: Ints


@dataclass(frozen=True)
class _Cells:
    """Where levels can stand around a price, and how they live; columns of shape (cells,)."""

    prices: Ints  # rising
    period: Ints  # ticks until a level changes: 64 to 2,048
    offset: Ints  # not all at the same tick


class Book:
    def __init__(self, tape: Tape, listing: Listing) -> None:
        self.tape, self.listing = tape, listing
        self.step_ms = 100 if listing.trades_per_day >= _BUSY_TRADES_PER_DAY else 1000
        self._salt = int(np.random.default_rng([tape.seed, *listing.symbol.encode()]).integers(1 << 62))
        self._phase_ms = self._salt % self.step_ms  # not all symbols in the same ms
        home = listing.price * 10**listing.price_decimals
        self._grid = max(round(home * _RANGE / listing.levels), 1)
        self._fine_grid = max(self._grid // 10, 1)
        self._quotes_of: OrderedDict[int, _Quotes] = OrderedDict()
        self._levels_of: OrderedDict[int, _Levels] = OrderedDict()
        self._cells_of: OrderedDict[tuple[int, int], _Cells] = OrderedDict()

    def snapshot(self, ts_ms: int, limit: int) -> Snapshot:
        """The best `limit` levels of each side at `ts_ms`."""
        bids, asks = self._sides(ts_ms, self.tick(ts_ms))
        return Snapshot(
            self.update_id(ts_ms),
            Side(bids.prices[:limit], bids.sizes[:limit]),
            Side(asks.prices[:limit], asks.sizes[:limit]),
        )

    def tick(self, ts_ms: int) -> int:
        return (ts_ms - self._phase_ms) // self.step_ms

    def tick_ms(self, tick: int) -> int:
        return tick * self.step_ms + self._phase_ms

    def update_id(self, ts_ms: int) -> int:
        quotes, row = self._quote_at(ts_ms)
        return self._update_id(self.tick(ts_ms), int(quotes.id[row]))

    def diff(self, tick: int) -> Diff:
        """From the tick before to `tick`; levels that only stood in between are named too."""
        start_ms, end_ms = self.tick_ms(tick - 1), self.tick_ms(tick)
        before, after = self._sides(start_ms, tick - 1), self._sides(end_ms, tick)
        bid, ask = self._swept(start_ms, end_ms)
        low, high = int(min(bid)), int(max(ask))
        # a snapshot from between the ticks may hold these on either side
        between = self._levels(tick - 1).prices
        touched = np.concatenate(
            [bid, ask, between[np.searchsorted(between, low) : np.searchsorted(between, high + 1)]]
        )
        bids, asks = (_changes(was, now, touched) for was, now in zip(before, after, strict=True))
        return Diff(
            end_ms,
            self.update_id(start_ms) + 1,
            self.update_id(end_ms),
            Side(bids[0][::-1], bids[1][::-1]),
            Side(*asks),
        )

    def best_changes(self, after_ms: int, until_ms: int) -> list[Best]:
        """The best prices after every move and every tick of (after_ms, until_ms], in order of update id."""
        moments = [(self.tick_ms(tick), None) for tick in range(self.tick(after_ms) + 1, self.tick(until_ms) + 1)]
        found = [self._best(ms, *self._quote_at(ms)) for ms, _ in moments]
        for day in self._days(after_ms, until_ms):
            quotes = self._quotes(day)
            first, end = np.searchsorted(quotes.ts_ms, [after_ms, until_ms], side="right")
            found += [self._best(int(quotes.ts_ms[row]), quotes, row) for row in range(int(first), int(end))]
        return sorted(found, key=lambda best: best.update_id)

    def _best(self, ts_ms: int, quotes: _Quotes, row: int) -> Best:
        tick, bid, ask = self.tick(ts_ms), int(quotes.bid[row]), int(quotes.ask[row])
        sizes = self._touch_sizes(np.array([bid, ask]), tick)
        return Best(ts_ms, self._update_id(tick, int(quotes.id[row])), bid, int(sizes[0]), ask, int(sizes[1]))

    def _update_id(self, tick: int, quote_id: int) -> int:
        return _FIRST_UPDATE_ID + _IDS_PER_TICK * tick + quote_id

    def _sides(self, ts_ms: int, tick: int) -> tuple[Side, Side]:
        """Bids and asks, best first, at `ts_ms`, which lies between `tick` and the one after it."""
        quotes, row = self._quote_at(ts_ms)
        bid, ask, levels = int(quotes.bid[row]), int(quotes.ask[row]), self._levels(tick)
        touch = self._touch_sizes(np.array([bid, ask]), tick)
        below, above = np.searchsorted(levels.prices, bid), np.searchsorted(levels.prices, ask, side="right")
        return (
            Side(np.append(levels.prices[:below], bid)[::-1], np.append(levels.sizes[:below], touch[0])[::-1]),
            Side(np.append(ask, levels.prices[above:]), np.append(touch[1], levels.sizes[above:])),
        )

    def _levels(self, tick: int) -> _Levels:
        if tick not in self._levels_of:
            self._levels_of[tick] = self._draw_levels(tick)
            if len(self._levels_of) > _TICKS_KEPT:
                self._levels_of.popitem(last=False)
        return self._levels_of[tick]

    def _draw_levels(self, tick: int) -> _Levels:
        quotes, row = self._quote_at(self.tick_ms(tick))
        cells = self._cells_around(int(quotes.bid[row]))
        age = (tick + cells.offset) // cells.period
        drawn = self._hash(cells.prices * 1_000_003 + age, 2)
        stands = (drawn & np.uint64(7)) != 0  # one of eight is empty
        return _Levels(cells.prices[stands], self._sizes(drawn[stands], 2.0))

    def _cells_around(self, middle: int) -> _Cells:
        key = (middle // self._grid, middle // self._fine_grid)
        if key not in self._cells_of:
            self._cells_of[key] = self._draw_cells(middle)
            if len(self._cells_of) > _CELLS_KEPT:
                self._cells_of.popitem(last=False)
        return self._cells_of[key]

    def _draw_cells(self, middle: int) -> _Cells:
        count = self.listing.levels
        fine = self._row_of_prices(middle, self._fine_grid, min(_FINE, count))
        coarse = self._row_of_prices(middle, self._grid, count)
        prices = np.concatenate([coarse[coarse < fine[0]], fine, coarse[coarse > fine[-1]]])
        prices = prices[np.searchsorted(prices, 1) :]
        own = self._hash(prices, 1)
        period = np.int64(64) << (own % np.uint64(6)).astype(np.int64)
        return _Cells(prices, period, ((own >> np.uint64(8)) & np.uint64(0xFFFF)).astype(np.int64))

    def _row_of_prices(self, middle: int, grid: int, count: int) -> Ints:
        """One price in each cell of `grid` ticks, `count` cells to both sides of `middle`; rising."""
        cells = np.arange(middle // grid - count, middle // grid + count + 1)
        return cells * grid + (self._hash(cells, 3 + grid) % np.uint64(grid)).astype(np.int64)

    def _touch_sizes(self, prices: Ints, tick: int) -> Ints:
        return self._sizes(self._hash(prices * 1_000_003 + tick, 4), 1.0)

    def _sizes(self, drawn: Hashes, scale: float) -> Ints:
        """Exponential around `scale` typical trades; whole lots, at least 1."""
        uniform = (drawn >> np.uint64(11)).astype(np.float64) / (1 << 53)
        return 1 + (-np.log1p(-uniform) * self.listing.typical_lots * scale).astype(np.int64)

    def _hash(self, values: Ints, use: int) -> Hashes:
        return _mixed(values.astype(np.uint64) + np.uint64((self._salt + use * 0x9E3779B9) & 0xFFFFFFFFFFFFFFF))

    def _swept(self, start_ms: int, end_ms: int) -> tuple[Ints, Ints]:
        """All best bids and asks of [start_ms, end_ms]."""
        quotes, row = self._quote_at(start_ms)
        bids, asks = [quotes.bid[row : row + 1]], [quotes.ask[row : row + 1]]
        for day in self._days(start_ms, end_ms):
            quotes = self._quotes(day)
            first, end = np.searchsorted(quotes.ts_ms, [start_ms, end_ms], side="right")
            bids.append(quotes.bid[first:end])
            asks.append(quotes.ask[first:end])
        return np.concatenate(bids), np.concatenate(asks)

    def _quote_at(self, ts_ms: int) -> tuple[_Quotes, int]:
        quotes = self._quotes(max(self.tape.day_of(ts_ms), 0))
        return quotes, max(int(np.searchsorted(quotes.ts_ms, ts_ms, side="right")) - 1, 0)

    def _days(self, after_ms: int, until_ms: int) -> range:
        return range(max(self.tape.day_of(after_ms), 0), max(self.tape.day_of(until_ms), -1) + 1)

    def _quotes(self, day: int) -> _Quotes:
        if day not in self._quotes_of:
            self._quotes_of[day] = self._draw_quotes(day)
            if len(self._quotes_of) > _QUOTE_DAYS_KEPT:
                self._quotes_of.popitem(last=False)
        self._quotes_of.move_to_end(day)
        return self._quotes_of[day]

    def _draw_quotes(self, day: int) -> _Quotes:
        trades = self.tape.trades_of_day(self.listing.symbol, day)
        drawn = self._hash(trades.id, 5)
        lead = _LEAD_MS[0] + (drawn % np.uint64(_LEAD_MS[1] - _LEAD_MS[0])).astype(np.int64)
        before = np.append(self.tape.first_day_ms + day * DAY_MS, trades.ts_ms[:-1])
        moves = np.maximum(before, trades.ts_ms - lead)
        moves[0] = before[0]  # a day begins with the best prices of its first trade
        wide = (drawn >> np.uint64(32)) % np.uint64(10)
        spread = 1 + np.where(wide > 6, wide - np.uint64(6), 0).astype(np.int64)  # 1 tick in seven of ten, at most 4
        sells = trades.buyer_is_maker
        bid = np.where(sells, trades.price, trades.price - spread)
        return _Quotes(moves, bid, np.where(sells, trades.price + spread, trades.price), trades.id)


def _changes(was: Side, now: Side, touched: Ints) -> tuple[Ints, Ints]:
    """Prices, rising, whose size differs or that were touched, with the size of `now`."""
    prices = np.sort(np.concatenate([was.prices, now.prices, touched]))
    prices = prices[np.append(True, prices[1:] != prices[:-1])]
    old, new = (_sizes_at(prices, side) for side in (was, now))
    differs = old != new
    differs[np.searchsorted(prices, touched)] = True
    return prices[differs], new[differs]


def _sizes_at(prices: Ints, side: Side) -> Ints:
    found = np.zeros(len(prices), np.int64)
    found[np.searchsorted(prices, side.prices)] = side.sizes
    return found


def _mixed(values: Hashes) -> Hashes:
    """A finalizer of good avalanche: neighbours come out unrelated."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
