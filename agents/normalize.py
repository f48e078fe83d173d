"""Raw pages become market batches: raw.trades, raw.candles -> normalize_pages -> market.trades, market.candles.

A row that cannot be read goes to dead-letters with its bytes and leaves a hole in the batch's coverage; the other
rows of its page go on. A page that cannot be read at all is one hole. At least once: a batch keeps its page's position.
"""

from __future__ import annotations

from adapters.exchanges.base import Exchange, Parsed
from app import outside, topics
from app.core import Message, consumes, dead_letter, put
from app.errors import ExchangeError
from app.telemetry import ROWS
from models.market import (
    Batch,
    PageInfo,
    Span,
    decode_page_info,
    empty_columns,
    encode_batch,
    encode_page_info,
    pack_columns,
)


@consumes(topics.raw_trades, topics.raw_candles)
async def normalize_pages(message: Message) -> None:
    """Parse a page once; what is behind works on its columns."""
    info = decode_page_info(message.headers["page"])
    batch, rejected = normalize(outside.parser(), info, message.value, message.place)
    for row, reason, span in rejected:
        again = PageInfo(
            **{name: getattr(info, name) for name in info.__struct_fields__} | {"covers": span, "asked": span}
        )
        await dead_letter(message, reason, value=row, headers={"page": encode_page_info(again)})
    await put(topics.market_for(info.channel), message.key, encode_batch(batch))
    ROWS.labels("normalize_pages").inc(len(batch))


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
        ts_receipt_ms=info.ts_receipt_ms, origin=origin, covers=info.covers, missing=parsed.missing,
        unrecoverable=parsed.unrecoverable, columns=pack_columns(info.channel, parsed.columns),
    )  # fmt: skip
    return batch, rejected
