"""Live frames of any exchange's trades and candles as columns; a bad frame does not touch its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from adapters.exchanges.base import ParsedFrames, RejectedFrame
from adapters.exchanges.rows import candles_of, trade_columns
from app.errors import ExchangeError
from models.market import TRADE_CHANNELS, Array, Frame, empty_columns
from models.ordering import Mark

Decode = Callable[[Sequence[bytes]], list[Any]]  # frames to their events; raises msgspec.DecodeError
Columns = Callable[[Sequence[Any]], dict[str, Array]]  # closed candles to columns; raises ValueError
_BAD = (msgspec.DecodeError, UnicodeDecodeError, ExchangeError, ValueError, OverflowError)


def all_candle_columns(candles: Sequence[Any]) -> dict[str, Array]:
    """Events that say everything of a candle; those that still run are left out."""
    return closed_columns(candles_of([candle for candle in candles if candle.closed], []).columns)


def closed_columns(columns: dict[str, Array]) -> dict[str, Array]:
    return {**columns, "closed": np.ones(len(columns["ts"]), np.bool_)}


def parse(
    channel: str, frames: Sequence[Frame], decode: Decode, mark: Callable[[str, bytes], Mark | None],
    candle_columns: Columns = all_candle_columns,
) -> ParsedFrames:  # fmt: skip
    """Frames as columns in order, each key once; of candles only the closed ones.

    Read in one pass; only a message with a bad frame is read frame by frame.
    """
    if not frames:
        return ParsedFrames(empty_columns(channel))
    make = trade_columns if channel in TRADE_CHANNELS else candle_columns
    try:
        return ParsedFrames(make(decode([frame for _, frame in frames])))
    except _BAD:
        pass
    events: list[Any] = []
    rejected: list[RejectedFrame] = []
    before: int | None = None
    for frame in frames:
        place = mark(channel, frame[1])
        try:
            found = decode([frame[1]])
            make(found)
            events += found
        except _BAD as error:
            hole = (before if before is not None else place.to_ms, place.from_ms) if place else None
            rejected.append(RejectedFrame(frame, str(error), hole))
        before = place.to_ms if place else before
    return ParsedFrames(make(events), tuple(rejected))
