"""The tables over HTTP, read-only: the rows of the partitions this worker owns, paged by key.

Faust's memory store keeps rows of partitions that went to another worker; they are left out here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from adapters.embedded_log.log import partition_of
from app import topics
from app.core import app
from app.web.calls import answer, call, error
from app.web.parameters import Parameters
from tables.coverage_by_stream import coverage_by_stream
from tables.rows import BY_TABLE, Rows

ROWS_PER_PAGE, MOST_ROWS = 100, 1_000


@call("/tables")
async def list_tables(_request: web.Request) -> web.Response:
    """Every table and how many of its rows are here."""
    known = [BY_TABLE[name] for name in sorted(BY_TABLE)]
    return answer({"tables": [{"name": t.name, "help": t.help, "rows": len(owned_keys(t))} for t in known]})


@call("/tables/{name}")
async def show_table(request: web.Request, name: str) -> web.Response:
    """Rows by key, `limit` of them behind the key `after`."""
    query = Parameters(request.query, "limit", "after")
    limit = query.whole("limit", ROWS_PER_PAGE, 1, MOST_ROWS)
    if (table := BY_TABLE.get(name)) is None:
        return _no_table(name)
    keys, more = page_of(owned_keys(table), query.text("after"), limit)
    return answer({"table": name, "rows": [{"key": key, "value": _value(table, key)} for key in keys], "more": more})


@call("/tables/{name}/{key}")
async def show_row(_request: web.Request, name: str, key: str) -> web.Response:
    """One row."""
    if (table := BY_TABLE.get(name)) is None:
        return _no_table(name)
    if key not in owned_keys(table):
        return error(404, f"this worker has no row {key!r} in {name}", field="key")
    return answer(_value(table, key))


def owned_keys(table: Rows[Any]) -> list[str]:
    """Keys of rows whose partition this worker has now, in order."""
    changelog = topics.changelog(table.name)
    owned = {tp.partition for tp in app.assignor.assigned_actives() if tp.topic == changelog}
    return [key for key in table.keys() if partition_of_row(table, key) in owned]  # noqa: SIM118 -- not a dict


def partition_of_row(table: Rows[Any], key: str) -> int:
    """A row lies where the messages of its key lie; a stream's ledger lies with its symbol, `venue:symbol`."""
    message_key = key.rpartition(":")[0] if table is coverage_by_stream else key
    return 0 if table.partitions == 1 else partition_of(message_key.encode(), table.partitions)


def page_of(keys: Iterable[str], after: str, limit: int) -> tuple[list[str], bool]:
    """`limit` of the sorted keys behind `after`, and whether there are more."""
    behind = [key for key in keys if key > after]
    return behind[:limit], len(behind) > limit


def _value(table: Rows[Any], key: str) -> Any:
    return msgspec.json.decode(table.raw(key) or b"null")


def _no_table(name: str) -> web.Response:
    return error(404, f"no table is called {name!r}; there are: {', '.join(sorted(BY_TABLE))}", field="name")
