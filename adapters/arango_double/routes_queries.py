"""/_api/cursor, /_api/query and /_api/explain (of which only the refusals)."""

from __future__ import annotations

from typing import Any

from adapters.arango_double.aql.execute import execute
from adapters.arango_double.aql.parser import parse
from adapters.arango_double.aql.run import Run
from adapters.arango_double.calls import Answer, Call, done, unknown_path, wrong_method
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.state import Cursor

Json = dict[str, Any]

_TTL_S = 30.0
_BATCH_SIZE = 1000


def cursor(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "POST", []:
            return _run(call)
        case (("POST" | "PUT"), [id]):
            return _next(call, id, None)
        case "POST", [id, batch]:
            return _next(call, id, batch)
        case "PUT", []:
            raise ArangoError(400, "expecting POST /_api/cursor/<cursor-id>")
        case "DELETE", [id]:
            call.state.cursor(id)
            del call.state.cursors[id]
            return Answer({"id": id, "error": False, "code": 202}, 202)
        case (("POST" | "PUT" | "DELETE"), _):
            raise unknown_path(call)
    raise wrong_method()


def _run(call: Call) -> Answer:
    body = call.object()
    query, options = body.get("query"), body.get("options") or {}
    if not isinstance(query, str) or not query.strip():
        raise ArangoError(1502)
    size = body.get("batchSize", _BATCH_SIZE)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArangoError(17, "expecting non-zero value for 'batchSize'", status=400)
    if options.get("profile"):
        raise not_implemented("profiles of queries")
    run = _run_of(call, body)
    is_stream = bool(options.get("stream", False))
    rows = execute(query, run, full_count=bool(options.get("fullCount")) and not is_stream)
    made = Cursor(
        str(call.server.next_tick()), rows, size, float(body.get("ttl") or _TTL_S),
        bool(options.get("allowRetry", False)), {"warnings": run.warnings, "stats": run.stats()},
        bool(body.get("count")) and not is_stream,
    )  # fmt: skip
    value = _batch(call, made)
    if value["hasMore"] or made.retry:
        call.state.cursors[made.id] = made
    return Answer({**value, "error": False, "code": 201}, 201)


def _run_of(call: Call, body: Json) -> Run:
    options, bound = body.get("options") or {}, body.get("bindVars") or {}
    if not isinstance(bound, dict):
        raise ArangoError(17, "expecting object for 'bindVars'", status=400)
    return Run(
        call.database, call.unit, bound, fail_on_warning=bool(options.get("failOnWarning", False)),
        max_warnings=options.get("maxWarningCount", 10),
    )  # fmt: skip


def _batch(call: Call, cursor: Cursor) -> Json:
    """The next batch; the cursor goes on behind it."""
    rows = cursor.rows[cursor.at : cursor.at + cursor.batch_size]
    cursor.at += cursor.batch_size
    has_more = cursor.at < len(cursor.rows)
    cursor.expires = call.server.now() + cursor.ttl_s
    value: Json = {"result": rows, "hasMore": has_more}
    if has_more or cursor.retry:
        value["id"] = cursor.id
    if cursor.count:
        value["count"] = len(cursor.rows)
    value["cached"] = False
    value["extra"] = cursor.extra
    if has_more:
        value["nextBatchId"] = str(cursor.batch + 1)
    cursor.last = (cursor.batch, value)
    cursor.batch += 1
    return value


def _next(call: Call, id: str, batch: str | None) -> Answer:
    """Raises 1600; a batch that is neither the last nor the next is not found either."""
    found = call.state.cursor(id)
    if batch is not None and found.retry and found.last is not None and batch == str(found.last[0]):
        return Answer({**found.last[1], "error": False, "code": 200})
    if (batch is not None and batch != str(found.batch)) or found.at >= len(found.rows):
        raise ArangoError(1600)
    value = _batch(call, found)
    if not value["hasMore"] and not found.retry:
        del call.state.cursors[id]
    return Answer({**value, "error": False, "code": 200})


def query(call: Call) -> Answer:
    match call.method, call.parts[1:]:
        case "POST", []:
            parsed = parse(call.object().get("query", ""))
            raise not_implemented(f"the syntax tree of a query ({len(parsed.clauses)} clauses, which are well formed)")
        case "GET", ["current" | "slow"]:
            return Answer([])
        case "GET", ["properties"]:
            return done(enabled=True, trackSlowQueries=False, maxSlowQueries=0, slowQueryThreshold=10)
        case (("GET" | "POST" | "PUT" | "DELETE"), _):
            raise not_implemented("/".join(call.parts))
    raise wrong_method()


def explain(call: Call) -> Answer:
    """The double has no plans: what is wrong with a query is told, a plan is not."""
    if call.method != "POST":
        raise wrong_method()
    body = call.object()
    parsed, run = parse(body.get("query", "")), _run_of(call, body)
    for name in parsed.parameters:
        run.parameter(name)
    raise not_implemented("plans of queries")
