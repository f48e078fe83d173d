"""/_api/index: persistent and TTL indexes are made, primary and edge indexes are shown, others are refused."""

from __future__ import annotations

from typing import Any

from adapters.arango_double.calls import Answer, Call, done, unknown_path, wrong_method
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.indexes import Index
from adapters.arango_double.storage import Collection

Json = dict[str, Any]

_FIRST_NAME = 10**18  # of an index without a name
_IDENTITY = ("type", "fields", "unique", "sparse", "expireAfter", "prefixFields")  # what makes two definitions one


def index(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "GET", []:
            shown = all_of(_collection_asked(call))
            return done(indexes=shown, identifiers={each["id"]: each for each in shown})
        case "POST", []:
            found = _collection_asked(call)
            definition, is_new = ensure(call, found, call.object())
            status = 201 if is_new else 200
            return Answer({**definition, "isNewlyCreated": is_new, "code": status, "error": False}, status)
        case "GET", [name, id]:
            return done(**_one(call.database.collection(name), id))
        case "DELETE", [name, id]:
            found = call.database.collection(name)
            definition = _one(found, id)
            if definition["type"] in ("primary", "edge"):
                raise ArangoError(11)
            call.server.change("drop index", call.database.name, found.name, definition["id"])
            return Answer({"id": definition["id"], "error": False, "code": 200})
        case "GET" | "POST" | "DELETE", _:
            raise unknown_path(call)
    raise wrong_method()


def all_of(found: Collection) -> list[Json]:
    primary = {
        "fields": ["_key"], "id": f"{found.name}/0", "name": "primary", "selectivityEstimate": 1, "sparse": False,
        "type": "primary", "unique": True,
    }  # fmt: skip
    return [primary, *({**each.definition} for each in found.indexes)]


def ensure(call: Call, found: Collection, wanted: Json) -> tuple[Json, bool]:
    """(definition, whether it is new). Raises 10, 9, 1207, and 1210 where the documents are not unique."""
    definition = _completed(wanted)
    for each in found.indexes:
        if all(each.definition.get(name) == definition.get(name) for name in _IDENTITY):
            return each.definition, False
    number = call.server.next_tick()
    name = wanted.get("name") or f"idx_{_FIRST_NAME + number}"
    if any(each.definition["name"] == name for each in found.indexes) or name in ("primary", "edge"):
        raise ArangoError(1207, f"duplicate name: index '{name}' exists with another definition")
    definition |= {"id": f"{found.name}/{number}", "name": name}
    definition = dict(sorted(definition.items()))
    _check_build(found, definition)
    call.server.change("index", call.database.name, found.name, definition)
    return definition, True


def _collection_asked(call: Call) -> Collection:
    name = call.query.get("collection")
    if not name:
        raise ArangoError(1204, "parameter 'collection' not found")
    return call.database.collection(name)


def _one(found: Collection, id: str) -> Json:
    for each in all_of(found):
        if each["id"] == f"{found.name}/{id}" or each["name"] == id:
            return each
    raise ArangoError(1212)


def _completed(wanted: Json) -> Json:
    kind, fields = wanted.get("type"), wanted.get("fields")
    if kind in ("hash", "skiplist"):
        kind = "persistent"  # aliases until 4.0
    if kind in ("inverted", "zkd", "geo", "fulltext", "vector"):
        raise not_implemented(f"indexes of type {kind!r}")
    if kind not in ("persistent", "ttl", "mdi", "mdi-prefixed"):
        raise ArangoError(10, "invalid index type")
    if not isinstance(fields, list) or not fields or not all(isinstance(field, str) and field for field in fields):
        raise ArangoError(10, "invalid index attribute names: fields must be a non-empty array of strings")
    if kind == "ttl":
        expire = wanted.get("expireAfter")
        if len(fields) != 1 or isinstance(expire, bool) or not isinstance(expire, int | float) or expire < 0:
            raise ArangoError(10, "expireAfter attribute must be a non-negative number, and fields one attribute")
        return {
            "estimates": False, "expireAfter": expire, "fields": fields, "selectivityEstimate": 1, "sparse": True,
            "type": "ttl", "unique": False,
        }  # fmt: skip
    if kind in ("mdi", "mdi-prefixed"):
        return _multidimensional(wanted, kind, fields)
    definition = {
        "cacheEnabled": bool(wanted.get("cacheEnabled", False)), "deduplicate": wanted.get("deduplicate", True),
        "estimates": wanted.get("estimates", True), "fields": fields, "selectivityEstimate": 1,
        "sparse": bool(wanted.get("sparse", False)), "type": "persistent", "unique": bool(wanted.get("unique", False)),
    }  # fmt: skip
    if not definition["estimates"]:
        del definition["selectivityEstimate"]
    if wanted.get("storedValues"):
        definition["storedValues"] = wanted["storedValues"]
    return definition


def _multidimensional(wanted: Json, kind: str, fields: list[str]) -> Json:
    """Shown, not used: an index changes no result."""
    prefix = wanted.get("prefixFields")
    if wanted.get("fieldValueTypes") != "double":
        raise ArangoError(10, 'fieldValueTypes is required to be set to "double"')
    if (kind == "mdi-prefixed") != bool(prefix) or wanted.get("unique"):
        raise not_implemented("unique indexes of type 'mdi', or one with prefixFields of the other type")
    definition = {
        "estimates": wanted.get("estimates", True), "fieldValueTypes": "double", "fields": fields,
        "selectivityEstimate": 1, "sparse": bool(wanted.get("sparse", False)), "type": kind, "unique": False,
    }  # fmt: skip
    return definition | ({"prefixFields": prefix} if prefix else {})


def _check_build(found: Collection, definition: Json) -> None:
    if not definition["unique"]:
        return
    trial = Index(definition)
    for document in found.scan():
        trial.check(document["_key"], document)
        trial.add(document["_key"], document)
