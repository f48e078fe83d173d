"""Rows of Binance's klines, aggTrades and historicalTrades: a page's bytes --> Read.

Fields nobody has heard of are ignored, times come in ms or us, decimals as strings.
"""

from __future__ import annotations

import msgspec

from adapters.exchanges.rows import RowReader, candles_of, trades_of


class AggTrade(msgspec.Struct, gc=False):  # its fields as TRADE_FIELDS has them
    id: int = msgspec.field(name="a")
    ts: int = msgspec.field(name="T")
    price: float = msgspec.field(name="p")
    size: float = msgspec.field(name="q")
    first: int = msgspec.field(name="f")
    last: int = msgspec.field(name="l")
    buyer_is_maker: bool = msgspec.field(name="m")


class _Fill(msgspec.Struct, kw_only=True, gc=False):
    """A row of historicalTrades: one trade, so first and last are itself."""

    id: int
    ts: int = msgspec.field(name="time")
    price: float
    size: float = msgspec.field(name="qty")
    first: int = 0
    last: int = 0
    buyer_is_maker: bool = msgspec.field(name="isBuyerMaker")

    def __post_init__(self) -> None:
        self.first = self.last = self.id


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


read_trades = RowReader(AggTrade, trades_of).read
read_fills = RowReader(_Fill, trades_of).read  # single trades
read_klines = RowReader(_Kline, candles_of).read
