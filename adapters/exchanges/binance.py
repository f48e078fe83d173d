"""Binance's markets: GET {/api/v3 | /fapi/v1}/{klines,aggTrades,historicalTrades,depth} --> Page, frames --> columns.

One instance keeps one address' request weight: the limits come from exchangeInfo, what is used from the headers.
How pages join up to a range is common to all exchanges (`adapters/exchanges/history.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import aiohttp
import msgspec

from adapters.exchanges import binance_frames
from adapters.exchanges.base import ParsedFrames
from adapters.exchanges.binance_requests import SPOT, UM, BinanceRequests
from adapters.exchanges.binance_rows import read_fills, read_klines, read_trades
from adapters.exchanges.history import Answer, RestExchange
from adapters.exchanges.requests import Api, Patience
from adapters.exchanges.rows import Read
from app.errors import ExchangeRefused
from models.market import Frame, Span
from models.ordering import Mark

SNAPSHOT_LEVELS = 1000  # a side: weight 50; all 5,000 cost 250, and the best 20 never come from there


class _Book(msgspec.Struct):
    last_update_id: int = msgspec.field(name="lastUpdateId")
    bids: list[msgspec.Raw]
    asks: list[msgspec.Raw]


_book = msgspec.json.Decoder(_Book)


class BinanceSpot(RestExchange):
    """`Exchange` for Binance spot; `on_wait(seconds, why)` hears of every wait before it begins."""

    venue = "binance"
    channels: ClassVar[tuple[str, ...]] = ("trades", "fills")
    live_channels: ClassVar[tuple[str, ...]] = ("trades", "fills", "book", "ticker")
    page_rows: ClassVar[int] = 1000
    api: ClassVar[Api] = SPOT

    def __init__(
        self,
        base_url: str,
        *,
        on_wait: Callable[[float, str], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(patience)
        self._requests: BinanceRequests = BinanceRequests(self.api, base_url, on_wait, session, self._patience)

    async def symbols(self) -> Sequence[str]:
        return await self._requests.trading_symbols()

    async def server_time_ms(self) -> int:
        return await self._requests.server_time_ms()

    async def prepare(self, symbol: str) -> None:
        await self._requests.prepare(symbol)

    async def ask_candles(self, symbol: str, interval: str, span: Span) -> Answer:
        times = {"startTime": span[0], "endTime": span[1] - 1}
        query = {"symbol": symbol, "interval": interval, **times, "limit": self.page_rows}
        return await self._requests.get("klines", query, _klines)

    async def ask_trades_from(self, channel: str, symbol: str, from_id: int) -> Answer:
        endpoint, reader = ("aggTrades", _trades) if channel == "trades" else ("historicalTrades", _fills)
        query = {"symbol": symbol, "fromId": from_id, "limit": self.page_rows}
        body, read = await self._requests.get(endpoint, query, reader)
        return body, read.since(from_id)

    async def ask_trades_at(self, symbol: str, start_ms: int, end_ms: int) -> Answer:
        query = {"symbol": symbol, "startTime": start_ms, "limit": self.page_rows}
        return await self._requests.get("aggTrades", query, _trades)

    async def book_snapshot(self, symbol: str) -> tuple[int, bytes]:
        await self.prepare(symbol)
        return await self._requests.get("depth", {"symbol": symbol, "limit": SNAPSHOT_LEVELS}, _snapshot)

    def read(self, channel: str, body: bytes) -> Read:
        return _READERS.get(channel, read_klines)(body)

    def stream_name(self, channel: str, symbol: str) -> str:
        self.check_channel(channel, self.live_channels)
        return binance_frames.stream_name(channel, symbol)

    def mark(self, channel: str, frame: bytes) -> Mark | None:
        return binance_frames.mark(channel, frame)

    def parse_frames(self, channel: str, frames: Sequence[Frame]) -> ParsedFrames:
        return binance_frames.parse_frames(channel, frames)


class BinanceUm(BinanceSpot):
    """Binance's USD-M futures. Trades are aggregates only, and of them the exchange answers the last 48 hours."""

    venue = "binance_um"
    channels: ClassVar[tuple[str, ...]] = ("trades",)  # single ones need a key
    live_channels: ClassVar[tuple[str, ...]] = ("trades", "book", "ticker")
    api: ClassVar[Api] = UM
    _listed: frozenset[str] = frozenset()

    async def prepare(self, symbol: str) -> None:
        """The futures' exchangeInfo takes no symbol: it lists them all."""
        if symbol not in self._listed:
            self._listed = frozenset(await self.symbols())
        if symbol not in self._listed:
            raise ExchangeRefused(f"{self.venue} does not trade {symbol!r}")


_READERS = {"trades": read_trades, "fills": read_fills}


def _klines(body: bytes) -> Answer:
    return body, read_klines(body)


def _trades(body: bytes) -> Answer:
    return body, read_trades(body)


def _fills(body: bytes) -> Answer:
    return body, read_fills(body)


def _snapshot(body: bytes) -> tuple[int, bytes]:
    return _book.decode(body).last_update_id, body
