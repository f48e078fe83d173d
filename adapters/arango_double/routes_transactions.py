"""/_api/transaction: stream transactions. JavaScript transactions are refused."""

from __future__ import annotations

from typing import Any

from adapters.arango_double.calls import Answer, Call, unknown_path, wrong_method
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.state import Stream
from adapters.arango_double.storage import Unit


def transaction(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "GET", []:
            running = [each for each in call.state.streams.values() if each.status == "running"]
            return Answer({"transactions": [{"id": str(each.id), "state": "running"} for each in running]})
        case "POST", ["begin"]:
            return _begin(call)
        case "POST", []:
            raise not_implemented("JavaScript transactions")
        case "GET", [id]:
            return _told(call.state.stream(id))
        case "PUT", [id]:
            return _end(call, id, "committed")
        case "DELETE", [id]:
            return _end(call, id, "aborted")
        case (("GET" | "POST" | "PUT" | "DELETE"), _):
            raise unknown_path(call)
    raise wrong_method()


def _begin(call: Call) -> Answer:
    body = call.object()
    asked = body.get("collections")
    if not isinstance(asked, dict):
        raise ArangoError(10, "missing/invalid collections definition for transaction")
    write = _names(call, asked.get("write")) | _names(call, asked.get("exclusive"))
    read = _names(call, asked.get("read"))
    number = call.server.next_tick()
    unit = Unit(call.server, number)
    unit.sync = bool(body.get("waitForSync", False))
    stream = Stream(number, call.database.name, write, read, bool(asked.get("allowImplicit", True)), unit)
    call.state.streams[number] = stream
    return _told(stream, 201)


def _names(call: Call, told: Any) -> frozenset[str]:
    """Raises 1203."""
    names = [told] if isinstance(told, str) else told or []
    return frozenset(call.database.collection(name).name for name in names)


def _end(call: Call, id: str, status: str) -> Answer:
    """Again the same end is no error; another one is."""
    stream = call.state.stream(id)
    if stream.status == "running":
        call.state.end(stream, status)
    elif stream.status != status:
        raise ArangoError(1654, f"transaction '{id}' is already {stream.status}")
    return _told(stream)


def _told(stream: Stream, status: int = 200) -> Answer:
    return Answer({"code": status, "error": False, "result": {"id": str(stream.id), "status": stream.status}}, status)
