"""The tables over HTTP, read-only, paged by key.

Rows of all workers where this one follows their changelogs (`app/web/replicas.py`), else its own. Every answer names
the worker it comes from (`X-Worker`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from app.web.calls import answer, call, error
from app.web.parameters import Parameters
from tables.rows import BY_TABLE, Rows

ROWS_PER_PAGE, MOST_ROWS = 100, 1_000


@call("/tables")
async def list_tables(_request: web.Request) -> web.Response:
    """Every table and how many of its rows are here."""
    known = [BY_TABLE[name] for name in sorted(BY_TABLE)]
    return answer({"tables": [{"name": t.name, "help": t.help, "rows": len(t.seen.keys())} for t in known]})


@call("/tables/{name}")
async def show_table(request: web.Request, name: str) -> web.Response:
    """Rows by key, `limit` of them behind the key `after`."""
    query = Parameters(request.query, "limit", "after")
    limit = query.whole("limit", ROWS_PER_PAGE, 1, MOST_ROWS)
    if (table := BY_TABLE.get(name)) is None:
        return _no_table(name)
    keys, more = page_of(table.seen.keys(), query.text("after"), limit)
    return answer({"table": name, "rows": [{"key": key, "value": _value(table, key)} for key in keys], "more": more})


@call("/tables/{name}/{key}")
async def show_row(_request: web.Request, name: str, key: str) -> web.Response:
    """One row."""
    if (table := BY_TABLE.get(name)) is None:
        return _no_table(name)
    if (row := table.seen.raw(key)) is None:
        return error(404, f"there is no row {key!r} in {name}", field="key")
    return answer(msgspec.json.decode(row))


def page_of(keys: Iterable[str], after: str, limit: int) -> tuple[list[str], bool]:
    """`limit` of the sorted keys behind `after`, and whether there are more."""
    behind = [key for key in keys if key > after]
    return behind[:limit], len(behind) > limit


def _value(table: Rows[Any], key: str) -> Any:
    return msgspec.json.decode(table.seen.raw(key) or b"null")


def _no_table(name: str) -> web.Response:
    return error(404, f"no table is called {name!r}; there are: {', '.join(sorted(BY_TABLE))}", field="name")
