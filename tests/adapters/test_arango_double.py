"""What tests that use the double rely on: it keeps what it answered, and it makes troubles as its plan says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from arango import ArangoClient
from arango.exceptions import DocumentInsertError

from adapters.arango_double.faults import Fault, Plan, read_plan
from adapters.arango_double.server import ArangoDouble

Ask = Callable[..., tuple[int, Any]]


def asked(double: ArangoDouble) -> Ask:
    def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        told = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = double.answer(method, path, {name.replace("_", "-"): text for name, text in headers.items()}, told)
        response = double.response(answer)
        return response.status, json.loads(response.body) if isinstance(
            response.body, bytes
        ) and response.body else None

    return ask


@pytest.fixture
def double(tmp_path: Path) -> Iterator[ArangoDouble]:
    with closing(ArangoDouble(tmp_path)) as made:
        yield made


@pytest.fixture
def ask(double: ArangoDouble) -> Ask:
    made = asked(double)
    made("POST", "/_api/collection", {"name": "trades"})
    return made


def values(ask: Ask, query: str, **bound: Any) -> Any:
    return ask("POST", "/_api/cursor", {"query": query, "bindVars": bound})[1]["result"]


# -- what is kept ------------------------------------------------------------------------------------------


def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    with closing(ArangoDouble(tmp_path)) as first:
        ask = asked(first)
        ask("POST", "/_api/collection", {"name": "trades"})
        ask("POST", "/_api/index?collection=trades", {"type": "persistent", "fields": ["n"], "unique": True})
        ask("POST", "/_api/document/trades", [{"_key": "a", "n": 1}, {"_key": "b", "n": 2}, {"n": 3}])
        ask("DELETE", "/_api/document/trades/a")
        before = ask("PUT", "/_api/document/trades?onlyget=1", ["b"])[1]
    with (tmp_path / "changes.log").open("ab") as log:
        log.write(b'[999,[["put","_system","trades",["torn"]]],1]\n{"_key":"to')  # killed while it wrote
    with closing(ArangoDouble(tmp_path)) as second:
        ask = asked(second)
        assert ask("PUT", "/_api/document/trades?onlyget=1", ["b"])[1] == before
        assert ask("GET", "/_api/collection/trades/count")[1]["count"] == 2
        assert ask("POST", "/_api/document/trades", {"_key": "c", "n": 2})[1]["errorNum"] == 1210
        assert ask("POST", "/_api/document/trades", {"_key": "c", "n": 4})[0] == 202


def test_a_folder_serves_one_double(tmp_path: Path) -> None:
    with closing(ArangoDouble(tmp_path)), pytest.raises(BlockingIOError):
        ArangoDouble(tmp_path)


# -- documents ---------------------------------------------------------------------------------------------


def test_a_lower_version_changes_nothing_and_is_no_error(ask: Ask) -> None:
    path = "/_api/document/trades?overwriteMode=replace&versionAttribute=seq"
    first = ask("POST", path, [{"_key": "a", "seq": 5, "x": "new"}])[1]
    second = ask("POST", path, [{"_key": "a", "seq": 4, "x": "old"}, {"_key": "a", "seq": 5, "x": "same"}])[1]
    assert [each["_rev"] for each in second] == [first[0]["_rev"]] * 2
    third = ask("POST", path, [{"_key": "a", "seq": 6, "x": "newer"}])[1]
    assert third[0]["_oldRev"] == first[0]["_rev"] != third[0]["_rev"]
    assert ask("GET", "/_api/document/trades/a")[1]["x"] == "newer"


def test_silent_answers_errors_only(ask: Ask) -> None:
    path = "/_api/document/trades?silent=1"
    assert ask("POST", path, [{"_key": "a"}]) == (202, {})
    status, errors = ask("POST", path, [{"_key": "a"}, {"_key": "b"}, {"_key": "no key"}])
    assert (status, [each["errorNum"] for each in errors]) == (202, [1210, 1221])


def test_one_key_twice_in_an_array_is_a_write_and_an_overwrite(ask: Ask) -> None:
    first, second = ask("POST", "/_api/document/trades?overwriteMode=replace", [{"_key": "a"}, {"_key": "a"}])[1]
    assert "_oldRev" not in first
    assert second["_oldRev"] == first["_rev"]


def test_a_double_without_a_fraction_comes_back_as_a_whole_number(ask: Ask) -> None:
    ask("POST", "/_api/document/trades", b'{"_key": "a", "p": 1.0, "q": 1.5, "n": [2.0, 1e3]}')
    body = ask("GET", "/_api/document/trades/a")[1]
    assert json.dumps([body["p"], body["q"], body["n"]]) == "[1, 1.5, [2, 1000]]"


def test_what_is_no_number_is_no_json(ask: Ask) -> None:
    assert ask("POST", "/_api/document/trades", b'{"p": NaN}')[1]["errorNum"] == 600


def test_an_edge_needs_both_ends(ask: Ask) -> None:
    ask("POST", "/_api/collection", {"name": "links", "type": 3})
    assert ask("POST", "/_api/document/links", {"_from": "trades/a"})[1]["errorNum"] == 1233


# -- transactions ------------------------------------------------------------------------------------------


def test_others_see_a_transaction_when_it_ends(ask: Ask) -> None:
    trx = ask("POST", "/_api/transaction/begin", {"collections": {"write": ["trades"]}})[1]["result"]["id"]
    ask("POST", "/_api/document/trades", {"_key": "a"}, x_arango_trx_id=trx)
    assert ask("GET", "/_api/document/trades/a", x_arango_trx_id=trx)[0] == 200
    assert ask("GET", "/_api/document/trades/a")[0] == 404
    assert ask("POST", "/_api/document/trades", {"_key": "a"})[1]["errorNum"] == 1200
    assert ask("PUT", f"/_api/transaction/{trx}")[1]["result"]["status"] == "committed"
    assert ask("GET", "/_api/document/trades/a")[0] == 200
    assert ask("POST", "/_api/document/trades", {"_key": "b"}, x_arango_trx_id=trx)[1]["errorNum"] == 1654


def test_an_aborted_transaction_leaves_nothing(ask: Ask) -> None:
    ask("POST", "/_api/document/trades", {"_key": "a", "n": 1})
    trx = ask("POST", "/_api/transaction/begin", {"collections": {"write": ["trades"]}})[1]["result"]["id"]
    ask("PATCH", "/_api/document/trades/a", {"n": 2}, x_arango_trx_id=trx)
    ask("DELETE", f"/_api/transaction/{trx}")
    assert ask("GET", "/_api/document/trades/a")[1]["n"] == 1


def test_a_query_that_fails_has_written_nothing(ask: Ask) -> None:
    status, body = ask("POST", "/_api/cursor", {"query": 'FOR k IN ["a", "b", "a"] INSERT {_key: k} INTO trades'})
    assert (status, body["errorNum"]) == (409, 1210)
    assert values(ask, "RETURN LENGTH(trades)") == [0]


# -- cursors -----------------------------------------------------------------------------------------------


def test_a_batch_can_be_asked_for_again(ask: Ask) -> None:
    told = {"query": "FOR i IN 1..5 RETURN i", "batchSize": 2, "options": {"allowRetry": True}}
    first = ask("POST", "/_api/cursor", told)[1]
    path = f"/_api/cursor/{first['id']}/{first['nextBatchId']}"
    assert ask("POST", path)[1]["result"] == ask("POST", path)[1]["result"] == [3, 4]
    assert ask("POST", f"/_api/cursor/{first['id']}/3")[1]["result"] == [5]
    assert ask("POST", path)[1]["errorNum"] == 1600


def test_a_cursor_ends_with_its_time(tmp_path: Path) -> None:
    clock = [1_700_000_000.0]
    with closing(ArangoDouble(tmp_path, now=lambda: clock[0])) as double:
        ask = asked(double)
        made = ask("POST", "/_api/cursor", {"query": "FOR i IN 1..5 RETURN i", "batchSize": 2, "ttl": 10})[1]
        clock[0] += 11
        assert ask("POST", f"/_api/cursor/{made['id']}")[1]["errorNum"] == 1600


# -- who may come in ---------------------------------------------------------------------------------------


def test_a_token_holds_as_long_as_it_says(tmp_path: Path) -> None:
    clock = [1_700_000_000.0]
    with closing(ArangoDouble(tmp_path, password="secret", token_s=60, now=lambda: clock[0])) as double:
        ask = asked(double)
        assert ask("GET", "/_api/version")[0] == 401
        assert ask("POST", "/_open/auth", {"username": "root", "password": "guess"})[0] == 401
        token = ask("POST", "/_open/auth", {"username": "root", "password": "secret"})[1]["jwt"]
        assert ask("GET", "/_api/version", authorization=f"bearer {token}")[0] == 200
        clock[0] += 61
        assert ask("GET", "/_api/version", authorization=f"bearer {token}")[1]["errorNum"] == 11


# -- python-arango -----------------------------------------------------------------------------------------


def test_the_driver_finds_its_way(double: ArangoDouble) -> None:
    with double.in_thread() as url, closing(ArangoClient(hosts=url)) as client:
        system = client.db("_system")
        assert system.version() == "3.12.10"
        assert system.create_database("market")
        market = client.db("market", verify=True)
        trades = market.create_collection("trades")
        trades.add_index({"type": "persistent", "fields": ["symbol", "ts"]})
        results = trades.insert_many([{"_key": "a", "ts": 1}, {"_key": "bad key"}, {"_key": "b", "ts": 2}])
        assert [isinstance(each, DocumentInsertError) for each in results] == [False, True, False]
        cursor = market.aql.execute("FOR t IN @@c SORT t.ts DESC RETURN t.ts", bind_vars={"@c": "trades"}, batch_size=1)
        assert list(cursor) == [2, 1]
        graph = market.create_graph("links", [
            {"edge_collection": "link", "from_vertex_collections": ["node"], "to_vertex_collections": ["node"]},
        ])  # fmt: skip
        for key in "ab":
            graph.insert_vertex("node", {"_key": key})
        graph.insert_edge("link", {"_from": "node/a", "_to": "node/b"})
        found = market.aql.execute('FOR v IN 1..2 ANY "node/a" GRAPH "links" RETURN v._key')
        assert list(found) == ["b"]


# -- faults ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def told(double: ArangoDouble, *faults: Fault) -> AsyncIterator[Callable[[str, str, Any], Any]]:
    async with double.serving() as url, aiohttp.ClientSession(url) as session:
        await session.post("/_api/collection", json={"name": "trades"})
        double.faults.show(Plan(faults=faults))

        async def send(method: str, path: str, body: Any) -> tuple[int, Any]:
            async with session.request(method, path, json=body) as response:
                return response.status, await response.json()

        yield send


@pytest.mark.parametrize(("kind", "is_stored"), [("cut_before", False), ("cut_after", True), ("cut_body", True)])
async def test_a_cut_connection_loses_the_request_or_the_answer(
    double: ArangoDouble, kind: Any, is_stored: bool
) -> None:
    async with told(double, Fault(kind=kind, method="POST", path="/_api/document", times=1)) as send:
        with pytest.raises(aiohttp.ClientError):
            await send("POST", "/_api/document/trades", {"_key": "a"})
        status, _ = await send("GET", "/_api/document/trades/a", None)
        assert status == (200 if is_stored else 404)
        status, _ = await send("POST", "/_api/document/trades?overwriteMode=replace", {"_key": "a"})
        assert status == 202


@pytest.mark.parametrize(
    ("fault", "status", "number"),
    [
        (Fault("unavailable"), 503, 503),
        (Fault("queue_full"), 503, 21003),
        (Fault("not_leader", number=1496), 503, 1496),
        (Fault("unauthorized"), 401, 11),
        (Fault("read_only"), 403, 1004),
        (Fault("too_large", bytes=10), 413, 413),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
async def test_a_refusal_is_the_servers_own(double: ArangoDouble, fault: Fault, status: int, number: int) -> None:
    async with told(double, fault) as send:
        refused = await send("POST", "/_api/document/trades", {"_key": "a"})
        assert (refused[0], refused[1]["errorNum"]) == (status, number)
        double.faults.show(Plan())
        assert (await send("GET", "/_api/document/trades/a", None))[0] == 404


async def test_a_long_queue_refuses_who_will_not_wait(double: ArangoDouble) -> None:
    async with told(double, Fault("queue_time", seconds=2.0)) as send:
        assert (await send("GET", "/_api/version", None))[0] == 200
    double.faults.refuse([], 0, None)
    with pytest.raises(Exception, match="21004"):
        double.faults.refuse([Fault("queue_time", seconds=2.0)], 0, 1.0)


async def test_an_outage_ends(double: ArangoDouble) -> None:
    async with told(double, Fault("outage", times=2)) as send:
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await send("POST", "/_api/document/trades", {})  # a POST, as aiohttp repeats others by itself
        assert (await send("GET", "/_api/version", None))[0] == 200


def test_a_conflict_passes_and_a_bad_document_stays_bad(double: ArangoDouble, ask: Ask) -> None:
    documents = [{"_key": f"k{at}"} for at in range(200)]
    double.faults.show(Plan(seed=3, faults=(Fault("conflict", share=0.1, attempts=2), Fault("bad", share=0.05))))
    refused = []
    for _ in range(3):
        double.state.item_faults = double.faults.of_documents()
        answers = ask("POST", "/_api/document/trades?overwriteMode=replace", documents)[1]
        refused.append([each.get("errorNum") for each in answers])
    assert refused[0] == refused[1]
    assert 5 < refused[0].count(1200) < 40
    assert 1200 not in refused[2]
    assert 0 < refused[2].count(1620) < 30


def test_a_plan_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("seed: 1\nfaults: [{kind: latency, seconds: 0.5}, {kind: earthquake}]")
    with pytest.raises(ValueError, match=r"plan\.yaml is no plan of faults: .*earthquake.*faults\[1\]"):
        read_plan(tmp_path / "plan.yaml")


async def test_a_slow_answer_is_slow(double: ArangoDouble) -> None:
    async with told(double, Fault("latency", seconds=60)) as send:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send("GET", "/_api/version", None), timeout=0.1)
