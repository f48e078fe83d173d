"""A loop without any framework, many frames a message: what the work itself costs.

frames -> msgspec -> candles in a dict -> confluent-kafka's producer and SQLite, a transaction a message.
Every second outputs are flushed and offsets committed. Its candles are in memory only: after a crash they begin anew.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer

from bench.contenders import INTERVALS, Span, arguments, store
from bench.contenders.decode_only import decode

COMMIT_S = 1.0
POLL_MESSAGES, POLL_S = 100, 0.05

Open = dict[tuple[str, str], store.Candle]  # of each symbol and interval: the candle in the making

encode = msgspec.msgpack.Encoder().encode


def fold(made: Open, symbol: str, times: list[int], prices: list[float], sizes: list[float]) -> list[store.Candle]:
    """The candles that these trades, in order of time, close; runs of one bucket are folded at once."""
    closed = []
    for interval, length in INTERVALS.items():
        key, begin = (symbol, interval), 0
        while begin < len(times):
            ts = times[begin] - times[begin] % length
            end = bisect_left(times, ts + length, begin)
            run = prices[begin:end]
            opened, high, low, volume, trades = run[0], max(run), min(run), sum(sizes[begin:end]), end - begin
            before = made.get(key)
            if before is not None and before[2] == ts:
                opened, high, low = before[3], max(high, before[4]), min(low, before[5])
                volume, trades = volume + before[7], trades + before[8]
            elif before is not None:
                closed.append(before)
            made[key] = (symbol, interval, ts, opened, high, low, run[-1], volume, trades)
            begin = end
    return closed


def main() -> None:
    options, span = arguments(__doc__), Span()
    brokers = {"bootstrap.servers": options.bootstrap}
    consumer = Consumer(
        {**brokers, "group.id": f"plain-loop-{uuid4().hex[:8]}", "auto.offset.reset": "earliest",
         "enable.auto.commit": False}
    )  # fmt: skip
    producer = Producer({**brokers, "acks": "all", "linger.ms": 20})
    connection = store.open(options.store)
    consumer.subscribe([options.frames])
    made: Open = {}
    messages = trades = committed = 0
    commit_s = time.monotonic()
    while messages < options.messages:
        for message in consumer.consume(POLL_MESSAGES, POLL_S):
            span.first_message()
            frames = decode(message.value())
            symbol = frames[0].s
            rows = [(symbol, f.a, f.T, f.p, f.q, int(f.m)) for f in frames]
            producer.produce(options.out, encode(rows), key=message.key())
            closed = fold(made, symbol, [f.T for f in frames], [f.p for f in frames], [f.q for f in frames])
            with connection:
                store.put_trades(connection, rows)
                if closed:
                    store.put_candles(connection, closed)
            messages, trades = messages + 1, trades + len(rows)
        producer.poll(0)
        if messages == options.messages:
            store.put_candles(connection, made.values())
        if messages > committed and (messages == options.messages or time.monotonic() - commit_s >= COMMIT_S):
            producer.flush()
            consumer.commit(asynchronous=False)
            committed, commit_s = messages, time.monotonic()
    span.durable()
    consumer.close()
    span.report(trades)


if __name__ == "__main__":
    main()
