"""What insert, replace, update and remove do to one document; the routes and AQL both come here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection, Unit

Json = dict[str, Any]
OverwriteMode = Literal["conflict", "ignore", "replace", "update"]

_KEY = re.compile(r"[A-Za-z0-9_\-.@()+,=;$!*'%:]{1,254}")
_ID = re.compile(r"[A-Za-z0-9_\-]{1,256}/[A-Za-z0-9_\-.@()+,=;$!*'%:]{1,254}")
_SYSTEM = frozenset({"_key", "_id", "_rev", "_from", "_to"})
REVISION_CONFLICT = "conflict, _rev values do not match"


@dataclass(frozen=True)
class Options:
    """Of one operation, named as in the API."""

    overwrite_mode: OverwriteMode = "conflict"
    keep_null: bool = True
    merge_objects: bool = True
    ignore_revs: bool = True
    return_new: bool = False
    return_old: bool = False
    version_attribute: str = ""


def insert(unit: Unit, collection: Collection, document: Any, options: Options) -> Json:
    """`{_id, _key, _rev[, _oldRev][, new][, old]}`. Raises 1210, 1221, 1227, 1233 and those of `Unit.write`."""
    if not isinstance(document, dict):
        raise ArangoError(1227)
    key = document.get("_key", _ABSENT)
    if key is _ABSENT:
        key = _generated(unit, collection)
    elif not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ArangoError(1221)
    elif key in collection.documents and options.overwrite_mode != "conflict":
        return _overwrite(unit, collection, key, document, options)
    elif not collection.properties["keyOptions"]["allowUserKeys"]:
        raise ArangoError(1222)
    if key in collection.documents:
        raise ArangoError(
            1210, f"unique constraint violated - in index primary of type primary over '_key'; conflicting key: {key}"
        )
    new = _complete(unit, collection, key, document)
    _store(unit, collection, key, new, None)
    answer = {"_id": new["_id"], "_key": key, "_rev": new["_rev"]}
    if options.return_new:
        answer["new"] = new
    return answer


def replace(unit: Unit, collection: Collection, key: str, document: Any, options: Options) -> Json:
    """Raises 1200 (revision), 1202, 1210, 1227, 1233."""
    old = _existing(collection, key, document, options)
    if _is_older(document, old, options):
        return _unchanged(old)
    return _changed(unit, collection, old, _complete(unit, collection, key, document), options)


def update(unit: Unit, collection: Collection, key: str, patch: Any, options: Options) -> Json:
    """Raises 1200 (revision), 1202, 1210, 1227, 1233."""
    old = _existing(collection, key, patch, options)
    if _is_older(patch, old, options):
        return _unchanged(old)
    merged = _merged(old, patch, options.keep_null, options.merge_objects)
    return _changed(unit, collection, old, _complete(unit, collection, key, merged), options)


def remove(unit: Unit, collection: Collection, key: str, options: Options, revision: str | None = None) -> Json:
    """Raises 1200 (revision), 1202."""
    old = _existing(collection, key, {"_rev": revision} if revision else {}, options)
    unit.write(collection, key, None, old=old)
    answer = {"_id": old["_id"], "_key": key, "_rev": old["_rev"]}
    if options.return_old:
        answer["old"] = old
    return answer


def key_of(collection: Collection, told: Any) -> str:
    """From a key, an id or a document. Raises 1202 for an id of another collection, 1205 for what is none."""
    if isinstance(told, dict):
        told = told.get("_key", told.get("_id"))
    if not isinstance(told, str) or not told:
        raise ArangoError(1205)
    name, slash, key = told.partition("/")
    if not slash:
        return told
    if name not in (collection.name, collection.id):
        raise ArangoError(1202)
    return key


def check_revision(told: str | None, document: Json) -> None:
    """Raises 1200 with the status 412 and the document's identity."""
    if told and told != document["_rev"]:
        identity = {name: document[name] for name in ("_id", "_key", "_rev")}
        raise ArangoError(1200, REVISION_CONFLICT, status=412, **identity)


_ABSENT = object()


def _generated(unit: Unit, collection: Collection) -> str:
    options = collection.properties["keyOptions"]
    match options["type"]:
        case "autoincrement":
            step, offset = options["increment"], options["offset"]
            last = max(options["lastValue"], offset)
            value = last + step - (last - offset) % step
            options["lastValue"] = value
            return str(value)
        case "uuid":
            import uuid

            return str(uuid.uuid4())
        case "padded":
            return f"{unit.server.next_tick():016x}"
    value = unit.server.next_tick()
    options["lastValue"] = value
    return str(value)


def _complete(unit: Unit, collection: Collection, key: str, document: Json) -> Json:
    new: Json = {"_key": key, "_id": f"{collection.name}/{key}"}
    if collection.is_edge:
        ends = (document.get("_from"), document.get("_to"))
        if not all(isinstance(end, str) and _ID.fullmatch(end) for end in ends):
            raise ArangoError(1233)
        new["_from"], new["_to"] = ends
    new["_rev"] = unit.server.revision()
    if not collection.is_edge and ("_from" in document or "_to" in document):
        new |= {name: value for name, value in document.items() if name not in ("_key", "_id", "_rev")}
    else:
        new |= {name: value for name, value in document.items() if name not in _SYSTEM}
    return new


def _store(unit: Unit, collection: Collection, key: str, new: Json, old: Json | None) -> None:
    for index in collection.indexes:
        index.check(key, new)
    unit.write(collection, key, orjson.dumps(new), new, old)


def _overwrite(unit: Unit, collection: Collection, key: str, document: Json, options: Options) -> Json:
    match options.overwrite_mode:
        case "replace":
            return replace(unit, collection, key, document, options)
        case "update":
            return update(unit, collection, key, document, options)
    there = collection.get(key)
    assert there is not None
    return {"_id": there["_id"], "_key": key, "_rev": there["_rev"]}


def _existing(collection: Collection, key: str, told: Any, options: Options) -> Json:
    if not isinstance(told, dict):
        raise ArangoError(1227)
    old = collection.get(key)
    if old is None:
        raise ArangoError(1202)
    if not options.ignore_revs:
        check_revision(told.get("_rev"), old)
    return old


def _is_older(new: Json, old: Json, options: Options) -> bool:
    if not options.version_attribute:
        return False
    told, known = new.get(options.version_attribute), old.get(options.version_attribute)
    if type(told) is not int or type(known) is not int or told < 0 or known < 0:
        return False
    return told <= known


def _unchanged(old: Json) -> Json:
    return {"_id": old["_id"], "_key": old["_key"], "_rev": old["_rev"], "_oldRev": old["_rev"]}


def _changed(unit: Unit, collection: Collection, old: Json, new: Json, options: Options) -> Json:
    _store(unit, collection, old["_key"], new, old)
    answer = {"_id": new["_id"], "_key": new["_key"], "_rev": new["_rev"], "_oldRev": old["_rev"]}
    if options.return_old:
        answer["old"] = old
    if options.return_new:
        answer["new"] = new
    return answer


def _merged(old: Json, patch: Json, keep_null: bool, merge_objects: bool) -> Json:
    merged = dict(old)
    for name, value in patch.items():
        before = merged.get(name)
        if value is None and not keep_null:
            merged.pop(name, None)
        elif isinstance(value, dict):
            under = before if merge_objects and isinstance(before, dict) else {}
            merged[name] = _merged(under, value, keep_null, merge_objects)
        else:
            merged[name] = value
    return merged
