"""Trades become candles: market.trades -> fold_candles -> market.candles.

Equal to the exchange's own candles in every field: sums are exact, tradeless buckets are flat, and a candle that was
not seen whole is not made. One over trades that the exchange cannot serve is made of those there are, and says so
(source `partial`).
A trade that comes after its candle was given out amends it: the candle goes out again as the next revision, and the
store keeps the better one. One that comes too late even for that goes to dead-letters. Both are counted. What was
computed from the earlier revision (a feature, a graph, a label) stays as it was until it is built again from the store,
and then its `data_hash` is another one: nothing changes silently.
The row carries what it has seen, so a repeated batch makes no second candle; and it carries
the candles that may not have reached their topic yet, because on brokers a row can be durable before them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from app import topics
from app.config import settings
from app.core import Message, app, consumes_together, dead_letter, put
from app.telemetry import ROWS, TRADES_LATE
from models.folding import ALL_SENT, Folded, Folding, Made, fold_batch
from models.market import Batch, decode_batch, encode_batch, instant_text, joined, pack_columns, rows_of, runs_of
from tables.candles_by_symbol import candles_by_symbol

_on_their_way: dict[str, dict[bytes, asyncio.Future[Any]]] = {}  # batches by symbol


@consumes_together(topics.market_trades)
async def fold_candles(messages: list[Message]) -> None:
    """Fold batches of trades; send the candles that are complete now."""
    by_symbol: dict[bytes, list[Message]] = {}
    for message in messages:
        by_symbol.setdefault(message.key, []).append(message)
    for own in by_symbol.values():
        await fold(own)


async def fold(messages: list[Message]) -> None:
    """The candles of one symbol's batches onto their topic, then the row that remembers them."""
    last = messages[-1]
    key, place = last.key.decode(), f"{last.topic}-{last.partition}"
    folding = candles_by_symbol.get(key) or Folding()
    done = folding.at.get(place, -1)  # repeated after a crash: what they made is on its topic, or was sent again
    fresh = [message for message in messages if message.offset > done]
    # Single trades are the aggregate ones again.
    read = [(message, decode_batch(message.value)) for message in fresh]
    read = [(message, batch) for message, batch in read if batch.channel == "trades"]
    batches = [batch for _, batch in read]
    for run in runs_of(batches):
        trades = joined([batches[number] for number in run])
        source = read[run[-1]][0]
        folded = fold_batch(folding, trades, settings().candle_intervals)
        for made in folded.candles:
            await _send(key, encode_batch(candles_of(made, trades, source.place)))
            ROWS.labels("fold_candles").inc(len(made.columns["ts"]))
        await count_late(folded, trades, source)
    if fresh:
        folding.at[place] = last.offset
        folding.unsent = _unsent(key)
    candles_by_symbol.put(key, folding, of=last)


def candles_of(made: Made, trades: Batch, origin: tuple[str, int, int]) -> Batch:
    """Candles as a batch of their topic."""
    channel = f"candles_{made.interval}"
    whole = "aggregated" if len(trades) else "clock"  # closed because nobody traded any more
    return Batch(
        venue=trades.venue, symbol=trades.symbol, channel=channel, run=trades.run, revision=made.revision,
        source="partial" if made.partial else whole, ts_receipt_ms=trades.ts_receipt_ms, origin=origin,
        columns=pack_columns(channel, made.columns),
    )  # fmt: skip


async def count_late(folded: Folded, trades: Batch, message: Message) -> None:
    """Late trades are never passed over silently: they have amended a candle, or they are put aside."""
    if not folded.late:
        return
    TRADES_LATE.labels(trades.venue, "amended").inc(folded.late - len(folded.too_late))
    TRADES_LATE.labels(trades.venue, "dead letter").inc(len(folded.too_late))
    if folded.too_late:
        value = encode_batch(rows_of(trades, folded.too_late))
        first = instant_text(int(trades.array("ts_ms")[folded.too_late[0]]))
        reason = (
            f"too late to amend the candles of their time: {len(folded.too_late)} of {trades.symbol}'s trades, the "
            f"first of {first}; load that hour again"
        )
        await dead_letter(message, reason, value=value)


@app.on_rebalance_complete.connect
async def send_again(*_: object, **__: object) -> None:
    """Candles that a row before us was not sure of; repeats are the same documents."""
    _on_their_way.clear()
    for key, folding in candles_by_symbol.items(unless=ALL_SENT):
        for value in folding.unsent:
            await _send(key, value)


async def _send(key: str, value: bytes) -> None:
    _on_their_way.setdefault(key, {})[value] = await put(topics.market_for("candles"), key.encode(), value)


def _unsent(key: str) -> list[bytes]:
    """What is not known to be on its topic."""
    open_ = {value: sent for value, sent in _on_their_way.get(key, {}).items() if not sent.done()}
    _on_their_way[key] = open_
    return list(open_)
