"""/_api/gharial and /_api/edges: named graphs, whose definitions are documents of `_graphs`."""

from __future__ import annotations

from typing import Any

from adapters.arango_double import documents
from adapters.arango_double.calls import Answer, Call, done, unknown_path, wrong_method
from adapters.arango_double.documents import Options
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.routes_collections import drop
from adapters.arango_double.routes_graph_items import item, items
from adapters.arango_double.storage import Collection

Json = dict[str, Any]


def gharial(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "GET", []:
            return done(graphs=[_shown(graph) for graph in _graphs(call).scan()])
        case "POST", []:
            return _create(call)
        case "GET", [name]:
            return done(graph=_shown(_graph(call, name)))
        case "DELETE", [name]:
            return _drop(call, _graph(call, name))
        case method, [name, ("vertex" | "edge") as kind, *rest]:
            return _inside(call, method, _graph(call, name), kind, rest)
        case _:
            raise unknown_path(call)


def _inside(call: Call, method: str, graph: Json, kind: str, rest: list[str]) -> Answer:
    match method, rest:
        case "GET", []:
            names = _vertices(graph) if kind == "vertex" else {edge["collection"] for edge in graph["edgeDefinitions"]}
            return done(collections=sorted(names))
        case "POST", []:
            return _add_orphan(call, graph) if kind == "vertex" else _add_definition(call, graph)
        case "DELETE", [name] if kind == "vertex":
            return _remove_orphan(call, graph, name)
        case (("PUT" | "DELETE"), [name]) if kind == "edge":
            return _change_definition(call, graph, name)
        case "POST", [name]:
            return items(call, graph, kind, name)
        case (("GET" | "HEAD" | "PUT" | "PATCH" | "DELETE"), [name, key]):
            return item(call, graph, kind, name, key)
    raise wrong_method()


# -- the definitions ---------------------------------------------------------------------------------------


def _graphs(call: Call) -> Collection:
    return call.database.collections["_graphs"]


def _graph(call: Call, name: str) -> Json:
    """Raises 1924."""
    found = _graphs(call).get(name)
    if found is None:
        raise ArangoError(1924, f"graph '{name}' not found")
    return found


def _vertices(graph: Json) -> set[str]:
    ends = (set(edge["from"]) | set(edge["to"]) for edge in graph["edgeDefinitions"])
    return set(graph["orphanCollections"]).union(*ends)


def _shown(graph: Json) -> Json:
    return {**graph, "name": graph["_key"]}


def _create(call: Call) -> Answer:
    """Raises 1925, 1923, and 9 for graphs of the Enterprise Edition."""
    body = call.object()
    name = body.get("name")
    if (
        body.get("isSmart")
        or body.get("isDisjoint")
        or (body.get("options") or {}).get("replicationFactor") == "satellite"
    ):
        raise not_implemented("smart and satellite graphs")
    if not isinstance(name, str) or not name:
        raise ArangoError(1908, "graph name is invalid", status=400)
    if _graphs(call).get(name) is not None:
        raise ArangoError(1925)
    definitions = [_definition(each) for each in body.get("edgeDefinitions") or []]
    used = [each["collection"] for each in definitions]
    if len(set(used)) < len(used):
        raise ArangoError(1920)
    for each in definitions:
        _check_definition(call, each, name)
    graph = {
        "_key": name,
        "edgeDefinitions": definitions,
        "orphanCollections": sorted(body.get("orphanCollections") or []),
    }
    _make_collections(call, graph)
    return _written(call, graph, "conflict")


def _definition(told: Any) -> Json:
    """Raises 1923."""
    if (
        not isinstance(told, dict)
        or not isinstance(told.get("collection"), str)
        or not all(isinstance(told.get(end), list) and told[end] for end in ("from", "to"))
    ):
        raise ArangoError(1923)
    return {"collection": told["collection"], "from": sorted(told["from"]), "to": sorted(told["to"])}


def _check_definition(call: Call, told: Json, graph: str) -> None:
    """One edge collection has one definition in all graphs. Raises 1921."""
    for other in _graphs(call).scan():
        for each in other["edgeDefinitions"]:
            if other["_key"] != graph and each["collection"] == told["collection"] and each != told:
                raise ArangoError(1921, f"{told['collection']} edge collection already used in edge def")


def _make_collections(call: Call, graph: Json) -> None:
    for name in sorted(_vertices(graph)):
        if name not in call.database.collections:
            call.server.create_collection(call.database.name, {"name": name, "type": 2})
    for edge in graph["edgeDefinitions"]:
        there = call.database.collections.get(edge["collection"])
        if there is None:
            call.server.create_collection(call.database.name, {"name": edge["collection"], "type": 3})
        elif not there.is_edge:
            raise ArangoError(1218, f"collection type invalid: {there.name} is no edge collection", status=400)


def _written(call: Call, graph: Json, mode: Any) -> Answer:
    made = documents.insert(call.unit, _graphs(call), graph, Options(overwrite_mode=mode, return_new=True))["new"]
    answer = done(201 if call.flag("waitForSync") else 202, graph=_shown(made))
    answer.headers["etag"] = made["_rev"]
    return answer


def _drop(call: Call, graph: Json) -> Answer:
    documents.remove(call.unit, _graphs(call), graph["_key"], Options())
    if call.flag("dropCollections"):
        kept: set[str] = set()
        for other in _graphs(call).scan():
            kept |= _vertices(other) | {edge["collection"] for edge in other["edgeDefinitions"]}
        for name in sorted(_vertices(graph) | {edge["collection"] for edge in graph["edgeDefinitions"]}):
            if name not in kept and name in call.database.collections:
                drop(call, call.database.collections[name], checked=False)
    return done(201 if call.flag("waitForSync") else 202, removed=True)


def _add_orphan(call: Call, graph: Json) -> Answer:
    name = call.object().get("collection")
    if not isinstance(name, str):
        raise ArangoError(10)
    if name in graph["orphanCollections"] or name in _vertices(graph):
        raise ArangoError(1938)
    graph["orphanCollections"] = sorted([*graph["orphanCollections"], name])
    _make_collections(call, graph)
    return _written(call, graph, "replace")


def _remove_orphan(call: Call, graph: Json, name: str) -> Answer:
    if name not in _vertices(graph):
        raise ArangoError(1926)
    if name not in graph["orphanCollections"]:
        raise ArangoError(1928)
    graph["orphanCollections"].remove(name)
    answer = _written(call, graph, "replace")
    if call.flag("dropCollection"):
        drop(call, call.database.collection(name), checked=False)
    return answer


def _add_definition(call: Call, graph: Json) -> Answer:
    told = _definition(call.object())
    if any(each["collection"] == told["collection"] for each in graph["edgeDefinitions"]):
        raise ArangoError(1920)
    _check_definition(call, told, graph["_key"])
    graph["edgeDefinitions"].append(told)
    return _redefined(call, graph, set())


def _change_definition(call: Call, graph: Json, name: str) -> Answer:
    place = next((at for at, each in enumerate(graph["edgeDefinitions"]) if each["collection"] == name), None)
    if place is None:
        raise ArangoError(1930)
    before = _vertices(graph)
    if call.method == "DELETE":
        del graph["edgeDefinitions"][place]
    else:
        told = _definition(call.object())
        if told["collection"] != name:
            raise ArangoError(1930)
        _check_definition(call, told, graph["_key"])
        graph["edgeDefinitions"][place] = told
    answer = _redefined(call, graph, before)
    if call.method == "DELETE" and (call.flag("dropCollections") or call.flag("dropCollection")):
        drop(call, call.database.collection(name), checked=False)
    return answer


def _redefined(call: Call, graph: Json, before: set[str]) -> Answer:
    """Vertex collections that no edge definition names any more become orphans; named orphans are none any more."""
    named = {name for each in graph["edgeDefinitions"] for name in (*each["from"], *each["to"])}
    graph["orphanCollections"] = sorted((set(graph["orphanCollections"]) | before) - named)
    graph["edgeDefinitions"].sort(key=lambda each: each["collection"])
    _make_collections(call, graph)
    return _written(call, graph, "replace")


# -- edges of a collection ---------------------------------------------------------------------------------


def edges(call: Call) -> Answer:
    if call.method != "GET" or len(call.parts) != 2:
        raise unknown_path(call)
    found, vertex = call.database.collection(call.parts[1]), call.query.get("vertex", "")
    direction = call.query.get("direction", "any")
    if direction not in ("any", "in", "out") or "/" not in vertex:
        raise ArangoError(400, "<direction> must by any, in, or out, <vertex> a document's id")
    ends = {"any": ("_from", "_to"), "in": ("_to",), "out": ("_from",)}[direction]
    index = next((each for each in found.indexes if each.definition["type"] == "edge"), None)
    if index is None:
        raise ArangoError(1218, "collection type invalid: edge collection expected", status=400)
    keys = dict.fromkeys(key for end in ends for key in index.keys(end, vertex))
    shown = [found.get(key) for key in keys]
    stats = dict.fromkeys(_STATS, 0) | {"documentLookups": len(shown), "scannedIndex": len(shown)}
    return Answer({"edges": shown, "error": False, "code": 200, "stats": stats})


_STATS = (
    "writesExecuted", "writesIgnored", "documentLookups", "seeks", "scannedFull", "scannedIndex", "searchParallelism",
    "cursorsCreated", "cursorsRearmed", "cacheHits", "cacheMisses", "filtered", "httpRequests", "executionTime",
    "peakMemoryUsage", "intermediateCommits",
)  # fmt: skip
