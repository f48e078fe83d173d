"""Vertices and edges of a named graph, one at a time; what the graph promises is held here and only here."""

from __future__ import annotations

from typing import Any

from adapters.arango_double import documents
from adapters.arango_double.calls import Answer, Call, done
from adapters.arango_double.documents import Options
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection

Json = dict[str, Any]


def items(call: Call, graph: Json, kind: str, name: str) -> Answer:
    """POST: one more vertex or edge."""
    found = _collection(call, graph, kind, name)
    document = call.object()
    if kind == "edge":
        _check_ends(call, graph, name, document)
    made = documents.insert(call.unit, found, document, _options(call))
    return _answer(call, kind, made)


def item(call: Call, graph: Json, kind: str, name: str, key: str) -> Answer:
    """GET, PUT, PATCH, DELETE of one."""
    found = _collection(call, graph, kind, name)
    there = found.get(key)
    if there is None:
        raise ArangoError(1202)
    revision = call.query.get("rev") or (call.headers.get("If-Match") or "").strip('"')
    documents.check_revision(revision, there)
    match call.method:
        case "GET" | "HEAD":
            answer = done(**{kind: there})
            answer.headers["etag"] = there["_rev"]
            return answer
        case "DELETE":
            removed = documents.remove(call.unit, found, key, _options(call))
            if kind == "vertex":
                _remove_edges_of(call, there["_id"])
            old = {"old": removed["old"]} if "old" in removed else {}
            return done(_status(call, found), removed=True, **old)
    document = call.object()
    if kind == "edge":
        _check_ends(call, graph, name, {**there, **document} if call.method == "PATCH" else document)
    change = documents.replace if call.method == "PUT" else documents.update
    return _answer(call, kind, change(call.unit, found, key, document, _options(call)))


def _options(call: Call) -> Options:
    return Options(
        keep_null=call.flag("keepNull", True), return_new=call.flag("returnNew"), return_old=call.flag("returnOld")
    )


def _collection(call: Call, graph: Json, kind: str, name: str) -> Collection:
    """Raises 1926, 1930 for one that is not of the graph."""
    if kind == "edge":
        if all(each["collection"] != name for each in graph["edgeDefinitions"]):
            raise ArangoError(1930)
        return call.database.collection(name)
    ends = {each for edge in graph["edgeDefinitions"] for each in (*edge["from"], *edge["to"])}
    if name not in ends and name not in graph["orphanCollections"]:
        raise ArangoError(1926)
    return call.database.collection(name)


def _check_ends(call: Call, graph: Json, name: str, edge: Json) -> None:
    """Raises 1233, 1202 for a vertex that is not there, 1947 for one of another graph's collection."""
    definition = next(each for each in graph["edgeDefinitions"] if each["collection"] == name)
    for end, allowed in (("_from", definition["from"]), ("_to", definition["to"])):
        vertex = edge.get(end)
        if not isinstance(vertex, str) or "/" not in vertex:
            raise ArangoError(1233)
        collection, _, key = vertex.partition("/")
        if collection not in allowed:
            raise ArangoError(1947, f"referenced {end} collection '{collection}' is not part of the graph")
        if key not in call.database.collection(collection).documents:
            raise ArangoError(1202)


def _remove_edges_of(call: Call, vertex: str) -> None:
    """In every edge collection of every graph, as the server does."""
    names = {
        edge["collection"] for graph in call.database.collections["_graphs"].scan() for edge in graph["edgeDefinitions"]
    }
    for name in names:
        found = call.database.collections.get(name)
        index = next((each for each in found.indexes if each.definition["type"] == "edge"), None) if found else None
        if found is None or index is None:
            continue
        for key in {*index.keys("_from", vertex), *index.keys("_to", vertex)}:
            documents.remove(call.unit, found, key, Options())


def _status(call: Call, found: Collection) -> int:
    return 200 if call.method == "DELETE" and call.flag("waitForSync") else 202


def _answer(call: Call, kind: str, made: Json) -> Answer:
    """`{vertex: {_id, _key, _rev}}`, with `new` and `old` beside it."""
    beside = {name: made.pop(name) for name in ("new", "old") if name in made}
    ordered = {name: made[name] for name in ("_id", "_key", "_oldRev", "_rev") if name in made}
    status = (201 if call.method == "POST" else 200) if call.flag("waitForSync") else 202
    answer = done(status, **{kind: ordered}, **beside)
    answer.headers["etag"] = made["_rev"]
    return answer
