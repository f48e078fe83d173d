"""Coinbase's format: one count for the whole connection, the maker's side, a book in one frame."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from adapters.exchanges.coinbase_frames import FrameCount, read_book, read_trades
from adapters.exchanges.streams import Limits
from app.errors import ExchangeError
from models.order_book import Book, Diff, Snapshot

RECORDED = Path(os.environ.get("RECORDED_DATA", "no/such/folder")) / "ws" / "other" / "coinbase.jsonl.gz"
recorded = pytest.mark.skipif(
    not RECORDED.is_file(), reason="RECORDED_DATA names no folder with ws/other/coinbase.jsonl.gz"
)


def frame(channel: str, number: int, *events: object) -> bytes:
    said = {"channel": channel, "timestamp": "2026-08-09T21:05:48.228568804Z", "sequence_num": number, "events": events}
    return json.dumps(said).encode()


def trade(number: int, side: str) -> dict[str, str]:
    return {"product_id": "BTC-USD", "trade_id": str(number), "price": "65083.67", "size": "0.5",
            "time": "2026-08-09T21:05:42.514318Z", "side": side}  # fmt: skip


def test_one_count_holds_for_all_channels_of_a_connection() -> None:
    count = FrameCount()
    taken = [
        count.take(frame(channel, number)) for number, channel in enumerate(("l2_data", "subscriptions", "ticker"))
    ]
    assert taken == [0, 0, 0]
    assert count.take(frame("heartbeats", 5)) == 2, "whatever they were: every channel may lack something"
    assert count.take(frame("l2_data", 6)) == 0
    with pytest.raises(ExchangeError, match="sequence_num"):
        count.take(b"{}")


def test_the_side_is_the_makers_and_the_newest_comes_first() -> None:
    event = {"type": "update", "trades": [trade(8, "BUY"), trade(7, "SELL")]}
    columns = read_trades([frame("market_trades", 1, event)], "BTC-USD")
    assert columns["id"].tolist() == [7, 8]
    assert columns["buyer_is_maker"].tolist() == [False, True]
    assert columns["ts_ms"].tolist() == [1_786_309_542_514] * 2


def test_a_book_is_read_by_its_sides() -> None:
    updates = [{"side": "bid", "price_level": "9", "new_quantity": "1"},
               {"side": "offer", "price_level": "11", "new_quantity": "0"}]  # fmt: skip
    event = {"type": "update", "product_id": "BTC-USD", "updates": updates}
    assert read_book(frame("l2_data", 3, event)) == Diff(3, 1_786_309_548_228, [(9.0, 1.0)], [(11.0, 0.0)])
    with pytest.raises(ExchangeError, match="not one of a book"):
        read_book(frame("ticker", 3, event))


@cache
def frames() -> list[bytes]:
    with gzip.open(RECORDED, "rt") as lines:
        said = [json.loads(line) for line in lines]
    return [line["raw"].encode() for line in said if line["kind"] == "ws"]


@recorded
def test_the_recorded_connection_lacks_no_frame() -> None:
    count = FrameCount()
    assert [count.take(raw) for raw in frames()] == [0] * 1030


@recorded
def test_the_recorded_snapshot_of_five_megabytes_is_the_whole_book() -> None:
    raw = max(frames(), key=len)
    assert 5_000_000 < len(raw) < Limits().frame_bytes
    snapshot = read_book(raw)
    assert isinstance(snapshot, Snapshot)
    assert (len(snapshot.bids), len(snapshot.asks), snapshot.bids_whole) == (18_764, 27_236, True)
    assert not Book(snapshot).crossed


@recorded
def test_recorded_trades_print_at_the_side_of_their_maker() -> None:
    at_price = taken = 0
    book: Book | None = None
    for raw in frames():
        if b'"l2_data"' in raw[:30] and b'"product_id":"BTC-USD"' in raw[:200]:
            found = read_book(raw)
            if isinstance(found, Snapshot):
                book = Book(found)
            elif book:
                book.apply(found)
        elif book and b'"market_trades"' in raw[:30] and b'"type":"update"' in raw:
            rows = read_trades([raw], "BTC-USD")
            for price, buyer_is_maker in zip(rows["price"], rows["buyer_is_maker"], strict=True):
                bid, ask = book.bids.top()[0][0], book.asks.top()[0][0]
                taken += 1
                at_price += abs(price - (bid if buyer_is_maker else ask)) < abs(
                    price - (ask if buyer_is_maker else bid)
                )
    assert taken > 20
    assert at_price / taken > 0.8


@recorded
def test_recorded_trade_ids_have_no_gap() -> None:
    for symbol in ("BTC-USD", "ETH-USD"):
        ids = read_trades([raw for raw in frames() if b'"market_trades"' in raw[:30]], symbol)["id"]
        assert len(ids) > 100
        assert (np.diff(ids) == 1).all()
