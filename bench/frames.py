"""What the contenders of `bench.throughput` are fed with, and what they have to make of it.

recorded aggTrades (or the tape's) -> frames in the words of the exchange's stream -> messages of 1, 100 or 500 frames
                                                                                   -> the sums that every run is held to
A message holds frames of one symbol, in order; messages come in the order in which their last frames came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters.embedded_log.file import partition_of
from adapters.exchanges.recorded import RecordedSource
from adapters.exchanges.sources import TapeSource
from adapters.exchanges.tape import DAY_MS, FIRST_DAY_MS, Tape
from bench.contenders import INTERVALS
from bench.contenders.decode_only import decode
from models.market import PageInfo, Span, encode_page_info, stream_key

TAPE_DAYS = 11  # 1.1 million trades
FOR_EVER_MS = 2**53
PARTITIONS = 4


@dataclass(frozen=True)
class Stream:
    """A symbol's trades, in order."""

    symbol: str
    ids: Sequence[int]
    ts_ms: Sequence[int]
    rows: Sequence[str]  # as REST answers them; without the symbol

    def named(self, symbol: str) -> Stream:
        return Stream(symbol, self.ids, self.ts_ms, self.rows)

    def frames(self, start: int, end: int) -> list[str]:
        head = f'"s":"{self.symbol}",'
        pairs = zip(self.ts_ms[start:end], self.rows[start:end], strict=True)
        return [f'{{"e":"aggTrade","E":{ts},{head}{row[1:-1]},"M":true}}' for ts, row in pairs]


@dataclass(frozen=True)
class FrameMessage:
    symbol: str
    first: int  # place of its first frame in the symbol's stream
    frames: int
    last_ms: int
    value: bytes


def read_streams(folder: Path | None) -> list[Stream]:
    """Every symbol of the folder that has aggTrades; without a folder, those of a tape."""
    source = RecordedSource(folder) if folder else TapeSource(Tape())
    until_ms = FOR_EVER_MS if folder else FIRST_DAY_MS + TAPE_DAYS * DAY_MS - 1
    streams = []
    for known in source.symbols():
        rows = source.trades_between(known["symbol"], 0, until_ms, limit=FOR_EVER_MS)
        if len(rows):
            texts = [row.replace(',"M":true', "") for row in rows.texts]
            streams.append(Stream(known["symbol"], rows.keys, rows.ts_ms, texts))
    return streams


def messages(streams: Sequence[Stream], size: int) -> list[FrameMessage]:
    """Up to `size` frames a message, as a JSON array; with `size` 1 the frame itself."""
    made = []
    for stream in streams:
        for first in range(0, len(stream.rows), size):
            frames = stream.frames(first, first + size)
            text = frames[0] if size == 1 else f"[{','.join(frames)}]"
            last_ms = stream.ts_ms[first + len(frames) - 1]
            made.append(FrameMessage(stream.symbol, first, len(frames), last_ms, text.encode()))
    return sorted(made, key=lambda message: message.last_ms)


def first_frames(streams: Sequence[Stream], count: int) -> list[Stream]:
    """The streams up to the moment at which `count` frames have come."""
    times = np.sort(np.concatenate([np.asarray(stream.ts_ms) for stream in streams]))
    last_ms = int(times[min(count, len(times)) - 1])
    cut = []
    for stream in streams:
        end = int(np.searchsorted(stream.ts_ms, last_ms, side="right"))
        if end:
            cut.append(Stream(stream.symbol, stream.ids[:end], stream.ts_ms[:end], stream.rows[:end]))
    return cut


def page_headers(streams: Sequence[Stream], made: Iterable[FrameMessage]) -> Iterator[bytes]:
    """The header `page` of each message, as our loader would write it for the same frames."""
    asked = whole_span(streams)
    by_symbol = {stream.symbol: stream for stream in streams}
    covered: dict[str, int] = {}
    for message in made:
        stream, last = by_symbol[message.symbol], message.first + message.frames - 1
        start = covered.get(message.symbol, asked[0])
        # A page settles everything before its last millisecond, which may go on in the next one.
        covered[message.symbol] = asked[1] if last + 1 == len(stream.ids) else stream.ts_ms[last]
        yield encode_page_info(
            PageInfo(
                venue="binance", symbol=message.symbol, channel="trades", run="throughput", ts_receipt_ms=asked[1],
                covers=(start, covered[message.symbol]), asked=asked,
                first_id=stream.ids[message.first], last_id=stream.ids[last],
            )
        )  # fmt: skip


def whole_span(streams: Sequence[Stream]) -> Span:
    """Whole candles of the longest interval around all trades."""
    step = max(INTERVALS.values())
    first, last = min(stream.ts_ms[0] for stream in streams), max(stream.ts_ms[-1] for stream in streams)
    return first // step * step, last // step * step + step


def balanced(streams: Sequence[Stream]) -> list[Stream]:
    """The same streams under names whose keys spread the trades evenly over the partitions."""
    load, renamed = [0] * PARTITIONS, []
    for stream in sorted(streams, key=lambda stream: -len(stream.ids)):
        wanted = load.index(min(load))
        names = (f"{stream.symbol}{number}" for number in range(10_000))
        symbol = next(name for name in names if partition_of(stream_key("binance", name), PARTITIONS) == wanted)
        load[wanted] += len(stream.ids)
        renamed.append(stream.named(symbol))
    return renamed


@dataclass(frozen=True)
class Truth:
    """What a store has to hold: sizes are whole numbers of 1e-8."""

    trades: dict[str, tuple[int, int]]  # by symbol: distinct trades, sum of their sizes
    candles: dict[tuple[str, str, int], int]  # by symbol, interval, open time: volume of the buckets with trades


def truth_of(streams: Sequence[Stream]) -> Truth:
    trades, candles = {}, {}
    for stream in streams:
        found = decode(f"[{','.join(stream.frames(0, len(stream.rows)))}]")
        size = np.rint(np.array([frame.q for frame in found]) * 1e8).astype(np.int64)
        ts_ms = np.array([frame.T for frame in found])
        trades[stream.symbol] = len({frame.a for frame in found}), int(size.sum())
        for interval, length in INTERVALS.items():
            opens, starts = np.unique(ts_ms // length * length, return_index=True)
            for ts, volume in zip(opens.tolist(), np.add.reduceat(size, starts).tolist(), strict=True):
                candles[stream.symbol, interval, ts] = volume
    return Truth(trades, candles)


def difference(truth: Truth, found: Truth) -> str:
    """What a store has too much, too little or wrong, in words; empty when it is exact."""
    if found.trades != truth.trades:
        return f"trades are {found.trades}, not {truth.trades}"
    wrong = [place for place, volume in truth.candles.items() if not _same(found.candles.get(place), volume)]
    if wrong:
        place = wrong[0]
        return (
            f"{len(wrong)} of {len(truth.candles)} candles are wrong, the first: {place} has volume "
            f"{found.candles.get(place)}, not {truth.candles[place]}"
        )
    extra = found.candles.keys() - truth.candles.keys()
    return f"{len(extra)} candles too many, one: {min(extra)}" if extra else ""


def _same(found: int | None, volume: int) -> bool:
    """Most contenders add up floats, so the last digits may differ."""
    return found is not None and abs(found - volume) <= 1e-9 * volume
