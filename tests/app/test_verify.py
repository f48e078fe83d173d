"""`verify` agrees with a run that was delivered, and finds every way in which one was not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adapters.embedded_log.log import Log, LogReader
from adapters.stores import collections, graphs
from adapters.stores.sqlite import SqliteStore
from app import verify
from app.outside import parser
from models.candles import flush, fold
from models.control import plan
from models.coverage import Coverage
from models.gnn.graph import GraphSpec, build_graph
from models.market import Array, Batch, PageInfo, Span, encode_batch, encode_page_info, pack_columns, stream_key

MINUTE, STEP = 60_000, 300_000
START = 1_755_648_000_000  # 2025-08-20
CANDLES = 600
END = START + CANDLES * STEP
RUN = "proof"
SYMBOL = "BTCUSDT"
KEY = stream_key("binance", SYMBOL)
PAGE = 1000


def tape() -> list[dict[str, Any]]:
    """Trades as the exchange serves them: about seven per candle, ids from 1, some in one millisecond."""
    random = np.random.default_rng(7)
    times = np.sort(random.integers(START, END, 7 * CANDLES))
    times[100:110] = times[100]
    prices = np.round(60_000 * np.exp(np.cumsum(random.normal(0, 1e-4, len(times)))), 2)
    sizes = np.round(random.exponential(0.05, len(times)) + 0.00001, 5)
    makers = random.integers(0, 2, len(times))
    return [
        {"a": i + 1, "p": f"{p:.8f}", "q": f"{q:.8f}", "f": i + 1, "l": i + 1, "T": int(t), "m": bool(m), "M": True}
        for i, (t, p, q, m) in enumerate(zip(times, prices, sizes, makers, strict=True))
    ]


def klines(columns: dict[str, Array]) -> list[list[Any]]:
    """Candles as the exchange serves them."""
    text = ("open", "high", "low", "close", "volume")
    rows = []
    for i, ts in enumerate(columns["ts"].tolist()):
        o, h, low, c, v = (f"{columns[name][i]:.8f}" for name in text)
        taker, taker_quote = (f"{columns[name][i]:.8f}" for name in ("taker_buy_volume", "taker_buy_quote_volume"))
        quote = f"{columns['quote_volume'][i]:.8f}"
        rows.append([ts, o, h, low, c, v, ts + STEP - 1, quote, int(columns["trades"][i]), taker, taker_quote, "0"])
    return rows


@dataclass
class Delivery:
    """What a run left: pages, batches and documents, each changeable before `write` puts them where they belong."""

    pages: list[tuple[str, PageInfo, bytes]]
    batches: list[tuple[str, Batch]]
    rows: dict[str, list[dict[str, Array]]]
    ledgers: dict[str, list[Span]]

    def write(self, folder: Path) -> tuple[SqliteStore, Path]:
        path = folder / "log.db"
        with closing(Log.open(path)) as log:
            for topic in ("raw.trades", "raw.candles", "market.trades", "market.candles"):
                log.ensure_topic(topic, 2)
            asyncio.run(self._append(log))
        store = SqliteStore(folder / "store.db")
        for spec in (collections.TRADES, collections.candles("5m"), collections.COVERAGE, collections.QUEUE_STATE,
                     collections.GRAPHS):  # fmt: skip
            store.ensure(spec)
        for collection, parts in self.rows.items():
            own = {"source": "history", "version": 2} if collection != "trades" else {}
            for part in parts:
                store.upsert_columns(collection, {"venue": "binance", "symbol": SYMBOL, **part, **own})
        for channel, stored in self.ledgers.items():
            store.upsert("coverage", [{
                "venue": "binance", "symbol": SYMBOL, "channel": channel, "version": 1, "updated_ms": 0,
                **msgspec.to_builtins(Coverage(stored=stored)),
            }])  # fmt: skip
        return store, path

    async def _append(self, log: Log) -> None:
        pages = [log.append(t, KEY, body, headers=[("page", encode_page_info(info))]) for t, info, body in self.pages]
        await asyncio.gather(*pages, *(log.append(t, KEY, encode_batch(batch)) for t, batch in self.batches))


def page_info(channel: str, covers: Span, **more: Any) -> PageInfo:
    return PageInfo(
        venue="binance", symbol=SYMBOL, channel=channel, run=RUN, ts_receipt_ms=END, covers=covers, asked=(START, END),
        **more,
    )  # fmt: skip


def batch_of(channel: str, columns: dict[str, Array], covers: Span | None, source: str = "history") -> Batch:
    return Batch(
        venue="binance", symbol=SYMBOL, channel=channel, source=source, run=RUN, ts_receipt_ms=END, covers=covers,
        columns=pack_columns(channel, columns),
    )  # fmt: skip


@pytest.fixture
def delivery() -> Delivery:
    """A month in small: pages of trades, their batches and candles, the exchange's candles; all agree."""
    found = Delivery([], [], {"trades": [], "candles_5m": []}, {"trades": [(START, END)], "candles_5m": [(START, END)]})
    trades, at, state = tape(), START, None
    whole: list[dict[str, Array]] = []
    for first in range(0, len(trades), PAGE):
        part = trades[first : first + PAGE]
        covers = (at, END if first + PAGE >= len(trades) else part[-1]["T"])
        info = page_info("trades", covers, first_id=part[0]["a"], last_id=part[-1]["a"])
        columns = parser().parse(info, json.dumps(part).encode()).columns
        found.pages.append(("raw.trades", info, json.dumps(part).encode()))
        found.batches.append(("market.trades", batch_of("trades", columns, covers)))
        found.rows["trades"].append(columns)
        state, closed = fold(state, columns, STEP)
        whole.append(closed)
        at = covers[1]
    assert state is not None
    whole.append(flush(state, END)[1])
    candles = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    info = page_info("candles_5m", (START, END))
    body = json.dumps(klines(candles)).encode()
    served = parser().parse(info, body).columns
    found.pages.append(("raw.candles", info, body))
    found.batches.append(("market.candles", batch_of("candles_5m", served, (START, END))))
    found.batches.append(("market.candles", batch_of("candles_5m", candles, None, source="aggregated")))
    found.rows["candles_5m"].append(served)
    return found


def whole_run(**said: Any) -> Any:
    requests = [
        {"target": target, "type": kind}
        for target in ("loader-producer", "arango-connector")
        for kind in ("api_trades", "api_candles_5m")
    ]
    run = plan({
        "command": "start", "queue_id": RUN, "symbol": SYMBOL, "time_range": "2025-08-20:2025-08-22T02:00:00",
        "requests": requests, **said,
    })  # fmt: skip
    assert run.steps[0].range_ms == (START, END)
    return run


def check(delivery: Delivery, folder: Path, *, limit: int = 20) -> dict[str, Any]:
    """Write the delivery and verify its run."""
    store, log_path = delivery.write(folder)
    return finish(store, log_path, whole_run(), limit)


def finish(store: Any, log_path: Path, run: Any, limit: int = 20) -> dict[str, Any]:
    run.state = "finished"
    for step in run.steps:
        step.state = "finished"
    state = {"queue_id": RUN, "status": run.state, "version": 1, "updated_ms": 0, "state": msgspec.to_builtins(run)}
    store.upsert("queue_state", [state])
    with closing(store):
        return verify.verify_run(store, lambda: LogReader(log_path), RUN, limit=limit)


def said(found: dict[str, Any]) -> str:
    return "\n".join(verify.lines(found))


def changed(columns: dict[str, Array], name: str, row: int, value: float) -> dict[str, Array]:
    column = columns[name].copy()
    column[row] = value
    return {**columns, name: column}


def test_a_run_that_was_delivered_has_no_difference(delivery: Delivery, tmp_path: Path) -> None:
    found = check(delivery, tmp_path)
    assert found["differences"] == 0, said(found)
    compared = {(c["name"], c["subject"]): c["compared"] for c in found["checks"]}
    assert compared["pages = batches", "BTCUSDT trades"] == compared["batches = store", "BTCUSDT trades"] == 7 * CANDLES
    assert compared["candles from trades = the exchange's", "BTCUSDT candles_5m"] >= CANDLES - 1
    assert "nothing lost, nothing doubled" in said(found)


def test_the_answer_does_not_depend_on_the_size_of_a_slice(
    delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SLICE_ROWS", 300)
    delivery.rows["trades"][2] = changed(delivery.rows["trades"][2], "price", 5, 1.0)
    found = check(delivery, tmp_path)
    assert found["differences"] == 1
    assert "price is" in said(found)


def test_a_page_fetched_twice_is_legal_when_it_says_the_same(delivery: Delivery, tmp_path: Path) -> None:
    delivery.pages.append(delivery.pages[1])
    delivery.batches.append(delivery.batches[1])
    assert check(delivery, tmp_path)["differences"] == 0


def test_a_page_fetched_twice_with_other_values_is_found(delivery: Delivery, tmp_path: Path) -> None:
    topic, info, body = delivery.pages[1]
    other = json.loads(body)
    other[3]["q"] = "9.00000000"
    delivery.pages.append((topic, info, json.dumps(other).encode()))
    found = check(delivery, tmp_path)
    assert found["differences"] == 1
    assert f"id {PAGE + 4}: repeated in the pages with other values" in said(found)


def test_a_lost_batch_is_found_with_its_ids(delivery: Delivery, tmp_path: Path) -> None:
    del delivery.batches[1]
    found = check(delivery, tmp_path, limit=3)
    assert found["differences"] == 2 * PAGE  # not in the batches, and in the store from nowhere
    assert f"id {PAGE + 1}: in the pages, not in the batches" in said(found)
    assert f"and {PAGE - 3:,} more" in said(found)


def test_a_row_that_the_store_lost_is_found_twice_over(delivery: Delivery, tmp_path: Path) -> None:
    keep = delivery.rows["trades"][0]["id"] != 500
    delivery.rows["trades"][0] = {name: column[keep] for name, column in delivery.rows["trades"][0].items()}
    text = said(check(delivery, tmp_path))
    assert "id 500: in the batches, not in the store" in text
    assert "trade ids 500 to 500 lack, though their time is covered" in text


def test_a_row_that_nobody_served_is_found(delivery: Delivery, tmp_path: Path) -> None:
    last = {name: column[-1:].copy() for name, column in delivery.rows["trades"][-1].items()}
    delivery.rows["trades"].append(changed(last, "id", 0, 7 * CANDLES + 1))
    assert f"id {7 * CANDLES + 1}: in the store, not in the batches" in said(check(delivery, tmp_path))


@pytest.mark.parametrize("field", ["price", "size", "quote_size", "trades", "ts_ms"])
def test_every_field_of_a_trade_is_compared(delivery: Delivery, tmp_path: Path, field: str) -> None:
    value = delivery.rows["trades"][1][field][7] + 1
    delivery.rows["trades"][1] = changed(delivery.rows["trades"][1], field, 7, value)
    found = check(delivery, tmp_path)
    assert found["differences"] == 1
    assert f"id {PAGE + 8}: {field} is" in said(found)


def test_a_lost_candle_is_found_against_the_ledger(delivery: Delivery, tmp_path: Path) -> None:
    delivery.rows["candles_5m"][0] = {name: column[1:] for name, column in delivery.rows["candles_5m"][0].items()}
    assert f"ts {START} is stored after the ledger, but there is no candle" in said(check(delivery, tmp_path))


def test_a_ledger_that_promises_more_than_the_pages_is_found(delivery: Delivery, tmp_path: Path) -> None:
    del delivery.pages[2], delivery.batches[2], delivery.rows["trades"][2]
    text = said(check(delivery, tmp_path))
    assert "is stored, but no page covers it" in text
    assert f"trade ids {2 * PAGE + 1} to {3 * PAGE} lack, though their time is covered" in text


def test_a_ledger_that_forgot_a_page_is_found(delivery: Delivery, tmp_path: Path) -> None:
    delivery.ledgers["candles_5m"] = [(START, END - 10 * STEP)]
    text = said(check(delivery, tmp_path))
    assert "is on a page, but not in the ledger" in text
    assert "is neither stored nor known to lack" in text


def test_a_candle_made_wrongly_from_trades_is_found(delivery: Delivery, tmp_path: Path) -> None:
    topic, batch = delivery.batches[-1]
    wrong = changed(batch.arrays(), "high", 10, 1e6)
    delivery.batches[-1] = (topic, batch_of("candles_5m", wrong, None, source="aggregated"))
    found = check(delivery, tmp_path)
    assert found["differences"] == 2  # against the exchange, and against the store
    assert "high is 1000000.0 in the candles from trades" in said(found)


def test_a_candle_that_was_not_made_of_stored_trades_is_found(delivery: Delivery, tmp_path: Path) -> None:
    topic, batch = delivery.batches[-1]
    fewer = {name: np.delete(column, 10) for name, column in batch.arrays().items()}
    delivery.batches[-1] = (topic, batch_of("candles_5m", fewer, None, source="aggregated"))
    assert "its trades are stored, no candle was made" in said(check(delivery, tmp_path))


class Doubling:
    """A store that gives every row of a collection twice."""

    def __init__(self, store: SqliteStore, collection: str) -> None:
        self._store, self._collection = store, collection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def scan(self, collection: str, **asked: Any) -> Iterator[Any]:
        for batch in self._store.scan(collection, **asked):
            yield from [batch] * (2 if collection == self._collection else 1)


@pytest.mark.parametrize(("collection", "rows"), [("trades", 7 * CANDLES), ("candles_5m", CANDLES)])
def test_rows_that_are_stored_twice_are_found(delivery: Delivery, tmp_path: Path, collection: str, rows: int) -> None:
    store, log_path = delivery.write(tmp_path)
    found = finish(Doubling(store, collection), log_path, whole_run())
    assert found["differences"] == rows
    assert f"{rows} rows are stored twice" in said(found)


def test_a_flat_candle_before_the_first_trade_needs_no_trades(delivery: Delivery, tmp_path: Path) -> None:
    """The exchange shows a candle without trades where ours begin later: nothing to make it of."""
    first = int((delivery.rows["trades"][0]["ts_ms"] < START + STEP).sum())
    topic, info, body = delivery.pages[0]
    info = msgspec.structs.replace(info, first_id=first + 1)
    delivery.pages[0] = (topic, info, json.dumps(json.loads(body)[first:]).encode())
    fewer = {name: column[first:] for name, column in delivery.rows["trades"][0].items()}
    delivery.rows["trades"][0] = fewer
    delivery.batches[0] = ("market.trades", batch_of("trades", fewer, delivery.batches[0][1].covers))
    topic, info, body = delivery.pages[-1]
    rows = json.loads(body)
    price, none = rows[1][1], "0.00000000"
    rows[0] = [START, price, price, price, price, none, START + STEP - 1, none, 0, none, none, "0"]
    delivery.pages[-1] = (topic, info, json.dumps(rows).encode())
    served = parser().parse(info, json.dumps(rows).encode()).columns
    delivery.rows["candles_5m"][0] = served
    delivery.batches[-2] = ("market.candles", batch_of("candles_5m", served, (START, END)))
    made = {name: column[1:] for name, column in delivery.batches[-1][1].arrays().items()}
    delivery.batches[-1] = ("market.candles", batch_of("candles_5m", made, None, source="aggregated"))
    found = check(delivery, tmp_path)
    assert found["differences"] == 0, said(found)


def test_a_slice_may_begin_in_the_last_millisecond_of_a_page(
    delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = delivery.pages[0][1].covers[1]
    monkeypatch.setattr(verify._Stream, "_slices", lambda _: iter([(START, edge), (edge, END)]))
    found = check(delivery, tmp_path)
    assert found["differences"] == 0, said(found)


def unreadable(delivery: Delivery) -> None:
    """The exchange serves one candle that nobody can read; everything behind it says so."""
    topic, info, body = delivery.pages[-1]
    rows = json.loads(body)
    rows[50][1] = "not a price"
    delivery.pages[-1] = (topic, info, json.dumps(rows).encode())
    hole = (START + 50 * STEP, START + 51 * STEP)
    parsed = parser().parse(info, json.dumps(rows).encode())
    assert list(parsed.missing) == [hole]
    delivery.batches[-2] = ("market.candles", batch_of("candles_5m", parsed.columns, (START, END)))
    delivery.batches.pop()
    delivery.rows["candles_5m"][0] = parsed.columns
    delivery.ledgers["candles_5m"] = [(START, hole[0]), (hole[1], END)]


def test_a_row_that_could_not_be_read_is_a_difference(delivery: Delivery, tmp_path: Path) -> None:
    unreadable(delivery)
    store, log_path = delivery.write(tmp_path)
    mark_missing(store)
    found = finish(store, log_path, candle_run())
    assert found["differences"] == 1, said(found)
    assert "was served, but could not be read (see dead-letters)" in said(found)


def test_a_row_that_could_not_be_read_is_a_note_where_the_caller_allowed_it(delivery: Delivery, tmp_path: Path) -> None:
    unreadable(delivery)
    store, log_path = delivery.write(tmp_path)
    mark_missing(store)
    found = finish(store, log_path, candle_run(allow_missing=True))
    assert found["differences"] == 0, said(found)
    assert "note: missing: 2025-08-20T04:10:00Z .. 2025-08-20T04:15:00Z" in said(found)


def mark_missing(store: SqliteStore) -> None:
    [ledger] = store.get("coverage", ["binance.BTCUSDT.candles_5m"])
    assert ledger is not None
    hole = [START + 50 * STEP, START + 51 * STEP]
    store.upsert("coverage", [{**ledger, "version": 2, "missing": [hole]}])


def candle_run(**said: Any) -> Any:
    return plan({
        "command": "start", "queue_id": RUN, "symbol": SYMBOL, "time_range": "2025-08-20:2025-08-22T02:00:00",
        "requests": [{"target": "loader-producer", "type": "api_candles_5m"}], **said,
    })  # fmt: skip


@pytest.fixture
def graphed(delivery: Delivery, tmp_path: Path) -> tuple[SqliteStore, Path, Any]:
    """A delivery with the graph of its candles, and the run that built it."""
    store, log_path = delivery.write(tmp_path)
    candles = graphs.read_candles(store, "binance", SYMBOL, "5m", START, END)
    for _ in graphs.write_graph(store, "g", build_graph(candles, GraphSpec(interval="5m"), symbol=SYMBOL), RUN):
        pass
    request = {"target": "graph-builder", "type": "gnn_graph", "collection_output": "g"}
    run = candle_run()
    run.steps += plan({**run.command, "requests": [request]}).steps
    return store, log_path, run


def test_a_graph_of_the_stored_candles_agrees(graphed: tuple[SqliteStore, Path, Any]) -> None:
    found = finish(*graphed)
    assert found["differences"] == 0, said(found)
    assert {c["name"]: c["compared"] for c in found["checks"]}["graph = its document = the stored candles"] > CANDLES


def test_a_graph_of_other_candles_is_found(graphed: tuple[SqliteStore, Path, Any]) -> None:
    store, _, _ = graphed
    [candle] = store.get("candles_5m", [f"binance.{SYMBOL}.{START}"])
    assert candle is not None
    store.upsert("candles_5m", [{**candle, "volume": 1.0, "version": 9}])
    assert "made of other candles than those that are stored now" in said(finish(*graphed))


def test_a_graph_that_lost_its_edges_is_found(graphed: tuple[SqliteStore, Path, Any]) -> None:
    graphed[0].delete_before("g_edges", START + 400 * STEP)
    assert "is not the one that was built" in said(finish(*graphed))
