"""The words of the market: channels, intervals, time ranges, raw pages and column batches.

A `Page` is what an exchange answered, bytes untouched. A `Batch` is what we made of it: one message with
many rows, kept as columns so that everything behind it works on arrays.
Times are UTC epoch milliseconds, ranges half-open `[start, end)`; prices in quote currency, sizes in base.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Span = tuple[int, int]  # [start_ms, end_ms)

INTERVAL_MS: dict[str, int] = {
    "1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "30m": 1_800_000,
    "1h": 3_600_000, "2h": 7_200_000, "4h": 14_400_000, "6h": 21_600_000, "8h": 28_800_000, "12h": 43_200_000,
    "1d": 86_400_000,
}  # fmt: skip

# Columns of a batch, named as the fields of the stored document; dtypes are little-endian on the wire.
TRADE_COLUMNS: dict[str, str] = {
    "id": "<i8",  # the exchange's aggregate trade id
    "ts_ms": "<i8",
    "price": "<f8",
    "size": "<f8",
    "quote_size": "<f8",
    "buyer_is_maker": "|b1",  # true: the seller was the aggressor
    "trades": "<i8",  # single trades in this aggregate; a candle's count is their sum, not the number of rows
}
CANDLE_COLUMNS: dict[str, str] = {
    "ts": "<i8",  # open time, ms; the candle is visible at ts + interval, never before
    "open": "<f8", "high": "<f8", "low": "<f8", "close": "<f8",
    "volume": "<f8", "quote_volume": "<f8",
    "trades": "<i8",
    "taker_buy_volume": "<f8", "taker_buy_quote_volume": "<f8",
    "closed": "|b1",
}  # fmt: skip


class PageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a raw page comes from and what it settles; travels in the header `page` beside the page's bytes."""

    v: int = 1
    venue: str
    symbol: str
    channel: str  # "trades" or "candles_5m"
    run: str
    task: str = ""
    source: str = "history"
    ts_receipt_ms: int
    covers: Span  # after this page nothing in [start, end) is left to ask
    asked: Span | None = None  # the whole range of the load this page belongs to; None: the same as `covers`
    first_id: int | None = None  # trades: the id this page was asked from, and the largest it holds
    last_id: int | None = None
    unrecoverable: tuple[Span, ...] = ()  # the loader asked again and the exchange still has nothing here


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one stream as columns; `covers` less `missing` less `unrecoverable` is what may be called stored."""

    v: int = 1
    venue: str
    symbol: str
    channel: str
    source: str  # live, history, replay, aggregated
    run: str
    ts_receipt_ms: int
    origin: tuple[str, int, int] | None = None  # topic, partition, offset this batch was made from
    covers: Span | None = None
    missing: tuple[Span, ...] = ()  # asked and answered, but rows could not be read
    unrecoverable: tuple[Span, ...] = ()  # the exchange itself does not have it
    columns: dict[str, bytes]

    def array(self, name: str) -> Array:
        """Column `name` as a read-only array of shape (rows,)."""
        return np.frombuffer(self.columns[name], dtype=_dtypes(self.channel)[name])

    def arrays(self) -> dict[str, Array]:
        return {name: self.array(name) for name in self.columns}

    def __len__(self) -> int:
        name, column = next(iter(self.columns.items()))
        return len(column) // np.dtype(_dtypes(self.channel)[name]).itemsize


def _dtypes(channel: str) -> dict[str, str]:
    return TRADE_COLUMNS if channel == "trades" else CANDLE_COLUMNS


def pack_columns(channel: str, arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """Arrays to wire bytes, in the declared order and dtype; a missing column is a KeyError."""
    return {name: np.ascontiguousarray(arrays[name], dtype=dtype).tobytes() for name, dtype in _dtypes(channel).items()}


def empty_columns(channel: str) -> dict[str, Array]:
    return {name: np.empty(0, dtype=dtype) for name, dtype in _dtypes(channel).items()}


def interval_of(channel: str) -> str:
    """`candles_5m` -> `5m`."""
    return channel.removeprefix("candles_")


def instant_ms(text: str) -> int:
    """An ISO date or instant as epoch milliseconds, UTC unless it says otherwise. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def stream_key(venue: str, symbol: str) -> bytes:
    """The Kafka key: one symbol's records stay in order on one partition."""
    return f"{venue}:{symbol}".encode()


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_page_decoder = msgspec.json.Decoder(PageInfo)

encode_batch = _encoder.encode
decode_batch = _batch_decoder.decode
encode_page_info = msgspec.json.encode
decode_page_info = _page_decoder.decode
