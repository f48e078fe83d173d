"""The live streams of a seeded tape, frame by frame, in the exchange's words.

    Tape, Book --> TapeFeed.frames(stream, after, until) --> adapters/exchanges/sim_sockets.py

Which frame is sent when is a function of the tape, so every connection sees the same ones and any stretch of time can
be asked for. A frame's text is the bare event (`data` of a combined frame).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import numpy as np

from adapters.exchanges.sim_book import Book, Diff, Side
from adapters.exchanges.tape import Listing, Tape, Trades, decimals
from models.market import INTERVAL_MS

Frame = tuple[int, str]  # (ms at which it is sent, the event)
_Chunk = tuple[list[int], list[Frame]]  # when each is sent, and the frames themselves

_STREAM = re.compile(
    r"(?P<symbol>[a-z0-9._-]{1,20})@(?P<kind>aggTrade|trade|bookTicker|kline_(?P<interval>[0-9]+[a-zM])"
    r"|depth(?P<levels>5|10|20)?(?P<speed>@(?:0|100|250|500|1000)ms)?)"
)
_TRADE_LATENCY_MS = 1  # E - T
_KLINE_EVERY_MS = 2000
_TRADE_CHUNK_MS, _BOOK_CHUNK_MS = 60_000, 1_000
_CHUNKS_KEPT = 4  # of each stream
EMPTY_CANDLE = '"f":-1,"L":-1'


@dataclass(frozen=True)
class StreamName:
    """A well-formed stream: `symbol` in capitals; `kind` is aggTrade, trade, kline, depth, depth_top or bookTicker."""

    symbol: str
    kind: str
    interval: str = ""
    levels: int = 0
    fast: bool = False


@lru_cache(maxsize=8192)  # asked for every stream at every look at the clock
def stream_name(text: str) -> StreamName | None:
    """None when the exchange would call it invalid."""
    parts = _STREAM.fullmatch(text)
    if parts is None or (parts["interval"] and parts["interval"] not in INTERVAL_MS):
        return None
    kind = parts["kind"].partition("_")[0].partition("@")[0]
    if kind.startswith("depth"):
        kind = "depth_top" if parts["levels"] else "depth"
    return StreamName(
        parts["symbol"].upper(),
        kind,
        parts["interval"] or "",
        int(parts["levels"] or 0),
        parts["speed"] in ("@0ms", "@100ms"),
    )


class TapeFeed:
    """A candle without a trade sends its closing frame too (f = L = -1): whoever sends the frames leaves that out."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._listings = {listing.symbol: listing for listing in tape.listings}
        self._books: dict[str, Book] = {}
        self._chunks: dict[str, OrderedDict[int, _Chunk]] = {}

    def book(self, symbol: str) -> Book:
        if symbol not in self._books:
            self._books[symbol] = Book(self.tape, self._listings[symbol])
        return self._books[symbol]

    def forget(self) -> None:
        """After the tape was changed."""
        self._books.clear()
        self._chunks.clear()

    def frames(self, stream: str, after_ms: int, until_ms: int) -> list[Frame]:
        """The frames of (after_ms, until_ms], in order; none for an unknown symbol or before the tape begins."""
        name = stream_name(stream)
        if name is None or name.symbol not in self._listings or until_ms < self.tape.first_day_ms:
            return []
        length = _TRADE_CHUNK_MS if name.kind in ("aggTrade", "trade", "kline") else _BOOK_CHUNK_MS
        found: list[Frame] = []
        for chunk in range(max(after_ms, self.tape.first_day_ms) // length, until_ms // length + 1):
            times, frames = self._chunk(stream, name, chunk, length)
            if times and times[-1] > after_ms and times[0] <= until_ms:
                found += frames[bisect_right(times, after_ms) : bisect_right(times, until_ms)]
        return found

    def _chunk(self, stream: str, name: StreamName, chunk: int, length: int) -> _Chunk:
        chunks = self._chunks.setdefault(stream, OrderedDict())
        if chunk not in chunks:
            frames = _MAKERS[name.kind](self, name, chunk * length - 1, (chunk + 1) * length - 1)
            chunks[chunk] = [ts_ms for ts_ms, _ in frames], frames
            if len(chunks) > _CHUNKS_KEPT:
                chunks.popitem(last=False)
        return chunks[chunk]

    # -- one stream each; frames of (after_ms, until_ms] -----------------------------------------------------

    def _sent(self, symbol: str, after_ms: int, until_ms: int) -> Trades:
        """The trades whose frames are sent in (after_ms, until_ms]."""
        return self.tape.trades(symbol, after_ms + 1 - _TRADE_LATENCY_MS, until_ms + 1 - _TRADE_LATENCY_MS)

    def _agg_trades(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        trades, listing = self._sent(name.symbol, after_ms, until_ms), self._listings[name.symbol]
        head = (
            f'{{"e":"aggTrade","E":%d,"s":"{name.symbol}","a":%d,"p":"%s","q":"%s","f":%d,"l":%d,"T":%d,'
            '"m":%s,"M":true}'
        )
        columns = zip(
            trades.ts_ms.tolist(), trades.id.tolist(), decimals(trades.price, listing.price_decimals),
            decimals(trades.size, listing.size_decimals), trades.first.tolist(), trades.last.tolist(),
            _booleans(trades), strict=True,
        )  # fmt: skip
        return [
            (ts + _TRADE_LATENCY_MS, head % (ts + _TRADE_LATENCY_MS, number, price, size, first, last, ts, maker))
            for ts, number, price, size, first, last, maker in columns
        ]

    def _trades(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        trades, listing = self._sent(name.symbol, after_ms, until_ms).singles(), self._listings[name.symbol]
        head = f'{{"e":"trade","E":%d,"s":"{name.symbol}","t":%d,"p":"%s","q":"%s","T":%d,"m":%s,"M":true}}'
        columns = zip(
            trades.ts_ms.tolist(), trades.id.tolist(), decimals(trades.price, listing.price_decimals),
            decimals(trades.size, listing.size_decimals), _booleans(trades), strict=True,
        )  # fmt: skip
        return [
            (ts + _TRADE_LATENCY_MS, head % (ts + _TRADE_LATENCY_MS, number, price, size, ts, maker))
            for ts, number, price, size, maker in columns
        ]

    def _klines(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        """At most one frame in two seconds while there are trades; the closing one with the next candle's first trade
        or two seconds after the close, whichever is earlier."""
        step = INTERVAL_MS[name.interval]
        found: list[Frame] = []
        latest_close_ms = _KLINE_EVERY_MS + 2 * _TRADE_LATENCY_MS  # behind the candle's end
        for open_ms in range((after_ms - latest_close_ms) // step * step, until_ms + 1, step):
            found += self._candle_frames(name, open_ms, step, after_ms, until_ms)
        return sorted(found, key=itemgetter(0))

    def _candle_frames(self, name: StreamName, open_ms: int, step: int, after_ms: int, until_ms: int) -> list[Frame]:
        close_ms = open_ms + step
        trades = self.tape.trades(name.symbol, open_ms, min(close_ms, until_ms + 1))
        sent, due = trades.ts_ms + _TRADE_LATENCY_MS, []
        first_due = max(open_ms, after_ms // _KLINE_EVERY_MS * _KLINE_EVERY_MS)
        for due_ms in range(first_due, min(close_ms, until_ms + 1), _KLINE_EVERY_MS):
            if due_ms <= after_ms:
                continue
            last, now = np.searchsorted(sent, [due_ms - _KLINE_EVERY_MS, due_ms], side="right")
            if now > last:
                due.append((due_ms, self._kline(name, open_ms, step, trades.rows(0, int(now)), due_ms, closed=False)))
        closing_ms = self._closing_ms(name.symbol, close_ms)
        if after_ms < closing_ms <= until_ms:
            due.append((closing_ms, self._kline(name, open_ms, step, trades, closing_ms, closed=True)))
        return due

    def _closing_ms(self, symbol: str, close_ms: int) -> int:
        next_trades = self.tape.trades(symbol, close_ms, close_ms + _KLINE_EVERY_MS)
        first_ms = int(next_trades.ts_ms[0]) if len(next_trades) else close_ms + _KLINE_EVERY_MS
        return first_ms + 2 * _TRADE_LATENCY_MS  # after the trade itself

    def _kline(self, name: StreamName, open_ms: int, step: int, trades: Trades, sent_ms: int, *, closed: bool) -> str:
        listing, taker = self._listings[name.symbol], ~trades.buyer_is_maker
        prices, sizes = listing.price_decimals, listing.size_decimals
        quote = trades.price * trades.size
        if len(trades):
            first, last = int(trades.first[0]), int(trades.last[-1])
            ohlc = [int(trades.price[0]), int(trades.price[-1]), int(trades.price.max()), int(trades.price.min())]
        else:
            first, last = -1, -1
            ohlc = [int(self.tape.candles(name.symbol, "1m", open_ms, open_ms + 60_000).close[0])] * 4
        o, c, h, low = decimals(np.array(ohlc), prices)
        v, taken = decimals(np.array([trades.size.sum(), trades.size[taker].sum()]), sizes)
        q, taken_quote = decimals(np.array([quote.sum(), quote[taker].sum()]), prices + sizes)
        count = last - first + 1 if len(trades) else 0
        return (
            f'{{"e":"kline","E":{sent_ms},"s":"{name.symbol}","k":{{"t":{open_ms},"T":{open_ms + step - 1},'
            f'"s":"{name.symbol}","i":"{name.interval}","f":{first},"L":{last},"o":"{o}","c":"{c}","h":"{h}",'
            f'"l":"{low}","v":"{v}","n":{count},"x":{"true" if closed else "false"},"q":"{q}","V":"{taken}",'
            f'"Q":"{taken_quote}","B":"0"}}}}'
        )

    def _diffs(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        book, listing, found = self.book(name.symbol), self._listings[name.symbol], []
        per = 1 if name.fast else max(1000 // book.step_ms, 1)
        for tick in range(book.tick(after_ms) + 1, book.tick(until_ms) + 1):
            if tick % per == 0:
                diff = merged([book.diff(tick - back) for back in range(per - 1, -1, -1)])
                text = (
                    f'{{"e":"depthUpdate","E":{diff.ts_ms},"s":"{name.symbol}","U":{diff.first_id},"u":{diff.last_id},'
                    f'"b":{levels_text(diff.bids, listing)},"a":{levels_text(diff.asks, listing)}}}'
                )
                found.append((diff.ts_ms, text))
        return found

    def _tops(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        book, listing, found = self.book(name.symbol), self._listings[name.symbol], []
        per = 1 if name.fast else max(1000 // book.step_ms, 1)
        for tick in range(book.tick(after_ms) + 1, book.tick(until_ms) + 1):
            if tick % per == 0:
                at_ms = book.tick_ms(tick)
                found.append((at_ms, snapshot_text(book, listing, at_ms, name.levels)))
        return found

    def _best_prices(self, name: StreamName, after_ms: int, until_ms: int) -> list[Frame]:
        listing = self._listings[name.symbol]
        best = self.book(name.symbol).best_changes(after_ms, until_ms)
        prices = decimals(np.array([[b.bid, b.ask] for b in best], np.int64).reshape(-1), listing.price_decimals)
        sizes = decimals(
            np.array([[b.bid_size, b.ask_size] for b in best], np.int64).reshape(-1), listing.size_decimals
        )
        head = f'{{"u":%d,"s":"{name.symbol}","b":"%s","B":"%s","a":"%s","A":"%s"}}'
        return [
            (b.ts_ms, head % (b.update_id, prices[2 * i], sizes[2 * i], prices[2 * i + 1], sizes[2 * i + 1]))
            for i, b in enumerate(best)
        ]


_MAKERS: dict[str, Callable[[TapeFeed, StreamName, int, int], list[Frame]]] = {
    "aggTrade": TapeFeed._agg_trades,
    "trade": TapeFeed._trades,
    "kline": TapeFeed._klines,
    "depth": TapeFeed._diffs,
    "depth_top": TapeFeed._tops,
    "bookTicker": TapeFeed._best_prices,
}


def merged(diffs: Sequence[Diff]) -> Diff:
    """Successive diffs as one: of each level the last size."""
    if len(diffs) == 1:
        return diffs[0]
    sides = []
    for name in ("bids", "asks"):
        last: dict[int, int] = {}
        for diff in diffs:
            side = getattr(diff, name)
            last.update(zip(side.prices.tolist(), side.sizes.tolist(), strict=True))
        prices = sorted(last, reverse=name == "bids")
        sides.append(Side(np.array(prices, np.int64), np.array([last[price] for price in prices], np.int64)))
    return Diff(diffs[-1].ts_ms, diffs[0].first_id, diffs[-1].last_id, *sides)


def levels_text(side: Side, listing: Listing) -> str:
    """`[["61837.63000000","3.78826000"],...]`"""
    prices = decimals(side.prices, listing.price_decimals)
    sizes = decimals(side.sizes, listing.size_decimals)
    return "[" + ",".join([f'["{p}","{q}"]' for p, q in zip(prices, sizes, strict=True)]) + "]"


def snapshot_text(book: Book, listing: Listing, at_ms: int, limit: int) -> str:
    """The body of `GET /depth`."""
    snapshot = book.snapshot(at_ms, limit)
    bids, asks = levels_text(snapshot.bids, listing), levels_text(snapshot.asks, listing)
    return f'{{"lastUpdateId":{snapshot.update_id},"bids":{bids},"asks":{asks}}}'


def _booleans(trades: Trades) -> list[str]:
    return ["true" if maker else "false" for maker in trades.buyer_is_maker.tolist()]
