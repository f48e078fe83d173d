"""Faust as its documentation writes it, one frame a message: Records, an agent, a Table for each interval.

frames -> agent -> topic.send; Tables (and their changelogs) hold the open candles; rows are written some at a time.
All settings are Faust's own; --tuned sets the producer's linger, uvloop, a buffer and the loggers' levels.
Its topics are made beforehand, because the broker makes none. Offsets and rows are not tied together: a crash can
lose rows.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import faust
import mode.loop
from confluent_kafka.admin import AdminClient, NewTopic

from bench.contenders import INTERVALS, Span, arguments, store

PARTITIONS = 4
ROWS = 1000  # in one write
TUNED: dict[str, Any] = {"producer_linger": 0.02, "stream_buffer_maxsize": 16_384}


class Frame(faust.Record, serializer="json"):
    s: str
    a: int
    T: int
    p: str
    q: str
    m: bool


class Trade(faust.Record, serializer="json"):
    symbol: str
    id: int
    ts: int
    price: float
    size: float
    maker: int


class Candle(faust.Record, serializer="json"):
    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int


def candle_row(symbol: str, interval: str, candle: Candle) -> store.Candle:
    return (
        symbol, interval, candle.ts,
        candle.open, candle.high, candle.low, candle.close, candle.volume, candle.trades,
    )  # fmt: skip


def updated(candle: Candle | None, trade: Trade, start: int) -> Candle:
    """The candle that begins at `start`, with the trade in it."""
    price = trade.price
    if candle is None or candle.ts != start:
        return Candle(ts=start, open=price, high=price, low=price, close=price, volume=trade.size, trades=1)
    candle.high = max(candle.high, price)
    candle.low = min(candle.low, price)
    candle.close = price
    candle.volume += trade.size
    candle.trades += 1
    return candle


def make_topics(bootstrap: str, app_id: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    compact = {"cleanup.policy": "compact"}
    topics = [
        NewTopic(f"{app_id}-candles_{interval}-changelog", PARTITIONS, 1, config=compact) for interval in INTERVALS
    ]
    topics.append(NewTopic(f"{app_id}-__assignor-__leader", 1, 1))
    for made in admin.create_topics(topics).values():
        made.result()


def main() -> None:
    options, span = arguments(__doc__, flags=("--tuned",)), Span()
    app_id = f"plain-faust-{uuid4().hex[:8]}"
    make_topics(options.bootstrap, app_id)
    if options.tuned:
        mode.loop.use("uvloop")
        for name in ("faust", "aiokafka", "mode"):
            logging.getLogger(name).setLevel(logging.WARNING)
    connection = store.open(options.store)

    with TemporaryDirectory() as datadir:
        app = faust.App(
            app_id,
            broker=f"kafka://{options.bootstrap}",
            store="memory://",
            topic_partitions=PARTITIONS,
            web_enabled=False,
            datadir=datadir,
            **(TUNED if options.tuned else {}),
        )
        frames = app.topic(options.frames, key_type=str, value_type=Frame)
        out = app.topic(options.out, key_type=str, value_type=Trade)
        tables = {interval: app.Table(f"candles_{interval}", key_type=str, value_type=Candle) for interval in INTERVALS}
        rows: list[store.Trade] = []
        closed: list[store.Candle] = []
        seen = 0
        all_seen = asyncio.Event()

        def write() -> None:
            store.put_trades(connection, rows)
            store.put_candles(connection, closed)
            rows.clear()
            closed.clear()

        @app.agent(frames)  # type: ignore[untyped-decorator,unused-ignore]
        async def trades(stream: Any) -> None:
            nonlocal seen
            async for frame in stream:
                span.first_message()
                trade = Trade(
                    symbol=frame.s,
                    id=frame.a,
                    ts=frame.T,
                    price=float(frame.p),
                    size=float(frame.q),
                    maker=int(frame.m),
                )
                await out.send(key=trade.symbol, value=trade)
                for interval, length in INTERVALS.items():
                    table, start = tables[interval], trade.ts - trade.ts % length
                    candle = table.get(trade.symbol)
                    if candle is not None and candle.ts != start:
                        closed.append(candle_row(trade.symbol, interval, candle))
                    table[trade.symbol] = updated(candle, trade, start)
                rows.append((trade.symbol, trade.id, trade.ts, trade.price, trade.size, trade.maker))
                if len(rows) >= ROWS:
                    write()
                seen += 1
                if seen == options.trades:
                    all_seen.set()

        @app.task  # type: ignore[untyped-decorator,unused-ignore]
        async def end() -> None:
            await all_seen.wait()
            for interval, table in tables.items():
                closed.extend(candle_row(symbol, interval, candle) for symbol, candle in table.items())
            write()
            await app.producer.flush()
            await app.commit({options.frames})
            span.durable()
            span.report(seen)
            signal.raise_signal(signal.SIGTERM)  # how a worker is stopped

        worker = faust.Worker(app, loglevel="warning" if options.tuned else "info", redirect_stdouts=False)
        worker.execute_from_commandline()


if __name__ == "__main__":
    main()
