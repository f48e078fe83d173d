"""Typed rows of a Faust table: JSON bytes in the changelog, records in the code.

A row is written only by the agent whose event lies in its partition, together with the offset it has applied;
so state and position change in one changelog record and a replay changes nothing.

Who only looks (the views) asks `seen`: the rows of the partitions this worker has now, never those of partitions it
has lost (Faust's memory store keeps them); or, where a replica follows the changelogs, the rows of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import msgspec

from adapters.embedded_log.file import partition_of
from adapters.faust_delivery import in_hand
from app.config import settings
from app.core import Message, app
from app.topics import TABLES_OF_ROLE, changelog

Row = TypeVar("Row")
BY_TABLE: dict[str, Rows[Any]] = {}
_ROCKSDB = {"block_cache_size": 32 << 20, "write_buffer_size": 8 << 20}  # bytes per partition; Faust takes 2 GiB


class Rows(Generic[Row]):
    """Table `name` of rows of type `row_type`; keys are text. `message_key`: the key of the messages that write a row.

    In a role that does not keep the table, it can only be seen.
    """

    def __init__(
        self, name: str, row_type: type[Row], partitions: int, help: str,
        message_key: Callable[[str], str] = lambda key: key,
    ) -> None:  # fmt: skip
        self.name, self.partitions, self.help = name, partitions, help
        self.kept_here = name in TABLES_OF_ROLE[settings().role]
        self.table: Any = (
            app.Table(
                name, key_type=bytes, value_type=bytes, partitions=partitions, help=help,
                options=dict(_ROCKSDB) if settings().table_store == "rocksdb" else None,
            )
            if self.kept_here
            else {}
        )  # fmt: skip
        self.replica: Mapping[str, bytes] | None = None
        self._message_key = message_key
        self._decode = msgspec.json.Decoder(row_type).decode
        BY_TABLE[name] = self

    def get(self, key: str) -> Row | None:
        value = self.table.get(key.encode())
        return None if value is None else self._decode(value)

    def put(self, key: str, row: Row, of: Message | None = None) -> None:
        """Only inside the stream iteration of an agent; `of`: whose row it is, where the agent has several in hand."""
        with in_hand(of.event) if of and of.event else nullcontext():
            self.table[key.encode()] = msgspec.json.encode(row)

    def items(self, unless: bytes | None = None) -> Iterator[tuple[str, Row]]:
        """Rows of this worker's partitions, by key; a row that goes away meanwhile is left out.

        `unless`: rows whose JSON holds this are passed over unread.
        """
        owned = self._owned()
        for key in sorted(key.decode() for key, row in self.table.items() if unless is None or unless not in row):
            if self.partition_of(key) in owned and (row := self.get(key)) is not None:
                yield key, row

    def values(self) -> Iterator[Row]:
        return (row for _, row in self.items())

    @property
    def seen(self) -> Seen[Row]:
        """The table as a view may show it."""
        return Seen(self)

    def partition_of(self, key: str) -> int:
        """A row lies where the messages of its key lie."""
        return 0 if self.partitions == 1 else partition_of(self._message_key(key).encode(), self.partitions)

    def _owned(self) -> set[int]:
        name = changelog(self.name)
        return {tp.partition for tp in app.assignor.assigned_actives() if tp.topic == name} if self.kept_here else set()


class Seen(Generic[Row]):
    """Read-only rows by key."""

    def __init__(self, rows: Rows[Row]) -> None:
        self._rows = rows

    def get(self, key: str) -> Row | None:
        value = self.raw(key)
        return None if value is None else self._rows._decode(value)

    def items(self) -> Iterator[tuple[str, Row]]:
        for key in self.keys():
            if (row := self.get(key)) is not None:
                yield key, row

    def raw(self, key: str) -> bytes | None:
        """The row as JSON."""
        rows = self._rows
        if rows.replica is not None:
            return rows.replica.get(key)
        value: bytes | None = rows.table.get(key.encode()) if rows.partition_of(key) in rows._owned() else None
        return value

    def keys(self) -> list[str]:
        rows = self._rows
        if rows.replica is not None:
            return sorted(rows.replica)
        owned = rows._owned()
        return sorted(name for key in rows.table if rows.partition_of(name := key.decode()) in owned)
