"""Requests to Binance's REST API, within its limits and through its outages.

Promise: `get` returns an answer that `read` could read, or raises ExchangeRefused where asking again changes nothing.
Everything else (429 and 418 with their Retry-After, 403 and 5xx, pages for people, torn JSON, time-outs, lost
connections) is waited out for ever, with capped exponential back-off and jitter, and `on_wait` hears of it.
Limits are calendar windows of the exchange's clock, per address: they are read from exchangeInfo, what is used from
the headers of every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from adapters.exchanges.binance_rows import milliseconds
from app.errors import ExchangeBusy, ExchangeError, ExchangeRefused, SetupRefused

T = TypeVar("T")

MINUTE_MS = 60_000
WEIGHTS = {
    "time": 1,
    "exchangeInfo": 20,
    "klines": 2,
    "aggTrades": 4,
    "historicalTrades": 25,
    "depth": 50,
}  # a guess to plan with: headers decide
_BUDGET_SHARE = 0.95  # of the limit; the rest is for others behind the same address
_TRIES_404 = 5  # a page for people in place of an answer; then it is the address that is wrong
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


_info = msgspec.json.Decoder(_ExchangeInfo)
_time = msgspec.json.Decoder(_ServerTime)
_api_error = msgspec.json.Decoder(_ApiError)


class Requests:
    """One address' questions to the exchange."""

    def __init__(
        self,
        base_url: str,
        on_wait: Callable[[float, str], None] | None,
        session: aiohttp.ClientSession | None,
        patience: Patience,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise SetupRefused(f"BINANCE_API_URL is {base_url!r}; it must start with http:// or https://")
        self.patience = patience
        self.clock = Clock()
        self._base_url = base_url.rstrip("/")
        self._on_wait = on_wait or (lambda _seconds, _why: None)
        self._session, self._owns_session = session, session is None
        self._budget = Budget(self.clock)
        self._preparing = asyncio.Lock()
        self._announced_until_s = 0.0

    async def trading_symbols(self) -> list[str]:
        info = await self.get("exchangeInfo", {}, self._learn)
        return [s.symbol for s in info.symbols if s.status == "TRADING" and s.is_spot_trading_allowed]

    async def server_time_ms(self) -> int:
        await self.get("time", {}, lambda body: self.clock.set(milliseconds(_time.decode(body).server_time)))
        return self.clock.now_ms()

    async def close(self) -> None:
        if self._session is not None and self._owns_session:
            await self._session.close()
            self._session = None

    async def prepare(self, symbol: str) -> None:
        """Learn the limits and the exchange's clock, once; an unknown symbol is refused by the exchange."""
        async with self._preparing:
            if not self._budget.known:
                await self.get("exchangeInfo", {"symbol": symbol}, self._learn)

    def _learn(self, body: bytes) -> _ExchangeInfo:
        info = _info.decode(body)
        self.clock.set(milliseconds(info.server_time))
        weights = (limit for limit in info.rate_limits if limit.rate_limit_type == "REQUEST_WEIGHT")
        limits = (limit for limit in weights if limit.interval in _UNIT_MS)
        self._budget.learn({_UNIT_MS[limit.interval] * limit.interval_num: limit.limit for limit in limits})
        return info

    async def until(self, exchange_ms: int) -> None:
        """Wait for the exchange's clock, never for ours: ours may be wrong."""
        wait_s = (exchange_ms - await self.server_time_ms()) / 1000
        if wait_s > 0:
            await self.wait(wait_s, "the range ends in the exchange's future")

    async def wait(self, seconds: float, why: str) -> None:
        until_s = time.monotonic() + seconds
        if until_s > self._announced_until_s + 0.05:  # requests in flight wait for the same thing: said once
            self._announced_until_s = until_s
            self._on_wait(seconds, why)
        await asyncio.sleep(seconds)

    async def get(self, endpoint: str, query: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        """The answer as `read` makes it; asks until there is one. Raises ExchangeRefused."""
        weight = WEIGHTS[endpoint]
        for attempt in itertools.count():
            while (wait_s := self._budget.wait_s(weight)) > 0:
                await self.wait(wait_s, self._budget.why)
            try:
                return read(await self._answer(endpoint, query, weight))
            except ExchangeRefused:
                raise
            except ExchangeBusy as busy:
                if isinstance(busy, _NoSuchPage) and attempt + 1 >= _TRIES_404:
                    raise ExchangeRefused(f"{busy}; is BINANCE_API_URL right?") from busy
                if busy.retry_after_s is not None:
                    self._budget.pause(max(busy.retry_after_s, self.patience.first_wait_s), str(busy))
                else:
                    await self.wait(self.patience.backoff_s(attempt), str(busy))
            except (msgspec.DecodeError, ExchangeError) as error:
                await self.wait(self.patience.backoff_s(attempt), f"{endpoint} was answered with torn JSON: {error}")
        raise AssertionError("itertools.count never ends")

    async def _answer(self, endpoint: str, query: Mapping[str, Any], weight: int) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=self.patience.request_timeout_s)
        url = f"{self._base_url}/api/v3/{endpoint}"
        try:
            with self._budget.spending(weight):
                async with self._session.get(url, params=query, timeout=timeout) as response:
                    body = await response.read()
                    self._budget.saw(response.headers)
        except TimeoutError as error:
            raise ExchangeBusy(f"{endpoint} was not answered in {self.patience.request_timeout_s:g} s") from error
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
    if 400 <= status < 500:
        return ExchangeBusy(f"{words} and a page for people: a firewall, not the exchange", retry_after_s)
    return ExchangeBusy(words, retry_after_s)


class Clock:
    """The exchange's clock: what it said last, moved on by ours."""

    def __init__(self) -> None:
        self._said_ms, self._at_s = time.time() * 1000, time.monotonic()

    def set(self, said_ms: int) -> None:
        """Late by the answer's way here, so what it calls past is past."""
        self._said_ms, self._at_s = float(said_ms), time.monotonic()

    def now_ms(self) -> int:
        return int(self._said_ms + (time.monotonic() - self._at_s) * 1000)


class Budget:
    """Request weight left in the exchange's calendar windows, as far as headers and own requests tell."""

    def __init__(self, clock: Clock) -> None:
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
