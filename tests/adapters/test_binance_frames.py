"""Live frames as the exchange sends them, recorded ones above all."""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from adapters.exchanges.binance_frames import BinanceWire, mark, parse_frames
from adapters.exchanges.streams import Notice
from models.market import Frame
from models.ordering import InOrder

RECORDED = Path(os.environ.get("RECORDED_DATA", "")) / "ws" / "binance_spot"
CHANNELS = {"trade": "fills", "aggTrade": "trades", "kline_1m": "candles_1m", "depth": "book", "bookTicker": "ticker"}
needs_recording = pytest.mark.skipif(not RECORDED.is_dir(), reason="RECORDED_DATA names no folder with ws/binance_spot")


def recorded(file: str) -> dict[tuple[str, str], list[Frame]]:
    """Frames by stream's symbol and channel."""
    frames: dict[tuple[str, str], list[Frame]] = defaultdict(list)
    with gzip.open(RECORDED / file, "rt") as lines:
        for line in lines:
            said = json.loads(line)
            if said["kind"] == "ws":
                frame = said["raw"].encode()
                symbol, kind = str(BinanceWire().stream_of(frame)).split("@")[:2]
                frames[symbol, CHANNELS[kind]].append((said["recv_ns"], frame))
    return frames


@needs_recording
def test_every_recorded_trade_is_read_and_none_lacks() -> None:
    frames = recorded("btcusdt_20240808T2354_20240809T0005.jsonl.gz")["btcusdt", "fills"]
    parsed = parse_frames("fills", frames)
    ids = parsed.columns["id"]
    assert (len(ids), parsed.rejected) == (19_904, ())
    assert (np.diff(ids) == 1).all()
    order: InOrder[bytes] = InOrder()
    marks = [(found, frame) for _, frame in frames if (found := mark("fills", frame))]
    assert sum(len(order.offer(found, frame)) for found, frame in marks) == 19_904
    assert order.hole is None


@needs_recording
@pytest.mark.parametrize("file", ["multi4_20210814T1446.jsonl.gz", "multi4_20211012T0028.jsonl.gz"])
def test_every_recorded_frame_has_a_place_in_its_stream(file: str) -> None:
    for (_, channel), frames in recorded(file).items():
        assert all(mark(channel, frame) for _, frame in frames)
        if channel in ("trades", "candles_1m"):
            assert not parse_frames(channel, frames).rejected


def test_of_candles_only_the_closed_ones_become_rows() -> None:
    candle = {
        "t": 60_000, "T": 119_999, "s": "X", "i": "1m", "f": 1, "L": 2, "o": "1", "c": "2", "h": "2", "l": "1",
        "v": "3", "n": 2, "q": "4", "V": "1", "Q": "1", "B": "0",
    }  # fmt: skip
    frames = [
        (1, json.dumps({"stream": "x@kline_1m", "data": {"e": "kline", "k": {**candle, "x": closed}}}).encode())
        for closed in (False, True)
    ]
    parsed = parse_frames("candles_1m", frames)
    assert parsed.columns["ts"].tolist() == [60_000]
    assert [found.done for _, frame in frames if (found := mark("candles_1m", frame))] == [False, True]


@pytest.mark.parametrize(
    ("frame", "notice"),
    [
        (b'{"result":null,"id":7}', Notice("confirmed", 7)),
        (b'{"code":2,"msg":"no","id":7}', Notice("refused", 7, "2 no")),
        (b'{"error":{"code":2,"msg":"no"},"id":7}', Notice("refused", 7, "2 no")),
        (b'{"error":{"code":3,"msg":"no"},"id":null}', Notice("refused", None, "3 no")),
        (b'{"e":"serverShutdown","E":1}', Notice("shutdown")),
        (b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', Notice("shutdown")),
        (b'{"e":"blockTrade","s":"X"}', Notice("unknown")),
        (b"pong", Notice("unreadable")),
        (b"\xff\xfe", Notice("unreadable")),
    ],
)
def test_what_belongs_to_no_stream_is_understood_or_said_to_be_unknown(frame: bytes, notice: Notice) -> None:
    assert BinanceWire().notice(frame) == notice
