"""The double as an HTTP server: a request becomes a call, a call an answer; one thread, one request at a time.

    request -> faults -> auth -> database -> transaction -> route -> log -> answer

It is a tool for tests; see the package's docstring for what it proves and what it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from adapters.arango_double import routes_admin
from adapters.arango_double.auth import Auth
from adapters.arango_double.calls import Answer, Call
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.routes_collections import collection
from adapters.arango_double.routes_documents import document
from adapters.arango_double.routes_graphs import edges, gharial
from adapters.arango_double.routes_import import bulk_import
from adapters.arango_double.routes_indexes import index
from adapters.arango_double.routes_queries import cursor, explain, query
from adapters.arango_double.routes_transactions import transaction
from adapters.arango_double.state import State
from adapters.arango_double.storage import Server, Unit
from adapters.arango_double.values import dumps

Route = Callable[[Call], Answer]
ROUTES: dict[str, Route] = {
    "collection": collection,
    "cursor": cursor,
    "database": routes_admin.database,
    "document": document,
    "edges": edges,
    "engine": routes_admin.engine,
    "explain": explain,
    "gharial": gharial,
    "import": bulk_import,
    "index": index,
    "query": query,
    "transaction": transaction,
    "version": routes_admin.version,
}
_HEADERS = {
    "cache-control": "no-cache, no-store, must-revalidate, pre-check=0, post-check=0, max-age=0, s-maxage=0",
    "connection": "Keep-Alive",
    "content-security-policy": "frame-ancestors 'self'; form-action 'self';",
    "expires": "0",
    "pragma": "no-cache",
    "server": "ArangoDB",
    "strict-transport-security": "max-age=31536000 ; includeSubDomains",
    "x-content-type-options": "nosniff",
}
_log = logging.getLogger(__name__)


class ArangoDouble:
    """`folder` keeps the data. Without `password` nobody is asked for one; the user is root. `token_s`: how long a JWT holds.

    Raises BlockingIOError where another process holds the folder.
    """

    def __init__(
        self, folder: Path, *, password: str | None = None, token_s: float = 3600, now: Callable[[], float] = time.time
    ) -> None:
        self.server = Server(folder, now)
        self.state = State(self.server)
        self.auth = Auth(password, token_s=token_s, now=now)
        self.queue_time_s = 0.0
        self.requests: list[tuple[str, str, int]] = []  # (method, path, status), for tests

    def close(self) -> None:
        self.server.close()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[str]:
        """The base URL while it answers there; port 0 takes a free one."""
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            yield f"http://{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        answer = self.answer(request.method, request.raw_path, dict(request.headers), body)
        return self.response(answer)

    def response(self, answer: Answer) -> web.Response:
        """With the headers that every answer of the server has."""
        headers = _HEADERS | {"x-arango-queue-time-seconds": f"{self.queue_time_s:.6f}"} | answer.headers
        if answer.plain:
            return web.Response(status=answer.status, headers={**headers, "content-type": "text/plain"})
        body = dumps(answer.value)
        return web.Response(body=body, status=answer.status, headers={**headers, "content-type": "application/json"})

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request, without HTTP: what the server would answer."""
        path, _, query = target.partition("?")
        names = {name.title(): value for name, value in headers.items()}
        try:
            answer = self._routed(method, path, dict(parse_qsl(query, keep_blank_values=True)), names, body)
        except ArangoError as refused:
            headers = {"etag": f'"{refused.more["_rev"]}"'} if "_rev" in refused.more else {}
            answer = Answer(refused.body(), refused.status, headers)
        except Exception:
            _log.exception("%s %s: a defect of the double", method, target)
            answer = Answer(ArangoError(4).body(), 500)
        self.requests.append((method, target, answer.status))
        return answer

    def _routed(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
        name, parts = _parts(path)
        unit = Unit(self.server)
        call = Call(
            self.state, self.server, self.server.databases["_system"], unit, method, parts, query, headers, body
        )
        if parts == ["_open", "auth"]:
            return Answer({"jwt": self.auth.token(call.object())})
        self.auth.check(headers.get("Authorization"))
        call.database = self.server.database(name)
        if len(parts) < 2 or parts[0] != "_api" or parts[1] not in ROUTES:
            raise ArangoError(404, f"unknown path '{path}'")
        if "X-Arango-Async" in headers:
            raise not_implemented("requests that are answered later")
        call.parts = parts[1:]
        return self._in_unit(ROUTES[parts[1]], call)

    def _in_unit(self, route: Route, call: Call) -> Answer:
        """All or nothing; in a stream transaction what is written waits for its end."""
        asked = call.headers.get("X-Arango-Trx-Id")
        if asked is None:
            try:
                answer = route(call)
                call.unit.commit()
            except ArangoError:
                call.unit.undo()
                raise
            return answer
        stream = self.state.stream(asked)
        self.state.enter(stream)
        call.unit = stream.unit
        try:
            return route(call)
        finally:
            self.state.leave(stream)


def _parts(path: str) -> tuple[str, list[str]]:
    """(database, decoded parts of the path)."""
    parts = [unquote(part) for part in path.split("/")[1:]]
    while parts and not parts[-1]:
        parts.pop()
    if len(parts) > 1 and parts[0] == "_db":
        return parts[1], parts[2:]
    return "_system", parts


async def serve(double: ArangoDouble, host: str, port: int) -> None:
    """Until it is cancelled."""
    async with double.serving(port, host) as url:
        _log.info("a test double of ArangoDB answers at %s", url)
        await asyncio.Event().wait()
