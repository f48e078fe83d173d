"""Version, databases, and the few other calls that a driver makes of itself."""

from __future__ import annotations

import re

from adapters.arango_double.calls import Answer, Call, done, unknown_path, wrong_method
from adapters.arango_double.errors import ArangoError

VERSION = "3.12.10"


def version(call: Call) -> Answer:
    value = {"server": "arango", "license": "enterprise", "version": VERSION}
    if call.flag("details"):
        value["details"] = {"mode": "server", "role": "SINGLE", "platform": "test double"}  # type: ignore[assignment]
    value |= {"apiVersions": ["v0"], "deprecatedApiVersions": [], "requestedApiVersion": "v0"}  # type: ignore[dict-item]
    return Answer(value)


def database(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "GET", []:
            _only_in_system(call)
            return done(result=list(call.server.databases))
        case "GET", ["user"]:
            return done(result=list(call.server.databases))
        case "GET", ["current"]:
            here = call.database
            return done(result={
                "id": here.id, "name": here.name, "isSystem": here.name == "_system", "path": "none",
            })  # fmt: skip
        case "POST", []:
            _only_in_system(call)
            name = call.object().get("name")
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_\-]{0,63}", name):
                raise ArangoError(1229)
            if name in call.server.databases:
                raise ArangoError(1207, "duplicate database name")
            call.server.create_database(name)
            return done(201, result=True)
        case "DELETE", [name]:
            _only_in_system(call)
            if name == "_system":
                raise ArangoError(11)
            call.server.database(name)
            call.server.change("drop database", name)
            return done(result=True)
        case "GET" | "POST" | "DELETE", _:
            raise unknown_path(call)
    raise wrong_method()


def _only_in_system(call: Call) -> None:
    if call.database.name != "_system":
        raise ArangoError(1230)


def engine(call: Call) -> Answer:
    return Answer(
        {"name": "rocksdb", "endianness": "little", "supports": {"indexes": ["primary", "edge", "persistent", "ttl"]}}
    )
