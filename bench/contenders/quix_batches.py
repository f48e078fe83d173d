"""Quix Streams, many frames a message: the same chain as quix_stateful, its State read and written once a message.

frames (a JSON array of one symbol's frames) -> normalize -> to_topic -> apply(stateful=True) -> sink.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from quixstreams import Application, State  # type: ignore[import-not-found,unused-ignore]
from quixstreams.sinks import BatchingSink, SinkBatch  # type: ignore[import-not-found,unused-ignore]

from bench.contenders import INTERVALS, Span, arguments, store

Candle = list[Any]  # ts, open, high, low, close, volume, trades


def normalize(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "symbol": frame["s"],
            "id": frame["a"],
            "ts": frame["T"],
            "price": float(frame["p"]),
            "size": float(frame["q"]),
            "maker": int(frame["m"]),
        }
        for frame in frames
    ]


class Candles:
    """The candles are the State's; `current` names the newest of each symbol, which nothing closes when a run ends."""

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], Candle] = {}

    def update(self, trades: list[dict[str, Any]], state: State) -> dict[str, Any]:
        """The trades' rows, and the candles that they closed."""
        symbol = trades[0]["symbol"]
        closed = []
        for interval, length in INTERVALS.items():
            candle: Candle | None = state.get(interval)
            for trade in trades:
                ts, price = trade["ts"], trade["price"]
                if candle is None or not candle[0] <= ts < candle[0] + length:
                    if candle is not None:
                        closed.append((symbol, interval, *candle))
                    candle = [ts - ts % length, price, price, price, price, trade["size"], 1]
                    continue
                if price > candle[2]:
                    candle[2] = price
                elif price < candle[3]:
                    candle[3] = price
                candle[4] = price
                candle[5] += trade["size"]
                candle[6] += 1
            if candle is not None:
                state.set(interval, candle)
                self.current[symbol, interval] = candle
        return {"trades": [tuple(trade.values()) for trade in trades], "closed": closed}


class StoreSink(BatchingSink):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str) -> None:
        super().__init__()
        self.connection = store.open(path)

    def write(self, batch: SinkBatch) -> None:
        store.put_trades(self.connection, (row for item in batch for row in item.value["trades"]))
        store.put_candles(self.connection, (candle for item in batch for candle in item.value["closed"]))


def main() -> None:
    options, span, candles = arguments(__doc__), Span(), Candles()
    messages = trades = 0

    def processed(topic: str, partition: int, offset: int) -> None:
        nonlocal messages
        messages += 1
        if messages == options.messages:
            app.stop()

    def received(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
        nonlocal trades
        span.first_message()
        trades += len(frames)
        return normalize(frames)

    with TemporaryDirectory() as state_dir:
        app = Application(
            broker_address=options.bootstrap,
            consumer_group=f"quix-batches-{uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=state_dir,
            on_message_processed=processed,
            loglevel="WARNING",
        )
        frames = app.topic(options.frames, key_deserializer="str", value_deserializer="json")
        out = app.topic(options.out, key_serializer="str", value_serializer="json")
        sink = StoreSink(options.store)
        sdf = app.dataframe(frames)
        sdf = sdf.apply(received)
        sdf = sdf.to_topic(out)
        sdf = sdf.apply(candles.update, stateful=True)
        sdf.sink(sink)
        app.run()
        store.put_candles(sink.connection, [(*key, *candle) for key, candle in candles.current.items()])
        span.durable()
    span.report(trades)


if __name__ == "__main__":
    main()
