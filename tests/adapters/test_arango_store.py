"""What only the store in ArangoDB promises, on the stand-in: its ground, its tokens, its graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from adapters.stores import arango_setup, collections, graphs
from adapters.stores.arango import ArangoStore
from adapters.stores.arango_client import Address, Client
from adapters.stores.sqlite import SqliteStore
from app.errors import StoreError
from models.gnn.graph import GraphSpec, build_graph
from models.market import CANDLE_COLUMNS
from tests.arango import DoubleInThread, address, open_store

STEP_MS = 300_000


@pytest.fixture
def double(tmp_path: Path) -> Iterator[DoubleInThread]:
    with DoubleInThread(tmp_path / "arango") as running:
        yield running


@pytest.fixture
def there(double: DoubleInThread) -> Address:
    return address(double.url, "")


def test_a_second_start_changes_nothing(there: Address) -> None:
    with closing(Client(there, threads=1)) as client:
        seen = []
        for _ in range(2):
            with closing(open_store(there)) as store:
                store.ensure(collections.TRADES)
            seen.append(
                [client.call("GET", path).body for path in ("/_api/collection", "/_api/index?collection=trades")]
            )
    assert seen[0] == seen[1]


def test_an_index_that_differs_is_reported_and_left_as_it_is(there: Address) -> None:
    with closing(open_store(there)) as store, closing(Client(there, threads=1)) as client:
        store.ensure(collections.TRADES)
        where = {"collection": "trades"}
        [ours] = [
            i for i in client.call("GET", "/_api/index", params=where).body["indexes"] if i["type"] == "persistent"
        ]
        client.call("DELETE", f"/_api/index/{ours['id']}")
        other = {"type": "persistent", "name": ours["name"], "fields": ["price"]}
        client.call("POST", "/_api/index", params=where, body=other)
        with (
            closing(open_store(there)) as second,
            pytest.raises(StoreError, match=r"by_series_and_time.*left as it is"),
        ):
            second.ensure(collections.TRADES)
        indexes = client.call("GET", "/_api/index", params=where).body["indexes"]
        assert ["price"] in [index["fields"] for index in indexes]


def test_a_collection_of_somebody_else_is_left_as_it_is(there: Address) -> None:
    with closing(open_store(there)) as store, closing(Client(there, threads=1)) as client:
        client.call("POST", "/_api/collection", body={"name": "trades", "type": 2})
        client.call("POST", "/_api/document/trades", body={"_key": "theirs"})
        with pytest.raises(StoreError, match="did not make"):
            store.ensure(collections.TRADES)


def test_a_server_that_is_too_old_is_refused(there: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arango_setup, "OLDEST", (99, 0))
    with pytest.raises(StoreError, match="StreamForge needs"):
        ArangoStore(there)


def test_a_token_that_is_over_is_renewed(double: DoubleInThread, there: Address) -> None:
    with closing(open_store(there)) as store:
        store.ensure(collections.TRADES)
        double.show("faults: [{kind: unauthorized, times: 1}, {kind: queue_full, after: 2, times: 2}]")
        assert store.count("trades") == 0
        assert store.collections() == ["trades"]
        assert {"unauthorized", "queue_full"} <= set(double.made())


def test_a_graph_is_the_same_from_every_store_whole_and_as_of_a_moment(there: Address, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.001, 420)))
    columns = {name: np.abs(close * (1 + 0.0001 * n)) for n, name in enumerate(CANDLE_COLUMNS)}
    columns |= {"ts": np.arange(420) * STEP_MS, "trades": np.full(420, 9), "closed": np.full(420, True)}
    columns |= {"low": close * 0.99, "high": close * 1.01, "open": close, "close": close}
    columns |= {"taker_buy_volume": columns["volume"] / 2, "taker_buy_quote_volume": columns["quote_volume"] / 2}
    candles = {name: columns[name].astype(dtype) for name, dtype in CANDLE_COLUMNS.items()}
    graph = build_graph(candles, GraphSpec(), symbol="BTCUSDT")
    moment = 400 * STEP_MS  # candle 399 closes then
    found = []
    with closing(open_store(there)) as ours, closing(SqliteStore(tmp_path / "store.db")) as embedded:
        for store in (ours, embedded):
            store.ensure(collections.GRAPHS)
            for _ in range(2):  # built again, it is the same graph
                assert [*graphs.write_graph(store, "g", graph, "run")]
            found.append((graphs.load_data(store, "g"), graphs.load_data(store, "g", moment)))
        with closing(Client(there, threads=1)) as client:
            [named] = client.call("GET", "/_api/gharial").body["graphs"]
    assert [(d["collection"], d["from"], d["to"]) for d in named["edgeDefinitions"]] == [("g_edges", ["g"], ["g"])]
    for ours_of, theirs in zip(*found, strict=True):
        assert {n: t.tolist() for n, t in ours_of.items()} == {n: t.tolist() for n, t in theirs.items()}
    whole, past = found[0]
    assert (len(whole.ts), len(past.ts), int(past.ts[-1])) == (420, 400, 399 * STEP_MS)
    assert int(past.edge_index.max()) == 399
