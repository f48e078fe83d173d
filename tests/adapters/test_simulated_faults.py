"""Each fault of the live side does what its line says, and says in the log that it did; nothing else changes."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adapters.exchanges.behaviours import BEHAVIOURS, CHOICES, Behaviour, read_plan
from adapters.exchanges.sim_archive import ALTERED
from adapters.exchanges.sim_sockets import SOCKET_LIMITS
from adapters.exchanges.sources import TapeSource
from adapters.exchanges.tape import Tape
from app.errors import SetupRefused
from tests.adapters.live_client import NOON, Viewer, best, ends, rebuilt, texts, viewer

DIFFS, TRADES = "btcusdt@depth@100ms", "btcusdt@trade"
SPAN_MS = 20_000


async def shown(
    stream: str, count: int | None, *faults: Behaviour
) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """What the stream carries in truth in SPAN_MS, what came of it, and the log; `count` frames are waited for."""
    async with viewer(*faults) as view:
        socket = await view.connect(f"/ws/{stream}")
        view.move(SPAN_MS)
        truth = view.truth(stream, NOON, NOON + SPAN_MS)
        came = await texts(socket, len(truth) if count is None else len(truth) + count)
        return truth, came, (await view.get("/sim/log"))


def loaded(frames: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames]


# -- frames --------------------------------------------------------------------------------------------------


async def test_a_dropped_frame_is_missing_and_logged_by_its_id() -> None:
    truth, came, log = await shown(TRADES, -2, Behaviour(name="drop", endpoint="trade", skip=3, times=2))
    assert came == truth[:3] + truth[5:]
    assert [line["id"] for line in log] == [json.loads(text)["t"] for text in truth[3:5]]
    assert {(line["name"], line["symbol"], line["conn"]) for line in log} == {("drop", "BTCUSDT", "c1")}


async def test_a_duplicate_comes_twice_and_a_reordered_frame_behind_the_next() -> None:
    truth, came, _ = await shown(TRADES, 1, Behaviour(name="duplicate", skip=2))
    assert came == [*truth[:3], truth[2], *truth[3:]]
    truth, came, _ = await shown(TRADES, None, Behaviour(name="reorder", skip=2))
    assert came == [*truth[:2], truth[3], truth[2], *truth[4:]]


async def test_a_delayed_frame_is_overtaken() -> None:
    truth, came, _ = await shown(DIFFS, None, Behaviour(name="delay", skip=2, seconds=1.05))
    assert sorted(came) == sorted(truth)
    assert came.index(truth[2]) == 12


async def test_chance_is_the_same_for_the_same_seed() -> None:
    fault = Behaviour(name="drop", chance=0.5, times=0, seed=5)
    _, first, _ = await shown(DIFFS, -140, fault)
    truth, again, log = await shown(DIFFS, -140, fault)
    assert first == again
    seen = truth.index(again[-1])
    assert len(log) >= seen + 1 - len(again) > 20


async def test_only_the_frames_of_its_time_symbol_and_connection_are_met() -> None:
    window = {"start_ms": NOON + 5_000, "end_ms": NOON + 6_000, "times": 0}
    truth, came, _ = await shown(DIFFS, -10, Behaviour(name="drop", **window))
    assert [text for text in truth if text not in came] == [
        text for text in truth if NOON + 5_000 <= json.loads(text)["E"] < NOON + 6_000
    ]
    for elsewhere in ({"symbol": "ETHUSDT"}, {"conn": "c2"}, {"endpoint": "bookTicker"}):
        truth, came, log = await shown(DIFFS, None, Behaviour(name="drop", times=0, **elsewhere))
        assert came == truth
        assert log == []


VALUES = [None, "NEW_ENUM", "-1.00000000", "0.00000000", 2**60, 2**70, 1754400000000000]


@pytest.mark.parametrize("value", VALUES)
async def test_a_field_has_the_value_that_was_asked_for(value: Any) -> None:
    truth, came, _ = await shown(TRADES, None, Behaviour(name="field", text="p", value=value))
    assert loaded(came[:1]) == [{**json.loads(truth[0]), "p": value}]
    assert came[1:] == truth[1:]


async def test_frames_get_new_fields_another_order_and_lose_the_optional_one() -> None:
    truth, came, _ = await shown(TRADES, None, Behaviour(name="extra_fields", endpoint="trade"))
    assert {"st", "nq", "new"} <= set(json.loads(came[0]))
    for before, after in zip(loaded(truth), loaded(came), strict=True):
        assert {name: after[name] for name in before if name != "M"} == {n: v for n, v in before.items() if n != "M"}
        assert "M" not in after


async def test_an_unknown_event_comes_beside_the_known_ones() -> None:
    truth, came, _ = await shown(TRADES, 1, Behaviour(name="unknown_event", text="blockTrade"))
    assert json.loads(came[0])["e"] == "blockTrade"
    assert came[1:] == truth


async def test_times_of_frames_in_microseconds_and_half_a_frame() -> None:
    truth, came, _ = await shown(TRADES, None, Behaviour(name="microseconds", endpoint="trade", times=1))
    assert json.loads(came[0])["T"] == json.loads(truth[0])["T"] * 1000
    assert came[1:] == truth[1:]
    truth, came, _ = await shown(TRADES, None, Behaviour(name="cut_json", endpoint="trade"))
    assert came == [truth[0][: len(truth[0]) // 2], *truth[1:]]


async def test_a_frame_in_pieces_and_one_of_five_megabytes_arrive_whole() -> None:
    truth, came, _ = await shown(DIFFS, None, Behaviour(name="fragments", rows=7, times=0))
    assert came == truth
    _, came, _ = await shown(DIFFS, None, Behaviour(name="big_frame"))
    assert len(came[0]) > 5_000_000
    assert len(came[1]) < 50_000


async def test_frames_are_compressed_where_both_sides_want_it() -> None:
    for faults, wanted in (((), 0), ((Behaviour(name="deflate"),), 15)):
        async with viewer(*faults) as view:
            socket = await view.connect(f"/ws/{DIFFS}", compress=15)
            view.move(1_000)
            assert await texts(socket, 10) == view.truth(DIFFS, NOON, NOON + 1_000)
            assert socket.compress == wanted


# -- order book ----------------------------------------------------------------------------------------------


async def test_a_crossed_book_is_so_for_one_event() -> None:
    async with viewer(Behaviour(name="crossed", skip=5)) as view:
        socket = await view.connect(f"/ws/{DIFFS}")
        snapshot = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        view.move(5_000)
        diffs = loaded(await texts(socket, len(view.truth(DIFFS, NOON, NOON + 5_000))))
        later = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
    crossings = []
    for end in range(1, len(diffs) + 1):
        _, bids, asks = rebuilt(snapshot, diffs[:end])
        bid, _, ask, _ = best(bids, asks)
        crossings.append(float(bid) >= float(ask))
    assert crossings == [i == 5 for i in range(len(diffs))]
    assert rebuilt(snapshot, diffs)[1:] == (dict(later["bids"]), dict(later["asks"]))


@pytest.mark.parametrize(
    ("fault", "count"),
    [
        (Behaviour(name="empty_side", skip=4, times=3), 3),
        (Behaviour(name="whole_book", skip=4), 0),
        (Behaviour(name="quiet", seconds=3, skip=4), -30),
        (Behaviour(name="duplicate", skip=4, times=3), 3),
    ],
)
async def test_odd_diffs_lead_to_the_same_book(fault: Behaviour, count: int) -> None:
    async with viewer(fault) as view:
        socket = await view.connect(f"/ws/{DIFFS}")
        snapshot = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        view.move(SPAN_MS)
        diffs = loaded(await texts(socket, len(view.truth(DIFFS, NOON, NOON + SPAN_MS)) + count))
        later = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        assert (await view.get("/sim/log"))[0]["name"] == fault.name
    last = [diff for diff in diffs if diff["E"] <= NOON + SPAN_MS]
    assert rebuilt(snapshot, last)[1:] == (dict(later["bids"]), dict(later["asks"]))
    if fault.name == "empty_side":
        assert [bool(diff["b"]) and bool(diff["a"]) for diff in diffs[4:8]] == [False] * 4
    if fault.name == "whole_book":
        assert len(diffs[4]["b"]) + len(diffs[4]["a"]) > 1_500
    if fault.name == "quiet":
        assert diffs[4]["E"] - diffs[3]["E"] > 3_000


@pytest.mark.parametrize("offset_ms", [-5_000, 5_000])
async def test_a_snapshot_can_be_older_or_newer_than_the_diffs(offset_ms: int) -> None:
    async with viewer(Behaviour(name="snapshot_shift", endpoint="depth", offset_ms=offset_ms)) as view:
        odd = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        even = await view.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        assert (odd["lastUpdateId"] > even["lastUpdateId"]) == (offset_ms > 0)
        assert odd == json.loads(view.source.depth("BTCUSDT", 5000, NOON + offset_ms) or "")


# -- candles -------------------------------------------------------------------------------------------------


async def candle_frames(*faults: Behaviour, minutes: int = 4) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The closing frames of a candle stream in truth, and as they came, in a connection that also has trades."""
    async with viewer(*faults) as view:
        socket = await view.connect("/stream?streams=btcusdt@kline_1m/btcusdt@aggTrade")
        view.move(minutes * 60_000 + 5_000)
        until = NOON + minutes * 60_000 + 5_000
        truth = view.truth("btcusdt@kline_1m", NOON, until)
        late = 1 if any(fault.name == "no_close" for fault in faults) else 0
        count = len(truth) + len(view.truth("btcusdt@aggTrade", NOON, until)) - late
        came = [json.loads(text) for text in await texts(socket, count)]
    closing = [event["k"] for event in loaded(truth) if event["k"]["x"]]
    return closing, [frame["data"] for frame in came]


async def test_a_closing_frame_can_come_late_or_never() -> None:
    truth, came = await candle_frames(Behaviour(name="late_close", offset_ms=2_400))
    first = next(i for i, event in enumerate(came) if event["e"] == "kline" and event["k"]["x"])
    assert any(event["e"] == "aggTrade" and event["T"] > truth[0]["T"] for event in came[:first])
    truth, came = await candle_frames(Behaviour(name="no_close"))
    assert [event["k"]["t"] for event in came if event["e"] == "kline" and event["k"]["x"]] == [
        candle["t"] for candle in truth[1:]
    ]


async def test_a_candle_without_trades_closes_only_when_told() -> None:
    quiet = "xrpusdt@kline_1m"
    for faults in ((), (Behaviour(name="empty_candles"),)):
        async with viewer(*faults) as view:
            connected = await view.connect(f"/ws/{quiet}")
            view.move(3_600_000)
            frames = loaded(view.truth(quiet, NOON, NOON + 3_600_000))
            empty = [event["k"] for event in frames if event["k"]["n"] == 0]
            assert all((k["f"], k["L"], k["x"], k["v"]) == (-1, -1, True, "0.00000000") for k in empty)
            assert all(k["o"] == k["c"] == k["h"] == k["l"] for k in empty)
            wanted = frames if faults else [event for event in frames if event["k"]["n"]]
            assert loaded(await texts(connected, len(wanted))) == wanted


# -- connections ---------------------------------------------------------------------------------------------


async def test_a_cut_ends_what_is_open_and_nobody_comes_back_for_its_seconds() -> None:
    async with viewer() as view:
        sockets = [await view.connect(f"/ws/{TRADES}") for _ in range(2)]
        view.exchange.show([Behaviour(name="cut", seconds=30)])
        assert [await ends(socket) for socket in sockets] == [aiohttp.WSCloseCode.ABNORMAL_CLOSURE] * 2
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await view.connect("/ws")
        view.move(30_000)
        again = await view.connect(f"/ws/{TRADES}")
        view.move(SPAN_MS)
        assert await texts(again, 1) == view.truth(TRADES, NOON + 30_000, NOON + 30_000 + SPAN_MS)[:1]


async def test_a_cut_can_come_with_a_code_after_some_frames_or_at_a_time() -> None:
    async with viewer(Behaviour(name="cut", endpoint="trade", skip=4, status=1011)) as view:
        socket = await view.connect(f"/ws/{TRADES}")
        view.move(SPAN_MS)
        assert await texts(socket, 4) == view.truth(TRADES, NOON, NOON + SPAN_MS)[:4]
        assert await ends(socket) == 1011
    async with viewer(Behaviour(name="cut", at=NOON + 10_000)) as view:
        socket = await view.connect(f"/ws/{TRADES}")
        view.move(9_000)
        truth = view.truth(TRADES, NOON, NOON + 9_000)
        assert await texts(socket, len(truth)) == truth
        view.move(2_000)
        assert await ends(socket) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_a_shutdown_is_said_and_then_done() -> None:
    async with viewer() as view:
        socket = await view.connect(f"/stream?streams={TRADES}")
        view.exchange.show([Behaviour(name="shutdown", seconds=5)])
        (notice,) = await texts(socket, 1)
        assert json.loads(notice) == {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": NOON}}
        newer = await view.connect(f"/ws/{TRADES}")  # who comes now stays
        view.move(5_000)
        assert await ends(socket) == aiohttp.WSCloseCode.GOING_AWAY
        assert await texts(newer, 1) == view.truth(TRADES, NOON, NOON + 5_000)[:1]


async def test_silence_leaves_the_connection_open_and_ends_when_told() -> None:
    async with viewer() as view:
        socket = await view.connect(f"/stream?streams={TRADES}/ethusdt@trade")
        view.exchange.show([Behaviour(name="silence", symbol="BTCUSDT")])
        view.move(SPAN_MS)
        other = view.truth("ethusdt@trade", NOON, NOON + SPAN_MS)
        came = await texts(socket, len(other))
        assert {json.loads(text)["stream"] for text in came} == {"ethusdt@trade"}
        newer = await view.connect(f"/ws/{TRADES}")
        view.move(SPAN_MS)
        spoken = view.truth(TRADES, NOON + SPAN_MS, NOON + 2 * SPAN_MS)
        assert await texts(newer, len(spoken)) == spoken  # only what was open is silent
        await texts(socket, len(view.truth("ethusdt@trade", NOON + SPAN_MS, NOON + 2 * SPAN_MS)))
        withheld = await view.get("/sim/log", name="silence")
        assert [line["id"] for line in withheld] == [
            json.loads(text)["t"] for text in view.truth(TRADES, NOON, NOON + 2 * SPAN_MS)
        ]
        view.exchange.show_none()
        view.move(SPAN_MS)
        streams = {json.loads(text)["stream"] for text in await texts(socket, 30)}
        assert streams == {TRADES, "ethusdt@trade"}


async def test_connections_are_refused_for_a_while() -> None:
    async with viewer(Behaviour(name="refuse", seconds=60)) as view:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await view.connect("/ws")
        assert refused.value.status == 503
        view.move(60_000)
        await view.connect("/ws")


async def test_a_ban_ends_the_sockets_too() -> None:
    async with viewer(Behaviour(name="banned", seconds=5)) as view:
        socket = await view.connect(f"/ws/{TRADES}")
        assert (await view.get("/api/v3/depth", symbol="BTCUSDT"))["code"] == -1003
        assert await ends(socket) == aiohttp.WSCloseCode.GOING_AWAY


async def test_the_exchanges_clock_can_be_off_and_its_frames_with_it() -> None:
    async with viewer(Behaviour(name="clock_skew", offset_ms=5_000)) as view:
        assert (await view.get("/api/v3/time"))["serverTime"] == NOON + 5_000
        socket = await view.connect(f"/ws/{DIFFS}")
        view.move(1_000)
        (text,) = await texts(socket, 1)
        assert json.loads(text)["E"] > NOON + 5_000


# -- REST ----------------------------------------------------------------------------------------------------


async def test_ids_that_are_too_old_are_answered_with_the_newest() -> None:
    async with viewer() as view:
        (newest,) = await view.get("/api/v3/historicalTrades", symbol="BTCUSDT", limit=1)
        view.exchange.show([Behaviour(name="forgets", endpoint="historicalTrades", at=newest["id"] - 50)])
        old = await view.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=newest["id"] - 51, limit=3)
        assert [row["id"] for row in old] == [newest["id"] - 2, newest["id"] - 1, newest["id"]]
        kept = await view.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=newest["id"] - 50, limit=3)
        assert kept[0]["id"] == newest["id"] - 50


async def test_a_range_the_exchange_lacks_is_left_out_of_single_trades() -> None:
    async with viewer() as view:
        rows = await view.get("/api/v3/historicalTrades", symbol="BTCUSDT", limit=50)
        gone = {"start_ms": rows[10]["time"], "end_ms": rows[30]["time"]}
        view.exchange.show([Behaviour(name="lacks", endpoint="historicalTrades", **gone)])
        left = await view.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=rows[0]["id"], limit=50)
        assert left == [row for row in rows if not gone["start_ms"] <= row["time"] < gone["end_ms"]]


async def test_a_symbol_is_delisted_and_relisted_while_subscribed() -> None:
    async with viewer() as view:
        socket = await view.connect(f"/ws/{TRADES}")
        view.exchange.show([Behaviour(name="delisted", symbol="BTCUSDT", seconds=60)])
        assert (await view.get("/api/v3/depth", symbol="BTCUSDT"))["code"] == -1121
        assert (await view.get("/api/v3/exchangeInfo", symbols='["ETHUSDT","BTCUSDT"]'))["code"] == -1121
        assert "BTCUSDT" not in [s["symbol"] for s in (await view.get("/api/v3/exchangeInfo"))["symbols"]]
        view.move(30_000)
        await nothing_so_far(view, socket)
        view.move(30_000)
        view.move(SPAN_MS)
        (text,) = await texts(socket, 1)
        assert json.loads(text)["E"] > NOON + 30_000


async def nothing_so_far(view: Viewer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """A second connection is told of the same time; whatever the first one was sent would be there by then."""
    other = await view.connect("/ws/ethusdt@trade")
    view.move(1)
    await other.send_str('{"method":"LIST_SUBSCRIPTIONS","id":1}')
    await texts(other, 1)
    await socket.send_str('{"method":"LIST_SUBSCRIPTIONS","id":1}')
    assert json.loads((await texts(socket, 1))[0])["id"] == 1


async def test_a_symbol_is_renamed_and_its_market_goes_on_under_the_new_name() -> None:
    async with viewer(Behaviour(name="renamed", symbol="BTCUSDT", text="XBTUSDT")) as view:
        names = [s["symbol"] for s in (await view.get("/api/v3/exchangeInfo"))["symbols"]]
        assert ("XBTUSDT" in names, "BTCUSDT" in names) == (True, False)
        assert (await view.get("/api/v3/depth", symbol="BTCUSDT"))["code"] == -1121
        book = await view.get("/api/v3/depth", symbol="XBTUSDT", limit=5)
        assert book == json.loads(view.source.depth("BTCUSDT", 5, NOON) or "")
        socket = await view.connect("/ws/xbtusdt@trade")
        view.move(SPAN_MS)
        (text,) = await texts(socket, 1)
        assert text == view.truth(TRADES, NOON, NOON + SPAN_MS)[0].replace("BTCUSDT", "XBTUSDT")


# -- archive -------------------------------------------------------------------------------------------------


async def table(view: Viewer, path: str) -> tuple[list[list[str]], bool]:
    """The rows of a file, and whether its checksum is right."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{view.running.url}/data/spot/{path}") as answer:
            body = await answer.read()
        async with session.get(f"{view.running.url}/data/spot/{path}.CHECKSUM") as answer:
            digest, name = (await answer.text()).split()
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        (member,) = archive.namelist()
        rows = [line.split(",") for line in archive.read(member).decode().splitlines()]
    assert (name, member) == (path.rsplit("/", 1)[-1], name.replace(".zip", ".csv"))
    return rows, digest == hashlib.sha256(body).hexdigest()


async def test_a_day_of_the_archive_is_the_day_of_rest_in_microseconds() -> None:
    async with viewer(source=TapeSource(Tape(11))) as view:
        trades, right = await table(view, "daily/aggTrades/XRPUSDT/XRPUSDT-aggTrades-2025-08-02.zip")
        rest = await view.get("/api/v3/aggTrades", symbol="XRPUSDT", fromId=trades[0][0], limit=1)
        assert right
        assert trades[0] == [str(v) if k != "T" else f"{v}000" for k, v in rest[0].items()]
        assert [int(row[0]) for row in trades] == list(range(int(trades[0][0]), int(trades[-1][0]) + 1))
        candles, _ = await table(view, "daily/klines/XRPUSDT/5m/XRPUSDT-5m-2025-08-02.zip")
        assert (len(candles), candles[0][6][-6:]) == (288, "999999")
        singles, _ = await table(view, "daily/trades/XRPUSDT/XRPUSDT-trades-2025-08-02.zip")
        assert [int(singles[0][0]), int(singles[-1][0])] == [int(trades[0][3]), int(trades[-1][4])]
        today = "/data/spot/daily/klines/XRPUSDT/5m/XRPUSDT-5m-2025-08-03.zip"
        assert await view.get(today) == "404: Not Found"  # the day is not over


ODD_FILES = {
    "truncated": lambda rows, odd, right: (len(odd), right) == (len(rows) // 2, True),
    "replaced": lambda rows, odd, right: (len(odd), right) == (len(rows) - 1, True),
    "repeated_id": lambda rows, odd, right: odd == [rows[0], *rows],
    "zero_quantity": lambda rows, odd, right: [row[5] for row in odd].count("0.00000000") == 1,
    "wrong_checksum": lambda rows, odd, right: (odd == rows, right) == (True, False),
    "header": lambda rows, odd, right: odd[0][0] == "open_time" and odd[1:] == rows,
    "milliseconds": lambda rows, odd, right: len(odd[0][0]) == 13,
}


@pytest.mark.parametrize("how", ODD_FILES)
async def test_files_of_the_archive_are_as_odd_as_told(how: str) -> None:
    path = "daily/klines/BTCUSDT/5m/BTCUSDT-5m-2025-08-02.zip"
    async with viewer() as view:
        rows, right = await table(view, path)
        assert right
        view.exchange.show([Behaviour(name="archive", text=how)])
        assert ODD_FILES[how](rows, *(await table(view, path)))
        view.exchange.show([Behaviour(name="archive", text="late")])
        assert await view.get(f"/data/spot/{path}") == "404: Not Found"


# -- plans ---------------------------------------------------------------------------------------------------

PLAN = """
seed: 7
faults:
  - {name: drop, endpoint: depth, symbol: BTCUSDT, chance: 0.01, times: 0}
  - name: cut
    at: 1754400000000
    seconds: 30
"""


def test_a_plan_is_yaml_or_json_with_a_seed_or_a_bare_list() -> None:
    drop, cut = read_plan(PLAN.encode(), "plan.yaml")
    assert (drop.name, drop.chance, drop.seed, cut.at, cut.seed) == ("drop", 0.01, 7000, 1754400000000, 7001)
    (bare,) = read_plan(b'[{"name": "short_page", "times": 2}]', "plan.json")
    assert (bare.name, bare.times) == ("short_page", 2)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("- {name: dorp}", "dorp"),
        ("- {name: delay}", "seconds"),
        ("- {name: drop, endpont: depth}", "endpont"),
        ("faults: {name: drop}", "plan.yaml"),
        ("- {name: [", "plan.yaml"),
        ("5", "plan.yaml"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_with_its_name(plan: str, says: str) -> None:
    with pytest.raises(SetupRefused, match=says):
        read_plan(plan.encode(), "plan.yaml")


async def test_faults_are_switched_on_and_off_over_http_while_it_runs() -> None:
    async with viewer() as view:
        assert await view.post("/sim/behaviours", PLAN) == 200
        assert await view.post("/sim/behaviours", "- {name: nonsense}") == 422
        assert [on["name"] for on in await view.get("/sim/behaviours")] == ["drop", "cut"]


def test_every_behaviour_is_shown_by_some_test() -> None:
    """The names that the tests of the simulated exchange and of the loader use."""
    used = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in BEHAVIOURS if f'name="{name}"' not in used and f'"{name}"' not in used] == []


def test_the_page_names_a_behaviour_for_each_of_the_thirty_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulated-exchange.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    named = {name for _, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert named <= set(BEHAVIOURS)
    assert set(BEHAVIOURS) - named == {"bad_row"}


def test_limits_and_changes_have_the_names_that_a_plan_may_use() -> None:
    assert CHOICES == {"socket_limit": SOCKET_LIMITS, "archive": ALTERED}
    with pytest.raises(SetupRefused, match="lifetime_s"):
        read_plan(b"- {name: socket_limit, text: lifetime_s, value: 5}", "plan.yaml")
