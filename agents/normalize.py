"""Raw pages and frames become market batches: raw.trades, raw.candles -> normalize_pages -> market.trades,
market.candles.

A row or frame that cannot be read goes to dead-letters with its bytes and leaves a hole in the batch's coverage; the
others go on. A page that cannot be read at all is one hole. Of live candles only the closed ones become rows.
At least once: a batch keeps the position of what it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters.exchanges.base import Exchange, Parsed, RejectedFrame
from app import outside, topics
from app.core import Message, consumes_together, dead_letter, put
from app.errors import ExchangeError
from app.telemetry import ROWS
from models.market import (
    Batch,
    Frame,
    FramesInfo,
    PageInfo,
    Span,
    decode_frames,
    decode_frames_info,
    decode_page_info,
    empty_columns,
    encode_batch,
    encode_frames,
    encode_frames_info,
    encode_page_info,
    joined,
    pack_columns,
    runs_of,
)
from models.spans import clip


@consumes_together(topics.raw_trades, topics.raw_candles)
async def normalize_pages(messages: list[Message]) -> None:
    """Parse each page or message of frames once; what goes on where the one before it ended becomes one batch."""
    read = [await _read(message) for message in messages]
    for run in runs_of(read):
        batch = joined([read[place] for place in run])
        if len(batch) or batch.covers:
            await put(topics.market_for(batch.channel), messages[run[-1]].key, encode_batch(batch))
            ROWS.labels("normalize_pages").inc(len(batch))


async def _read(message: Message) -> Batch:
    """What the message holds; what of it cannot be used is put aside."""
    if "frames" in message.headers:
        return await _read_frames(message)
    info = decode_page_info(message.headers["page"])
    batch, rejected = normalize(outside.parser(info.venue), info, message.value, message.place)
    for row, reason, span in rejected:
        again = msgspec.structs.replace(info, covers=span, asked=span)
        await dead_letter(message, reason, value=row, headers={"page": encode_page_info(again)})
    return batch


async def _read_frames(message: Message) -> Batch:
    info = decode_frames_info(message.headers["frames"])
    batch, rejected = normalize_frames(outside.parser(info.venue), info, decode_frames(message.value), message.place)
    for bad in rejected:
        again = msgspec.structs.replace(info, covers=bad.hole)
        headers = {"frames": encode_frames_info(again)}
        await dead_letter(message, bad.reason, value=encode_frames([bad.frame]), headers=headers)
    return batch


def normalize(
    exchange: Exchange, info: PageInfo, body: bytes, origin: tuple[str, int, int]
) -> tuple[Batch, list[tuple[bytes, str, Span]]]:
    """A page as a batch, and what had to be left out: (bytes that can be sent again as a page, reason, the hole)."""
    try:
        parsed = exchange.parse(info, body)
        # A row sent again closes its hole only where the hole is its alone; else it is stored and the hole stays shown.
        alone = len(parsed.missing) == len(parsed.rejected)
        holes = parsed.missing if alone else [(info.covers[0], info.covers[0])] * len(parsed.rejected)
        rejected = [(b"[" + bad.row + b"]", bad.reason, hole) for bad, hole in zip(parsed.rejected, holes, strict=True)]
    except ExchangeError as error:
        parsed = Parsed(columns=empty_columns(info.channel), missing=(info.covers,))
        rejected = [(body, str(error), info.covers)]
    batch = Batch(
        venue=info.venue, symbol=info.symbol, channel=info.channel, source=info.source, run=info.run,
        ts_receipt_ms=info.ts_receipt_ms, origin=origin, covers=info.covers, asked=info.asked or info.covers,
        missing=parsed.missing, unrecoverable=parsed.unrecoverable, columns=pack_columns(info.channel, parsed.columns),
    )  # fmt: skip
    return batch, rejected


def normalize_frames(
    exchange: Exchange, info: FramesInfo, frames: Sequence[Frame], origin: tuple[str, int, int]
) -> tuple[Batch, Sequence[RejectedFrame]]:
    """Live frames as a batch, and those that had to be left out. What `info` says to lack is missing."""
    parsed = exchange.parse_frames(info.channel, frames)
    missing: list[Span] = [info.covers] if info.covers and info.lacks else []
    if info.covers:
        missing += clip([bad.hole for bad in parsed.rejected if bad.hole], *info.covers)
    batch = Batch(
        venue=info.venue, symbol=info.symbol, channel=info.channel, source=info.source, run=info.run,
        ts_receipt_ms=info.ts_receipt_ms, origin=origin, covers=info.covers, missing=tuple(missing),
        columns=pack_columns(info.channel, parsed.columns),
    )  # fmt: skip
    return batch, parsed.rejected
