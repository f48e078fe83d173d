"""Recordings of a WebSocket feed as a source of the simulated exchange: frame by frame, byte for byte.

    *.jsonl.gz ({recv_ns, kind, conn, url, raw}) --> ReplaySource --> adapters/exchanges/simulated.py

Frames come with the distances in which they were received. The exchange's clock says the exchange's time: the
recorder's, moved by the median of what it was off. REST serves what the recording has told by then: trades by id,
candles that lie whole inside it, and the order book from the newest recorded snapshot and the diffs played behind it,
so that a loader can get in sync at any time. Recordings are held in memory.
"""

from __future__ import annotations

import gzip
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import orjson

from adapters.exchanges.recorded import recorded_symbol
from adapters.exchanges.sim_feed import Frame, StreamName, stream_name
from adapters.exchanges.sources import NO_ROWS, CatalogEntry, Rows
from app.errors import SetupRefused
from models.market import INTERVAL_MS

_SKEW_FRAMES = 2000  # as many are looked at to tell how far off the recorder's clock was
_APART_MS = 3_600_000  # recordings with a longer pause between them are not one
_EIGHT_PLACES = Decimal("0.00000001")

_CHANNELS = {"aggTrade": "trades", "trade": "fills", "kline": "candles_", "depth": "book", "bookTicker": "ticker"}

_Key = tuple[str, str, str, int]  # symbol, kind, interval, levels: whatever its speed, a recorded stream serves


class RecordedLine(msgspec.Struct):
    """One line of a recording; `raw` is a frame, the body of a REST answer, or what was sent."""

    recv_ns: int
    kind: str  # ws, rest, connect, ws_send
    conn: str | None
    url: str | None
    raw: str


@dataclass
class _Stream:
    sent_ms: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass
class _Trades:
    """In order of id; `sent_ms` is when its frame was played."""

    ids: list[int] = field(default_factory=list)
    ts_ms: list[int] = field(default_factory=list)
    sent_ms: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    events: list[tuple[Decimal, Decimal, bool, int]] = field(default_factory=list)  # price, size, m, single trades

    def add(self, event: Any, sent_ms: int, *, single: bool) -> None:
        number = event["t"] if single else event["a"]
        if self.ids and number <= self.ids[-1]:
            return  # a recording over a reconnect has some twice
        price, size = Decimal(event["p"]), Decimal(event["q"])
        self.ids.append(number)
        self.ts_ms.append(event["T"])
        self.sent_ms.append(sent_ms)
        self.events.append((price, size, event["m"], 1 if single else event["l"] - event["f"] + 1))
        if single:
            row = {"id": number, "price": event["p"], "qty": event["q"],
                   "quoteQty": str((price * size).quantize(_EIGHT_PLACES)), "time": event["T"],
                   "isBuyerMaker": event["m"], "isBestMatch": event.get("M", True)}  # fmt: skip
        else:
            row = {name: event[name] for name in ("a", "p", "q", "f", "l", "T", "m", "M") if name in event}
        self.texts.append(orjson.dumps(row).decode())

    def rows(self, first: int, end: int) -> Rows:
        return Rows(self.ids[first:end], self.ts_ms[first:end], self.texts[first:end]) if end > first else NO_ROWS


@dataclass
class _Book:
    """A recorded book, played up to `at_ms`."""

    snapshots: list[tuple[int, Any]] = field(default_factory=list)
    at_ms: int = -1
    base: int = -1  # which snapshot it rests on
    played: int = 0  # diffs looked at
    body: dict[str, Any] = field(default_factory=dict)  # the snapshot's other fields
    bids: dict[str, str] = field(default_factory=dict)
    asks: dict[str, str] = field(default_factory=dict)

    def play(self, diffs: _Stream, now_ms: int) -> None:
        base = max(bisect_right(self.snapshots, now_ms, key=lambda snapshot: snapshot[0]) - 1, 0)
        if base != self.base or now_ms < self.at_ms:
            self.body = dict(self.snapshots[base][1])
            self.bids, self.asks = dict(self.body["bids"]), dict(self.body["asks"])
            self.base, self.played = base, 0
        self.at_ms = now_ms
        end = bisect_right(diffs.sent_ms, now_ms)
        for text in diffs.texts[self.played : end]:
            self._apply(orjson.loads(text))
        self.played = end

    def _apply(self, event: Any) -> None:
        if event["u"] <= self.body["lastUpdateId"]:
            return
        self.body["lastUpdateId"] = event["u"]
        self.body.update({name: event[name] for name in ("E", "T") if name in self.body})
        for levels, changes in ((self.bids, event["b"]), (self.asks, event["a"])):
            for price, size in changes:
                if float(size):
                    levels[price] = size
                else:
                    levels.pop(price, None)

    def text(self, limit: int) -> str:
        bids = sorted(self.bids.items(), key=lambda level: -float(level[0]))[:limit]
        asks = sorted(self.asks.items(), key=lambda level: float(level[0]))[:limit]
        return orjson.dumps({**self.body, "bids": bids, "asks": asks}).decode()


class ReplaySource:
    kind = "replay"
    seed: int | None = None

    def __init__(self, place: Path) -> None:
        """A recording, or a folder with those of one session. Raises SetupRefused when there is nothing to play."""
        self._streams: defaultdict[_Key, _Stream] = defaultdict(_Stream)
        self._singles: defaultdict[str, _Trades] = defaultdict(_Trades)
        self._aggregates: defaultdict[str, _Trades] = defaultdict(_Trades)
        self._books: defaultdict[str, _Book] = defaultdict(_Book)
        self._futures = False
        paths = sorted(place.rglob("*.jsonl.gz")) if place.is_dir() else [place]
        recordings = sorted((_lines(path) for path in paths), key=lambda lines: lines[0].recv_ns)
        _one_session(recordings, paths)
        lines = sorted((line for lines in recordings for line in lines), key=lambda line: line.recv_ns)
        self._offset_ms = _skew_ms(lines)
        self._names = _symbols_of(lines)
        for line in lines:
            self._take(line)
        if not self._streams:
            raise SetupRefused(f"{place} holds no frames of Binance's streams; recordings are called *.jsonl.gz")
        self.market = "um" if self._futures else "spot"
        self.start_ms = min(stream.sent_ms[0] for stream in self._streams.values()) - 1
        self.end_ms = max(stream.sent_ms[-1] for stream in self._streams.values())

    def _take(self, line: RecordedLine) -> None:
        sent_ms = line.recv_ns // 1_000_000 + self._offset_ms
        if line.kind == "rest" and (snapshot := _snapshot(line.raw)) is not None:
            asked = parse_qs(urlsplit(line.url or "").query).get("symbol")
            symbol = asked[0] if asked else next(iter(self._names)) if len(self._names) == 1 else ""
            self._books[symbol].snapshots.append((sent_ms, snapshot))
        if line.kind != "ws" or (parts := _parts(line.raw)) is None:
            return
        name, text = parts
        stream = self._streams[_key(name)]
        stream.sent_ms.append(max(sent_ms, stream.sent_ms[-1] if stream.sent_ms else 0))
        stream.texts.append(text)
        if name.kind == "trade":
            self._singles[name.symbol].add(orjson.loads(text), stream.sent_ms[-1], single=True)
        elif name.kind == "aggTrade":
            self._aggregates[name.symbol].add(orjson.loads(text), stream.sent_ms[-1], single=False)
        self._futures |= name.kind == "depth" and '"pu":' in text[:200]

    def symbols(self) -> Sequence[dict[str, Any]]:
        return [recorded_symbol(name) for name in sorted(self._names)]

    def catalog(self, now_ms: int) -> list[CatalogEntry]:
        """What the recording has of each stream, under our name of it."""
        return [
            CatalogEntry(symbol, _CHANNELS[kind] + interval, s.sent_ms[0], s.sent_ms[-1] + 1, len(s.texts))
            for (symbol, kind, interval, _), s in sorted(self._streams.items())
            if kind in _CHANNELS
        ]

    def left_out(self) -> dict[str, str]:
        return {}

    def trades_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        return _from(self._aggregates[symbol], from_id, limit, now_ms)

    def trades_between(self, symbol: str, start_ms: int, end_ms: int, limit: int) -> Rows:
        trades = self._aggregates[symbol]
        first = bisect_left(trades.ts_ms, start_ms)
        return trades.rows(first, min(first + limit, bisect_right(trades.sent_ms, end_ms)))

    def trades_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        return _until(self._aggregates[symbol], end_ms, limit)

    def singles_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        return _from(self._singles[symbol], from_id, limit, now_ms)

    def singles_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        return _until(self._singles[symbol], end_ms, limit)

    def candles_between(self, symbol: str, interval: str, start_ms: int, end_ms: int, limit: int, now_ms: int) -> Rows:
        """From the trades played so far; the candle in which the recording begins is not whole and left out."""
        trades, step = self._singles.get(symbol) or self._aggregates[symbol], INTERVAL_MS[interval]
        if not trades.ids:
            return NO_ROWS
        played = bisect_right(trades.sent_ms, now_ms)
        open_ms = -(-max(start_ms, trades.ts_ms[0]) // step) * step
        rows = NO_ROWS
        while open_ms <= min(end_ms, now_ms) and len(rows) < limit:
            first, end = (bisect_left(trades.ts_ms, ms, hi=played) for ms in (open_ms, open_ms + step))
            rows += Rows([open_ms], [open_ms], [_candle(trades, first, end, open_ms, step)])
            open_ms += step
        return rows

    def candles_until(self, symbol: str, interval: str, end_ms: int, limit: int, now_ms: int) -> Rows:
        step = INTERVAL_MS[interval]
        last_ms = min(end_ms, now_ms) // step * step
        return self.candles_between(symbol, interval, last_ms - (limit - 1) * step, last_ms, limit, now_ms)

    def depth(self, symbol: str, limit: int, now_ms: int) -> str | None:
        book = self._books[symbol]
        if not book.snapshots:
            return None
        book.play(self._streams[symbol, "depth", "", 0], now_ms)
        return book.text(limit)

    def frames(self, stream: str, after_ms: int, until_ms: int) -> Sequence[Frame]:
        name = stream_name(stream)
        recorded = self._streams.get(_key(name)) if name else None
        if recorded is None:
            return ()
        first, end = (bisect_right(recorded.sent_ms, ms) for ms in (after_ms, until_ms))
        return list(zip(recorded.sent_ms[first:end], recorded.texts[first:end], strict=True))

    def crowd(self, symbol: str, ts_ms: int, rows: int) -> None:
        raise SetupRefused("recorded trades are not rewritten: crowded_millisecond needs the generated source")


def _lines(path: Path) -> list[RecordedLine]:
    decoder = msgspec.json.Decoder(RecordedLine)
    lines: list[RecordedLine] = []
    try:
        with gzip.open(path, "rb") as file:
            lines.extend(decoder.decode(line) for line in file)
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise SetupRefused(f"{path}, line {len(lines) + 1}: no recording of frames ({error})") from error
    if not lines:
        raise SetupRefused(f"{path} is empty")
    return lines


def _one_session(recordings: Sequence[Sequence[RecordedLine]], paths: Sequence[Path]) -> None:
    if not recordings:
        raise SetupRefused("there is no recording (*.jsonl.gz) to play")
    for one, other in pairwise(recordings):
        if (other[0].recv_ns - one[-1].recv_ns) // 1_000_000 > _APART_MS:
            names = ", ".join(path.name for path in paths)
            raise SetupRefused(f"{names} were not recorded together; give one of them")


def _skew_ms(lines: Sequence[RecordedLine]) -> int:
    """Exchange time less receipt time, the median of the first frames that say the exchange's time."""
    ahead = []
    for line in lines:
        event = _event(line.raw) if line.kind == "ws" else None
        if event is not None and isinstance(event.get("E"), int):
            ahead.append(event["E"] - line.recv_ns // 1_000_000)
            if len(ahead) == _SKEW_FRAMES:
                break
    return int(statistics.median(ahead)) if ahead else 0


def _symbols_of(lines: Sequence[RecordedLine]) -> set[str]:
    parts = (_parts(line.raw) for line in lines if line.kind == "ws")
    return {part[0].symbol for part in parts if part is not None}


def _event(raw: str) -> dict[str, Any] | None:
    try:
        frame = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    event = frame.get("data", frame) if isinstance(frame, dict) else None
    return event if isinstance(event, dict) else None


def _parts(raw: str) -> tuple[StreamName, str] | None:
    """The stream and the bare event of a frame, its text untouched; None for what is no frame of a stream."""
    if raw.startswith('{"stream":"'):
        stream, _, text = raw[11:].partition('","data":')
        name = stream_name(stream)
        return (name, text[:-1]) if name else None
    event = _event(raw)
    name = stream_name(_stream_of(event)) if event else None
    return (name, raw) if name else None


def _stream_of(event: dict[str, Any]) -> str:
    """Of a frame that came without its stream's name."""
    symbol, kind = str(event.get("s", "")).lower(), event.get("e", "bookTicker" if "u" in event else "")
    if kind == "kline":
        return f"{symbol}@kline_{event['k']['i']}"
    return f"{symbol}@{'depth@100ms' if kind == 'depthUpdate' else kind}"


def _key(name: StreamName) -> _Key:
    return name.symbol, name.kind, name.interval, name.levels


def _snapshot(raw: str) -> dict[str, Any] | None:
    body = orjson.loads(raw)
    return body if isinstance(body, dict) and "lastUpdateId" in body else None


def _from(trades: _Trades, from_id: int, limit: int, now_ms: int) -> Rows:
    first = bisect_left(trades.ids, from_id)
    return trades.rows(first, min(first + limit, bisect_right(trades.sent_ms, now_ms)))


def _until(trades: _Trades, end_ms: int, limit: int) -> Rows:
    end = bisect_right(trades.sent_ms, end_ms)
    return trades.rows(max(end - limit, 0), end)


def _candle(trades: _Trades, first: int, end: int, open_ms: int, step: int) -> str:
    events = trades.events[first:end]
    prices = [price for price, *_ in events] or [trades.events[first - 1][0]]
    volume, quote, taker, taker_quote = (Decimal(0),) * 4
    for price, size, maker, _ in events:
        volume, quote = volume + size, quote + price * size
        if not maker:
            taker, taker_quote = taker + size, taker_quote + price * size
    ohlc = (prices[0], max(prices), min(prices), prices[-1])
    o, h, low, c, v, q, tb, tq = (str(n.quantize(_EIGHT_PLACES)) for n in (*ohlc, volume, quote, taker, taker_quote))
    count = sum(singles for *_, singles in events)
    return f'[{open_ms},"{o}","{h}","{low}","{c}","{v}",{open_ms + step - 1},"{q}",{count},"{tb}","{tq}","0"]'
