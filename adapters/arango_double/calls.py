"""One request as the routes see it, and one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from adapters.arango_double.errors import ArangoError
from adapters.arango_double.storage import Database, Server, Unit
from adapters.arango_double.values import loads

if TYPE_CHECKING:
    from adapters.arango_double.state import State


@dataclass
class Call:
    """`parts` are the decoded parts of the path behind `/_api/`; the first is the endpoint's name."""

    state: State
    server: Server
    database: Database
    unit: Unit
    method: str
    parts: list[str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def flag(self, name: str, default: bool = False) -> bool:
        told = self.query.get(name)
        return default if told is None else told.lower() in ("true", "1", "yes", "on", "y")

    def json(self) -> Any:
        """The body. Raises 600."""
        try:
            return loads(self.body)
        except orjson.JSONDecodeError as bad:
            raise ArangoError(600, f"VPackError error: {bad}") from bad

    def object(self) -> dict[str, Any]:
        """The body as an object; empty when there is none. Raises 600, and 400 for another value."""
        value = self.json() if self.body.strip() else {}
        if not isinstance(value, dict):
            raise ArangoError(400, "expecting a JSON object in the request")
        return value

    def here(self, path: str) -> str:
        """As the `location` of an answer: of this database."""
        return f"/_db/{self.database.name}{path}"


@dataclass
class Answer:
    """`value` is sent as JSON; with `plain` nothing is sent."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    plain: bool = False


def done(status: int = 200, /, **value: Any) -> Answer:
    """`{error: false, code, ...}`."""
    return Answer({"error": False, "code": status, **value}, status)


def unknown_path(call: Call) -> ArangoError:
    return ArangoError(404, f"unknown path '/_api/{'/'.join(call.parts)}'")


def wrong_method() -> ArangoError:
    return ArangoError(405)
