"""Binance spot history over REST: /api/v3/{klines,aggTrades} --> Page --> columns.

Promise: the pages of `history` cover exactly the asked range, without a gap between them, and no row is lost
between two pages. Trades go on by id, never by time (more trades can share a millisecond than a page holds);
an empty or short page is never the end, only an id or a time reached is. What the exchange lacks is asked for
again, then said: it is `unrecoverable`, never filled. Outages are waited out for ever, limits are kept.

How a lack is known:
- Trades: spot ids are contiguous, so a jump is a loss: from the trade before it to the one behind it, both included.
  A silence at an edge of the range (no trade at all) proves nothing by ids; the exchange's own 1m candles are the
  witness: minutes whose candle counts 0 trades are silent, the others are lacking. A silence without one whole
  minute in it needs no witness.
- Candles: an open time of the grid without a row.

One instance keeps one address' request weight: the limits come from exchangeInfo, what is used from the headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec
import numpy as np
import numpy.typing as npt

from adapters.exchanges.base import Page, Parsed, Rejected
from app.errors import ExchangeBusy, ExchangeError, ExchangeRefused, SetupRefused
from models.market import INTERVAL_MS, Array, PageInfo, Span, interval_of
from models.spans import clip, subtract, union

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
T = TypeVar("T")

MINUTE_MS = 60_000
PAGE_ROWS = 1000  # the most a page of klines or aggTrades holds
WEIGHTS = {"time": 1, "exchangeInfo": 20, "klines": 2, "aggTrades": 4}  # a guess to plan with: headers decide
_BUDGET_SHARE = 0.95  # of the limit; the rest is for others behind the same address
_RECENT_MS = 60_000  # rows this young may still be on their way into the exchange's database
_SETTLING_S = 5.0  # between questions about them
_LOOKS = 2  # how often an empty or torn answer is asked for
_TRIES_404 = 5  # a page for people in place of an answer; then it is the address that is wrong
_MICROSECONDS = 100_000_000_000_000  # times from here on are microseconds
_QUOTE_PLACES = 8  # decimals of quote sizes: the exchange's own precision, and exact in float64 up to 9e7
_RETRIED_CODES = {-1000, -1001, -1003, -1006, -1007, -1008, -1016}  # the exchange's trouble, whatever the status
_UNIT_MS = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}
_HEADER_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_USED = re.compile(r"x-mbx-used-weight-(\d+)([smhd])", re.IGNORECASE)


@dataclass(frozen=True)
class Patience:
    """How long the loader waits for what."""

    first_wait_s: float = 0.5  # after a failed request; doubles up to
    longest_wait_s: float = 60.0
    request_timeout_s: float = 30.0
    again_s: float = 0.5  # before an empty or torn answer is asked for again
    settle_ms: int = 2_000  # behind the end of a range, before its last rows are asked for
    in_flight: int = 4  # trade pages asked for at once

    def backoff_s(self, attempt: int) -> float:
        """Exponential with a cap; half of it is chance, so that many loaders do not come back together."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)


class _AggTrade(msgspec.Struct, gc=False):
    id: int = msgspec.field(name="a")
    price: float = msgspec.field(name="p")
    size: float = msgspec.field(name="q")
    first: int = msgspec.field(name="f")
    last: int = msgspec.field(name="l")
    ts: int = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _Kline(msgspec.Struct, array_like=True, gc=False):
    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    close_ts: int
    quote_volume: float
    trades: int
    taker_buy_volume: float
    taker_buy_quote_volume: float


class _RateLimit(msgspec.Struct, rename="camel"):
    rate_limit_type: str
    interval: str
    interval_num: int
    limit: int


class _Symbol(msgspec.Struct, rename="camel"):
    symbol: str
    status: str = ""
    is_spot_trading_allowed: bool = True


class _ExchangeInfo(msgspec.Struct, rename="camel"):
    server_time: int
    rate_limits: list[_RateLimit]
    symbols: list[_Symbol]


class _ServerTime(msgspec.Struct, rename="camel"):
    server_time: int


class _ApiError(msgspec.Struct):
    code: int
    msg: str = ""


# strict=False reads the exchange's decimal strings as numbers, in one pass and correctly rounded.
_trades = msgspec.json.Decoder(list[_AggTrade], strict=False)
_trade = msgspec.json.Decoder(_AggTrade, strict=False)
_klines = msgspec.json.Decoder(list[_Kline], strict=False)
_kline = msgspec.json.Decoder(_Kline, strict=False)
_raw_rows = msgspec.json.Decoder(list[msgspec.Raw])
_info = msgspec.json.Decoder(_ExchangeInfo)
_time = msgspec.json.Decoder(_ServerTime)
_api_error = msgspec.json.Decoder(_ApiError)


class BinanceSpot:
    """`Exchange` for Binance spot; `on_wait(seconds, why)` hears of every wait before it begins."""

    venue = "binance"

    def __init__(
        self,
        base_url: str,
        *,
        on_wait: Callable[[float, str], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        patience: Patience = Patience(),
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise SetupRefused(f"BINANCE_API_URL is {base_url!r}; it must start with http:// or https://")
        self._base_url = base_url.rstrip("/")
        self._on_wait = on_wait or (lambda _seconds, _why: None)
        self._session, self._owns_session = session, session is None
        self._patience = patience
        self._clock = _Clock()
        self._budget = _Budget(self._clock)
        self._preparing = asyncio.Lock()
        self._announced_until_s = 0.0

    async def symbols(self) -> Sequence[str]:
        info = await self._get("exchangeInfo", {}, _info.decode)
        self._learn_limits(info)
        return [s.symbol for s in info.symbols if s.status == "TRADING" and s.is_spot_trading_allowed]

    async def server_time_ms(self) -> int:
        asked_at = time.monotonic()
        answer = await self._get("time", {}, _time.decode)
        self._clock.set(_milliseconds(answer.server_time), asked_at)
        return self._clock.now_ms()

    async def history(
        self, channel: str, symbol: str, start_ms: int, end_ms: int, cursor: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Page]:
        """Pages as `Exchange.history` promises; waits until the exchange's clock has passed `end_ms`.

        Raises ExchangeRefused for an unknown symbol or channel. A page's `covers` may be empty: a page of trades
        that all share one millisecond settles nothing yet.
        """
        if channel != "trades" and interval_of(channel) not in INTERVAL_MS:
            raise ExchangeRefused(f"{self.venue} has no channel {channel!r}; it has trades and candles_<interval>")
        at = _Position(start_ms)
        if cursor:
            at = _Position(int(cursor["covered_to"]), cursor.get("from_id"))
        if at.covered_to >= end_ms:
            return
        await self._prepare(symbol)
        await self._until(end_ms + self._patience.settle_ms)
        if channel == "trades":
            pages = self._trade_pages(symbol, at, end_ms)
        else:
            pages = self._candle_pages(symbol, interval_of(channel), at.covered_to, end_ms)
        async with contextlib.aclosing(pages):
            async for page in pages:
                yield page

    def parse(self, info: PageInfo, body: bytes) -> Parsed:
        if info.channel == "trades":
            return _parse_trades(info, body)
        return _parse_candles(info, body, INTERVAL_MS[interval_of(info.channel)])

    async def close(self) -> None:
        if self._session is not None and self._owns_session:
            await self._session.close()
            self._session = None

    # -- candles -------------------------------------------------------------------------------------------

    async def _candle_pages(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> AsyncGenerator[Page, None]:
        step = INTERVAL_MS[interval]
        while start_ms < end_ms:
            window_end_ms = min(start_ms - start_ms % step + PAGE_ROWS * step, end_ms)
            span = (start_ms, window_end_ms)
            body, read = await self._candle_window(symbol, interval, span)
            reached_ms = _reached(read, span, step)
            yield Page(
                body=body, ts_receipt_ms=_now_ms(), rows=read.rows, covers=(start_ms, reached_ms),
                cursor={"covered_to": reached_ms},
            )  # fmt: skip
            start_ms = reached_ms

    async def _candle_window(self, symbol: str, interval: str, span: Span) -> tuple[bytes, _Read]:
        """The fullest of the answers; asked again when rows are missing between others, or all of them."""
        step, best = INTERVAL_MS[interval], (b"[]", _Read.nothing(_CANDLE_FIELDS))
        times = {"startTime": span[0], "endTime": span[1] - 1}
        for look in itertools.count(1):
            answer = await self._get(
                "klines",
                {"symbol": symbol, "interval": interval, **times, "limit": PAGE_ROWS},
                _with_body(_read_klines),
            )
            if answer[1].rows >= best[1].rows:
                best = answer
            reached_ms = _reached(best[1], span, step)
            holes = _grid_holes(best[1].columns["ts"], (span[0], reached_ms), step)
            late = self._is_recent(span[1]) and (reached_ms < span[1] or bool(holes))
            if (best[1].rows and not holes and not late) or (look >= _LOOKS and not late):
                break
            await asyncio.sleep(_SETTLING_S if late and look >= _LOOKS else self._patience.again_s)
        return best

    # -- trades --------------------------------------------------------------------------------------------

    async def _trade_pages(self, symbol: str, at: _Position, end_ms: int) -> AsyncGenerator[Page, None]:
        """By time to the first trade, then by id, several pages in flight; delivered in order."""
        ahead = _Ahead(lambda from_id: self._trades_from(symbol, from_id), self._patience.in_flight)
        try:
            while at.covered_to < end_ms:
                lacking: tuple[Span, ...] = ()
                if at.from_id is None:
                    body, read, lacking = await self._first_trades(symbol, (at.covered_to, end_ms))
                else:
                    body, read = await self._next_trades(symbol, ahead, at.from_id)
                    if not read.rows:
                        body, read, lacking = await self._behind_the_last(symbol, at, end_ms)
                page, at = _trade_page(body, read, lacking, at, end_ms)
                yield page
        finally:
            await ahead.drop()

    async def _next_trades(self, symbol: str, ahead: _Ahead, from_id: int) -> tuple[bytes, _Read]:
        """The page at `from_id`; a jump or nothing at all is asked for once more."""
        body, read = await ahead.take(from_id)
        if len(read) and not _defects(read, from_id).jumps:
            return body, read
        await ahead.drop()
        if read.rejected and not len(read):
            return body, read
        await asyncio.sleep(self._patience.again_s)
        again = await self._trades_from(symbol, from_id)
        return again if len(again[1]) >= len(read) else (body, read)

    async def _first_trades(self, symbol: str, span: Span) -> tuple[bytes, _Read, tuple[Span, ...]]:
        body, read = await self._trades_at(symbol, span[0])
        first_ms = _first_at_or_after(read, span[0])
        silence = (span[0], span[1] if first_ms is None else min(first_ms, span[1]))
        lacking, traded_ms = await self._unproven(symbol, silence)
        if first_ms is None and traded_ms is not None and traded_ms > span[0]:
            body, read = await self._trades_at(symbol, traded_ms)  # it answers [] for times before the first trade
            first_ms = _first_at_or_after(read, span[0])
            lacking = tuple(clip(lacking, span[0], span[1] if first_ms is None else first_ms))
        return body, read, lacking

    async def _behind_the_last(self, symbol: str, at: _Position, end_ms: int) -> tuple[bytes, _Read, tuple[Span, ...]]:
        """No id behind the last one: go on by time, over what the exchange lacks, or end the range here."""
        while True:
            body, read = await self._trades_at(symbol, at.covered_to + 1)
            if len(read):
                return body, read, ()
            if not self._is_recent(end_ms):
                break
            await self._wait(_SETTLING_S, "the newest trades may still be on their way into the exchange's database")
        lacking, _ = await self._unproven(symbol, (at.covered_to, end_ms))
        return body, read, lacking

    async def _trades_at(self, symbol: str, start_ms: int) -> tuple[bytes, _Read]:
        query = {"symbol": symbol, "startTime": start_ms, "limit": PAGE_ROWS}
        answer = await self._get("aggTrades", query, _with_body(_read_trades))
        for _ in range(_LOOKS - 1):
            if len(answer[1]):
                break
            await asyncio.sleep(self._patience.again_s)
            answer = await self._get("aggTrades", query, _with_body(_read_trades))
        if answer[1].rejected and not len(answer[1]):
            raise ExchangeError(f"none of {answer[1].rows} trades of {symbol} can be read; has the format changed?")
        return answer

    async def _trades_from(self, symbol: str, from_id: int) -> tuple[bytes, _Read]:
        query = {"symbol": symbol, "fromId": from_id, "limit": PAGE_ROWS}
        body, read = await self._get("aggTrades", query, _with_body(_read_trades))
        return body, read.since(from_id)

    async def _unproven(self, symbol: str, silence: Span) -> tuple[tuple[Span, ...], int | None]:
        """What of a silence the 1m candles do not confirm, and the first minute that they say had trades."""
        first_ms = -(-silence[0] // MINUTE_MS) * MINUTE_MS
        last_ms = silence[1] // MINUTE_MS * MINUTE_MS
        if last_ms <= first_ms:
            return (), None
        silent: list[Span] = []
        traded_ms: int | None = None
        async with contextlib.aclosing(self._candle_pages(symbol, "1m", first_ms, last_ms)) as pages:
            async for page in pages:
                columns = _read_klines(page.body).columns
                opens, traded = columns["ts"], columns["trades"] > 0
                silent = union(silent, ((int(ts), int(ts) + MINUTE_MS) for ts in opens[~traded]))
                if traded_ms is None and traded.any():
                    traded_ms = int(opens[traded][0])
        lacking = [
            (silence[0] if start == first_ms else start, silence[1] if end == last_ms else end)
            for start, end in subtract([(first_ms, last_ms)], silent)
        ]
        return tuple(lacking), traded_ms

    def _is_recent(self, ts_ms: int) -> bool:
        return self._clock.now_ms() - ts_ms < _RECENT_MS

    # -- requests ------------------------------------------------------------------------------------------

    async def _prepare(self, symbol: str) -> None:
        """Learn the limits and the exchange's clock, once; an unknown symbol is refused by the exchange."""
        async with self._preparing:
            if not self._budget.known:
                asked_at = time.monotonic()
                info = await self._get("exchangeInfo", {"symbol": symbol}, _info.decode)
                self._clock.set(_milliseconds(info.server_time), asked_at)
                self._learn_limits(info)

    def _learn_limits(self, info: _ExchangeInfo) -> None:
        weights = (limit for limit in info.rate_limits if limit.rate_limit_type == "REQUEST_WEIGHT")
        limits = (limit for limit in weights if limit.interval in _UNIT_MS)
        self._budget.learn({_UNIT_MS[limit.interval] * limit.interval_num: limit.limit for limit in limits})

    async def _until(self, exchange_ms: int) -> None:
        """Wait for the exchange's clock, never for ours: ours may be wrong."""
        wait_s = (exchange_ms - await self.server_time_ms()) / 1000
        if wait_s > 0:
            await self._wait(wait_s, "the range ends in the exchange's future")

    async def _wait(self, seconds: float, why: str) -> None:
        until_s = time.monotonic() + seconds
        if until_s > self._announced_until_s + 0.05:  # requests in flight wait for the same thing: said once
            self._announced_until_s = until_s
            self._on_wait(seconds, why)
        await asyncio.sleep(seconds)

    async def _get(self, endpoint: str, query: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        """The answer as `read` makes it; asks until there is one. Raises ExchangeRefused."""
        weight = WEIGHTS[endpoint]
        for attempt in itertools.count():
            while (wait_s := self._budget.wait_s(weight)) > 0:
                await self._wait(wait_s, self._budget.why)
            try:
                return read(await self._answer(endpoint, query, weight))
            except ExchangeRefused:
                raise
            except ExchangeBusy as busy:
                if isinstance(busy, _NoSuchPage) and attempt + 1 >= _TRIES_404:
                    raise ExchangeRefused(f"{busy}; is BINANCE_API_URL right?") from busy
                if busy.retry_after_s is not None:
                    self._budget.pause(busy.retry_after_s, str(busy))
                else:
                    await self._wait(self._patience.backoff_s(attempt), str(busy))
            except (msgspec.DecodeError, ExchangeError) as error:
                await self._wait(self._patience.backoff_s(attempt), f"{endpoint} was answered with torn JSON: {error}")
        raise AssertionError("itertools.count never ends")

    async def _answer(self, endpoint: str, query: Mapping[str, Any], weight: int) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=self._patience.request_timeout_s)
        url = f"{self._base_url}/api/v3/{endpoint}"
        try:
            with self._budget.spending(weight):
                async with self._session.get(url, params=query, timeout=timeout) as response:
                    body = await response.read()
                    self._budget.saw(response.headers)
        except TimeoutError as error:
            raise ExchangeBusy(f"{endpoint} was not answered in {self._patience.request_timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExchangeBusy(f"{endpoint} could not be asked: {type(error).__name__} {error}") from error
        if response.status != 200:
            raise _trouble(endpoint, response.status, response.headers, body)
        return body


class _NoSuchPage(ExchangeBusy):
    """404 with something else than the exchange's own error."""


def _trouble(endpoint: str, status: int, headers: Mapping[str, str], body: bytes) -> ExchangeError:
    """What an answer other than 200 means: come back later, or do not ask again."""
    retry_after = headers.get("Retry-After", "")
    retry_after_s = float(retry_after) if re.fullmatch(r"\d+", retry_after) else None
    try:
        said = _api_error.decode(body)
    except msgspec.DecodeError:
        said = None
    words = f"{endpoint}: HTTP {status}" + (f", {said.code} {said.msg}" if said else "")
    if status in (418, 429):
        return ExchangeBusy(words, retry_after_s)
    if status >= 500 or (said is not None and said.code in _RETRIED_CODES):
        return ExchangeBusy(words, retry_after_s)
    if said is not None:
        return ExchangeRefused(words, said.code)
    if status == 404:
        return _NoSuchPage(words)
    if status == 403 or 400 <= status < 500:
        return ExchangeBusy(f"{words} and a page for people: a firewall, not the exchange", retry_after_s)
    return ExchangeBusy(words, retry_after_s)


class _Clock:
    """The exchange's clock: what it said last, moved on by ours."""

    def __init__(self) -> None:
        self._said_ms, self._at_s = time.time() * 1000, time.monotonic()

    def set(self, said_ms: int, asked_at_s: float) -> None:
        """`said_ms` was true about halfway between `asked_at_s` and now."""
        self._said_ms, self._at_s = said_ms, (asked_at_s + time.monotonic()) / 2

    def now_ms(self) -> int:
        return int(self._said_ms + (time.monotonic() - self._at_s) * 1000)


class _Budget:
    """Request weight left in the exchange's calendar windows, as far as headers and own requests tell."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._limits: dict[int, int] = {}  # window, ms: weight
        self._used: dict[int, tuple[int, int]] = {}  # window, ms: (number of the window, weight the exchange counted)
        self._in_flight = 0
        self._resume_at_s = 0.0
        self.why = ""

    @property
    def known(self) -> bool:
        return bool(self._limits)

    def learn(self, limits: Mapping[int, int]) -> None:
        self._limits = dict(limits) or {MINUTE_MS: 1200}

    def pause(self, seconds: float, why: str) -> None:
        """The exchange said when to come back: that holds for every request of this address."""
        self._resume_at_s, self.why = time.monotonic() + seconds, why

    def wait_s(self, weight: int) -> float:
        """0 when a request of `weight` may go out now, else how long to wait before asking this again."""
        if (pause_s := self._resume_at_s - time.monotonic()) > 0:
            return pause_s
        now_ms = self._clock.now_ms()
        for window_ms, limit in self._limits.items():
            number, used = self._used.get(window_ms, (-1, 0))
            counted = used if number == now_ms // window_ms else 0
            if counted and counted + self._in_flight + weight > limit * _BUDGET_SHARE:
                self.why = f"{counted} of {limit} request weight used in this window"
                return (window_ms - now_ms % window_ms) / 1000 + 0.05
        return 0.0

    @contextlib.contextmanager
    def spending(self, weight: int) -> Iterator[None]:
        self._in_flight += weight
        try:
            yield
        finally:
            self._in_flight -= weight

    def saw(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            if (match := _USED.fullmatch(name)) and value.isdigit():
                window_ms = int(match[1]) * _HEADER_UNIT_MS[match[2].lower()]
                self._used[window_ms] = (self._clock.now_ms() // window_ms, int(value))


class _Ahead:
    """Trade pages asked for before they are wanted: full pages of contiguous ids start `PAGE_ROWS` apart.

    It begins with one page and asks for one more with each that fits, so a torn stretch wastes no weight.
    """

    def __init__(self, ask: Callable[[int], Any], most: int) -> None:
        self._ask, self._most, self._depth = ask, most, 1
        self._tasks: deque[tuple[int, asyncio.Task[tuple[bytes, _Read]]]] = deque()

    async def take(self, from_id: int) -> tuple[bytes, _Read]:
        if self._tasks and self._tasks[0][0] != from_id:
            await self.drop()
        self._fill(from_id)
        answer = await self._tasks.popleft()[1]
        if len(answer[1]) == PAGE_ROWS:
            self._depth = min(self._depth + 1, self._most)
            self._fill(from_id + PAGE_ROWS)
        return answer

    def _fill(self, from_id: int) -> None:
        next_id = self._tasks[-1][0] + PAGE_ROWS if self._tasks else from_id
        while len(self._tasks) < self._depth:
            self._tasks.append((next_id, asyncio.ensure_future(self._ask(next_id))))
            next_id += PAGE_ROWS

    async def drop(self) -> None:
        tasks = [task for _, task in self._tasks]
        self._tasks.clear()
        self._depth = 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class _Position:
    """Everything before `covered_to` is settled; the next trade to ask for is `from_id`."""

    covered_to: int
    from_id: int | None = None


@dataclass(frozen=True)
class _Read:
    """A page's readable rows as columns in order of key, each once, and its unreadable ones.

    `rejected`: (number of readable rows in front of it, row).
    """

    columns: dict[str, Array]
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)

    @staticmethod
    def nothing(fields: Mapping[str, str]) -> _Read:
        return _Read({name: np.empty(0, dtype) for name, dtype in fields.items()})

    def __len__(self) -> int:
        return len(self.columns[next(iter(self.columns))])

    @property
    def rows(self) -> int:
        """Readable or not."""
        return len(self) + len(self.rejected)

    def since(self, key: int) -> _Read:
        """Without the rows before `key`: an exchange may repeat the last row of the page before."""
        keys = self.columns[next(iter(self.columns))]
        first = int(np.searchsorted(keys, key))
        if first == 0:
            return self
        kept = {name: column[first:] for name, column in self.columns.items()}
        return _Read(kept, [(max(before - first, 0), row) for before, row in self.rejected])


_TRADE_FIELDS = {
    "id": "<i8", "ts_ms": "<i8", "price": "<f8", "size": "<f8", "first": "<i8", "last": "<i8", "buyer_is_maker": "|b1",
}  # fmt: skip
_CANDLE_FIELDS = {
    "ts": "<i8", "open": "<f8", "high": "<f8", "low": "<f8", "close": "<f8", "volume": "<f8", "quote_volume": "<f8",
    "trades": "<i8", "taker_buy_volume": "<f8", "taker_buy_quote_volume": "<f8",
}  # fmt: skip


def _read_trades(body: bytes) -> _Read:
    """Raises ExchangeError when the body is no JSON list."""
    try:
        return _trade_columns(_trades.decode(body), [])
    except (msgspec.DecodeError, ValueError, OverflowError):
        return _trade_columns(*_row_by_row(body, _trade, lambda row: _trade_columns([row], [])))


def _read_klines(body: bytes) -> _Read:
    """Raises ExchangeError when the body is no JSON list."""
    try:
        return _candle_columns(_klines.decode(body), [])
    except (msgspec.DecodeError, ValueError, OverflowError):
        return _candle_columns(*_row_by_row(body, _kline, lambda row: _candle_columns([row], [])))


def _row_by_row(
    body: bytes, decoder: msgspec.json.Decoder[T], check: Callable[[T], object]
) -> tuple[list[T], list[tuple[int, Rejected]]]:
    """The slow way, for a page with a bad row: the bad ones are put aside, the others go on."""
    try:
        raw_rows = _raw_rows.decode(body)
    except msgspec.DecodeError as error:
        raise ExchangeError(f"the answer is no JSON list: {error}") from error
    rows: list[T] = []
    rejected: list[tuple[int, Rejected]] = []
    for raw in raw_rows:
        try:
            row = decoder.decode(raw)
            check(row)
            rows.append(row)
        except (msgspec.DecodeError, ValueError, OverflowError) as error:
            rejected.append((len(rows), Rejected(bytes(raw), str(error))))
    return rows, rejected


def _trade_columns(rows: list[_AggTrade], rejected: list[tuple[int, Rejected]]) -> _Read:
    """Raises ValueError when a number makes no sense."""
    columns: dict[str, Array] = {
        "id": np.array([row.id for row in rows], np.int64),
        "ts_ms": _all_milliseconds([row.ts for row in rows]),
        "price": np.array([row.price for row in rows], np.float64),
        "size": np.array([row.size for row in rows], np.float64),
        "first": np.array([row.first for row in rows], np.int64),
        "last": np.array([row.last for row in rows], np.int64),
        "buyer_is_maker": np.array([row.buyer_is_maker for row in rows], np.bool_),
    }
    _must_be_positive(columns, ("price",))
    _must_be_finite(columns, ("size",))
    if (columns["last"] < columns["first"]).any():
        raise ValueError("a trade ends before it begins (l < f)")
    return _in_order(columns, rejected)


def _candle_columns(rows: list[_Kline], rejected: list[tuple[int, Rejected]]) -> _Read:
    """Raises ValueError when a number makes no sense."""
    floats = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
    columns = {
        "ts": _all_milliseconds([row.ts for row in rows]),
        "trades": np.array([row.trades for row in rows], np.int64),
        **{name: np.array([getattr(row, name) for row in rows], np.float64) for name in floats},
    }
    _must_be_positive(columns, ("open", "high", "low", "close"))
    _must_be_finite(columns, ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"))
    if (columns["high"] < columns["low"]).any():
        raise ValueError("a candle's high lies below its low")
    return _in_order({name: columns[name] for name in _CANDLE_FIELDS}, rejected)


def _must_be_positive(columns: Mapping[str, Array], names: Sequence[str]) -> None:
    for name in names:
        if not ((columns[name] > 0) & np.isfinite(columns[name])).all():
            raise ValueError(f"{name} is no positive number")


def _must_be_finite(columns: Mapping[str, Array], names: Sequence[str]) -> None:
    for name in names:
        if not ((columns[name] >= 0) & np.isfinite(columns[name])).all():
            raise ValueError(f"{name} is negative or no number")


def _in_order(columns: dict[str, Array], rejected: list[tuple[int, Rejected]]) -> _Read:
    """Sorted by the first column, each key once: the last row of a key wins."""
    keys = columns[next(iter(columns))]
    if len(keys) < 2 or (np.diff(keys) > 0).all():
        return _Read(columns, rejected)
    order = np.argsort(keys, kind="stable")
    order = order[np.append(np.diff(keys[order]) > 0, True)]
    behind = np.searchsorted(keys[order], keys, side="right")  # of each row: its place in the sorted page, plus one
    places = [(int(behind[before - 1]) if before else 0, row) for before, row in rejected]
    return _Read({name: column[order] for name, column in columns.items()}, sorted(places, key=lambda place: place[0]))


_Gap = tuple[int | None, int]  # [start_ms, end_ms); None: since the page's own start


@dataclass(frozen=True)
class _Defects:
    """Spans a page of trades does not hold, their neighbours' milliseconds included."""

    missing: list[_Gap]  # unreadable rows
    jumps: list[_Gap]  # ids that are not there

    def touch(self, ts_ms: int) -> bool:
        """Whether the millisecond is one of a defect's far edges."""
        return any(after == ts_ms + 1 for _, after in (*self.missing, *self.jumps))


def _defects(read: _Read, first_id: int | None) -> _Defects:
    """Where rows lack in front of, or between, readable rows."""
    ids, ts = read.columns["id"], read.columns["ts_ms"]
    lost = np.diff(ids, prepend=ids[:1] - 1 if first_id is None else first_id - 1) - 1
    bad = np.bincount([before for before, _ in read.rejected], minlength=len(ids) + 1)[: len(ids)]

    def spans(gaps: Ints) -> list[_Gap]:
        return [(int(ts[gap - 1]) if gap else None, int(ts[gap]) + 1) for gap in gaps]

    return _Defects(missing=spans(np.flatnonzero(bad)), jumps=spans(np.flatnonzero(lost > bad)))


def _trade_page(
    body: bytes, read: _Read, lacking: tuple[Span, ...], at: _Position, end_ms: int
) -> tuple[Page, _Position]:
    """The page and where to go on.

    A page of trades settles everything before its last millisecond, which may go on in the next page. Where a
    defect reaches into that millisecond it settles that one too, so that the defect's span is this page's alone.
    """
    ids, ts = read.columns["id"], read.columns["ts_ms"]
    last_id: int | None = None
    if len(read):
        last_id, last_ms = int(ids[-1]), int(ts[-1])
        reached_ms = last_ms + _defects(read, at.from_id).touch(last_ms)
        reached_ms = end_ms if last_ms >= end_ms else max(reached_ms, at.covered_to)
        behind = _Position(reached_ms, last_id + 1)
    elif read.rejected and at.from_id is not None:
        last_id = at.from_id + len(read.rejected) - 1
        behind = _Position(at.covered_to, last_id + 1)
    else:
        behind = _Position(end_ms, at.from_id)
    page = Page(
        body=body, ts_receipt_ms=_now_ms(), rows=read.rows,
        covers=(at.covered_to, behind.covered_to), first_id=at.from_id, last_id=last_id,
        cursor={"covered_to": behind.covered_to, "from_id": behind.from_id},
        unrecoverable=tuple(clip(lacking, at.covered_to, behind.covered_to)),
    )  # fmt: skip
    return page, behind


def _parse_trades(info: PageInfo, body: bytes) -> Parsed:
    read = _read_trades(body)
    if info.first_id is not None:
        read = read.since(info.first_id)
    asked_start, asked_end = info.asked or info.covers
    start, end = info.covers
    columns, rejected = read.columns, read.rejected
    if len(read) and end < asked_end:  # the next page begins with unreadable rows behind the last readable one
        rejected = [(before, row) for before, row in rejected if before < len(read)]
    defects = _defects(read, info.first_id)
    missing = [(start if a is None else a, b) for a, b in defects.missing]
    if any(before == len(read) for before, _ in rejected):
        missing.append((int(columns["ts_ms"][-1]) if len(read) else start, end))
    jumps = [(start if a is None else a, b) for a, b in defects.jumps]
    inside = (columns["ts_ms"] >= asked_start) & (columns["ts_ms"] < asked_end)
    if not inside.all():
        columns = {name: column[inside] for name, column in columns.items()}
    return Parsed(
        columns={
            "id": columns["id"],
            "ts_ms": columns["ts_ms"],
            "price": columns["price"],
            "size": columns["size"],
            "quote_size": np.round(columns["price"] * columns["size"], _QUOTE_PLACES),
            "buyer_is_maker": columns["buyer_is_maker"],
            "trades": columns["last"] - columns["first"] + 1,
        },
        rejected=[row for _, row in rejected],
        missing=tuple(clip(missing, start, end)),
        unrecoverable=tuple(clip(union(jumps, info.unrecoverable), start, end)),
    )


def _parse_candles(info: PageInfo, body: bytes, step_ms: int) -> Parsed:
    read = _read_klines(body)
    start, end = info.covers
    ts = read.columns["ts"]
    inside = (ts >= start) & (ts < end)
    columns = {name: column[inside] for name, column in read.columns.items()}
    holes = _grid_holes(ts, info.covers, step_ms)
    edges = np.concatenate([[start], ts, [end]])
    torn = [(int(edges[before]), int(edges[before + 1])) for before, _ in read.rejected]
    missing = [(a, b) for a, b in holes if any(torn_a <= a < torn_b for torn_a, torn_b in torn)]
    return Parsed(
        columns={**columns, "closed": np.ones(len(columns["ts"]), np.bool_)},
        rejected=[row for _, row in read.rejected],
        missing=tuple(union(missing)),
        unrecoverable=tuple(union(subtract(holes, missing), info.unrecoverable)),
    )


def _grid_holes(opens: Ints, span: Span, step_ms: int) -> list[Span]:
    """Slots of the interval's grid that open inside `span` and hold no row, one span each, cut to `span`.

    A row that opens off the grid fills the slot it opens in; one that closes early fills its whole slot.
    """
    first = -(-span[0] // step_ms) * step_ms
    slots = np.arange(first, span[1], step_ms)
    empty = slots[~np.isin(slots, opens - opens % step_ms)]
    return [(slot, min(slot + step_ms, span[1])) for slot in empty.tolist()]


def _reached(read: _Read, span: Span, step_ms: int) -> int:
    """How far an answer settles its window: behind its last row, or all of it when it is empty."""
    opens = read.columns["ts"]
    opens = opens[(opens >= span[0]) & (opens < span[1])]
    if not len(opens):
        return span[1]
    behind = sum(before == len(read) for before, _ in read.rejected)
    last = int(opens[-1])
    return min(last - last % step_ms + step_ms * (1 + behind), span[1])


def _first_at_or_after(read: _Read, ts_ms: int) -> int | None:
    ts = read.columns["ts_ms"]
    later = ts[ts >= ts_ms]
    return int(later[0]) if len(later) else None


def _with_body(read: Callable[[bytes], _Read]) -> Callable[[bytes], tuple[bytes, _Read]]:
    return lambda body: (body, read(body))


def _all_milliseconds(times: list[int]) -> Ints:
    ts = np.array(times, np.int64)
    return np.where(ts >= _MICROSECONDS, ts // 1000, ts)


def _milliseconds(ts: int) -> int:
    return ts // 1000 if ts >= _MICROSECONDS else ts


def _now_ms() -> int:
    return int(time.time() * 1000)
