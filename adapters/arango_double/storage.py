"""Databases, collections and their documents: dictionaries of JSON bytes, changed by units of work, kept by the log.

    Server -> Database -> Collection -> {key: document as bytes}

A `Unit` collects what one request (or one stream transaction) changes: it is applied at once, so that the request sees
it, and undone unless it is committed. All of it runs on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.indexes import Index
from adapters.arango_double.log import Change, Log

Json = dict[str, Any]

_LETTERS = "-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SYSTEM_COLLECTIONS = ("_graphs", "_apps", "_appbundles", "_analyzers", "_aqlfunctions", "_jobs", "_queues", "_frontend")
# Of the database _system alone.
ROOT_COLLECTIONS = ("_users", "_statistics", "_statistics15", "_statisticsRaw")


def encoded(stamp: int) -> str:
    """A revision as the server writes it: base 64 with letters of its own."""
    found = ""
    while stamp:
        found = _LETTERS[stamp & 63] + found
        stamp >>= 6
    return found


class Collection:
    def __init__(self, database: str, properties: Json) -> None:
        self.database, self.properties = database, properties
        self.documents: dict[str, bytes] = {}
        self.indexes: list[Index] = []
        self.locks: dict[str, int] = {}  # key: the stream transaction that changed it

    @property
    def name(self) -> str:
        return str(self.properties["name"])

    @property
    def id(self) -> str:
        return str(self.properties["id"])

    @property
    def is_edge(self) -> bool:
        return bool(self.properties["type"] == 3)

    def rename(self, name: str) -> None:
        self.properties["name"] = name
        for key, document in self.documents.items():
            self.documents[key] = orjson.dumps({**orjson.loads(document), "_id": f"{name}/{key}"})

    def get(self, key: str) -> Json | None:
        found = self.documents.get(key)
        return None if found is None else orjson.loads(found)

    def scan(self) -> Iterator[Json]:
        """All documents as of now: later changes are not seen."""
        return map(orjson.loads, list(self.documents.values()))

    def set(self, key: str, new: bytes | None, parsed: Json | None = None, old: Json | None = None) -> bytes | None:
        """Keeps the indexes; returns what was there. Raises nothing: uniqueness is checked before."""
        before = self.documents.get(key)
        if self.indexes:
            if before is not None:
                gone = orjson.loads(before) if old is None else old
                for index in self.indexes:
                    index.remove(key, gone)
            if new is not None:
                here = orjson.loads(new) if parsed is None else parsed
                for index in self.indexes:
                    index.add(key, here)
        if new is None:
            self.documents.pop(key, None)
        else:
            self.documents[key] = new
        return before


class Database:
    def __init__(self, name: str, id: str) -> None:
        self.name, self.id = name, id
        self.collections: dict[str, Collection] = {}

    def collection(self, name: str) -> Collection:
        """By name, or by id. Raises 1203."""
        found = self.collections.get(name)
        if found is None and name.isdigit():
            found = next((each for each in self.collections.values() if each.id == name), None)
        if found is None:
            raise ArangoError(1203, f"collection or view not found: {name}")
        return found


class Unit:
    """Changes that belong together. `transaction` is the id of a stream transaction, 0 for a single request."""

    def __init__(self, server: Server, transaction: int = 0) -> None:
        self.server, self.transaction = server, transaction
        self.before: dict[tuple[Collection, str], bytes | None] = {}
        self.sync = False

    def write(
        self, collection: Collection, key: str, new: bytes | None, parsed: Json | None = None, old: Json | None = None
    ) -> None:
        """Raises 1200 where another stream transaction has changed this document."""
        if collection.locks and collection.locks.get(key, self.transaction) != self.transaction:
            raise ArangoError(1200, f"write-write conflict; key: {key}")
        before = collection.set(key, new, parsed, old)
        self.before.setdefault((collection, key), before)
        if collection.properties["waitForSync"]:
            self.sync = True

    def undo(self) -> dict[tuple[Collection, str], bytes | None]:
        """As if nothing had been; returns what had been written."""
        written = {place: place[0].documents.get(place[1]) for place in self.before}
        for (collection, key), before in reversed(self.before.items()):
            collection.set(key, before)
        return written

    def commit(self) -> None:
        puts: dict[Collection, list[str]] = {}
        deletes: dict[Collection, list[str]] = {}
        documents: list[bytes] = []
        for collection, key in self.before:
            (puts if key in collection.documents else deletes).setdefault(collection, []).append(key)
        changes: list[Change] = []
        for collection, keys in puts.items():
            changes.append(["put", collection.database, collection.name, keys])
            documents.extend(collection.documents[key] for key in keys)
        changes += [["del", collection.database, collection.name, keys] for collection, keys in deletes.items()]
        if changes:
            self.server.record(changes, documents, sync=self.sync)
        self.before = {}


class Server:
    """All databases of one folder."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.databases: dict[str, Database] = {}
        self.tick, self._last_stamp, self._cached = 100, 0, (-1, "")
        self._log = Log(folder)
        for tick, changes, documents in self._log.read():
            self.tick = max(self.tick, tick)
            self._replay(changes, documents)
        if not self.databases:
            self.create_database("_system", "1")

    def close(self) -> None:
        self._log.close()

    # -- numbers -------------------------------------------------------------------------------------------

    def next_tick(self) -> int:
        self.tick += 1
        return self.tick

    def revision(self) -> str:
        """Rises with every call: milliseconds, then a counter of 20 bits."""
        self._last_stamp = stamp = max(self._last_stamp + 1, int(self.now() * 1000) << 20)
        high, low = stamp >> 12, stamp & 0xFFF
        if self._cached[0] != high:
            self._cached = (high, encoded(high))
        return self._cached[1] + _LETTERS[low >> 6] + _LETTERS[low & 63]

    # -- changes that are kept -----------------------------------------------------------------------------

    def record(self, changes: list[Change], documents: list[bytes] | None = None, *, sync: bool = False) -> None:
        self._log.append(self.tick, changes, documents or [], sync=sync)

    def _replay(self, changes: list[Change], documents: list[bytes]) -> None:
        taken = iter(documents)
        for verb, database, *rest in changes:
            if verb == "put":
                collection = self.databases[database].collections[rest[0]]
                for key in rest[1]:
                    collection.set(key, next(taken))
            elif verb == "del":
                for key in rest[1]:
                    self.databases[database].collections[rest[0]].set(key, None)
            else:
                self._apply(verb, database, *rest)

    def change(self, verb: str, database: str, *rest: Any) -> None:
        """A change of the catalogue: done and kept."""
        self._apply(verb, database, *rest)
        self.record([[verb, database, *rest]])

    def _apply(self, verb: str, name: str, *rest: Any) -> None:
        match verb:
            case "database":
                self.databases[name] = Database(name, rest[0])
            case "drop database":
                del self.databases[name]
            case "collection":
                self.databases[name].collections[rest[0]["name"]] = Collection(name, rest[0])
            case "drop":
                del self.databases[name].collections[rest[0]]
            case "rename":
                moved = self.databases[name].collections.pop(rest[0])
                moved.rename(rest[1])
                self.databases[name].collections[rest[1]] = moved
            case "properties":
                self.databases[name].collections[rest[0]].properties.update(rest[1])
            case "truncate":
                collection = self.databases[name].collections[rest[0]]
                collection.documents = {}
                collection.indexes = [Index(index.definition) for index in collection.indexes]
            case "index":
                collection = self.databases[name].collections[rest[0]]
                index = Index(rest[1])
                for key, document in collection.documents.items():
                    index.add(key, orjson.loads(document))
                collection.indexes.append(index)
            case "drop index":
                collection = self.databases[name].collections[rest[0]]
                collection.indexes = [index for index in collection.indexes if index.definition["id"] != rest[1]]
            case _:
                raise ValueError(f"{self._log.path}: a change named {verb!r}; was it written by a newer version?")

    # -- the catalogue -------------------------------------------------------------------------------------

    def database(self, name: str) -> Database:
        found = self.databases.get(name)
        if found is None:
            raise ArangoError(1228)
        return found

    def create_database(self, name: str, id: str = "") -> None:
        self.change("database", name, id or str(self.next_tick()))
        for system in SYSTEM_COLLECTIONS + (ROOT_COLLECTIONS if name == "_system" else ()):
            self.create_collection(name, {"name": system, "isSystem": True})

    def create_collection(self, database: str, wanted: Json) -> Collection:
        number = self.next_tick()
        properties = collection_properties(wanted, str(number), str(self.next_tick()))
        self.change("collection", database, properties)
        collection = self.databases[database].collections[properties["name"]]
        if collection.is_edge:
            definition = {
                "fields": ["_from", "_to"], "id": f"{collection.name}/1", "name": "edge", "selectivityEstimate": 1,
                "sparse": False, "type": "edge", "unique": False,
            }  # fmt: skip
            self.change("index", database, collection.name, definition)
        return collection


def collection_properties(wanted: Json, id: str, object_id: str) -> Json:
    """As the server completes what a client asks for."""
    name, is_system = wanted["name"], bool(wanted.get("isSystem", False))
    asked = wanted.get("keyOptions") or {}
    key_options = {"allowUserKeys": asked.get("allowUserKeys", True), "type": asked.get("type", "traditional")}
    if key_options["type"] == "autoincrement":
        key_options |= {"offset": asked.get("offset", 0), "increment": asked.get("increment", 1)}
    return {
        "writeConcern": 1, "waitForSync": bool(wanted.get("waitForSync", False)), "usesRevisionsAsDocumentIds": True,
        "syncByRevision": True, "supportsRBAC": True, "statusString": "loaded", "id": id, "isSmartChild": False,
        "schema": wanted.get("schema"), "name": name, "type": wanted.get("type", 2), "status": 3,
        "cacheEnabled": bool(wanted.get("cacheEnabled", False)), "isSystem": is_system, "internalValidatorType": 0,
        "globallyUniqueId": name if is_system else f"hDOUBLE/{id}",
        "keyOptions": {**key_options, "lastValue": 0},
        "computedValues": wanted.get("computedValues"), "objectId": object_id,
    }  # fmt: skip
