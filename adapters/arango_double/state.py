"""What lives between requests and dies with the process: cursors and stream transactions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Collection, Server, Unit

Json = dict[str, Any]


@dataclass
class Cursor:
    """The rest of a result. `retry` keeps the last batch, so that it can be asked for again by its id."""

    id: str
    rows: list[Any]
    batch_size: int
    ttl_s: float
    retry: bool
    extra: Json
    count: bool
    expires: float = 0.0
    at: int = 0
    batch: int = 1
    last: tuple[int, Json] | None = None


@dataclass
class Stream:
    """A stream transaction: what it wrote is taken out between its requests and put back for each of them."""

    id: int
    database: str
    write: frozenset[str]
    read: frozenset[str]
    implicit: bool
    unit: Unit
    status: str = "running"
    written: dict[tuple[Collection, str], bytes | None] = field(default_factory=dict)


class State:
    def __init__(self, server: Server) -> None:
        self._server = server
        self.cursors: dict[str, Cursor] = {}
        self.streams: dict[int, Stream] = {}
        self.item_faults: Callable[[Any], None] | None = None  # refuses single documents of a request

    # -- cursors -------------------------------------------------------------------------------------------

    def cursor(self, id: str) -> Cursor:
        """Raises 1600, also for one whose time is over."""
        now = self._server.now()
        for name in [name for name, each in self.cursors.items() if each.expires < now]:
            del self.cursors[name]
        found = self.cursors.get(id)
        if found is None:
            raise ArangoError(1600)
        return found

    # -- stream transactions -------------------------------------------------------------------------------

    def stream(self, id: str) -> Stream:
        """Raises 10 for what is no id, 1655."""
        if not id.isdigit() or id == "0":
            raise ArangoError(10, "invalid transaction id")
        found = self.streams.get(int(id))
        if found is None:
            raise ArangoError(1655, f"transaction '{id}' not found")
        return found

    def enter(self, stream: Stream) -> None:
        """Raises 1654 for one that has ended."""
        if stream.status != "running":
            raise ArangoError(1654, f"transaction '{stream.id}' is already {stream.status}")
        for (collection, key), new in stream.written.items():
            collection.set(key, new)

    def leave(self, stream: Stream) -> None:
        """Takes out what it wrote and locks it against others."""
        stream.written = stream.unit.undo()
        for collection, key in stream.written:
            collection.locks[key] = stream.id

    def end(self, stream: Stream, status: str) -> None:
        if status == "committed":
            self.enter(stream)
            stream.unit.commit()
        for collection, key in stream.written:
            collection.locks.pop(key, None)
        stream.written = {}
        stream.status = status
