"""The ground of a store in ArangoDB: version, database, collections, indexes, named graphs, and their record.

Everything here may be done again at any time and by several workers at once; a second time changes nothing. What is
there and differs is reported with what to do, never dropped. `streamforge_collections` records each collection's spec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from adapters.stores.arango_batches import EXISTS, NOT_FOUND, Patience
from adapters.stores.arango_client import Client, Refused
from adapters.stores.base import CollectionSpec
from app.errors import StoreError

RECORDS = "streamforge_collections"
FORMAT = 1
OLDEST = (3, 11)
VERSION_ATTRIBUTE_SINCE = (3, 12)
INDEX = "by_series_and_time"
_DUPLICATE_NAME, _NO_COLLECTION, _NO_DATABASE, _NO_GRAPH, _DUPLICATE_GRAPH = 1207, 1203, 1228, 1924, 1925

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True)
class Sizing:
    """Of new collections, in a cluster; 0 leaves it to the database."""

    shards: int = 0
    replicas: int = 0


class Ground:
    """Raises StoreError with what to do, StoreBusy when the server is away."""

    def __init__(self, client: Client, patience: Patience, wait: Callable[[float], Any], sizing: Sizing) -> None:
        self._client, self._patience, self._wait, self._sizing = client, patience, wait, sizing

    # -- the server

    def prepare(self, *, read_only: bool) -> tuple[int, ...]:
        """The server's version; the database is made where it lacks."""
        answer = self._ask("GET", "/_api/version", but={_NO_DATABASE})
        if isinstance(answer, Refused):
            if read_only:
                raise StoreError(f"there is no database {self._client.address} yet: a worker makes it when it starts")
            self._create_database()
            answer = self._must("GET", "/_api/version")
        version = _version_of(str(answer["version"]))
        if version[:2] < OLDEST:
            raise StoreError(
                f"{self._client.address} is ArangoDB {answer['version']}: StreamForge needs 3.11 or newer, "
                "best 3.12.4 or newer; upgrade the server"
            )
        if not read_only:
            self._ask("POST", "/_api/collection", {"name": RECORDS, "type": 2, **self._size()}, but={_DUPLICATE_NAME})
        return version

    def _create_database(self) -> None:
        name = self._client.address.database
        made = self._ask("POST", "/_api/database", {"name": name}, but={_DUPLICATE_NAME, 11}, database="_system")
        if isinstance(made, Refused) and made.number == 11:
            raise StoreError(
                f"there is no database {name!r}, and the user {self._client.address.user!r} may not make it: "
                "make it and give the user read and write access, or start once as a user who may"
            )

    # -- collections

    def record_of(self, name: str) -> CollectionSpec | None:
        """How a collection of ours is stored."""
        found = self._ask("GET", f"/_api/document/{RECORDS}/{name}", but={NOT_FOUND, _NO_COLLECTION})
        if isinstance(found, Refused):
            return None
        if found["format"] > FORMAT:
            raise StoreError(
                f"{name!r} in {self._client.address} was written by a newer StreamForge (format {found['format']}, "
                f"this one reads {FORMAT}): use that version or another database"
            )
        return msgspec.convert(found["spec"], CollectionSpec)

    def names(self) -> list[str]:
        body = {"query": "FOR d IN @@c RETURN d._key", "bindVars": {"@c": RECORDS}, "batchSize": 10_000}
        found = self._ask("POST", "/_api/cursor", body, but={_NO_COLLECTION})
        return [] if isinstance(found, Refused) else sorted(found["result"])

    def make(self, spec: CollectionSpec) -> None:
        """Collection, index and graph of a spec, then its record: who finds the record finds the rest."""
        stored = self.record_of(spec.name)
        if stored is not None and stored != spec:
            raise StoreError(
                f"collection {spec.name!r} is stored in another shape: choose another name, "
                "or drop the stored collection and load it again"
            )
        kind = 3 if spec.kind == "edge" else 2
        wanted = {"name": spec.name, "type": kind, **self._size()}
        made = self._ask("POST", "/_api/collection", wanted, but={_DUPLICATE_NAME})
        if isinstance(made, Refused) and stored is None:
            self._check_foreign(spec, kind)
        self._index(spec)
        self._join(spec)
        if stored is None:
            record = {"_key": spec.name, "format": FORMAT, "spec": msgspec.to_builtins(spec)}
            self._ask("POST", f"/_api/document/{RECORDS}", record, but={EXISTS})

    def drop(self, name: str) -> None:
        """The record first: what is left of a drop that was cut short is no collection of ours."""
        for graph in self._must("GET", "/_api/gharial")["graphs"]:
            ends = [e for d in graph["edgeDefinitions"] for e in (d["collection"], *d["from"], *d["to"])]
            if name in (*ends, *graph.get("orphanCollections", ())):
                self._ask("DELETE", f"/_api/gharial/{graph['_key']}", but={_NO_GRAPH})
        self._ask("DELETE", f"/_api/document/{RECORDS}/{name}", but={NOT_FOUND})
        self._ask("DELETE", f"/_api/collection/{name}", but={_NO_COLLECTION})

    def _check_foreign(self, spec: CollectionSpec, kind: int) -> None:
        """A collection without our record: ours only when it is empty and of the right kind."""
        found = self._must("GET", f"/_api/collection/{spec.name}/count")
        if found["count"] or found["type"] != kind:
            raise StoreError(
                f"the database {self._client.address} has a collection {spec.name!r} that StreamForge did not make: "
                "choose another database for STORE_URL; it was left as it is"
            )

    def _index(self, spec: CollectionSpec) -> None:
        """The range scan's index; reported when another one has its name, never dropped."""
        fields = index_fields(spec)
        if not fields:
            return
        for index in self._must("GET", "/_api/index", params={"collection": spec.name})["indexes"]:
            if index.get("name") == INDEX and index["fields"] != fields:
                raise StoreError(
                    f"the index {INDEX!r} of {spec.name!r} is on {index['fields']}, not on {fields}: "
                    "it was left as it is; drop it in ArangoDB if nothing else needs it, and start again"
                )
        wanted = {"type": "persistent", "name": INDEX, "fields": fields, "estimates": False}
        self._must("POST", "/_api/index", wanted, params={"collection": spec.name})

    def _join(self, spec: CollectionSpec) -> None:
        """The named graph of edges and vertices, so that AQL and the web interface can walk it."""
        if spec.ends is None:
            return
        vertices = spec.ends.vertices
        definition = {"collection": spec.name, "from": [vertices], "to": [vertices]}
        body = {"name": vertices, "edgeDefinitions": [definition], "options": self._size()}
        made = self._ask("POST", "/_api/gharial", body, but={_DUPLICATE_GRAPH})
        if isinstance(made, Refused):
            graph = self._must("GET", f"/_api/gharial/{vertices}")["graph"]
            there = [(d["collection"], d["from"], d["to"]) for d in graph["edgeDefinitions"]]
            if (spec.name, [vertices], [vertices]) not in there:
                raise StoreError(
                    f"the graph {vertices!r} in {self._client.address} joins other collections: it was left as it is; "
                    "choose another name for the graph"
                )

    def _size(self) -> Json:
        sizing = {"numberOfShards": self._sizing.shards, "replicationFactor": self._sizing.replicas}
        return {name: value for name, value in sizing.items() if value}

    # -- calls

    def _must(self, method: str, path: str, body: Any = None, *, params: Json | None = None) -> Json:
        answer = self._ask(method, path, body, params=params)
        assert not isinstance(answer, Refused)
        return answer

    def _ask(
        self, method: str, path: str, body: Any = None, *, but: set[int] | None = None, params: Json | None = None,
        database: str = "",
    ) -> Json | Refused:  # fmt: skip
        """The answer; one of the refusals of `but` is an answer, too."""

        def ask() -> Json | Refused:
            try:
                answered: Json = self._client.call(method, path, body=body, params=params, database=database).body
                return answered
            except Refused as refused:
                if refused.number in (but or ()):
                    return refused
                raise

        return self._client.persist(ask, self._patience, self._wait)


def index_fields(spec: CollectionSpec) -> list[str]:
    """Series, time, and what else orders rows of one time: a range of one series is read in the index's order."""
    if spec.time is None:
        return []
    return [*spec.series, spec.time, *(n for n in spec.key if n not in spec.series and n != spec.time)]


def _version_of(text: str) -> tuple[int, ...]:
    """`3.12.4-2` -> (3, 12, 4)."""
    parts = text.split("-", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())
