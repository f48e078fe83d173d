"""Quix Streams, one frame a message: candles as its tumbling windows of 1 and 5 minutes, emitted when they close.

frames -> normalize -> to_topic -> sink of trades, and two branches: tumbling_window -> reduce -> final -> sink.
Time is the trades' own (`timestamp_extractor`). A window closes by a later trade of its key, so what is open when
the run ends was never emitted: the reducers name the newest of each symbol, and it is written last.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from quixstreams import Application  # type: ignore[import-not-found,unused-ignore]
from quixstreams.sinks import BatchingSink, SinkBatch  # type: ignore[import-not-found,unused-ignore]

from bench.contenders import INTERVALS, Span, arguments, store

Newest = dict[str, tuple[int, dict[str, Any]]]  # of each symbol: the last trade's ts, its candle


def normalize(frame: dict[str, Any]) -> dict[str, Any]:
    return {
        "symbol": frame["s"],
        "id": frame["a"],
        "ts": frame["T"],
        "price": float(frame["p"]),
        "size": float(frame["q"]),
        "maker": int(frame["m"]),
    }


def event_time(frame: dict[str, Any], headers: Any, timestamp: float, timestamp_type: Any) -> int:
    return int(frame["T"])


def candle_row(symbol: str, interval: str, start: int, candle: dict[str, Any]) -> store.Candle:
    return (
        symbol, interval, start,
        candle["open"], candle["high"], candle["low"], candle["close"], candle["volume"], candle["trades"],
    )  # fmt: skip


def window_functions(newest: Newest) -> tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]:
    """A window's initializer and its reducer."""

    def initializer(trade: dict[str, Any]) -> dict[str, Any]:
        price = trade["price"]
        candle = {"open": price, "high": price, "low": price, "close": price, "volume": trade["size"], "trades": 1}
        newest[trade["symbol"]] = trade["ts"], candle
        return candle

    def reducer(candle: dict[str, Any], trade: dict[str, Any]) -> dict[str, Any]:
        price = trade["price"]
        candle = {
            "open": candle["open"],
            "high": max(candle["high"], price),
            "low": min(candle["low"], price),
            "close": price,
            "volume": candle["volume"] + trade["size"],
            "trades": candle["trades"] + 1,
        }
        newest[trade["symbol"]] = trade["ts"], candle
        return candle

    return initializer, reducer


class TradesSink(BatchingSink):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str) -> None:
        super().__init__()
        self.connection = store.open(path)

    def write(self, batch: SinkBatch) -> None:
        store.put_trades(self.connection, [tuple(item.value.values()) for item in batch])


class CandlesSink(BatchingSink):  # type: ignore[misc,unused-ignore]
    def __init__(self, path: str, interval: str) -> None:
        super().__init__()
        self.connection = store.open(path)
        self.interval = interval

    def write(self, batch: SinkBatch) -> None:
        store.put_candles(
            self.connection,
            [candle_row(item.key, self.interval, item.value["start"], item.value["value"]) for item in batch],
        )


def main() -> None:
    options, span = arguments(__doc__), Span()
    newest: dict[str, Newest] = {interval: {} for interval in INTERVALS}
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
            consumer_group=f"quix-windowed-{uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=state_dir,
            on_message_processed=processed,
            loglevel="WARNING",
        )
        frames = app.topic(
            options.frames, key_deserializer="str", value_deserializer="json", timestamp_extractor=event_time
        )
        out = app.topic(options.out, key_serializer="str", value_serializer="json")
        sdf = app.dataframe(frames)
        sdf = sdf.apply(received)
        sdf = sdf.to_topic(out)
        for interval, length in INTERVALS.items():
            initializer, reducer = window_functions(newest[interval])
            windows = sdf.tumbling_window(timedelta(milliseconds=length)).reduce(reducer, initializer)
            windows.final().sink(CandlesSink(options.store, interval))
        sdf.sink(TradesSink(options.store))
        app.run()
        store.put_candles(
            store.open(options.store),
            [
                candle_row(symbol, interval, ts - ts % INTERVALS[interval], candle)
                for interval, candles in newest.items()
                for symbol, (ts, candle) in candles.items()
            ],
        )
        span.durable()
    span.report(seen)


if __name__ == "__main__":
    main()
