"""A candle that may not have reached its topic is in the row, and whoever recovers the row sends it again."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from agents import candles
from app.core import Message
from models.folding import ALL_SENT, Folding
from models.market import Batch, encode_batch, pack_columns

KEY = "binance:BTCUSDT"
MINUTE = 60_000


class Topic:
    """Takes records and acknowledges them when told to."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.open: list[asyncio.Future[None]] = []

    async def put(self, _topic: str, _key: bytes, value: bytes) -> asyncio.Future[None]:
        self.records.append(value)
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]

    def acknowledge(self) -> None:
        for future in self.open:
            future.set_result(None)
        self.open = []


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()
    monkeypatch.setattr(candles, "put", topic.put)
    rows = candles.candles_by_symbol
    monkeypatch.setattr(rows, "table", {})
    monkeypatch.setattr(rows, "_owned", lambda: set(range(rows.partitions)))
    candles._on_their_way.clear()
    return topic


def trades(offset: int) -> Message:
    """Five minutes of one trade a minute: the candle of the five minutes before closes."""
    first = offset * 5
    ts = np.arange(first, first + 5) * MINUTE
    columns: dict[str, Any] = {
        "id": np.arange(first, first + 5), "ts_ms": ts, "price": np.ones(5), "size": np.ones(5),
        "quote_size": np.ones(5), "buyer_is_maker": np.zeros(5), "trades": np.ones(5),
    }  # fmt: skip
    batch = Batch(
        venue="binance", symbol="BTCUSDT", channel="trades", source="history", run="r", ts_receipt_ms=0,
        covers=(first * MINUTE, (first + 5) * MINUTE), asked=(0, 1000 * MINUTE),
        columns=pack_columns("trades", columns),
    )  # fmt: skip
    return Message("market.trades", 0, offset, KEY.encode(), encode_batch(batch), {}, 0.0)


async def test_a_row_carries_the_candles_that_are_not_known_to_be_on_their_topic(topic: Topic) -> None:
    await candles.fold([trades(0)])
    row = candles.candles_by_symbol.get(KEY)
    assert row is not None
    assert row.unsent == topic.records != []
    topic.acknowledge()
    await candles.fold([trades(1)])
    row = candles.candles_by_symbol.get(KEY)
    assert row is not None
    assert row.unsent == topic.records[-1:], "the first is on its topic by now"


async def test_whoever_recovers_a_row_sends_its_candles_again(topic: Topic) -> None:
    await candles.fold([trades(0)])
    sent = list(topic.records)
    candles._on_their_way.clear()  # another process
    await candles.send_again()
    assert topic.records == sent * 2
    await candles.fold([trades(0)])  # its offset was not committed: it comes again and makes nothing
    assert topic.records == sent * 2


async def test_rows_with_nothing_to_send_again_are_passed_over_unread(topic: Topic) -> None:
    await candles.fold([trades(0)])
    rows, sent = candles.candles_by_symbol, list(topic.records)
    rows.put("binance:ETHUSDT", Folding())
    rows.table[b"binance:SOLUSDT"] = b"cannot be read, " + ALL_SENT
    assert ALL_SENT in rows.table[b"binance:ETHUSDT"]
    candles._on_their_way.clear()
    await candles.send_again()
    assert topic.records == sent * 2
