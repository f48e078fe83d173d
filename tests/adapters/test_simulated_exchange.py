"""The simulated exchange speaks the exchange's words: formats, limits, refusals; and serves files as they are."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adapters.exchanges.behaviours import BEHAVIOURS, Behaviour, read_plan, read_plan_file
from adapters.exchanges.recorded import RecordedSource
from adapters.exchanges.simulated import SimulatedExchange, open_source, serve
from adapters.exchanges.sources import TapeSource
from adapters.exchanges.tape import DAY_MS, FIRST_DAY_MS, MINUTE_MS, Tape
from app.errors import SetupRefused

DAY = FIRST_DAY_MS + 2 * DAY_MS
TAPE = Tape(11)


class Client:
    """GET with the status, the JSON and the headers."""

    def __init__(self, url: str, exchange: SimulatedExchange) -> None:
        self.url, self.exchange = url, exchange
        self._session = aiohttp.ClientSession()

    async def get(self, path: str, **query: Any) -> tuple[int, Any, Any]:
        async with self._session.get(self.url + path, params=query) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text[:1] in ("[", "{") else text, answer.headers

    async def post(self, path: str, content: Any) -> tuple[int, str]:
        async with self._session.post(self.url + path, json=content) as answer:
            return answer.status, await answer.text()

    async def close(self) -> None:
        await self._session.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    running = await serve(TapeSource(TAPE))
    client = Client(running.url, running.exchange)
    yield client
    await client.close()
    await running.close()


# -- formats ------------------------------------------------------------------------------------------------


async def test_a_kline_has_the_twelve_elements_and_types_of_the_real_one(client: Client) -> None:
    _, rows, _ = await client.get("/api/v3/klines", symbol="BTCUSDT", interval="5m", startTime=DAY, limit=2)
    assert [[type(cell).__name__ for cell in row] for row in rows] == [
        ["int", *["str"] * 5, "int", "str", "int", *["str"] * 3]
    ] * 2
    assert [rows[0][0], rows[0][6], rows[1][0], rows[0][11]] == [DAY, DAY + 299_999, DAY + 300_000, "0"]
    assert all(len(text.split(".")[1]) == 8 for text in rows[0] if isinstance(text, str) and text != "0")


async def test_an_aggregate_trade_has_the_fields_of_the_real_one_in_its_order(client: Client) -> None:
    _, rows, _ = await client.get("/api/v3/aggTrades", symbol="XRPUSDT", startTime=DAY, limit=3)
    assert [list(row) for row in rows] == [["a", "p", "q", "f", "l", "T", "m", "M"]] * 3
    assert [row["a"] - rows[0]["a"] for row in rows] == [0, 1, 2]
    assert all(len(row["p"].split(".")[1]) == 8 and isinstance(row["m"], bool) for row in rows)
    _, again, _ = await client.get("/api/v3/aggTrades", symbol="XRPUSDT", fromId=rows[1]["a"], limit=2)
    assert again == rows[1:]


async def test_both_ends_are_inclusive_and_either_may_stand_alone(client: Client) -> None:
    async def opens(**query: int) -> list[int]:
        _, rows, _ = await client.get("/api/v3/klines", symbol="BTCUSDT", interval="1m", **query)
        return [(row[0] - DAY) // MINUTE_MS for row in rows]

    assert await opens(startTime=DAY, endTime=DAY) == [0]
    assert await opens(startTime=DAY + 1, endTime=DAY + 3 * MINUTE_MS - 1) == [1, 2]
    assert await opens(startTime=DAY, limit=3) == [0, 1, 2]
    assert await opens(endTime=DAY, limit=3) == [-2, -1, 0]
    assert await opens(startTime=(DAY + MINUTE_MS) * 1000, endTime=DAY + MINUTE_MS) == [1]  # microseconds
    assert await opens(startTime=DAY, endTime=DAY - 1) == []
    assert len(await opens(startTime=DAY, limit=5000)) == 1000
    assert len(await opens(startTime=DAY)) == 500
    trades = TAPE.trades("BTCUSDT", DAY, DAY + MINUTE_MS)
    ends = {"startTime": int(trades.ts_ms[3]), "endTime": int(trades.ts_ms[8])}
    _, rows, _ = await client.get("/api/v3/aggTrades", symbol="BTCUSDT", **ends)
    assert [row["a"] for row in rows] == trades.id[
        (trades.ts_ms >= ends["startTime"]) & (trades.ts_ms <= ends["endTime"])
    ].tolist()


async def test_nothing_behind_the_exchanges_clock_is_shown(client: Client) -> None:
    now = DAY + 12 * 3_600_000 + 95_500
    client.exchange.show([Behaviour(name="clock", at=now)])
    _, newest, _ = await client.get("/api/v3/klines", symbol="BTCUSDT", interval="1m", limit=2)
    assert newest[-1][0] <= now < newest[-1][6]
    _, trades, _ = await client.get("/api/v3/aggTrades", symbol="BTCUSDT", limit=5)
    assert now - 60_000 < trades[-1]["T"] <= now + 2_000
    _, by_id, _ = await client.get("/api/v3/aggTrades", symbol="BTCUSDT", fromId=trades[-1]["a"] + 100)
    assert by_id == []
    _, later, _ = await client.get("/api/v3/klines", symbol="BTCUSDT", interval="1m", startTime=now + DAY_MS)
    assert later == []
    _, said, _ = await client.get("/api/v3/time")
    assert 0 <= said["serverTime"] - now < 5_000


async def test_the_order_book_is_sorted_and_never_crossed(client: Client) -> None:
    _, book, _ = await client.get("/api/v3/depth", symbol="ETHUSDT", limit=50)
    bids, asks = ([float(price) for price, _ in book[side]] for side in ("bids", "asks"))
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]
    assert len(bids) == len(asks) == 50


async def test_exchange_info_names_limits_and_filters(client: Client) -> None:
    _, info, _ = await client.get("/api/v3/exchangeInfo", symbols='["BTCUSDT","XRPUSDT"]')
    assert [symbol["symbol"] for symbol in info["symbols"]] == ["BTCUSDT", "XRPUSDT"]
    assert info["rateLimits"][0] == {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": 6000,
    }
    assert info["symbols"][1]["filters"][0]["tickSize"] == "0.00010000"
    status, _, _ = await client.get("/api/v3/exchangeInfo", symbols='["BTCUSDT","NOSUCH"]')
    assert status == 400


# -- refusals and limits --------------------------------------------------------------------------------------

REFUSED = [
    ("klines", {"symbol": "NOSUCH", "interval": "5m"}, -1121),
    ("klines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120),
    ("klines", {"symbol": "BTCUSDT"}, -1102),
    ("klines", {"interval": "5m"}, -1102),
    ("klines", {"symbol": "BTC USDT", "interval": "5m"}, -1100),
    ("klines", {"symbol": "BTCUSDT", "interval": "5m", "startTime": "None"}, -1100),
    ("klines", {"symbol": "BTCUSDT", "interval": "5m", "startTime": ""}, -1105),
    ("klines", {"symbol": "BTCUSDT", "interval": "5m", "start_time": "1"}, -1104),
    ("aggTrades", {"symbol": "BTCUSDT", "limit": "0"}, -1130),
    ("aggTrades", {"symbol": "BTCUSDT", "fromId": "1", "startTime": "1"}, -1128),
]


@pytest.mark.parametrize(("endpoint", "query", "code"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_is_asked_wrongly_is_refused_with_the_exchanges_number(
    client: Client, endpoint: str, query: dict[str, str], code: int
) -> None:
    status, said, _ = await client.get(f"/api/v3/{endpoint}", **query)
    assert (status, said["code"]) == (400, code)
    assert said["msg"]


async def test_retired_and_unknown_paths_are_not_there(client: Client) -> None:
    for path in ("/api/v1/klines", "/api/v3/nothing"):
        status, _, _ = await client.get(path)
        assert status == 404


async def test_every_answer_counts_its_weight(client: Client) -> None:
    client.exchange.show([Behaviour(name="clock", at=DAY + 1_000)])  # the minute does not turn while we count
    used = []
    for path, query in (
        ("ping", {}), ("klines", {"symbol": "BTCUSDT", "interval": "1h"}), ("aggTrades", {"symbol": "BTCUSDT"}),
        ("exchangeInfo", {}), ("depth", {"symbol": "BTCUSDT", "limit": 5000}), ("klines", {}),
    ):  # fmt: skip
        _, _, headers = await client.get(f"/api/v3/{path}", **query)
        used.append(int(headers["x-mbx-used-weight-1m"]))
    assert used == [1, 3, 7, 27, 277, 279]


async def test_over_the_limit_is_429_and_going_on_is_a_ban(client: Client) -> None:
    client.exchange.show([Behaviour(name="clock", at=DAY), Behaviour(name="limits", weight=10)])
    answers = [await client.get("/api/v3/aggTrades", symbol="BTCUSDT", limit=1) for _ in range(14)]
    assert [status for status, _, _ in answers] == [200, 200, *[429] * 10, 418, 418]
    assert answers[2][1]["code"] == answers[-1][1]["code"] == -1003
    assert 1 <= int(answers[2][2]["Retry-After"]) <= 60
    assert 60 < int(answers[-1][2]["Retry-After"]) <= 120
    assert "banned until" in answers[-1][1]["msg"]


# -- behaviours -----------------------------------------------------------------------------------------------


async def test_behaviours_can_be_set_counted_and_cleared_while_it_runs(client: Client) -> None:
    assert (await client.post("/sim/behaviours", [{"name": "html", "times": 1}]))[0] == 200
    assert (await client.get("/api/v3/ping"))[0] == 403
    assert (await client.get("/api/v3/ping"))[0] == 200
    _, counted, _ = await client.get("/sim/requests")
    assert counted["answers"] == {"ping 403": 1, "ping 200": 1}
    assert counted["behaviours"] == [{"name": "html", "seen": 2, "shown": 1}]
    status, why = await client.post("/sim/behaviours", [{"name": "nonsense"}])
    assert status == 422
    assert "short_page" in why


def test_a_plan_says_where_it_is_wrong(tmp_path: Path) -> None:
    assert [b.name for b in read_plan(b'[{"name":"short_page","rows":4},{"name":"reset","skip":2}]', "x")] == [
        "short_page",
        "reset",
    ]
    for text, word in (
        (b'[{"name":"lacks"}]', "start_ms, end_ms"), (b'[{"name":"reset","speling":1}]', "speling"), (b"{", "list"),
    ):  # fmt: skip
        with pytest.raises(SetupRefused, match=word):
            read_plan(text, "plan.json")
    with pytest.raises(SetupRefused, match="cannot be read"):
        read_plan_file(tmp_path / "none.json")


def test_every_behaviour_says_what_it_shows() -> None:
    assert all(
        text and all(name in Behaviour.__struct_fields__ for name in needs) for text, needs, _ in BEHAVIOURS.values()
    )


async def test_a_taken_port_is_one_clear_line(client: Client) -> None:
    port = int(client.url.rsplit(":", 1)[1])
    with pytest.raises(SetupRefused, match=r"choose another --port"):
        await serve(TapeSource(TAPE), port=port)


async def test_the_process_says_its_address_and_ends_on_sigterm() -> None:
    run = "asyncio.run(simulated.main(simulated.open_source(5, None), '127.0.0.1', 0, None, None, 1))"
    code = f"import asyncio; from adapters.exchanges import simulated; {run}"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 150))
    assert (ready["source"], ready["seed"]) == ("generated", 5)
    async with aiohttp.ClientSession() as session, session.get(ready["url"] + "/sim/catalog") as answer:
        catalog = await answer.json()
    assert {"symbol": "BTCUSDT", "channel": "trades"}.items() <= catalog["streams"][0].items()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 150) == 0


# -- recorded files -------------------------------------------------------------------------------------------

HEADER = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_quote,ignore\n"


def candle(ts: int, price: str = "10.50", unit: int = 1) -> str:
    close = (ts + MINUTE_MS) * unit - 1
    return f"{ts * unit},{price},11.0,9.00,{price},3.25,{close},34.125,7,1.00,10.5,0\n"


def zipped(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.name.replace(".zip", ".csv"), text)


def gzipped(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def test_files_are_served_with_their_own_digits_in_either_unit(tmp_path: Path) -> None:
    gzipped(tmp_path / "BTCUSDT-1m-2024-12.csv.gz", HEADER + candle(DAY, "10.50") + candle(DAY + MINUTE_MS, "10.5"))
    zipped(tmp_path / "BTCUSDT-1m-2025-01.zip", candle(DAY + 2 * MINUTE_MS, "10.500", unit=1000))
    source = RecordedSource(tmp_path)
    rows = source.candles_between("BTCUSDT", "1m", DAY, DAY + 10 * MINUTE_MS, 1000, DAY + DAY_MS)
    assert rows.keys == [DAY, DAY + MINUTE_MS, DAY + 2 * MINUTE_MS]
    assert rows.texts[0] == f'[{DAY},"10.50","11.0","9.00","10.50","3.25",{DAY + 59_999},"34.125",7,"1.00","10.5","0"]'
    assert json.loads(rows.texts[2])[:2] == [DAY + 2 * MINUTE_MS, "10.500"]
    assert json.loads(rows.texts[2])[6] == DAY + 3 * MINUTE_MS - 1
    assert source.catalog(2**60)[0].rows == 3
    assert source.candles_between("BTCUSDT", "5m", DAY, DAY + DAY_MS, 1000, DAY + DAY_MS).keys == []


def test_trades_come_with_or_without_best_match_and_header(tmp_path: Path) -> None:
    zipped(tmp_path / "um/BSVUSDT-aggTrades-2026-04-10.zip",
           "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
           f"5,31.10,2,7,9,{DAY},true\n6,31.2,0.50,10,10,{DAY + 3},false\n")  # fmt: skip
    rows = RecordedSource(tmp_path).trades_from("BSVUSDT", 6, 10, DAY + DAY_MS)
    assert rows.texts == [f'{{"a":6,"p":"31.2","q":"0.50","f":10,"l":10,"T":{DAY + 3},"m":false}}']
    zipped(tmp_path / "spot/BSVUSDT-aggTrades-2026-04-10.zip", f"5,31.10,2,7,9,{DAY},True,True\n")
    rows = RecordedSource(tmp_path).trades_between("BSVUSDT", DAY, DAY, 10)
    assert rows.texts == [f'{{"a":5,"p":"31.10","q":"2","f":7,"l":9,"T":{DAY},"m":true,"M":true}}']


def test_spot_and_futures_are_never_mixed(tmp_path: Path) -> None:
    zipped(tmp_path / "um/BTCUSDT-1m-a.zip", candle(DAY))
    assert RecordedSource(tmp_path).market == "um"
    zipped(tmp_path / "spot/ETHUSDT-1m-a.zip", candle(DAY))
    both = RecordedSource(tmp_path)
    assert both.market == "spot"
    assert [symbol["symbol"] for symbol in both.symbols()] == ["ETHUSDT"]
    assert any("futures" in why for why in both.left_out().values())


def test_half_a_candle_is_left_out_and_said(tmp_path: Path) -> None:
    gzipped(tmp_path / "BTCUSDT-1m-a.csv.gz", f"open_time,open,high,low,close,volume\n{DAY},1,1,1,1,1\n")
    with pytest.raises(SetupRefused, match="invented"):
        RecordedSource(tmp_path)
    gzipped(tmp_path / "BTCUSDT-5m-a.csv.gz", HEADER + candle(DAY))
    gzipped(tmp_path / "notes.csv.gz", "1,2\n")
    left_out = {Path(name).name: why for name, why in open_source(1, tmp_path).left_out().items()}
    assert set(left_out) == {"BTCUSDT-1m-a.csv.gz", "notes.csv.gz"}


def test_overlapping_files_merge_and_contradicting_ones_are_both_named(tmp_path: Path) -> None:
    zipped(tmp_path / "BTCUSDT-1m-a.zip", candle(DAY + MINUTE_MS) + candle(DAY + 2 * MINUTE_MS))
    zipped(tmp_path / "BTCUSDT-1m-b.zip", candle(DAY) + candle(DAY + MINUTE_MS))
    rows = RecordedSource(tmp_path).candles_between("BTCUSDT", "1m", DAY, DAY + DAY_MS, 1000, DAY + DAY_MS)
    assert rows.keys == [DAY, DAY + MINUTE_MS, DAY + 2 * MINUTE_MS]
    zipped(tmp_path / "BTCUSDT-1m-c.zip", candle(DAY, "10.51"))
    with pytest.raises(SetupRefused, match=r"1m-b\.zip.*1m-c\.zip.*different"):
        RecordedSource(tmp_path).catalog(2**60)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "BTCUSDT-1m-a.zip").write_bytes(b"PK no")
    with pytest.raises(SetupRefused, match=r"BTCUSDT-1m-a\.zip"):
        RecordedSource(tmp_path)


def test_the_recorded_folder_is_cataloged_whole() -> None:
    folder = Path(os.environ.get("RECORDED_DATA", ""))
    if "RECORDED_DATA" not in os.environ or not (folder / "klines/spot/5m_full").is_dir():
        pytest.skip("RECORDED_DATA names no folder with klines/spot/5m_full")
    source = RecordedSource(folder)
    assert source.market == "spot"
    rows = {(entry.symbol, entry.channel): entry.rows for entry in source.catalog(2**60)}
    assert rows["BTCUSDT", "candles_5m"] == 8640
    assert rows["BTCUSDT", "candles_15m"] == 8832
    assert rows["BTCUSDT", "candles_1h"] == 743
