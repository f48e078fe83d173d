"""Typed rows of a Faust table: JSON bytes in the changelog, records in the code.

A row is written only by the agent whose event lies in its partition, together with the offset it has applied;
so state and position change in one changelog record and a replay changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from app.core import app

Row = TypeVar("Row")
BY_TABLE: dict[str, Rows[Any]] = {}


class Rows(Generic[Row]):
    """Table `name` of rows of type `row_type`; keys are text."""

    def __init__(self, name: str, row_type: type[Row], partitions: int, help: str) -> None:
        self.name, self.partitions, self.help = name, partitions, help
        self.table: Any = app.Table(name, key_type=bytes, value_type=bytes, partitions=partitions, help=help)
        self._decode = msgspec.json.Decoder(row_type).decode
        BY_TABLE[name] = self

    def get(self, key: str) -> Row | None:
        value = self.table.get(key.encode())
        return None if value is None else self._decode(value)

    def put(self, key: str, row: Row) -> None:
        """Only inside the stream iteration of an agent."""
        self.table[key.encode()] = msgspec.json.encode(row)

    def items(self) -> Iterator[tuple[str, Row]]:
        """Every row this worker holds, by key; a row that goes away meanwhile is left out."""
        for key in self.keys():
            if (row := self.get(key)) is not None:
                yield key, row

    def values(self) -> Iterator[Row]:
        return (row for _, row in self.items())

    def raw(self, key: str) -> bytes | None:
        value: bytes | None = self.table.get(key.encode())
        return value

    def keys(self) -> list[str]:
        return sorted(key.decode() for key in self.table)
