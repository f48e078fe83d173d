"""/_api/collection: create, look at, change and drop collections."""

from __future__ import annotations

import re
import zlib
from typing import Any

import orjson

from adapters.arango_double.calls import Answer, Call, done, unknown_path, wrong_method
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection

Json = dict[str, Any]

_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9_\-]{0,255}")
_SHORT = ("globallyUniqueId", "isSystem", "status", "type", "name", "id")
_NUMBER_OF_TYPE = {"document": 2, "edge": 3}


def collection(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "GET", []:
            leave_out = call.flag("excludeSystem")
            return done(result=[
                short(each)
                for each in call.database.collections.values()
                if not (leave_out and each.properties["isSystem"])
            ])  # fmt: skip
        case "POST", []:
            return done(**create(call, call.object()).properties)
        case "GET", [name]:
            return done(**short(call.database.collection(name)))
        case "GET", [name, what]:
            found = call.database.collection(name)
            return _with_location(call, done(**_seen(call, found, what)))
        case "PUT", [name, what]:
            found = call.database.collection(name)
            return _with_location(call, done(**_changed(call, found, what)))
        case "PUT", _:
            raise ArangoError(400, "expected PUT /_api/collection/<collection-name>/<action>")
        case "DELETE", [name]:
            found = call.database.collection(name)
            drop(call, found)
            return done(id=found.id)
        case "GET" | "POST" | "DELETE", _:
            raise unknown_path(call)
    raise wrong_method()


def short(found: Collection) -> Json:
    return {name: found.properties[name] for name in _SHORT}


def create(call: Call, wanted: Json) -> Collection:
    """Raises 1207, 1208, 10."""
    name = wanted.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArangoError(1208, "illegal name: collection name invalid")
    if name.startswith("_") and not wanted.get("isSystem"):
        raise ArangoError(1208, "illegal name: collection name invalid")
    if name in call.database.collections:
        raise ArangoError(1207)
    kind = wanted.get("type", 2)
    kind = _NUMBER_OF_TYPE.get(kind, kind)
    if kind not in (2, 3):
        raise ArangoError(1218, "invalid collection type", status=400)
    return call.server.create_collection(call.database.name, {**wanted, "type": kind})


def drop(call: Call, found: Collection, *, checked: bool = True) -> None:
    """Raises 11 for a system collection, 1942 for one that a graph uses."""
    if checked and found.properties["isSystem"] and not call.flag("isSystem"):
        raise ArangoError(11)
    if checked and found.name in _used_by_graphs(call):
        raise ArangoError(1942)
    call.server.change("drop", call.database.name, found.name)


def _used_by_graphs(call: Call) -> set[str]:
    used: set[str] = set()
    for graph in call.database.collections["_graphs"].scan():
        used.update(graph["orphanCollections"])
        for edge in graph["edgeDefinitions"]:
            used.update([edge["collection"], *edge["from"], *edge["to"]])
    return used


def _with_location(call: Call, answer: Answer) -> Answer:
    answer.headers["location"] = call.here("/_api/" + "/".join(call.parts))
    return answer


def _seen(call: Call, found: Collection, what: str) -> Json:
    match what:
        case "properties":
            return found.properties
        case "count":
            return {**found.properties, "count": len(found.documents)}
        case "figures":
            return {**found.properties, "count": len(found.documents), "figures": _figures(call, found)}
        case "revision":
            return {**found.properties, "revision": _revision(found) or found.id}
        case "checksum":
            return {**short(found), "revision": _revision(found), "checksum": _checksum(call, found)}
        case "shards" | "figures":
            raise ArangoError(9)
    raise ArangoError(404, "expecting one of the resources count, figures, properties, revision, checksum")


def _revision(found: Collection) -> str:
    return max((document["_rev"] for document in found.scan()), default="")


def _checksum(call: Call, found: Collection) -> str:
    """Equal where the documents are; not the server's own number."""
    total = 0
    for document in found.scan():
        left_out = () if call.flag("withRevisions") else ("_rev",)
        kept = (
            {name: value for name, value in document.items() if name not in left_out}
            if call.flag("withData")
            else {"_key": document["_key"]}
        )
        total ^= zlib.crc32(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS))
    return str(total)


def _figures(call: Call, found: Collection) -> Json:
    size = sum(map(len, found.documents.values()))
    figures: Json = {
        "indexes": {"count": len(found.indexes) + 1, "size": 0}, "documentsSize": size, "cacheInUse": False,
        "cacheSize": 0, "cacheUsage": 0,
    }  # fmt: skip
    if call.flag("details"):
        count = len(found.documents)
        kinds = ["primary", *(index.definition["type"] for index in found.indexes)]
        figures["engine"] = {
            "documents": count,
            "indexes": [{"type": kind, "id": at, "count": count} for at, kind in enumerate(kinds)],
        }
    return figures


def _changed(call: Call, found: Collection, what: str) -> Json:  # noqa: PLR0911 -- one per action
    here = call.database.name
    match what:
        case "truncate":
            call.server.change("truncate", here, found.name)
            return short(found)
        case "rename":
            name = call.object().get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ArangoError(1208, "illegal name: collection name invalid")
            if name in call.database.collections:
                raise ArangoError(1207)
            call.server.change("rename", here, found.name, name)
            return short(found)
        case "properties":
            wanted = call.object()
            changed = {
                name: wanted[name]
                for name in ("waitForSync", "cacheEnabled", "schema", "computedValues")
                if name in wanted
            }
            call.server.change("properties", here, found.name, changed)
            return found.properties
        case "load":
            return {**short(found), "count": len(found.documents)}
        case "unload" | "compact":
            return short(found)
        case "loadIndexesIntoMemory":
            return {"result": True}
        case "recalculateCount":
            return {"result": True, "count": len(found.documents)}
        case "responsibleShard":
            raise ArangoError(9)
    raise ArangoError(404, "expecting one of the actions load, unload, truncate, properties, compact, rename")
