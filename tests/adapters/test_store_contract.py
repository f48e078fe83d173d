"""What every store promises, run on each of them: idempotent batches, deterministic keys, exact reads.

ArangoDB is the test double here, or a real server: `pytest --arango-url http://root@127.0.0.1:8529 FILE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.stores.arango_client import Address
from adapters.stores.base import BAD_KEY, BAD_VALUE, CollectionSpec, Document, Store
from adapters.stores.collections import COVERAGE, QUEUE_STATE, TELEMETRY_EVENTS, TRADES, candles, graph_edges
from adapters.stores.sqlite import SqliteStore
from app.errors import StoreError
from tests.arango import drop_database, elsewhere, open_store

Factory = Callable[[Path], AbstractContextManager[Store]]

# The same rows once in bulk and once as documents: a caller sees no difference.
BULK = CollectionSpec(
    name="bulk",
    key=("venue", "symbol", "id"),
    key_format="{venue}.{symbol}.{id:015d}",
    columns={
        "venue": "text",
        "symbol": "text",
        "id": "int",
        "ts": "int",
        "version": "int",
        "x": "float",
        "tag": "text",
    },
    version="version",
    block=("id", 4),
)
SMALL = CollectionSpec(
    name="small", key=BULK.key, key_format=BULK.key_format, columns=BULK.columns, version="version", block=None
)
TYPES = CollectionSpec(
    name="types",
    key=("name", "ts"),
    key_format="{name}.{ts}",
    columns={
        "name": "text", "ts": "int", "whole": "int", "number": "float", "text": "text", "flag": "bool",
        "vector": "floats", "object": "json",
    },
    series=("name",),
)  # fmt: skip
TYPES_BULK = CollectionSpec(
    name="types_bulk", key=TYPES.key, key_format=TYPES.key_format, columns=TYPES.columns, series=("name",),
    block=("ts", 1000),
)  # fmt: skip
BOTH = pytest.mark.parametrize("spec", [BULK, SMALL], ids=lambda spec: spec.name)
BOTH_TYPES = pytest.mark.parametrize("spec", [TYPES, TYPES_BULK], ids=lambda spec: spec.name)


@pytest.fixture(scope="session", params=["sqlite", "arango"])
def factory(request: pytest.FixtureRequest) -> Factory:
    """Opens an empty store."""
    if request.param == "sqlite":
        return lambda folder: closing(SqliteStore(folder / "store.db"))
    there: Address = request.getfixturevalue("arango")

    @contextmanager
    def in_its_own_database(_folder: Path) -> Iterator[Store]:
        own = elsewhere(there)
        with closing(open_store(own)) as opened:
            yield opened
        drop_database(own)

    return in_its_own_database


@pytest.fixture
def store(factory: Factory, tmp_path: Path) -> Iterator[Store]:
    with factory(tmp_path) as opened:
        for spec in (BULK, SMALL, TYPES, TYPES_BULK):
            opened.ensure(spec)
        yield opened


def document(id: int, ts: int, *, symbol: str = "BTCUSDT", version: int | None = 1, x: float = 0.0) -> Document:
    return {"venue": "binance", "symbol": symbol, "id": id, "ts": ts, "version": version, "x": x, "tag": f"t{id}"}


def read(store: Store, collection: str, **how: Any) -> list[Document]:
    return [row for batch in store.scan(collection, **how) for row in batch.to_pylist()]


def counts(result: Any) -> tuple[int, int, int]:
    return result.created, result.updated, result.ignored


# -- writing


@BOTH
def test_a_repeated_batch_changes_nothing(store: Store, spec: CollectionSpec) -> None:
    batch = [document(n, 10 * n) for n in range(10)]
    assert counts(store.upsert(spec.name, batch)) == (10, 0, 0)
    before = read(store, spec.name)
    assert counts(store.upsert(spec.name, batch)) == (0, 0, 10)
    assert read(store, spec.name) == before


@BOTH
def test_the_last_of_equal_keys_in_a_batch_wins(store: Store, spec: CollectionSpec) -> None:
    result = store.upsert(spec.name, [document(1, 10, x=1.0), document(2, 20), document(1, 11, x=2.0)])
    assert counts(result) == (2, 0, 1)
    assert [(row["ts"], row["x"]) for row in read(store, spec.name)] == [(11, 2.0), (20, 0.0)]


@BOTH
def test_a_lower_version_never_replaces_a_higher_and_an_equal_one_does(store: Store, spec: CollectionSpec) -> None:
    store.upsert(spec.name, [document(1, 10, version=5, x=5.0)])
    assert counts(store.upsert(spec.name, [document(1, 10, version=4, x=4.0)])) == (0, 0, 1)
    assert counts(store.upsert(spec.name, [document(1, 10, version=None, x=3.0)])) == (0, 0, 1)
    assert read(store, spec.name)[0]["x"] == 5.0
    assert counts(store.upsert(spec.name, [document(1, 10, version=5, x=6.0)])) == (0, 1, 0)
    assert read(store, spec.name)[0]["x"] == 6.0


@BOTH
def test_mode_ignore_keeps_what_is_there(store: Store, spec: CollectionSpec) -> None:
    store.upsert(spec.name, [document(1, 10, x=1.0)])
    assert counts(store.upsert(spec.name, [document(1, 10, x=2.0, version=9), document(2, 20)], "ignore")) == (1, 0, 1)
    assert read(store, spec.name)[0]["x"] == 1.0


@BOTH
def test_mode_update_changes_the_given_fields_only(store: Store, spec: CollectionSpec) -> None:
    store.upsert(spec.name, [{**document(1, 10, x=1.0), "note": "kept"}])
    key = {"venue": "binance", "symbol": "BTCUSDT", "id": 1}
    result = store.upsert(
        spec.name, [{**key, "x": 2.0}, {**key, "tag": "new"}, {**key, "version": 0, "x": 9.0}], "update"
    )
    assert (result.created, result.updated) == (0, 1)
    [found] = store.get(spec.name, ["binance.BTCUSDT.000000000000001"])
    assert found == {
        "_key": "binance.BTCUSDT.000000000000001", **key, "ts": 10, "version": 1, "x": 2.0, "tag": "new",
        "note": "kept",
    }  # fmt: skip


@BOTH
def test_mode_update_creates_what_is_not_there_and_names_what_is_missing(store: Store, spec: CollectionSpec) -> None:
    missing_time = {name: value for name, value in document(2, 20).items() if name != "ts"}
    result = store.upsert(spec.name, [document(1, 10), missing_time, {"venue": "binance"}], "update")
    assert counts(result) == (1, 0, 0)
    assert [(index, number) for index, number, _ in result.errors] == [(1, BAD_VALUE), (2, BAD_KEY)]


@BOTH
@pytest.mark.parametrize(
    ("field", "value", "number"),
    [
        ("symbol", "BTC:USDT", BAD_KEY), ("symbol", "BTC/USDT", BAD_KEY), ("symbol", "", BAD_KEY),
        ("symbol", "ÄÖ", BAD_KEY), ("symbol", None, BAD_KEY), ("id", -1, BAD_KEY), ("id", None, BAD_KEY),
        ("id", 2**63, BAD_VALUE), ("id", 1.5, BAD_VALUE), ("id", True, BAD_VALUE), ("ts", None, BAD_VALUE),
        ("ts", "10", BAD_VALUE), ("x", "1", BAD_VALUE), ("x", math.inf, BAD_VALUE), ("tag", 7, BAD_VALUE),
        ("tag", "\ud800", BAD_VALUE), ("note", object(), BAD_VALUE),
    ],
)  # fmt: skip
def test_a_bad_row_comes_back_with_its_index_and_the_others_are_stored(
    store: Store, spec: CollectionSpec, field: str, value: Any, number: int
) -> None:
    result = store.upsert(spec.name, [document(1, 10), {**document(2, 20), field: value}, document(3, 30)])
    assert counts(result) == (2, 0, 0)
    [(index, found, message)] = result.errors
    assert (index, found) == (1, number)
    assert field in message or field == "note"
    assert [row["id"] for row in read(store, spec.name)] == [1, 3]


@BOTH
def test_keys_that_could_be_two_documents_are_refused(store: Store, spec: CollectionSpec) -> None:
    """`a.b` + `c` and `a` + `b.c` would share one key: at most one of them may exist."""
    first, second = ({**document(1, 10), "venue": v, "symbol": s} for v, s in (("a.b", "c"), ("a", "b.c")))
    result = store.upsert(spec.name, [first, second])
    assert counts(result) == (1, 0, 0)
    assert [number for _, number, _ in result.errors] == [BAD_KEY]


@BOTH_TYPES
def test_every_type_comes_back_as_it_was_given(store: Store, spec: CollectionSpec) -> None:
    given_document = {
        "name": "A-b_1.2", "ts": 5, "whole": 2**53 + 1, "number": 0.1, "text": "ü\u0000\n'\"", "flag": False,
        "vector": [0.5, -1.25], "object": {"list": [1, 2**62, None, {"a": 0.1}], "text": "\u0000"},
        "other": [1, {"b": 2.5}],
    }  # fmt: skip
    store.upsert(spec.name, [given_document])
    assert store.get(spec.name, ["A-b_1.2.5", "A-b_1.2.6", "nonsense", "Z.5"]) == [
        {"_key": "A-b_1.2.5", **given_document}, None, None, None,
    ]  # fmt: skip


@BOTH_TYPES
@pytest.mark.parametrize("whole", [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1])
def test_integers_of_64_bits_stay_exact(store: Store, spec: CollectionSpec, whole: int) -> None:
    store.upsert(spec.name, [{"name": "n", "ts": 1, "whole": whole}])
    store.upsert_columns(spec.name, {"name": "n", "ts": [2], "whole": np.array([whole])})
    assert [row["whole"] for row in read(store, spec.name)] == [whole, whole]


@BOTH_TYPES
def test_nan_and_absent_fields_are_null(store: Store, spec: CollectionSpec) -> None:
    store.upsert(
        spec.name, [{"name": "n", "ts": 1, "number": math.nan, "vector": [1.0, math.nan], "object": [math.nan]}]
    )
    store.upsert_columns(spec.name, {
        "name": "n", "ts": np.array([2]), "number": np.array([np.nan]), "object": [[math.nan]],
        "vector": np.array([[1.0, np.nan]], np.float32),
    })  # fmt: skip
    for found in store.get(spec.name, ["n.1", "n.2"]):
        assert found is not None
        assert (found["number"], found["vector"], found["object"], found["text"]) == (None, [1.0, None], [None], None)


@BOTH
def test_columns_and_documents_are_two_ways_to_say_the_same(store: Store, spec: CollectionSpec) -> None:
    batch = [document(n, 10 * n, x=n / 7) for n in range(9)]
    result = store.upsert_columns(spec.name, {
        "venue": "binance", "symbol": ["BTCUSDT"] * 9, "id": np.arange(9, dtype=np.uint32),
        "ts": np.arange(9, dtype="<i8") * 10, "version": 1, "x": np.arange(9) / 7, "tag": [f"t{n}" for n in range(9)],
    })  # fmt: skip
    assert counts(result) == (9, 0, 0)
    assert counts(store.upsert(spec.name, batch)) == (0, 0, 9)


@BOTH
def test_a_bad_row_among_columns_comes_back_too(store: Store, spec: CollectionSpec) -> None:
    columns = {
        "venue": "binance", "symbol": ["A", "B:", "C"], "id": np.array([1, 2, 3]), "ts": np.array([1, 2, 3]),
        "x": np.array([1.0, 2.0, np.inf]),
    }  # fmt: skip
    result = store.upsert_columns(spec.name, columns)
    assert counts(result) == (1, 0, 0)
    assert [(index, number) for index, number, _ in result.errors] == [(1, BAD_KEY), (2, BAD_VALUE)]


@pytest.mark.parametrize(
    "columns",
    [{"venue": "b", "symbol": "s", "id": [1]}, {"venue": "b", "symbol": "s", "id": [1], "ts": [1, 2]},
     {"venue": "b", "symbol": "s", "id": [1], "ts": [1], "colour": [1]}],
    ids=["no time", "unequal", "unknown"],
)  # fmt: skip
def test_columns_that_do_not_fit_the_collection_are_an_error_in_words(store: Store, columns: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="bulk"):
        store.upsert_columns("bulk", columns)
    assert store.count("bulk") == 0


def test_an_empty_batch_is_fine(store: Store) -> None:
    assert counts(store.upsert("bulk", [])) == (0, 0, 0)
    nothing = {"venue": "b", "symbol": "s", "id": np.array([], np.int64), "ts": np.array([], np.int64)}
    assert counts(store.upsert_columns("bulk", nothing)) == (0, 0, 0)
    assert read(store, "bulk") == []
    assert store.aggregate("bulk", eq={}, lo=0, hi=9, bucket_ms=1, aggregates={"n": ("count", "id")}).num_rows == 0


# -- reading


def test_scan_answers_the_asked_columns_in_the_asked_order(store: Store) -> None:
    store.upsert("bulk", [document(1, 10)])
    [batch] = store.scan("bulk", columns=["x", "_key", "symbol"])
    assert batch.schema.names == ["x", "_key", "symbol"]
    assert batch.to_pylist() == [{"x": 0.0, "_key": "binance.BTCUSDT.000000000000001", "symbol": "BTCUSDT"}]
    [batch] = store.scan("bulk")
    assert batch.schema.names == list(BULK.columns)
    assert batch.schema.field("x").type == pa.float64()


def test_a_scan_sees_the_collection_as_it_was_when_it_began(store: Store) -> None:
    store.upsert("bulk", [document(n, n) for n in range(100)])
    scan = store.scan("bulk", limit=200)
    first = next(scan)
    store.upsert("bulk", [document(n, n) for n in range(100, 150)])
    store.delete_before("bulk", 50)
    assert len(first) + sum(len(batch) for batch in scan) == 100
    assert store.count("bulk") == 100


@pytest.mark.parametrize(
    "how", [{"eq": {"x": 1.0}}, {"eq": {"colour": 1}}, {"columns": ["colour"]}, {"limit": -1}], ids=str
)
def test_a_question_the_collection_cannot_answer_is_an_error_in_words(store: Store, how: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="bulk"):
        list(store.scan("bulk", **how))


@BOTH
def test_rows_of_one_time_are_ordered_by_key_across_series(store: Store, spec: CollectionSpec) -> None:
    store.upsert(spec.name, [document(0, 5, symbol="B"), document(1, 5, symbol="A"), document(2, 4, symbol="C")])
    found = [(row["symbol"], row["id"]) for row in read(store, spec.name)]
    assert found == [("C", 2), ("A", 1), ("B", 0)]
    assert [(row["symbol"], row["id"]) for row in read(store, spec.name, desc=True)] == found[::-1]


def test_what_is_not_there_is_none_and_nothing(store: Store) -> None:
    assert store.get("bulk", ["binance.BTCUSDT.000000000000009", "::"]) == [None, None]
    assert read(store, "bulk", eq={"symbol": "NEVERSEEN"}) == []
    assert store.count("bulk", eq={"symbol": "NEVERSEEN"}) == 0


# -- collections


def test_ensure_twice_changes_nothing_and_another_shape_is_refused(store: Store) -> None:
    store.upsert("bulk", [document(1, 10)])
    store.ensure(BULK)
    assert store.count("bulk") == 1
    other = CollectionSpec(name="bulk", key=("id",), key_format="{id}", columns={"id": "int", "ts": "int"}, series=())
    with pytest.raises(StoreError, match="another shape"):
        store.ensure(other)
    assert store.count("bulk") == 1


def test_a_dropped_collection_is_gone_and_can_be_made_anew(store: Store) -> None:
    store.upsert("bulk", [document(1, 10)])
    store.drop("bulk")
    assert store.collections() == ["small", "types", "types_bulk"]
    with pytest.raises(StoreError, match="no collection 'bulk'"):
        store.count("bulk")
    store.ensure(BULK)
    assert store.count("bulk") == 0


@pytest.mark.parametrize(
    "spec",
    [
        CollectionSpec(name="a b", key=("k",), key_format="{k}", columns={"k": "text"}, time=None, series=()),
        CollectionSpec(name="a", key=("k",), key_format="{k}", columns={"k": "float"}, time=None, series=()),
        CollectionSpec(name="a", key=("k",), key_format="{k}", columns={"k": "text"}, series=()),
        CollectionSpec(name="a", key=(), key_format="", columns={"k": "text"}, time=None, series=()),
        CollectionSpec(
            name="a", key=("k",), key_format="{k}", columns={"k": "int"}, time=None, series=(), block=("k", 9)
        ),
    ],
    ids=["name", "key type", "no time", "no key", "block"],
)
def test_a_spec_that_cannot_be_kept_is_refused(store: Store, spec: CollectionSpec) -> None:
    with pytest.raises(StoreError, match="cannot be kept"):
        store.ensure(spec)


@pytest.mark.parametrize(
    "spec",
    [TRADES, COVERAGE, QUEUE_STATE, TELEMETRY_EVENTS, candles("5m"), graph_edges("g", "5m")],
    ids=lambda s: s.name,
)
def test_the_collections_of_streamforge_can_be_kept(store: Store, spec: CollectionSpec) -> None:
    store.ensure(spec)
    store.ensure(spec)
    assert spec.name in store.collections()


# -- any history of writes, against a plain dictionary


def rank(of: Document) -> int:
    return -1 if of["version"] is None else of["version"]


class Model:
    """Documents by key, one write after the other."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, int], Document] = {}

    def upsert(self, batch: list[Document]) -> tuple[int, int, int]:
        before = dict(self.documents)
        for new in batch:
            key = (new["symbol"], new["id"])
            old = self.documents.get(key)
            if old is None or rank(new) >= rank(old):
                self.documents[key] = new
        created = len(self.documents.keys() - before.keys())
        updated = sum(before[key] != self.documents[key] for key in before)
        return created, updated, len(batch) - created - updated

    def scan(self, eq: dict[str, Any], lo: int | None, hi: int | None) -> list[Document]:
        chosen = [
            d for d in self.documents.values()
            if all(d[n] == v for n, v in eq.items()) and (lo is None or d["ts"] >= lo) and (hi is None or d["ts"] < hi)
        ]  # fmt: skip
        return sorted(chosen, key=lambda d: (d["ts"], d["venue"], d["symbol"], d["id"]))


DOCUMENTS = st.builds(
    document, st.integers(0, 30), st.integers(0, 60), symbol=st.sampled_from(["A", "B", "C.d"]),
    version=st.one_of(st.none(), st.integers(0, 3)), x=st.sampled_from([0.0, 0.1, 1.5]),
)  # fmt: skip
EQ = st.fixed_dictionaries(
    {},
    optional={
        "symbol": st.sampled_from(["A", "B", "Z"]),
        "venue": st.just("binance"),
        "tag": st.just("t3"),
        "id": st.just(3),
    },
)
EDGE = st.one_of(st.none(), st.integers(-5, 65))


@BOTH
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_writes_and_reads_agree_with_a_plain_dictionary(
    factory: Factory, spec: CollectionSpec, data: st.DataObject
) -> None:
    batches = data.draw(st.lists(st.lists(DOCUMENTS, max_size=12), max_size=6))
    with TemporaryDirectory() as folder, factory(Path(folder)) as store:
        store.ensure(spec)
        model = Model()
        for batch in batches:
            assert counts(store.upsert(spec.name, batch)) == model.upsert(batch)
        if batches:  # once more, the whole history from its last batch on
            assert store.upsert(spec.name, batches[-1]).created == 0
            model.upsert(batches[-1])
        check_reads(store, spec.name, model, data)
        before = data.draw(st.integers(0, 60))
        gone = [d for d in model.documents.values() if d["ts"] < before]
        assert store.delete_before(spec.name, before) == len(gone)
        assert read(store, spec.name) == model.scan({}, before, None)


def check_reads(store: Store, name: str, model: Model, data: st.DataObject) -> None:
    for _ in range(4):
        eq, lo, hi = data.draw(EQ), data.draw(EDGE), data.draw(EDGE)
        limit, desc = data.draw(st.one_of(st.none(), st.integers(0, 8))), data.draw(st.booleans())
        expected = model.scan(eq, lo, hi)
        assert store.count(name, eq=eq, lo=lo, hi=hi) == len(expected)
        if desc:
            expected.reverse()
        assert read(store, name, eq=eq, lo=lo, hi=hi, desc=desc, limit=limit) == expected[:limit]
    keys = {f"binance.{symbol}.{number:015d}": d for (symbol, number), d in model.documents.items()}
    assert store.get(name, list(keys)) == [{"_key": key, **d} for key, d in keys.items()]


@BOTH
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10_000), st.floats(-1e6, 1e6), st.booleans()), max_size=60, unique_by=lambda r: r[0]
    ),
    bucket_ms=st.sampled_from([1, 7, 1000]),
)
def test_aggregates_equal_numpy(
    factory: Factory, spec: CollectionSpec, rows: list[tuple[int, float, bool]], bucket_ms: int
) -> None:
    documents = [{**document(n, ts), "x": None if null else x} for n, (ts, x, null) in enumerate(rows)]
    with TemporaryDirectory() as folder, factory(Path(folder)) as store:
        store.ensure(spec)
        store.upsert(spec.name, documents)
        found = store.aggregate(
            spec.name, eq={"symbol": "BTCUSDT"}, lo=500, hi=9_000, bucket_ms=bucket_ms,
            aggregates={
                "first": ("first", "x"), "last": ("last", "x"), "low": ("min", "x"), "high": ("max", "x"),
                "sum": ("sum", "x"), "mean": ("mean", "x"), "n": ("count", "x"), "rows": ("count", "id"),
            },
        )  # fmt: skip
    buckets: dict[int, list[Document]] = {}
    for d in sorted(documents, key=lambda d: d["ts"]):
        if 500 <= d["ts"] < 9_000:
            buckets.setdefault(d["ts"] // bucket_ms * bucket_ms, []).append(d)
    assert found.column("ts").to_pylist() == sorted(buckets)
    for row in found.to_pylist():
        inside = buckets[row["ts"]]
        numbers = np.array([d["x"] for d in inside if d["x"] is not None])
        assert (row["n"], row["rows"]) == (len(numbers), len(inside))
        if len(numbers):
            assert (row["first"], row["last"]) == (numbers[0], numbers[-1])
            assert (row["low"], row["high"]) == (numbers.min(), numbers.max())
            assert row["sum"] == pytest.approx(numbers.sum(), rel=1e-9, abs=1e-6)
            assert row["mean"] == pytest.approx(numbers.mean(), rel=1e-9, abs=1e-6)
        else:
            assert row["first"] is row["sum"] is row["mean"] is None
