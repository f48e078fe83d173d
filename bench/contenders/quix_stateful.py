"""Quix Streams, one frame a message: candles in its State (RocksDB and a changelog), written at each checkpoint.

frames -> normalize -> to_topic -> apply(stateful=True) -> sink. One chain without branches, which copy every value.
A checkpoint (5 s by default, and at the end) flushes sink, output and changelog, then commits the offsets.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from quixstreams import Application, State  # type: ignore[import-not-found,unused-ignore]
from quixstreams.sinks import BatchingSink, SinkBatch  # type: ignore[import-not-found,unused-ignore]

from bench.contenders import INTERVALS, Span, arguments, store

Candle = list[Any]  # ts, open, high, low, close, volume, trades


def normalize(frame: dict[str, Any]) -> dict[str, Any]:
    return {
        "symbol": frame["s"],
        "id": frame["a"],
        "ts": frame["T"],
        "price": float(frame["p"]),
        "size": float(frame["q"]),
        "maker": int(frame["m"]),
    }


class Candles:
    """The candles are the State's; `current` names the newest of each symbol, which nothing closes when a run ends."""

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], Candle] = {}

    def update(self, trade: dict[str, Any], state: State) -> dict[str, Any]:
        """The trade's row, and the candles that it closed."""
        symbol, ts, price, size = trade["symbol"], trade["ts"], trade["price"], trade["size"]
        closed = []
        for interval, length in INTERVALS.items():
            start = ts - ts % length
            candle = state.get(interval)
            if candle is None or candle[0] != start:
                if candle is not None:
                    closed.append((symbol, interval, *candle))
                candle = [start, price, price, price, price, size, 1]
            else:
                _, opened, high, low, _, volume, trades = candle
                candle = [start, opened, max(high, price), min(low, price), price, volume + size, trades + 1]
            state.set(interval, candle)
            self.current[symbol, interval] = candle
        return {"trade": tuple(trade.values()), "closed": closed}


class StoreSink(BatchingSink):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str) -> None:
        super().__init__()
        self.connection = store.open(path)

    def write(self, batch: SinkBatch) -> None:
        store.put_trades(self.connection, [item.value["trade"] for item in batch])
        store.put_candles(self.connection, [candle for item in batch for candle in item.value["closed"]])


def main() -> None:
    options, span, candles = arguments(__doc__), Span(), Candles()
    seen = 0

    def processed(topic: str, partition: int, offset: int) -> None:
        nonlocal seen
        seen += 1
        if seen == options.messages:
            app.stop()

    def received(frame: dict[str, Any]) -> dict[str, Any]:
        span.first_message()
        return normalize(frame)

    with TemporaryDirectory() as state_dir:
        app = Application(
            broker_address=options.bootstrap,
            consumer_group=f"quix-stateful-{uuid4().hex[:8]}",
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
    span.report(seen)


if __name__ == "__main__":
    main()
