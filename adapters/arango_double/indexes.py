"""Indexes: uniqueness that is real, and look-ups by the first field (edges: by `_from` and `_to`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.values import order_key

Json = dict[str, Any]


def attribute(document: Json, path: str) -> Any:
    """The value at `a.b.c`; null where there is none."""
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


class Index:
    """`definition` is what the server shows of it. Fields that end in `[*]` are not taken for look-ups."""

    def __init__(self, definition: Json) -> None:
        self.definition = definition
        self.fields: list[str] = definition["fields"]
        self.unique: bool = definition["unique"]
        self._sparse: bool = definition["sparse"]
        self._kind = definition["type"]
        self._keys: dict[Any, str] = {}  # unique: values -> key
        looked_up = self.fields if self._kind == "edge" else self.fields[:1]
        self.buckets: dict[str, dict[Any, dict[str, None]]] = {
            field: {} for field in looked_up if "[*]" not in field and (self._kind == "edge" or not self._sparse)
        }

    def _values(self, document: Json) -> tuple[Any, ...] | None:
        values = [attribute(document, field) for field in self.fields]
        if self._sparse and None in values:
            return None
        return tuple(order_key(value) for value in values)

    def check(self, key: str, document: Json) -> None:
        """Raises 1210 where another document has these values."""
        if not self.unique:
            return
        values = self._values(document)
        holder = None if values is None else self._keys.get(values)
        if holder is not None and holder != key:
            raise ArangoError(
                1210,
                f"unique constraint violated - in index {self.definition['name']} of type {self._kind} over "
                f"'{', '.join(self.fields)}'; conflicting key: {holder}",
            )

    def add(self, key: str, document: Json) -> None:
        if self.unique:
            values = self._values(document)
            if values is not None:
                self._keys[values] = key
        for field, buckets in self.buckets.items():
            buckets.setdefault(order_key(attribute(document, field)), {})[key] = None

    def remove(self, key: str, document: Json) -> None:
        if self.unique:
            values = self._values(document)
            if values is not None and self._keys.get(values) == key:
                del self._keys[values]
        for field, buckets in self.buckets.items():
            value = order_key(attribute(document, field))
            if value in buckets:
                buckets[value].pop(key, None)
                if not buckets[value]:
                    del buckets[value]

    def keys(self, field: str, value: Any) -> Iterable[str]:
        """Of the documents whose `field` is `value`, in the order in which they were written."""
        return list(self.buckets[field].get(order_key(value), ()))
