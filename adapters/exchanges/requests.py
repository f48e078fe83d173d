"""Requests to an exchange's REST API, within its limits and through its outages.

Promise: `get` returns an answer that `read` could read, or raises ExchangeRefused where asking again changes nothing.
Everything else (429 and 418 with their Retry-After, 403 and 5xx, pages for people, torn JSON, time-outs, lost
connections) is waited out for ever, with capped exponential back-off and jitter, and `on_wait` hears of it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec

from app.errors import ExchangeBusy, ExchangeError, ExchangeRefused, SetupRefused

T = TypeVar("T")

_TRIES_404 = 5  # a page for people in place of an answer; then it is the address that is wrong


@dataclass(frozen=True)
class Api:
    """One REST API as data."""

    setting: str  # that holds its address
    path: str  # what lies between the address and an endpoint
    weights: Mapping[str, int]  # of a request, in units of its budget; a guess to plan with where headers decide
    busy_codes: frozenset[int]  # errors that are the exchange's trouble, whatever the status


class Allowance(Protocol):
    """What may be asked now."""

    why: str  # it has to be waited; empty for a moment that is not worth a word

    def wait_s(self, weight: int) -> float:
        """0 when a request of `weight` may go out now, else how long to wait before asking this again."""
        ...

    def pause(self, seconds: float, why: str) -> None:
        """The exchange said when to come back: that holds for every request of this address."""
        ...

    def spending(self, weight: int) -> AbstractContextManager[None]: ...

    def saw(self, headers: Mapping[str, str]) -> None: ...


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


class _ApiError(msgspec.Struct):
    code: int
    msg: str = ""


_api_error = msgspec.json.Decoder(_ApiError, strict=False)  # some say their codes as texts


class Requests:
    """One address' questions to the exchange."""

    def __init__(
        self,
        api: Api,
        allowance: Allowance,
        clock: Clock,
        base_url: str,
        on_wait: Callable[[float, str], None] | None,
        session: aiohttp.ClientSession | None,
        patience: Patience,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise SetupRefused(f"{api.setting} is {base_url!r}; it must start with http:// or https://")
        self.patience = patience
        self.clock = clock
        self._api, self._budget = api, allowance
        self._base_url = base_url.rstrip("/")
        self._on_wait = on_wait or (lambda _seconds, _why: None)
        self._session, self._owns_session = session, session is None
        self._announced_until_s = 0.0

    async def close(self) -> None:
        if self._session is not None and self._owns_session:
            await self._session.close()
            self._session = None

    async def until(self, exchange_ms: int, server_time_ms: int) -> None:
        """Wait for the exchange's clock, never for ours: ours may be wrong."""
        wait_s = (exchange_ms - server_time_ms) / 1000
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
        weight = self._api.weights[endpoint]
        for attempt in itertools.count():
            while (wait_s := self._budget.wait_s(weight)) > 0:
                await (self.wait(wait_s, why) if (why := self._budget.why) else asyncio.sleep(wait_s))
            try:
                return read(await self._answer(endpoint, query, weight))
            except ExchangeRefused:
                raise
            except ExchangeBusy as busy:
                if isinstance(busy, _NoSuchPage) and attempt + 1 >= _TRIES_404:
                    raise ExchangeRefused(f"{busy}; is {self._api.setting} right?") from busy
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
        url = f"{self._base_url}{self._api.path}/{endpoint}"
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
            raise self._trouble(endpoint, response.status, response.headers, body)
        return body

    def _trouble(self, endpoint: str, status: int, headers: Mapping[str, str], body: bytes) -> ExchangeError:
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
        if status >= 500 or (said is not None and said.code in self._api.busy_codes):
            return ExchangeBusy(words, retry_after_s)
        if said is not None:
            return ExchangeRefused(words, said.code)
        if status == 404:
            return _NoSuchPage(words)
        if 400 <= status < 500:
            return ExchangeBusy(f"{words} and a page for people: a firewall, not the exchange", retry_after_s)
        return ExchangeBusy(words, retry_after_s)


class _NoSuchPage(ExchangeBusy):
    """404 with something else than the exchange's own error."""


class Clock:
    """The exchange's clock: what it said last, moved on by ours."""

    def __init__(self) -> None:
        self._said_ms, self._at_s = time.time() * 1000, time.monotonic()

    def set(self, said_ms: int) -> None:
        """Late by the answer's way here, so what it calls past is past."""
        self._said_ms, self._at_s = float(said_ms), time.monotonic()

    def now_ms(self) -> int:
        return int(self._said_ms + (time.monotonic() - self._at_s) * 1000)
