"""The AQL of a store's questions. Values are always bind variables; names come from checked specs, in backticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.stores.base import CollectionSpec
from app.errors import StoreError

REMOVED_AT_ONCE = 10_000  # documents a query; more in one would be committed in parts anyway


@dataclass
class Query:
    text: str
    bind: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """Rows with `eq`, `lo <= time < hi`. Raises StoreError for what a collection cannot be searched by."""

    spec: CollectionSpec
    eq: Mapping[str, Any]
    lo: int | None = None
    hi: int | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        wrong = [name for name in self.eq if spec.columns.get(name) not in ("int", "text", "bool")]
        if wrong or (spec.time is None and (self.lo is not None or self.hi is not None)):
            raise StoreError(f"{spec.name!r} cannot be searched by {wrong or 'time'}")

    @property
    def order(self) -> list[str]:
        """Columns that decide the order: time, then the key's; what is fixed decides nothing."""
        names = dict.fromkeys((*filter(None, (self.spec.time,)), *self.spec.key))
        return [name for name in names if name not in self.eq]

    @property
    def text_decides(self) -> bool:
        """True when texts are part of the order: the server compares those by its language, we by their bytes."""
        return any(self.spec.columns[name] == "text" for name in self.order)

    def start(self) -> Query:
        """FOR and FILTER."""
        query = Query("FOR d IN @@c", {"@c": self.spec.name})
        for place, (name, value) in enumerate(self.eq.items()):
            query.text += f" FILTER {at(name)} == @e{place}"
            query.bind[f"e{place}"] = value
        for name, sign, bound in (("lo", ">=", self.lo), ("hi", "<", self.hi)):
            if bound is not None:
                query.text += f" FILTER {at(self.spec.time or '')} {sign} @{name}"
                query.bind[name] = bound
        return query


def at(name: str) -> str:
    return f"d.`{name}`"


def rows(chosen: Chosen, names: Sequence[str], *, desc: bool, limit: int | None) -> Query:
    """Values of `names`, a list a row, in order."""
    query = chosen.start()
    if chosen.order:
        query.text += " SORT " + ", ".join(f"{at(name)} {'DESC' if desc else 'ASC'}" for name in chosen.order)
    if limit is not None:
        query.text += " LIMIT @limit"
        query.bind["limit"] = limit
    query.text += f" RETURN [{', '.join(at(name) for name in names)}]"
    return query


def count(chosen: Chosen) -> Query:
    query = chosen.start()
    query.text += " COLLECT WITH COUNT INTO n RETURN n"
    return query


def series(spec: CollectionSpec) -> Query:
    """Each series once."""
    return Query(f"FOR d IN @@c RETURN DISTINCT [{', '.join(at(name) for name in spec.series)}]", {"@c": spec.name})


def remove(chosen: Chosen) -> Query:
    """Up to REMOVED_AT_ONCE documents; a key for each."""
    query = chosen.start()
    query.text += f" LIMIT {REMOVED_AT_ONCE} REMOVE d IN @@c RETURN OLD._key"
    return query
