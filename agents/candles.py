"""Trades become candles: market.trades -> fold_candles -> market.candles.

Equal to the exchange's own candles in every field: sums are exact, tradeless buckets are flat, and a candle that was
not seen whole is not made. The row carries what it has seen, so a repeated batch makes no second candle.
"""

from __future__ import annotations

from app import topics
from app.config import settings
from app.core import Message, consumes, put
from app.telemetry import ROWS
from models.folding import Folding, fold_batch
from models.market import Batch, decode_batch, encode_batch, pack_columns
from tables.candles_by_symbol import candles_by_symbol


@consumes(topics.market_trades)
async def fold_candles(message: Message) -> None:
    """Fold a batch of trades; send the candles that are complete now."""
    trades = decode_batch(message.value)
    key = message.key.decode()
    folding = candles_by_symbol.get(key) or Folding()
    place = f"{message.topic}-{message.partition}"
    if message.offset <= folding.at.get(place, -1):
        candles_by_symbol.put(key, folding)  # repeated after a crash: what it made is on its topic already
        return
    closed = fold_batch(folding, trades, settings().candle_intervals)
    for interval, columns in closed.items():
        channel = f"candles_{interval}"
        batch = Batch(
            venue=trades.venue, symbol=trades.symbol, channel=channel, source="aggregated", run=trades.run,
            ts_receipt_ms=trades.ts_receipt_ms, origin=message.place,
            columns=pack_columns(channel, columns),
        )  # fmt: skip
        await put(topics.market_for(channel), message.key, encode_batch(batch))
        ROWS.labels("fold_candles").inc(len(batch))
    folding.at[place] = message.offset
    candles_by_symbol.put(key, folding)
