"""Binance's REST API as `Requests`: its limits, its clock, its symbols. Spot and USD-M futures.

Limits are calendar windows of the exchange's clock, per address: they are read from exchangeInfo, what is used from
the headers of every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping

import aiohttp
import msgspec

from adapters.exchanges.requests import Api, Clock, Patience, Requests
from adapters.exchanges.rows import milliseconds

MINUTE_MS = 60_000
_BUDGET_SHARE = 0.95  # of the limit; the rest is for others behind the same address
_BUSY_CODES = frozenset((-1000, -1001, -1003, -1006, -1007, -1008, -1016))
_UNIT_MS = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}
_HEADER_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_USED = re.compile(r"x-mbx-used-weight-(\d+)([smhd])", re.IGNORECASE)

SPOT = Api(
    "BINANCE_API_URL", "/api/v3",
    {"time": 1, "exchangeInfo": 20, "klines": 2, "aggTrades": 4, "historicalTrades": 25, "depth": 50}, _BUSY_CODES,
)  # fmt: skip
UM = Api(
    "BINANCE_UM_API_URL", "/fapi/v1", {"time": 1, "exchangeInfo": 1, "klines": 5, "aggTrades": 20, "depth": 20},
    _BUSY_CODES,
)  # fmt: skip


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


_info = msgspec.json.Decoder(_ExchangeInfo)
_time = msgspec.json.Decoder(_ServerTime)


class BinanceRequests(Requests):
    """One address' questions to the exchange."""

    def __init__(
        self,
        api: Api,
        base_url: str,
        on_wait: Callable[[float, str], None] | None,
        session: aiohttp.ClientSession | None,
        patience: Patience,
    ) -> None:
        clock = Clock()
        self._weights = Budget(clock)
        super().__init__(api, self._weights, clock, base_url, on_wait, session, patience)
        self._preparing = asyncio.Lock()

    async def trading_symbols(self) -> list[str]:
        info = await self.get("exchangeInfo", {}, self._learn)
        return [s.symbol for s in info.symbols if s.status == "TRADING" and s.is_spot_trading_allowed]

    async def server_time_ms(self) -> int:
        await self.get("time", {}, lambda body: self.clock.set(milliseconds(_time.decode(body).server_time)))
        return self.clock.now_ms()

    async def prepare(self, symbol: str) -> None:
        """Learn the limits and the exchange's clock, once; an unknown symbol is refused by the exchange."""
        async with self._preparing:
            if not self._weights.known:
                await self.get("exchangeInfo", {"symbol": symbol}, self._learn)

    def _learn(self, body: bytes) -> _ExchangeInfo:
        info = _info.decode(body)
        self.clock.set(milliseconds(info.server_time))
        weights = (limit for limit in info.rate_limits if limit.rate_limit_type == "REQUEST_WEIGHT")
        limits = (limit for limit in weights if limit.interval in _UNIT_MS)
        self._weights.learn({_UNIT_MS[limit.interval] * limit.interval_num: limit.limit for limit in limits})
        return info


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
