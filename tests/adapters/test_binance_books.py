"""Frames of Binance's books as they came, and books from recordings equal to the best prices beside them."""

from __future__ import annotations

import gzip
import json
import os
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from adapters.exchanges.binance_books import Ticker, read_book, read_diff, read_snapshot, read_ticker
from app.errors import ExchangeError
from models.order_book import CHAINS, Book, BookSync

WS = Path(os.environ.get("RECORDED_DATA", "no/such/folder")) / "ws"

SPOT = (
    b'{"stream":"xmrbtc@depth@100ms","data":{"e":"depthUpdate","E":1628952395768,"s":"XMRBTC","U":717720856,'
    b'"u":717720857,"b":[],"a":[["0.00578700","31.23100000"],["0.00578800","0.00000000"]]}}'
)
UM = (
    b'{"e":"depthUpdate","E":1626992741037,"T":1626992741024,"s":"SUSHIUSDT","U":600859599090,"u":600859600917,'
    b'"pu":600859598061,"b":[["7.5040","813"]],"a":[]}'
)


def test_a_spot_diff_from_a_combined_stream() -> None:
    diff = read_diff(SPOT)
    assert (diff.first, diff.last, diff.previous, diff.ts_ms) == (717720856, 717720857, None, 1628952395768)
    assert (diff.bids, diff.asks) == ([], [(0.005787, 31.231), (0.005788, 0.0)])


def test_a_bare_futures_diff_names_the_one_before_it() -> None:
    diff = read_diff(UM)
    assert (diff.first, diff.last, diff.previous) == (600859599090, 600859600917, 600859598061)
    assert (diff.ts_ms, diff.bids) == (1626992741037, [(7.504, 813.0)])


def test_unknown_fields_and_microseconds_are_no_trouble() -> None:
    frame = SPOT.replace(b'"E":1628952395768', b'"st":1,"ps":null,"E":1628952395768123')
    assert read_diff(frame) == read_diff(SPOT)


def test_best_prices() -> None:
    frame = b'{"stream":"x@bookTicker","data":{"u":400900217,"s":"BNBUSDT","b":"25.35","B":"31.2","a":"25.36","A":"4"}}'
    assert read_ticker(frame) == Ticker(400900217, (25.35, 31.2), (25.36, 4.0))


@pytest.mark.parametrize(("levels", "whole"), [(100, False), (1000, False), (440, True), (0, True)])
def test_a_side_that_is_shorter_than_any_limit_is_whole(levels: int, whole: bool) -> None:
    body = {"lastUpdateId": 7, "bids": [[str(9000 - n), "1"] for n in range(levels)], "asks": [["9001", "1"]]}
    snapshot = read_snapshot(json.dumps(body).encode())
    assert (snapshot.bids_whole, snapshot.asks_whole) == (whole, True)
    assert (snapshot.last, snapshot.ts_ms) == (7, 0)


@pytest.mark.parametrize(
    "frame",
    [
        b"pong",
        b"[]",
        b"{}",
        b'{"stream":"x@depth","data":null}',
        b'{"e":"serverShutdown","E":1770123456789}',
        SPOT.replace(b"717720857", b"null"),
        SPOT.replace(b"717720857", b"1e400"),
        SPOT.replace(b"717720857", b"9223372036854775808000"),
        SPOT.replace(b"717720857", b"717720855"),  # ends before it begins
        SPOT.replace(b"31.23100000", b"-1"),
        SPOT.replace(b"31.23100000", b"nan"),
        SPOT.replace(b"0.00578700", b"0.00000000"),
        SPOT.replace(b"0.00578700", b"Infinity"),
        SPOT.replace(b'"0.00578700",', b""),
        SPOT[:-9],
    ],
)
def test_r10_what_cannot_be_used_is_one_error_with_a_reason(frame: bytes) -> None:
    with pytest.raises(ExchangeError, match=r"\w+"):
        read_book("frames", frame)


def test_r10_a_snapshot_that_is_an_error_answer_is_refused() -> None:
    with pytest.raises(ExchangeError, match="lastUpdateId"):
        read_book("snapshot", b'{"code":-1003,"msg":"Too much request weight used"}')


# States held against the bookTicker frame with the largest id up to theirs: every one behind a symbol's first frame.
RECORDINGS = {
    "binance_spot/btcusdt_20240808T2354_20240809T0005": (6491, 6493),  # the two lie between two frames
    "binance_spot/multi4_20210814T1446": (527, 527),
    "binance_spot/multi4_20211012T0028": (159, 159),
    "binance_um/btcusdt_20240808T2354_20240809T0000": (6547, 6547),
    "binance_um/multi4_20210722T2225": (743, 743),
}


@pytest.mark.skipif(not WS.is_dir(), reason="RECORDED_DATA names no folder with ws")
@pytest.mark.parametrize("name", RECORDINGS)
def test_r04_a_recorded_book_equals_the_best_prices_that_were_sent_beside_it(name: str) -> None:
    syncs: dict[str, BookSync] = {}
    states: defaultdict[str, list[Ticker]] = defaultdict(list)
    tickers: defaultdict[str, list[Ticker]] = defaultdict(list)
    chain = CHAINS["binance_um" if "um" in name else "binance"]
    for symbol, stream, frame in recorded(WS / f"{name}.jsonl.gz"):
        if stream == "bookTicker":
            tickers[symbol].append(read_ticker(frame))
            continue
        sync = syncs.get(symbol) or syncs.setdefault(symbol, BookSync(chain, partial(keep_top, states[symbol])))
        if stream == "snapshot":
            sync.snapshot(read_snapshot(frame))
        else:
            sync.diff(read_diff(frame))
        if states[symbol]:
            assert sync.state == "live", "no gap and never crossed"
    checks = [check for symbol in syncs for check in against_tickers(states[symbol], tickers[symbol])]
    assert (sum(checks), len(checks)) == RECORDINGS[name]


def keep_top(states: list[Ticker], book: Book) -> None:
    states.append(Ticker(book.at, book.bids.top()[0], book.asks.top()[0]))


def against_tickers(states: list[Ticker], tickers: list[Ticker]) -> Iterator[bool]:
    tickers = sorted(tickers)
    ids = [ticker.last for ticker in tickers]
    for state in states:
        if place := bisect_right(ids, state.last):
            yield tickers[place - 1][1:] == state[1:]


def recorded(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(symbol, "depth" | "bookTicker" | "snapshot", frame) in order of receipt."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            one = json.loads(line)
            frame = one["raw"].encode()
            if one["kind"] == "rest":
                asked = re.search(r"symbol=(\w+)", one["url"] or "symbol=BTCUSDT")
                yield asked[1] if asked else "", "snapshot", frame
            elif found := re.match(r'\{"stream":"(\w+)@(depth|bookTicker)', one["raw"]):
                yield found[1].upper(), found[2], frame
