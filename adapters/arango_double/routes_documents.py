"""/_api/document: one document or an array of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from adapters.arango_double import documents
from adapters.arango_double.calls import Answer, Call, unknown_path, wrong_method
from adapters.arango_double.documents import Options
from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection

Json = dict[str, Any]


def document(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "POST", [name]:
            return _post(call, call.database.collection(name))
        case "PUT", [name] if call.flag("onlyget"):
            return _read_many(call, call.database.collection(name))
        case (("PUT" | "PATCH" | "DELETE"), [name]):
            return _change_many(call, call.database.collection(name))
        case (("GET" | "HEAD"), [name, key]):
            return _read(call, call.database.collection(name), key)
        case (("PUT" | "PATCH" | "DELETE"), [name, key]):
            return _change(call, call.database.collection(name), key)
        case (("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE"), _):
            raise unknown_path(call)
    raise wrong_method()


def options_of(call: Call) -> Options:
    mode = call.query.get("overwriteMode", "")
    if mode not in ("", "conflict", "ignore", "replace", "update"):
        raise ArangoError(400, "invalid value for 'overwriteMode'")
    return Options(
        overwrite_mode=mode or ("replace" if call.flag("overwrite") else "conflict"),  # type: ignore[arg-type]
        keep_null=call.flag("keepNull", True), merge_objects=call.flag("mergeObjects", True),
        ignore_revs=call.flag("ignoreRevs", True), return_new=call.flag("returnNew"),
        return_old=call.flag("returnOld"), version_attribute=call.query.get("versionAttribute", ""),
    )  # fmt: skip


def revision_in(header: str | None) -> str | None:
    """With or without quotes, as drivers send it."""
    return header.strip().strip('"') if header else None


def is_synced(call: Call, found: Collection) -> bool:
    call.unit.sync = call.unit.sync or call.flag("waitForSync")
    return call.flag("waitForSync") or bool(found.properties["waitForSync"])


def many(
    call: Call, found: Collection, items: list[Any], operation: Callable[[Any], Json], statuses: tuple[int, int]
) -> Answer:
    """Each item by itself: one that is refused says so in its place. `statuses` are those with and without sync."""
    is_silent = call.flag("silent")
    results: list[Json] = []
    errors: Counter[str] = Counter()
    faults = None if call.flag("onlyget") else call.state.item_faults  # of writes: what is there can be read
    for item in items:
        try:
            if faults is not None:
                faults(item)
            result = operation(item)
            if not is_silent:
                results.append(result)
        except ArangoError as refused:
            errors[str(refused.number)] += 1
            results.append(refused.inline())
    headers = {"x-arango-error-codes": orjson.dumps(errors).decode()} if errors else {}
    is_sync = is_synced(call, found) and errors.total() < max(len(items), 1)
    value = {} if is_silent and not results else results
    return Answer(value, statuses[0] if is_sync else statuses[1], headers)


def _post(call: Call, found: Collection) -> Answer:
    body, options = call.json(), options_of(call)
    if isinstance(body, list):
        return many(call, found, body, lambda item: documents.insert(call.unit, found, item, options), (201, 202))
    if call.state.item_faults is not None:
        call.state.item_faults(body)
    return _changed_one(call, found, documents.insert(call.unit, found, body, options), 201)


def _changed_one(call: Call, found: Collection, result: Json, synced: int) -> Answer:
    headers = {
        "etag": f'"{result["_rev"]}"', "location": call.here(f"/_api/document/{result['_id']}"),
    }  # fmt: skip
    return Answer({} if call.flag("silent") else result, synced if is_synced(call, found) else 202, headers)


def _read(call: Call, found: Collection, key: str) -> Answer:
    there = found.get(key)
    if there is None:
        raise ArangoError(1202)
    headers = {"etag": f'"{there["_rev"]}"'}
    if revision_in(call.headers.get("If-None-Match")) == there["_rev"]:
        return Answer(None, 304, headers, plain=True)
    documents.check_revision(revision_in(call.headers.get("If-Match")), there)
    return Answer(there, 200, headers)


def _read_many(call: Call, found: Collection) -> Answer:
    body = call.json()
    if not isinstance(body, list):
        raise ArangoError(400, "expecting a JSON array in the request")
    ignore_revs = call.flag("ignoreRevs", True)

    def read(item: Any) -> Json:
        there = found.get(documents.key_of(found, item))
        if there is None:
            raise ArangoError(1202)
        if isinstance(item, dict) and not ignore_revs:
            documents.check_revision(item.get("_rev"), there)
        return there

    return many(call, found, body, read, (200, 200))


def _change(call: Call, found: Collection, key: str) -> Answer:
    options = options_of(call)
    told = revision_in(call.headers.get("If-Match"))
    there = found.get(key)
    if there is not None:
        documents.check_revision(told, there)
    match call.method:
        case "DELETE":
            result = documents.remove(call.unit, found, key, options)
            return _changed_one(call, found, result, 200)
        case "PUT":
            result = documents.replace(call.unit, found, key, call.json(), options)
        case _:
            result = documents.update(call.unit, found, key, call.json(), options)
    return _changed_one(call, found, result, 201)


def _change_many(call: Call, found: Collection) -> Answer:
    body, options = call.json(), options_of(call)
    if not isinstance(body, list):
        raise ArangoError(400, "expecting a JSON array in the request")

    def change(item: Any) -> Json:
        if call.method == "DELETE":
            revision = item.get("_rev") if isinstance(item, dict) else None
            return documents.remove(call.unit, found, documents.key_of(found, item), options, revision)
        if not isinstance(item, dict):
            raise ArangoError(1227)
        operation = documents.replace if call.method == "PUT" else documents.update
        return operation(call.unit, found, documents.key_of(found, item), item, options)

    return many(call, found, body, change, (200, 202) if call.method == "DELETE" else (201, 202))
