"""OKX's spot market: GET /api/v5/{market/history-trades,market/history-candles,market/books} --> Page, Read.

All numbers are texts, in an envelope `{"code":"0","msg":"","data":[..]}`, newest first; an error is a code other than
0, even with HTTP 200. `after` asks for what is older than an id or a time, exclusively, so the page behind an id is
asked for by its far end. Trades are single ones (a channel of single trades follows them live), kept for three months.
A candle here does not say how many trades it has, nor what takers bought: NaN and -1.
How pages join up to a range is common to all exchanges (`adapters/exchanges/history.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import aiohttp
import msgspec

from adapters.exchanges import okx_frames
from adapters.exchanges.base import ParsedFrames
from adapters.exchanges.history import Answer, RestExchange
from adapters.exchanges.okx_books import read_book
from adapters.exchanges.okx_frames import BARS, SAID, Candle, Trade
from adapters.exchanges.requests import Api, Clock, Patience, Requests
from adapters.exchanges.rows import Read, Rejections, RowReader, candles_of, trades_of
from app.errors import ExchangeBusy, ExchangeRefused
from models.market import INTERVAL_MS, TRADE_CHANNELS, Frame, Span
from models.ordering import Mark

BOOK_LEVELS = 400  # a side, the most there are
_BUSY = frozenset((50001, 50004, 50011, 50013, 50026))  # not now, timed out, too many requests, busy, broken
_TOO_MANY, _WINDOW_S = 50011, 2.0
_UNITS = 36  # of weight in a window, of the 40 there are: an endpoint of 20 requests weighs 2
API = Api(
    "OKX_API_URL", "/api/v5",
    {"public/time": 4, "public/instruments": 2, "market/history-trades": 2, "market/history-candles": 2,
     "market/books": 1},
    _BUSY,
)  # fmt: skip


class _Envelope(msgspec.Struct):
    code: int
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"[]")


class _Time(msgspec.Struct):
    ts: int


class _Instrument(msgspec.Struct):
    symbol: str = msgspec.field(name="instId")
    state: str = ""


_envelope = msgspec.json.Decoder(_Envelope, strict=False)
_times = msgspec.json.Decoder(list[_Time], strict=False)
_instruments = msgspec.json.Decoder(list[_Instrument])


def _closed(rows: Sequence[Any], rejected: Rejections) -> Read:
    """Without the candle that still runs, which would be the last."""
    closed = [row for row in rows if row.confirm == "1"]
    return candles_of(closed, [(min(before, len(closed)), row) for before, row in rejected], SAID)


_trades = RowReader(Trade, trades_of, newest_first=True)
_candles = RowReader(Candle, _closed, newest_first=True)


def rows_in(body: bytes) -> bytes | msgspec.Raw:
    """The rows of an answer; bare ones are taken too. Raises ExchangeBusy, ExchangeRefused, msgspec.DecodeError."""
    if body.startswith(b"["):
        return body
    said = _envelope.decode(body)
    if said.code in _BUSY:
        raise ExchangeBusy(f"{said.code} {said.msg}", _WINDOW_S if said.code == _TOO_MANY else None)
    if said.code:
        raise ExchangeRefused(f"{said.code} {said.msg}", said.code)
    return said.data


class Okx(RestExchange):
    """`Exchange` for OKX's spot market; `on_wait(seconds, why)` hears of every wait before it begins."""

    venue = "okx"
    channels: ClassVar[tuple[str, ...]] = ("trades",)
    live_channels: ClassVar[tuple[str, ...]] = ("trades", "book")
    intervals: ClassVar[Sequence[str]] = tuple(BARS)
    page_rows: ClassVar[int] = 100  # of trades; of candles newer documentation says 300, older 100

    def __init__(
        self,
        base_url: str,
        *,
        on_wait: Callable[[float, str], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(patience)
        self._requests = Requests(API, Pace(_UNITS, _WINDOW_S), Clock(), base_url, on_wait, session, self._patience)
        self._known: set[str] = set()

    async def symbols(self) -> Sequence[str]:
        query = {"instType": "SPOT"}
        found = await self._requests.get("public/instruments", query, lambda body: _instruments.decode(rows_in(body)))
        return [instrument.symbol for instrument in found if instrument.state == "live"]

    async def server_time_ms(self) -> int:
        clock = self._requests.clock
        await self._requests.get("public/time", {}, lambda body: clock.set(_times.decode(rows_in(body))[0].ts))
        return clock.now_ms()

    async def prepare(self, symbol: str) -> None:
        if symbol in self._known:
            return
        query = {"instType": "SPOT", "instId": symbol}
        if not await self._requests.get("public/instruments", query, lambda body: _instruments.decode(rows_in(body))):
            raise ExchangeRefused(f"okx has no spot instrument {symbol!r}; they are called like BTC-USDT")
        self._known.add(symbol)

    async def ask_candles(self, symbol: str, interval: str, span: Span) -> Answer:
        step = INTERVAL_MS[interval]
        opens = -(-span[1] // step) - -(-span[0] // step)  # of the grid in `span`
        query = {"instId": symbol, "bar": BARS[interval], "after": span[1], "limit": max(opens, 1)}
        body, read = await self._requests.get("market/history-candles", query, _candle_answer)
        return body, read.since(span[0])

    async def ask_trades_from(self, channel: str, symbol: str, from_id: int) -> Answer:
        query = {"instId": symbol, "type": 1, "after": from_id + self.page_rows, "limit": self.page_rows}
        body, read = await self._requests.get("market/history-trades", query, _trade_answer)
        return body, read.since(from_id)

    async def ask_trades_at(self, symbol: str, start_ms: int, end_ms: int) -> Answer:
        """What is asked for is always older than something: first the trade in front, then by its id."""
        _, before = await self._trades_before(symbol, start_ms, 1)
        if len(before):
            body, read = await self.ask_trades_from("trades", symbol, int(before.columns["id"][-1]) + 1)
            if len(read):
                return body, read
        return await self._oldest_since(symbol, start_ms, end_ms)

    async def _oldest_since(self, symbol: str, start_ms: int, end_ms: int) -> Answer:
        """Where the exchange's memory begins, or behind a jump of ids: found by halving the time."""
        lo, hi = start_ms, end_ms  # before `lo` there is none since `start_ms`, before `hi` there may be
        found: Answer | None = None
        while found is None or hi - lo > 1:
            middle = hi if found is None else (lo + hi) // 2
            body, read = await self._trades_before(symbol, middle, self.page_rows)
            times = read.columns["ts_ms"]
            since = times[times >= start_ms]
            if len(since):
                found, hi = (body, read), int(since[-1]) + 1
            elif found is None:
                return body, read.since(_NO_ID)
            else:
                lo = middle
        ids = found[1].columns["id"]
        return found[0], found[1].since(int(ids[found[1].columns["ts_ms"] >= start_ms][0]))

    async def _trades_before(self, symbol: str, ts_ms: int, limit: int) -> Answer:
        query = {"instId": symbol, "type": 2, "after": ts_ms, "limit": limit}
        return await self._requests.get("market/history-trades", query, _trade_answer)

    async def book_snapshot(self, symbol: str) -> tuple[int, bytes]:
        await self.prepare(symbol)
        return await self._requests.get("market/books", {"instId": symbol, "sz": BOOK_LEVELS}, _snapshot)

    def read(self, channel: str, body: bytes) -> Read:
        return (_trades if channel in TRADE_CHANNELS else _candles).read(rows_in(body))

    def stream_name(self, channel: str, symbol: str) -> str:
        self.check_channel(channel, self.live_channels)
        return okx_frames.stream_name(channel, symbol)

    def mark(self, channel: str, frame: bytes) -> Mark | None:
        return okx_frames.mark(channel, frame)

    def parse_frames(self, channel: str, frames: Sequence[Frame]) -> ParsedFrames:
        return okx_frames.parse_frames(channel, frames)


_NO_ID = 2**63 - 1


def _trade_answer(body: bytes) -> Answer:
    return body, _trades.read(rows_in(body))


def _candle_answer(body: bytes) -> Answer:
    return body, _candles.read(rows_in(body))


def _snapshot(body: bytes) -> tuple[int, bytes]:
    rows_in(body)  # an error is told as such
    return read_book("snapshot", body).last, body


class Pace:
    """So many units of weight in a sliding window, as far as own requests tell: no answer says what is left."""

    def __init__(self, units: int, window_s: float) -> None:
        self._units, self._window_s = units, window_s
        self._spent: deque[tuple[float, int]] = deque()  # when, weight
        self._resume_at_s = 0.0
        self.why = ""

    def wait_s(self, weight: int) -> float:
        now = time.monotonic()
        if now < self._resume_at_s:
            return self._resume_at_s - now
        self.why = ""
        while self._spent and now - self._spent[0][0] >= self._window_s:
            self._spent.popleft()
        if sum(units for _, units in self._spent) + weight <= self._units:
            return 0.0
        return self._spent[0][0] + self._window_s - now

    def pause(self, seconds: float, why: str) -> None:
        self._resume_at_s, self.why = time.monotonic() + seconds, why

    @contextlib.contextmanager
    def spending(self, weight: int) -> Iterator[None]:
        self._spent.append((time.monotonic(), weight))
        yield

    def saw(self, headers: Mapping[str, str]) -> None:
        """Nothing is said there."""
