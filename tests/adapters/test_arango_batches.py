"""What an answer means, who wins in a batch, and how long we wait: without a server."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.stores import arango_query as aql
from adapters.stores import arango_rows
from adapters.stores.arango_batches import Patience, sort_answers, winners
from adapters.stores.arango_client import Address
from adapters.stores.arango_query import Chosen
from adapters.stores.arango_setup import index_fields
from adapters.stores.collections import TRADES, candles, graph_edges
from adapters.stores.shape import Shape
from app.errors import StoreError


def refused(number: int) -> dict[str, object]:
    return {"error": True, "errorNum": number, "errorMessage": f"said {number}"}


def test_each_documents_answer_is_read_on_its_own() -> None:
    found = sort_answers([4, 7, 9, 11], [{"_key": "a", "_rev": "1"}, refused(1233), refused(1200), refused(28)])
    assert (set(found.done), found.refused, set(found.again)) == ({4}, {7: (1233, "said 1233")}, {9, 11})


@pytest.mark.parametrize("number", [1208, 1210, 1221, 1222, 1226, 1233, 1466, 1504, 1543, 1620, 4001, 4010])
def test_a_data_error_is_the_documents_own_fault(number: int) -> None:
    assert set(sort_answers([0], [refused(number)]).refused) == {0}


@pytest.mark.parametrize("number", [18, 28, 503, 1004, 1200, 1429, 21003, 21004, 99_999])
def test_anything_else_may_pass_and_is_sent_again(number: int) -> None:
    assert set(sort_answers([0], [refused(number)]).again) == {0}


def test_what_the_caller_decides_itself_is_not_sent_again() -> None:
    assert set(sort_answers([0], [refused(1200)], frozenset({1200})).refused) == {0}


def test_fewer_answers_than_documents_prove_nothing() -> None:
    assert set(sort_answers([0, 1], [{"_rev": "1"}]).again) == {0, 1}


def test_the_last_of_the_highest_version_is_sent_once() -> None:
    keys = ["a", "b", "a", "a", "b"]
    assert winners(keys, None, keep=False) == [3, 4]
    assert winners(keys, [1, 5, 2, 2, 4], keep=False) == [1, 3]
    assert winners(keys, [1, 5, 2, 2, 4], keep=True) == [0, 1]
    assert winners(["a", "b"], None, keep=False) == [0, 1]


def test_waits_double_up_to_a_bound_and_vary() -> None:
    patience = Patience(first_s=0.1, most_s=1.0)
    assert [patience.delay(n, chance=lambda: 1.0) for n in (1, 2, 3, 4, 5, 50)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert patience.delay(3, chance=lambda: 0.0) == 0.2


def test_a_server_that_says_its_queue_is_long_is_given_that_time() -> None:
    assert Patience(first_s=0.1, most_s=1.0).delay(1, said_s=0.7, chance=lambda: 1.0) == 0.7


def test_a_password_is_in_no_repr_and_no_text() -> None:
    address = Address(("http://h:8529",), "db", "root", "s3cret")
    assert "s3cret" not in f"{address} {address!r}"


def test_rows_become_documents_and_come_back() -> None:
    shape = Shape(candles("5m"))
    rows = [{"venue": "binance", "symbol": "BTCUSDT", "ts": n * 300_000, "open": 1.0 + n, "version": n or None,
             "closed": True, "note": {"n": n}} for n in range(3)]  # fmt: skip
    batch, errors = shape.from_documents(rows)
    documents = arango_rows.encode(shape, batch)
    assert not errors
    assert [d["_key"] for d in documents] == [f"binance.BTCUSDT.{n * 300_000}" for n in range(3)]
    assert [d["_version"] for d in documents] == [0, 2, 3]
    back = arango_rows.decode(shape, {**documents[1], "_id": "x/1", "_rev": "r", "open": 2})
    assert (back["open"], type(back["open"]), back["high"], back["note"]) == (2.0, float, None, {"n": 1})
    assert "_rev" not in back
    assert "_version" not in back


def test_an_edge_leads_from_the_past_to_the_present() -> None:
    shape = Shape(graph_edges("g", "5m"))
    batch, _ = shape.from_columns({
        "symbol": "BTCUSDT", "interval": "5m", "kind": ["lag"], "src_ts": np.array([300_000]),
        "ts": np.array([600_000]), "attr": np.array([[0.5, 0.25]], np.float32),
    })  # fmt: skip
    [edge] = arango_rows.encode(shape, batch)
    assert (edge["_from"], edge["_to"]) == ("g/BTCUSDT-5m-300000", "g/BTCUSDT-5m-600000")
    assert (edge["_key"], edge["attr"]) == ("BTCUSDT-5m-lag-300000-600000", [0.5, 0.25])


def test_a_whole_number_is_the_same_as_it_comes_back_but_true_is_not_one() -> None:
    shape = Shape(candles("5m"))
    new = {"_key": "k", "open": 2.0, "note": {"x": [1.0]}}
    assert arango_rows.same(shape, new, {"_key": "k", "_id": "c/k", "_rev": "r", "open": 2, "note": {"x": [1]}})
    assert not arango_rows.same(shape, new, {"_key": "k", "open": 2, "note": {"x": [True]}})
    assert not arango_rows.same(shape, new, {"_key": "k", "open": 3, "note": {"x": [1]}})


def test_a_range_of_one_series_is_read_in_the_order_of_its_index() -> None:
    chosen = Chosen(TRADES, {"venue": "binance", "symbol": "BTCUSDT"}, 1, 9)
    query = aql.rows(chosen, ["id", "price"], desc=True, limit=5)
    assert query.text == (
        "FOR d IN @@c FILTER d.`venue` == @e0 FILTER d.`symbol` == @e1 FILTER d.`ts_ms` >= @lo FILTER d.`ts_ms` < @hi "
        "SORT d.`ts_ms` DESC, d.`id` DESC LIMIT @limit RETURN [d.`id`, d.`price`]"
    )
    assert query.bind == {"@c": "trades", "e0": "binance", "e1": "BTCUSDT", "lo": 1, "hi": 9, "limit": 5}
    assert index_fields(TRADES) == ["venue", "symbol", "ts_ms", "id"]
    assert not chosen.text_decides


def test_what_a_collection_cannot_be_searched_by_is_said() -> None:
    with pytest.raises(StoreError, match=r"trades.*price"):
        Chosen(TRADES, {"price": 1.0})
