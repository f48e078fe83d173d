"""OKX's history and frames: against the simulated exchange, which is the truth, and as they were recorded."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from adapters.exchanges.base import Page, Parsed
from adapters.exchanges.behaviours import Behaviour
from adapters.exchanges.okx import Okx, Pace
from adapters.exchanges.okx_frames import OkxWire, mark, parse_frames, stream_name
from adapters.exchanges.requests import Patience
from adapters.exchanges.simulated import RunningExchange, serve
from adapters.exchanges.sources import TapeSource
from adapters.exchanges.streams import Notice
from adapters.exchanges.tape import DAY_MS, FIRST_DAY_MS, MINUTE_MS, Tape, listings
from app.errors import ExchangeRefused
from models.market import Span
from models.ordering import Mark

RECORDED = Path(os.environ.get("RECORDED_DATA", "no/such/folder")) / "ws" / "other" / "okx.jsonl.gz"
recorded = pytest.mark.skipif(not RECORDED.is_file(), reason="RECORDED_DATA names no folder with ws/other/okx.jsonl.gz")
NOON = FIRST_DAY_MS + DAY_MS + DAY_MS // 2
SPAN = (NOON, NOON + 7 * MINUTE_MS + 123)
SOURCE = TapeSource(Tape(11, listings(2, lively=4)))
QUICK = Patience(first_wait_s=0.01, again_s=0.01, settle_ms=0)


class Case:
    def __init__(self, running: RunningExchange, okx: Okx) -> None:
        self.running, self.okx = running, okx

    async def load(self, channel: str, span: Span = SPAN) -> tuple[list[Page], list[Parsed]]:
        """Pages and what they hold; asserts that what they cover joins up to the range."""
        pages = [page async for page in self.okx.history(channel, "BTC-USDT", *span)]
        edges = [page.covers for page in pages]
        assert [start for start, _ in edges] == [span[0], *(end for _, end in edges[:-1])]
        assert edges[-1][1] == span[1]
        infos = [page.info(venue="okx", symbol="BTC-USDT", channel=channel, asked=span, run="r") for page in pages]
        return pages, [self.okx.parse(info, page.body) for info, page in zip(infos, pages, strict=True)]


@asynccontextmanager
async def exchange(*behaviours: Behaviour) -> AsyncIterator[Case]:
    waits: list[str] = []
    running = await serve(SOURCE, behaviours=behaviours)
    okx = Okx(running.url, patience=QUICK, on_wait=lambda _s, why: waits.append(why))
    try:
        yield Case(running, okx)
    finally:
        await okx.close()
        await running.close()


def truth(span: Span = SPAN) -> tuple[list[int], list[int]]:
    """Ids and times of the tape's single trades."""
    singles = SOURCE.tape.trades("BTCUSDT", *span).singles()
    return singles.id.tolist(), singles.ts_ms.tolist()


def ids_of(parsed: list[Parsed]) -> list[int]:
    return [int(number) for page in parsed for number in page.columns["id"]]


async def test_trades_of_a_range_are_those_of_the_exchange_each_once() -> None:
    async with exchange() as case:
        pages, parsed = await case.load("trades")
        ids, times = truth()
        assert len(pages) > 2
        assert ids_of(parsed) == ids
        assert [int(ts) for page in parsed for ts in page.columns["ts_ms"]] == times
        assert not any(page.missing or page.unrecoverable for page in parsed)


async def test_a_load_goes_on_from_a_page_in_the_middle() -> None:
    async with exchange() as case:
        pages, _ = await case.load("trades")
        rest = [page async for page in case.okx.history("trades", "BTC-USDT", *SPAN, cursor=pages[1].cursor)]
        assert [page.body for page in rest] == [page.body for page in pages[2:]]


async def test_trades_from_before_the_exchanges_memory_are_told_and_the_rest_is_loaded() -> None:
    span = (FIRST_DAY_MS - 3 * MINUTE_MS, FIRST_DAY_MS + 2 * MINUTE_MS)
    async with exchange() as case:
        _, parsed = await case.load("trades", span)
        assert ids_of(parsed) == truth(span)[0]


async def test_trades_that_the_exchange_lacks_are_unrecoverable() -> None:
    lack = (NOON + MINUTE_MS, NOON + 3 * MINUTE_MS)
    lacks = Behaviour(name="lacks", endpoint="history-trades", start_ms=lack[0], end_ms=lack[1])
    async with exchange(lacks) as case:
        _, parsed = await case.load("trades")
        expected = [number for number, ts in zip(*truth(), strict=True) if not lack[0] <= ts < lack[1]]
        assert ids_of(parsed) == expected
        assert any(start <= lack[0] + MINUTE_MS < end for page in parsed for start, end in page.unrecoverable)


async def test_candles_are_the_exchanges_and_say_what_it_does_not_say() -> None:
    span = (NOON, NOON + 230 * MINUTE_MS)
    async with exchange() as case:
        pages, parsed = await case.load("candles_1m", span)
        assert len(pages) == 3
        rows = {name: np.concatenate([page.columns[name] for page in parsed]) for name in parsed[0].columns}
        theirs = SOURCE.tape.candles("BTCUSDT", "1m", *span)
        assert rows["ts"].tolist() == theirs.ts_ms.tolist()
        assert np.allclose(rows["close"] * 100, theirs.close)
        assert rows["closed"].all()
        assert (rows["trades"] == -1).all()
        assert np.isnan(rows["taker_buy_volume"]).all()


async def test_a_missing_candle_is_unrecoverable_and_nothing_else() -> None:
    lack = (NOON + 3 * MINUTE_MS, NOON + 5 * MINUTE_MS)
    lacks = Behaviour(name="lacks", endpoint="history-candles", start_ms=lack[0], end_ms=lack[1])
    async with exchange(lacks) as case:
        _, [page] = await case.load("candles_1m", (NOON, NOON + 10 * MINUTE_MS))
        assert len(page.columns["ts"]) == 8
        assert page.unrecoverable == (lack,)


async def test_pages_behind_an_id_join_up_to_now() -> None:
    async with exchange() as case:
        ids, times = truth()
        page = await case.okx.page_from("trades", "BTC-USDT", ids[0], times[0])
        assert (page.first_id, page.last_id, page.rows, page.more) == (ids[0], ids[0] + 99, 100, True)
        candle = await case.okx.page_from("candles_1m", "BTC-USDT", NOON // MINUTE_MS, NOON)
        assert (candle.first_id, candle.rows) == (NOON // MINUTE_MS, 100)


async def test_trouble_is_waited_out() -> None:
    troubles = [
        Behaviour(name="too_many_requests", endpoint="history-trades", seconds=0),
        Behaviour(name="html", endpoint="history-trades"), Behaviour(name="cut_json", endpoint="history-trades"),
        Behaviour(name="reset", endpoint="history-trades"),
    ]  # fmt: skip
    async with exchange(*troubles) as case:
        _, parsed = await case.load("trades")
        assert ids_of(parsed) == truth()[0]


async def test_what_the_exchange_does_not_have_is_refused_by_name() -> None:
    async with exchange() as case:
        with pytest.raises(ExchangeRefused, match="51001"):
            await case.okx.prepare("BTC-NOSUCH")
        with pytest.raises(ExchangeRefused, match="okx has no channel 'candles_8h'"):
            case.okx.stream_name("candles_8h", "BTC-USDT")
        with pytest.raises(ExchangeRefused, match="okx has no channel 'fills'"):
            case.okx.stream_name("fills", "BTC-USDT")
        assert await case.okx.symbols() == ["BTC-USDT", "ETH-USDT"]


def test_requests_keep_their_distance() -> None:
    pace = Pace(4, 60.0)
    for _ in range(2):
        assert pace.wait_s(2) == 0
        with pace.spending(2):
            pass
    assert 59 < pace.wait_s(1) <= 60
    pace.pause(100, "told to")
    assert (99 < pace.wait_s(1) <= 100, pace.why) == (True, "told to")


# --- words ------------------------------------------------------------------------------------------------------------


def frame(channel: str, *rows: object, **said: object) -> bytes:
    return json.dumps({"arg": {"channel": channel, "instId": "BTC-USDT"}, "data": rows, **said}).encode()


def trade(number: int, side: str = "buy", **other: object) -> dict[str, object]:
    return {"instId": "BTC-USDT", "tradeId": str(number), "px": "30236", "sz": "0.0002", "side": side,
            "ts": str(1_652_459_224_000 + number), **other}  # fmt: skip


def candle(ts: int, confirm: str) -> list[str]:
    return [str(ts), "10", "12", "9", "11", "3", "33", "33", confirm]


def test_the_side_of_a_trade_is_the_takers() -> None:
    parsed = parse_frames("trades", [(1, frame("trades-all", trade(7, "sell"))), (2, frame("trades-all", trade(8)))])
    assert parsed.columns["buyer_is_maker"].tolist() == [True, False]
    assert parsed.columns["quote_size"].tolist() == [6.0472, 6.0472]
    assert parsed.columns["trades"].tolist() == [1, 1]


def test_r10_a_bad_frame_does_not_touch_its_neighbours() -> None:
    frames = [(n, frame("trades-all", trade(n, "hold" if n == 2 else "buy"))) for n in (1, 2, 3)]
    parsed = parse_frames("trades", frames)
    assert parsed.columns["id"].tolist() == [1, 3]
    assert [bad.frame for bad in parsed.rejected] == [frames[1]]


def test_only_closed_candles_become_rows() -> None:
    frames = [(n, frame("candle1m", candle(n * 60_000, confirm))) for n, confirm in ((1, "1"), (2, "0"))]
    assert parse_frames("candles_1m", frames).columns["ts"].tolist() == [60_000]
    assert mark("candles_1m", frames[1][1]) == Mark(2, 2, 120_000, 180_000, done=False)


def test_a_frame_tells_its_place() -> None:
    two = frame("trades-all", trade(9), trade(8))
    assert mark("trades", two) == Mark(8, 9, 1_652_459_224_009, 1_652_459_224_009)
    book = {"asks": [], "bids": [], "ts": "5", "seqId": 15, "prevSeqId": 10}
    assert mark("book", frame("books", book, action="update")) == Mark(15, 15, 5, 5, before=10)
    assert mark("book", frame("books", book, action="snapshot")) is None
    assert mark("trades", b"pong") is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [(b"pong", Notice("pong")), (b"\xff", Notice("unreadable")),
     (b'{"event":"notice","code":"64008"}', Notice("shutdown")),
     (b'{"id":"3","event":"error","code":"60018","msg":"wrong"}', Notice("refused", 3, "60018 wrong")),
     (b'{"event":"subscribe","arg":{"channel":"books","instId":"BTC-USDT"}}',
      Notice("confirmed", None, "", "books:BTC-USDT"))],
)  # fmt: skip
def test_what_is_no_data_is_understood(said: bytes, meant: Notice) -> None:
    assert OkxWire().stream_of(said) is None
    assert OkxWire().notice(said) == meant


def test_streams_have_their_names_and_paths() -> None:
    names = {channel: stream_name(channel, "BTC-USDT") for channel in ("trades", "candles_1h", "candles_1d", "book")}
    assert names == {"trades": "trades-all:BTC-USDT", "candles_1h": "candle1H:BTC-USDT",
                     "candles_1d": "candle1Dutc:BTC-USDT", "book": "books:BTC-USDT"}  # fmt: skip
    assert {OkxWire().path_of(name) for name in names.values()} == {"/ws/v5/public", "/ws/v5/business"}
    assert json.loads(OkxWire().subscribe(["books:BTC-USDT"], 4)) == {
        "id": "4", "op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT"}]
    }  # fmt: skip


def raws(keep: Callable[[dict[str, object]], bool]) -> list[bytes]:
    with gzip.open(RECORDED, "rt") as lines:
        said = [json.loads(line) for line in lines]
    return [line["raw"].encode() for line in said if line["kind"] == "ws" and keep(json.loads(line["raw"]))]


@recorded
def test_recorded_trades_are_read_in_order_of_id() -> None:
    frames = raws(lambda said: said["arg"] == {"channel": "trades", "instId": "BTC-USDT"} and "data" in said)
    parsed = parse_frames("trades", [(n, raw) for n, raw in enumerate(frames)])
    ids = parsed.columns["id"]
    assert not parsed.rejected
    assert len(ids) == len(frames) > 10
    assert (np.diff(ids) == 1).all()
    places = [place for raw in frames if (place := mark("trades", raw))]
    assert [place.last for place in places] == ids.tolist()


@recorded
def test_recorded_confirmations_repeat_for_repeated_requests() -> None:
    notices = [OkxWire().notice(raw) for raw in raws(lambda said: "event" in said)]
    assert {notice.kind for notice in notices} == {"confirmed"}
    assert len(notices) == 18
    assert len({notice.stream for notice in notices}) == 9
