"""A page becomes a batch; what cannot be read is put aside with its hole."""

import json

from adapters.exchanges.base import Exchange
from adapters.exchanges.binance import BinanceSpot
from agents.normalize import normalize
from models.market import PageInfo, decode_batch, encode_batch

MINUTE = 60_000
EXCHANGE: Exchange = BinanceSpot("http://127.0.0.1:9")


def page(rows: list[list[object]]) -> tuple[PageInfo, bytes]:
    info = PageInfo(
        venue="binance", symbol="BTCUSDT", channel="candles_1m", run="r", ts_receipt_ms=5,
        covers=(0, len(rows) * MINUTE), asked=(0, len(rows) * MINUTE),
    )  # fmt: skip
    return info, json.dumps(rows).encode()


def candle(index: int, price: str = "1.5") -> list[object]:
    ts = index * MINUTE
    return [ts, price, "2.0", "1.0", "1.7", "10.0", ts + MINUTE - 1, "15.0", 3, "4.0", "6.0", "0"]


def test_a_batch_carries_rows_coverage_and_the_place_it_came_from() -> None:
    info, body = page([candle(i) for i in range(3)])
    batch, rejected = normalize(EXCHANGE, info, body, ("raw.candles", 2, 17))
    batch = decode_batch(encode_batch(batch))
    assert rejected == []
    assert (len(batch), batch.covers, batch.origin, batch.run) == (3, (0, 3 * MINUTE), ("raw.candles", 2, 17), "r")
    assert batch.array("open").tolist() == [1.5, 1.5, 1.5]


def test_a_row_that_cannot_be_read_can_be_sent_again_as_a_page_of_its_own() -> None:
    info, body = page([candle(0), candle(1, "?"), candle(2)])
    batch, rejected = normalize(EXCHANGE, info, body, ("raw.candles", 0, 0))
    assert batch.array("ts").tolist() == [0, 2 * MINUTE]
    assert batch.missing == ((MINUTE, 2 * MINUTE),)
    [(row, reason, hole)] = rejected
    assert json.loads(row) == [candle(1, "?")]
    assert hole == (MINUTE, 2 * MINUTE)
    assert reason


def test_a_page_that_cannot_be_read_is_one_hole() -> None:
    info, _ = page([candle(0), candle(1)])
    batch, rejected = normalize(EXCHANGE, info, b"<html>", ("raw.candles", 0, 0))
    assert (len(batch), batch.missing) == (0, (info.covers,))
    assert [(row, hole) for row, _, hole in rejected] == [(b"<html>", info.covers)]
