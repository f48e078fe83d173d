"""The venues StreamForge knows, one row each. Whatever differs between them is said here or in their own modules.

A new one: docs/adding-an-exchange.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from adapters.exchanges import binance_books, okx_books
from adapters.exchanges.base import Exchange
from adapters.exchanges.binance import BinanceSpot, BinanceUm
from adapters.exchanges.binance_frames import UM_PATHS, BinanceWire
from adapters.exchanges.okx import Okx
from adapters.exchanges.okx_frames import OkxWire
from adapters.exchanges.streams import Limits, Wire
from models.order_book import CHAINS, Chain, Diff, Snapshot

OnWait = Callable[[float, str], None]  # (seconds, why)
ReadBook = Callable[[str, bytes], Diff | Snapshot]  # (kind of the message, frame); raises ExchangeError


class Make(Protocol):
    def __call__(self, base_url: str, *, on_wait: OnWait | None = None) -> Exchange: ...


@dataclass(frozen=True)
class Venue:
    """One market of one exchange. Its settings are `<NAME>_API_URL` and `<NAME>_WS_URL`."""

    name: str
    title: str
    symbol: str  # how one is called there
    exchange: Make  # history, and the reading of pages and frames
    wire: Wire
    read_book: ReadBook
    limits: Mapping[str, Any] = field(default_factory=dict)  # of `streams.Limits`, where they are not Binance's

    @property
    def chain(self) -> Chain:
        """What makes a diff of a book the next one."""
        return CHAINS[self.name]

    def stream_limits(self, asked: Limits) -> Limits:
        return replace(asked, **self.limits)


_ROWS = (
    Venue("binance", "Binance spot", "BTCUSDT", BinanceSpot, BinanceWire(), binance_books.read_book),
    Venue(
        "binance_um", "Binance USD-M futures", "BTCUSDT", BinanceUm, BinanceWire("binance_um", UM_PATHS),
        binance_books.read_book, {"streams_per_connection": 200, "message_every_s": 0.2},
    ),
    Venue(
        "okx", "OKX spot", "BTC-USDT", Okx, OkxWire(), okx_books.read_book,
        # 480 requests an hour and connection, three connects a second; an error names one request only
        {"streams_per_connection": 100, "streams_per_message": 1, "connects": 100, "connects_within_s": 60.0},
    ),
)  # fmt: skip
VENUES: Mapping[str, Venue] = {venue.name: venue for venue in _ROWS}
