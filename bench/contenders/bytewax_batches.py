"""Bytewax, many frames a message: candles in a stateful step by symbol, one worker in this process.

frames (a JSON array of one symbol's frames) -> normalize -> KafkaSink and SQLite; -> stateful -> SQLite.
Without recovery: nothing of its state or its offsets is kept, so a crash begins again. Bytewax commits no offsets
either; the source ends where the topic does (`tail=False`), and the sinks are flushed with each batch they are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bytewax.operators as op  # type: ignore[import-not-found,unused-ignore]
import msgspec
from bytewax.connectors.kafka import (  # type: ignore[import-not-found,unused-ignore]
    KafkaSinkMessage,
    KafkaSourceMessage,
)
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found,unused-ignore]
from bytewax.operators import StatefulLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition  # type: ignore[import-not-found,unused-ignore]
from bytewax.run import cli_main  # type: ignore[import-not-found,unused-ignore]

from bench.contenders import INTERVALS, Span, arguments, store

Candle = list[Any]  # ts, open, high, low, close, volume, trades
Batch = tuple[str, list[store.Trade]]  # a symbol and its rows


class Frame(msgspec.Struct):
    s: str
    a: int
    T: int
    p: float
    q: float
    m: bool


class OutTrade(msgspec.Struct):
    symbol: str
    id: int
    ts: int
    price: float
    size: float
    maker: int


decode = msgspec.json.Decoder(list[Frame], strict=False).decode  # numbers come as strings
encode = msgspec.json.Encoder().encode


def normalize(message: KafkaSourceMessage) -> Batch:
    frames = decode(message.value)
    return frames[0].s, [(f.s, f.a, f.T, f.p, f.q, int(f.m)) for f in frames]


def out_message(batch: Batch) -> KafkaSinkMessage:
    symbol, rows = batch
    return KafkaSinkMessage(symbol.encode(), encode([OutTrade(*row) for row in rows]))


class Candles(StatefulLogic):  # type: ignore[misc,unused-ignore]
    """One symbol's open candles; emits those that closed, and at the end of the input the open ones."""

    def __init__(self, state: dict[str, Candle] | None) -> None:
        self.open = state or {}

    def on_item(self, rows: list[store.Trade]) -> tuple[Iterable[store.Candle], bool]:
        symbol = rows[0][0]
        closed: list[Any] = []
        for interval, length in INTERVALS.items():
            candle = self.open.get(interval)
            for _, _, ts, price, size, _ in rows:
                if candle is None or not candle[2] <= ts < candle[2] + length:
                    if candle is not None:
                        closed.append(candle)
                    candle = [symbol, interval, ts - ts % length, price, price, price, price, size, 1]
                    continue
                if price > candle[4]:
                    candle[4] = price
                elif price < candle[5]:
                    candle[5] = price
                candle[6] = price
                candle[7] += size
                candle[8] += 1
            if candle is not None:
                self.open[interval] = candle
        return closed, StatefulLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[store.Candle], bool]:
        return [*map(tuple, self.open.values())], StatefulLogic.RETAIN

    def snapshot(self) -> dict[str, Candle]:
        return {interval: list(candle) for interval, candle in self.open.items()}


class TradesPartition(StatelessSinkPartition):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str) -> None:
        self.connection = store.open(path)

    def write_batch(self, items: list[Batch]) -> None:
        store.put_trades(self.connection, (row for _, rows in items for row in rows))


class CandlesPartition(StatelessSinkPartition):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str) -> None:
        self.connection = store.open(path)

    def write_batch(self, items: list[tuple[str, store.Candle]]) -> None:
        store.put_candles(self.connection, (candle for _, candle in items))


class StoreSink(DynamicSink):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str, partition: type[TradesPartition] | type[CandlesPartition]) -> None:
        self.path = path
        self.partition = partition

    def build(self, step_id: str, worker_index: int, worker_count: int) -> TradesPartition | CandlesPartition:
        return self.partition(self.path)


def main() -> None:
    options, span = arguments(__doc__), Span()
    trades = 0

    def received(message: KafkaSourceMessage) -> Batch:
        nonlocal trades
        span.first_message()
        batch = normalize(message)
        trades += len(batch[1])
        return batch

    flow = Dataflow("bytewax_batches")
    frames = kop.input("frames", flow, brokers=[options.bootstrap], topics=[options.frames], tail=False)
    op.raises("frames_errors", frames.errs)
    batches = op.map("normalize", frames.oks, received)
    kop.output("out", op.map("encode", batches, out_message), brokers=[options.bootstrap], topic=options.out)
    op.output("trades", batches, StoreSink(options.store, TradesPartition))
    candles = op.stateful("candles", batches, Candles)
    op.output("closed_candles", candles, StoreSink(options.store, CandlesPartition))
    cli_main(flow)
    span.durable()
    span.report(trades)


if __name__ == "__main__":
    main()
