"""The market live: market topics, queue-events -> follow -> one JSON frame per symbol and tick.

A record is decoded once and a frame is encoded once, however many look. Every frame of a symbol has the next `seq`; a
viewer that sees one missing asks the store (`GET /trades`, `/candles`) for what it lacks. Of a book only the newest
state is sent. When nothing is new, a frame a second says so, with the time since data came.

`state` of a symbol: `waiting` (no live data seen yet), `live`, `stale` (none for STALE_AFTER_S). Data is `simulated`
where the exchange answers as the simulated one does, or its address is loopback: no real exchange is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from app.core import app
from app.outside import VENUE
from app.topics import market_for
from app.web import live
from app.web.calls import answer, call, error
from app.web.follow import UNREADABLE, follow
from app.web.health import is_simulated
from app.web.live import Audience
from app.web.parameters import Parameters, read_symbol
from models.control import Json
from models.market import (
    INTERVAL_MS,
    MADE_OF_TRADES,
    Batch,
    BookUpdate,
    decode_batch,
    decode_book_update,
    interval_of,
    versions_of,
)
from tables.book_by_symbol import book_by_symbol

TICK_S = 0.1  # between two frames of a symbol, while few look
FRAMES_PER_S = 5_000  # to all viewers together: more viewers get fewer frames, and the agents keep their time
HEARTBEAT_S = 1.0
STALE_AFTER_S = 2.0
REPAIR_SHOWN_S = 3.0
FRAMES_KEPT = 100  # per viewer: ten seconds
TRADES_KEPT = 5_000  # between two frames; what is more is left to the store, and the viewer is told
CANDLES_BACK = 5  # intervals: an older candle is history, not news
FEATURES = ("microprice", "ofi")
SYMBOLS_KEPT = 5_000

Now = float  # monotonic seconds


@dataclass
class Stream:
    """What was seen of one channel of a symbol."""

    channel: str
    seen_s: Now  # when a live message came last
    ts_ms: int = 0  # exchange time of its newest row
    source: str = ""
    said: str = "live"  # what a book says of itself
    repaired_s: Now = -1e9  # when a repair of it was last seen, or told of

    def state(self, now: Now, *, another_is_live: bool) -> str:
        """live, repairing, quiet (the symbol lives, this channel says nothing), stale."""
        patience_s = STALE_AFTER_S
        if self.channel.startswith("candles_"):
            patience_s += INTERVAL_MS[interval_of(self.channel)] / 500  # one may be quiet for two intervals
        if now - self.seen_s > patience_s:
            return "quiet" if another_is_live and self.channel != "book" else "stale"
        if self.said != "live" or now - self.repaired_s < REPAIR_SHOWN_S:
            return "repairing"
        return "live"


@dataclass
class Feed:
    """One symbol: what is known of it now, what its viewers have not been sent, who they are."""

    venue: str
    symbol: str
    audience: Audience
    streams: dict[str, Stream] = field(default_factory=dict)
    seq: int = 0
    last_id: int | None = None  # of the newest live trade
    book: Json | None = None
    trades: list[Any] = field(default_factory=list)  # [id, ts_ms, price, size, buyer_is_maker]
    candles: list[Json] = field(default_factory=list)
    versions: dict[str, dict[int, int]] = field(default_factory=dict)  # of the newest candles: interval, open time ms
    book_is_news: bool = False
    left_out: bool = False  # something was not handed on; the store has it
    _shown_s: Now = -1e9
    _shown_state: str = ""

    def take_batch(self, batch: Batch, now: Now) -> None:
        if batch.channel == "trades":
            self._take_trades(batch, now)
        elif batch.channel.startswith("candles_"):
            self._take_candles(batch, now)

    def _take_trades(self, batch: Batch, now: Now) -> None:
        """Live ones, and what a repair puts before them; the rest of history is not news."""
        ids = batch.array("id")
        if not len(ids):
            return
        if batch.source == "history":
            known = self.streams.get("trades")
            if known is None or self.last_id is None or not ids[0] <= self.last_id + 1 <= ids[-1]:
                return
            known.repaired_s = now
        self._note("trades", int(batch.array("ts_ms")[-1]), batch.source, now)
        new = ids > (-1 if self.last_id is None else self.last_id)
        self.last_id = max(self.last_id or 0, int(ids[-1]))
        if self.audience and new.any():
            names = ("id", "ts_ms", "price", "size", "buyer_is_maker")
            self.trades += zip(*(batch.array(name)[new].tolist() for name in names), strict=True)
            if len(self.trades) > TRADES_KEPT:
                del self.trades[:-TRADES_KEPT]
                self.left_out = True

    def _take_candles(self, batch: Batch, now: Now) -> None:
        """Those at the edge of what is live."""
        trades = self.streams.get("trades")
        if batch.source == "history" or not len(batch):
            return
        interval = interval_of(batch.channel)
        opened = batch.array("ts")
        edge_ms = (trades.ts_ms if trades else int(opened[-1])) - CANDLES_BACK * INTERVAL_MS[interval]
        if batch.source in MADE_OF_TRADES and (trades is None or opened[-1] < edge_ms):
            return  # made of history
        self._note(batch.channel, int(opened[-1]), batch.source, now)
        newest = np.flatnonzero(opened >= edge_ms)[-CANDLES_BACK:].tolist()
        rows = [row for row in newest if self._is_better(batch, row, edge_ms)]
        if self.audience:
            columns = {name: batch.array(name)[rows].tolist() for name in batch.columns}
            self.candles += [
                {"interval": interval, "partial": batch.source == "partial", **dict(zip(columns, row, strict=True))}
                for row in zip(*columns.values(), strict=True)
            ]

    def _is_better(self, batch: Batch, row: int, edge_ms: int) -> bool:
        """False for a version of a candle that is lower than one seen before; no frame shows it."""
        interval, ts, version = interval_of(batch.channel), int(batch.array("ts")[row]), int(versions_of(batch)[row])
        known = self.versions.setdefault(interval, {})
        if version < known.get(ts, -1):
            return False
        known[ts] = version
        for old in [one for one in known if one < edge_ms]:
            del known[old]
        return True

    def take_book(self, update: BookUpdate, now: Now) -> None:
        stream = self._note("book", update.ts_ms or 0, update.source, now)
        stream.said = update.state
        self.book = {
            "state": update.state, "ts_ms": update.ts_ms, "update_id": update.update_id,
            "bids": update.bids, "asks": update.asks, **_features(update),
        }  # fmt: skip
        self.book_is_news = True

    def take_report(self, channel: str, state: str, now: Now) -> None:
        """What the task that follows a stream says of it."""
        if state == "repairing" and channel in self.streams:
            self.streams[channel].repaired_s = now

    def _note(self, channel: str, ts_ms: int, source: str, now: Now) -> Stream:
        stream = self.streams.setdefault(channel, Stream(channel, now))
        stream.seen_s, stream.ts_ms, stream.source = now, max(ts_ms, stream.ts_ms), source
        return stream

    def state(self, now: Now) -> str:
        ages = [now - s.seen_s for s in self.streams.values() if not s.channel.startswith("candles_")]
        if not ages:
            return "waiting"
        return "live" if min(ages) <= STALE_AFTER_S else "stale"

    def health(self, now: Now) -> Iterator[Json]:
        """One object per stream."""
        is_live = self.state(now) == "live"
        for stream in self.streams.values():
            yield {
                "stream": f"{self.venue}:{self.symbol}:{stream.channel}", "venue": self.venue, "symbol": self.symbol,
                "channel": stream.channel, "state": stream.state(now, another_is_live=is_live),
                "age_ms": round(1000 * (now - stream.seen_s)), "ts_ms": stream.ts_ms, "source": stream.source,
            }  # fmt: skip

    def hello(self) -> str:
        """The first frame of a viewer; what it is sent next has the next `seq`."""
        now = time.monotonic()
        return _encode({
            "event": "hello", "seq": self.seq, "venue": self.venue, "symbol": self.symbol,
            "simulated": is_simulated(), "server_ms": _server_ms(), "state": self.state(now), "last_id": self.last_id,
            "book": self.book, "streams": list(self.health(now)),
        })  # fmt: skip

    def frame(self, now: Now) -> str | None:
        """What is new since the last one; None when nothing is and the heartbeat is not due."""
        state, beat = self.state(now), now - self._shown_s >= HEARTBEAT_S
        if not (self.trades or self.candles or self.book_is_news or beat or state != self._shown_state):
            return None
        self.seq += 1
        said: Json = {"event": "news", "seq": self.seq, "server_ms": _server_ms(), "state": state}
        news = {"trades": self.trades, "candles": self.candles, "book": self.book if self.book_is_news else None}
        said |= {name: value for name, value in news.items() if value}
        if self.left_out:
            said["left_out"] = True
        if beat or state != self._shown_state:
            said["streams"] = list(self.health(now))
            self._shown_s, self._shown_state = now, state
        self.trades, self.candles, self.book_is_news, self.left_out = [], [], False, False
        return _encode(said)


_feeds: dict[str, Feed] = {}


def feed_of(key: str) -> Feed | None:
    """The feed of `venue:symbol`; None where there are too many."""
    if (known := _feeds.get(key)) is None and len(_feeds) < SYMBOLS_KEPT:
        venue, _, symbol = key.partition(":")
        audience = Audience(FRAMES_KEPT, may_talk=False)
        live.audiences.append(audience)
        known = _feeds[key] = Feed(venue, symbol, audience)
    return known


def take(topic: str, key: bytes | None, value: bytes | None) -> None:
    """One record of a market topic, whatever is in it."""
    with suppress(*UNREADABLE):  # what cannot be read is the agents' to say
        if topic == "queue-events":
            take_event(orjson.loads(value or b"null"), time.monotonic())
            return
        if (feed := feed_of((key or b"").decode())) is None:
            return
        if topic == market_for("book"):
            feed.take_book(decode_book_update(value or b""), time.monotonic())
        else:
            feed.take_batch(decode_batch(value or b""), time.monotonic())


def take_event(event: Any, now: Now) -> None:
    """An event of whatever client; a live loader names its stream and how it is."""
    extra = event.get("extra") if isinstance(event, dict) else None
    if isinstance(extra, dict) and isinstance(name := extra.get("stream"), str):
        key, _, channel = name.rpartition(":")
        if (feed := _feeds.get(key)) is not None:
            feed.take_report(channel, str(extra.get("state")), now)


def skipped() -> None:
    for feed in _feeds.values():
        feed.left_out = True


@app.task
async def follow_the_market() -> None:
    await follow((market_for("trades"), market_for("candles"), market_for("book"), "queue-events"), take, skipped)


@app.task
async def show_the_market() -> None:
    """A frame to every viewer of every symbol, while the worker runs."""
    while True:
        viewers = sum(len(feed.audience) for feed in _feeds.values())
        await asyncio.sleep(max(TICK_S, viewers / FRAMES_PER_S))
        beat(time.monotonic())


def beat(now: Now) -> None:
    """Send what is new of every symbol that somebody watches."""
    for feed in _feeds.values():
        if feed.audience and (frame := feed.frame(now)):
            feed.audience.spread(frame)


@call("/ws/market")
async def watch_market(request: web.Request) -> web.StreamResponse:
    """Trades, books, candles and states of one symbol: `symbol`, and `venue` where it is not binance."""
    query = Parameters(request.query, "symbol", "venue")
    feed = feed_of(f"{query.text('venue', VENUE)}:{read_symbol(query.text('symbol'))}")
    if feed is None:
        return error(429, "too many symbols are watched")
    return await feed.audience.watch(request, feed.hello)


@call("/streams")
async def list_streams(_request: web.Request) -> web.Response:
    """Every stream of which live data was seen: its state, and how long ago."""
    now = time.monotonic()
    found = [health for feed in _feeds.values() for health in feed.health(now)]
    return answer({"streams": sorted(found, key=lambda one: one["stream"]), "server_ms": _server_ms()})


@call("/book/{symbol}")
async def show_book(request: web.Request, symbol: str) -> web.Response:
    """The newest state of a symbol's order book; `venue` where it is not binance."""
    key = f"{Parameters(request.query, 'venue').text('venue', VENUE)}:{read_symbol(symbol)}"
    if (row := book_by_symbol.seen.raw(key)) is None:
        return error(404, f"there is no order book of {key}; a run of type ws_orderbook keeps one", field="symbol")
    venue, _, name = key.partition(":")
    return answer({"venue": venue, "symbol": name, **{k: v for k, v in orjson.loads(row).items() if k != "at"}})


def _features(update: BookUpdate) -> Json:
    """Those of the last applied diff; none of a book that is not live."""
    found = {name: update.array(name) for name in FEATURES if name in update.columns}
    return {name: float(values[-1]) for name, values in found.items() if len(values)}


def _server_ms() -> int:
    return round(1000 * time.time())


def _encode(value: Json) -> str:
    return orjson.dumps(value).decode()
