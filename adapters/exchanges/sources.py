"""What a simulated exchange has to offer: rows in the words of Binance's REST answers, from a tape or from files.

    Tape     --> TapeSource      (adapters/exchanges/sources.py)   --> adapters/exchanges/simulated.py
    *.csv.gz, *.zip --> RecordedSource  (adapters/exchanges/recorded.py)  -->

A source never knows about faults: it is the truth a test compares with. Every method takes the exchange's clock
and shows nothing that lies behind it. Times are UTC ms, both ends inclusive as in the exchange's own parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from adapters.exchanges.sim_feed import Frame, TapeFeed, snapshot_text
from adapters.exchanges.tape import Candles, Listing, Tape, Trades, decimals, join
from models.market import INTERVAL_MS


@dataclass
class Rows:
    """One page: the texts of its rows, with the key (trade id or open time) and the time of each."""

    keys: list[int]
    ts_ms: list[int]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Iterable[int]) -> Rows:
        chosen = list(indices)
        return Rows([self.keys[i] for i in chosen], [self.ts_ms[i] for i in chosen], [self.texts[i] for i in chosen])

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.keys + other.keys, self.ts_ms + other.ts_ms, self.texts + other.texts)


NO_ROWS = Rows([], [], [])
_SINGLE_ROW = '{"id":%d,"price":"%s","qty":"%s","quoteQty":"%s","time":%d,"isBuyerMaker":%s,"isBestMatch":true}'
_CANDLE_ROW = '[%d,"%s","%s","%s","%s","%s",%d,"%s",%d,"%s","%s","0"]'


@dataclass(frozen=True)
class CatalogEntry:
    """What a source has of one stream; `rows` is None where counting would mean to make them all."""

    symbol: str
    channel: str
    start_ms: int
    end_ms: int
    rows: int | None


class Source(Protocol):
    kind: str  # "generated" or "recorded"
    market: str  # "spot" or "um"
    seed: int | None

    def symbols(self) -> Sequence[dict[str, Any]]:
        """The symbols as exchangeInfo lists them, without a status."""
        ...

    def catalog(self, now_ms: int) -> list[CatalogEntry]: ...

    def left_out(self) -> dict[str, str]:
        """Files that are not served, and why."""
        ...

    def trades_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows: ...

    def trades_between(self, symbol: str, start_ms: int, end_ms: int, limit: int) -> Rows:
        """The oldest `limit`."""
        ...

    def trades_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        """The newest `limit`."""
        ...

    def candles_between(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, limit: int, now_ms: int
    ) -> Rows: ...

    def candles_until(self, symbol: str, interval: str, end_ms: int, limit: int, now_ms: int) -> Rows: ...

    def singles_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows: ...

    def singles_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        """The newest `limit`."""
        ...

    def depth(self, symbol: str, limit: int, now_ms: int) -> str | None:
        """The body of an answer; None where the source has no order book."""
        ...

    def frames(self, stream: str, after_ms: int, until_ms: int) -> Sequence[Frame]:
        """What the live stream sends in (after_ms, until_ms]; nothing where the source has no such stream."""
        ...

    def crowd(self, symbol: str, ts_ms: int, rows: int) -> None:
        """Move `rows` trades into one millisecond. Raises SetupRefused where the truth cannot be changed."""
        ...


class TapeSource:
    """A seeded tape in Binance's words; every decimal is padded to eight places, as the spot exchange does."""

    kind = "generated"
    market = "spot"

    def __init__(self, tape: Tape) -> None:
        self.tape, self.feed = tape, TapeFeed(tape)
        self.seed: int | None = tape.seed
        self._listings = {listing.symbol: listing for listing in tape.listings}
        self._trade_row = {name: _trade_template(listing) for name, listing in self._listings.items()}

    def symbols(self) -> Sequence[dict[str, Any]]:
        return [_symbol(listing) for listing in self.tape.listings]

    def catalog(self, now_ms: int) -> list[CatalogEntry]:
        channels = ["trades", *(f"candles_{interval}" for interval in INTERVAL_MS)]
        start_ms = self.tape.first_day_ms
        return [
            CatalogEntry(listing.symbol, channel, start_ms, max(now_ms, start_ms), None)
            for listing in self.tape.listings
            for channel in channels
        ]

    def left_out(self) -> dict[str, str]:
        return {}

    def trades_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        last_day = self.tape.day_of(now_ms)
        day = self.tape.day_of_id(symbol, from_id, last_day) if last_day >= 0 else None
        parts: list[Trades] = []
        while day is not None and day <= last_day and sum(map(len, parts)) < limit:
            trades = self.tape.trades_of_day(symbol, day)
            first, end = np.searchsorted(trades.id, from_id), np.searchsorted(trades.ts_ms, now_ms, side="right")
            parts.append(trades.rows(int(first), int(end)))
            day += 1
        return self._texts(symbol, parts, slice(0, limit))

    def trades_between(self, symbol: str, start_ms: int, end_ms: int, limit: int) -> Rows:
        parts: list[Trades] = []
        day, last_day = max(self.tape.day_of(start_ms), 0), self.tape.day_of(end_ms)
        while day <= last_day and sum(map(len, parts)) < limit:
            trades = self.tape.trades_of_day(symbol, day)
            first = np.searchsorted(trades.ts_ms, start_ms)
            parts.append(trades.rows(int(first), int(np.searchsorted(trades.ts_ms, end_ms, side="right"))))
            day += 1
        return self._texts(symbol, parts, slice(0, limit))

    def trades_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        parts: list[Trades] = []
        day = self.tape.day_of(end_ms)
        while day >= 0 and sum(map(len, parts)) < limit:
            trades = self.tape.trades_of_day(symbol, day)
            parts.insert(0, trades.rows(0, int(np.searchsorted(trades.ts_ms, end_ms, side="right"))))
            day -= 1
        return self._texts(symbol, parts, slice(-limit, None))

    def candles_between(self, symbol: str, interval: str, start_ms: int, end_ms: int, limit: int, now_ms: int) -> Rows:
        step = INTERVAL_MS[interval]
        first_ms = max(-(-start_ms // step) * step, self.tape.first_day_ms)
        last_ms = min(end_ms - end_ms % step, first_ms + (limit - 1) * step, now_ms - now_ms % step)
        if last_ms < first_ms:
            return NO_ROWS
        closed = self.tape.candles(symbol, interval, first_ms, min(last_ms + 1, now_ms + 1 - step))
        rows = self._candle_texts(symbol, closed, step)
        if last_ms + step > now_ms:
            rows += self._candle_texts(symbol, self.tape.candle_until(symbol, interval, now_ms), step)
        return rows

    def candles_until(self, symbol: str, interval: str, end_ms: int, limit: int, now_ms: int) -> Rows:
        step = INTERVAL_MS[interval]
        last_ms = min(end_ms, now_ms) // step * step
        return self.candles_between(symbol, interval, last_ms - (limit - 1) * step, last_ms, limit, now_ms)

    def singles_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        last_day = self.tape.day_of(now_ms)
        day = self.tape.day_of_single(symbol, from_id, last_day) if last_day >= 0 else None
        found = NO_ROWS
        while day is not None and day <= last_day and len(found) < limit:
            trades = self.tape.trades_of_day(symbol, day)
            first, end = np.searchsorted(trades.last, from_id), np.searchsorted(trades.ts_ms, now_ms, side="right")
            # as many aggregates as single trades wanted are enough: each has one at least
            singles = trades.rows(int(first), min(int(first) + limit, int(end))).singles()
            start = int(np.searchsorted(singles.id, from_id))
            found += self._single_texts(symbol, singles.rows(start, start + limit - len(found)))
            day += 1
        return found

    def singles_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        day, newest = self.tape.day_of(end_ms), 0
        while day >= 0 and not newest:
            trades = self.tape.trades_of_day(symbol, day)
            end = int(np.searchsorted(trades.ts_ms, end_ms, side="right"))
            newest = int(trades.last[end - 1]) if end else 0
            day -= 1
        return self.singles_from(symbol, max(newest - limit + 1, 1), limit, end_ms)

    def depth(self, symbol: str, limit: int, now_ms: int) -> str:
        return snapshot_text(self.feed.book(symbol), self._listings[symbol], now_ms, limit)

    def frames(self, stream: str, after_ms: int, until_ms: int) -> Sequence[Frame]:
        return self.feed.frames(stream, after_ms, until_ms)

    def crowd(self, symbol: str, ts_ms: int, rows: int) -> None:
        self.tape.crowd(symbol, ts_ms, rows)
        self.feed.forget()

    def _texts(self, symbol: str, parts: Sequence[Trades], page: slice) -> Rows:
        if not parts:
            return NO_ROWS
        trades, listing = join(parts), self._listings[symbol]
        price_unit, size_unit = 10**listing.price_decimals, 10**listing.size_decimals
        ids, times = trades.id[page].tolist(), trades.ts_ms[page].tolist()
        price, size = trades.price[page], trades.size[page]
        columns = zip(
            ids, (price // price_unit).tolist(), (price % price_unit).tolist(),
            (size // size_unit).tolist(), (size % size_unit).tolist(),
            trades.first[page].tolist(), trades.last[page].tolist(), times,
            ["true" if maker else "false" for maker in trades.buyer_is_maker[page].tolist()],
            strict=True,
        )  # fmt: skip
        template = self._trade_row[symbol]
        return Rows(ids, times, [template % row for row in columns])

    def _single_texts(self, symbol: str, singles: Trades) -> Rows:
        listing = self._listings[symbol]
        prices, sizes = listing.price_decimals, listing.size_decimals
        ids, times = singles.id.tolist(), singles.ts_ms.tolist()
        columns = zip(
            ids, decimals(singles.price, prices), decimals(singles.size, sizes),
            decimals(singles.price * singles.size, prices + sizes), times,
            ["true" if maker else "false" for maker in singles.buyer_is_maker.tolist()], strict=True,
        )  # fmt: skip
        return Rows(ids, times, [_SINGLE_ROW % row for row in columns])

    def _candle_texts(self, symbol: str, candles: Candles, step_ms: int) -> Rows:
        listing = self._listings[symbol]
        prices, sizes = listing.price_decimals, listing.size_decimals
        opens = candles.ts_ms.tolist()
        columns = zip(
            opens, decimals(candles.open, prices), decimals(candles.high, prices), decimals(candles.low, prices),
            decimals(candles.close, prices), decimals(candles.volume, sizes), (candles.ts_ms + step_ms - 1).tolist(),
            decimals(candles.quote_volume, prices + sizes), candles.trades.tolist(),
            decimals(candles.taker_buy_volume, sizes), decimals(candles.taker_buy_quote_volume, prices + sizes),
            strict=True,
        )  # fmt: skip
        return Rows(opens, opens, [_CANDLE_ROW % row for row in columns])


def _trade_template(listing: Listing) -> str:
    price = f"%d.%0{listing.price_decimals}d" + "0" * (8 - listing.price_decimals)
    size = f"%d.%0{listing.size_decimals}d" + "0" * (8 - listing.size_decimals)
    return f'{{"a":%d,"p":"{price}","q":"{size}","f":%d,"l":%d,"T":%d,"m":%s,"M":true}}'


def _symbol(listing: Listing) -> dict[str, Any]:
    tick, step = 10.0**-listing.price_decimals, 10.0**-listing.size_decimals
    return {
        "symbol": listing.symbol,
        "baseAsset": listing.base,
        "baseAssetPrecision": 8,
        "quoteAsset": listing.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "isSpotTradingAllowed": True,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": f"{tick:.8f}", "tickSize": f"{tick:.8f}"},
            {"filterType": "LOT_SIZE", "minQty": f"{step:.8f}", "stepSize": f"{step:.8f}"},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }
