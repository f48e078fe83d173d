"""The double as an HTTP server: a request becomes a call, a call an answer; one thread, one request at a time.

    request -> faults -> auth -> database -> transaction -> route -> log -> answer

It is a tool for tests; see the package's docstring for what it proves and what it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import msgspec
from aiohttp import web

from adapters.arango_double import routes_admin
from adapters.arango_double.auth import Auth
from adapters.arango_double.calls import Answer, Call
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.faults import Faults, Plan
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
NO_FAULTS = Plan()
_log = logging.getLogger(__name__)


class ArangoDouble:
    """`folder` keeps the data. Without `password` nobody is asked for one; the user is root. A JWT holds `token_s`.

    Raises BlockingIOError where another process holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        token_s: float = 3600,
        plan: Plan = NO_FAULTS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.server = Server(folder, now)
        self.state = State(self.server)
        self.auth = Auth(password, token_s=token_s, now=now)
        self.faults = Faults(plan, time.monotonic)
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
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            yield f"http://{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    @contextlib.contextmanager
    def in_thread(self, port: int = 0) -> Iterator[str]:
        """As `serving`, beside a caller without an event loop; ask it over HTTP only."""
        started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def main() -> None:
            stop = asyncio.Event()
            async with self.serving(port) as url:
                started.set_result((url, asyncio.get_running_loop(), stop))
                await stop.wait()

        thread = threading.Thread(target=asyncio.run, args=(main(),), name="arango-double", daemon=True)
        thread.start()
        url, loop, stop = started.result(timeout=60)
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(timeout=60)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/_double/faults":
            return await self._faults(request)
        due = self.faults.due(request.method, request.path)
        kinds = {fault.kind for fault in due}
        await asyncio.sleep(sum(fault.seconds for fault in due if fault.kind == "latency"))
        if kinds & {"outage", "cut_before"}:
            return _reset(request)
        body = await request.read()
        if "unauthorized" in kinds:
            self.auth.revoke()
        self.state.item_faults = self.faults.of_documents()
        patience = request.headers.get("x-arango-queue-time-seconds")
        try:
            self.faults.refuse(due, len(body), float(patience) if patience else None)
        except ArangoError as refused:
            self.requests.append((request.method, request.raw_path, refused.status))
            return self.response(Answer(refused.body(), refused.status))
        response = self.response(self.answer(request.method, request.raw_path, dict(request.headers), body))
        if "cut_after" in kinds:
            return _reset(request)
        return await _cut_body(request, response) if "cut_body" in kinds else response

    async def _faults(self, request: web.Request) -> web.Response:
        """The plan from outside: POST another one, DELETE it, GET what was made of it."""
        if request.method == "POST":
            try:
                self.faults.show(msgspec.json.decode(await request.read(), type=Plan))
            except msgspec.DecodeError as bad:
                return web.json_response({"error": str(bad)}, status=400)
        elif request.method == "DELETE":
            self.faults.show(Plan())
        return web.json_response(
            {"faults": msgspec.to_builtins(self.faults.plan.faults), "made": dict(self.faults.made)}
        )

    def response(self, answer: Answer) -> web.Response:
        """With the headers that every answer of the server has."""
        headers = _HEADERS | {"x-arango-queue-time-seconds": f"{self.faults.queue_time_s:.6f}"} | answer.headers
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
        except Exception:  # noqa: BLE001 -- as a server would: the request fails, the others go on
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


def _reset(request: web.Request) -> web.Response:
    """The client gets a connection reset."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut_body(request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Half of the body that the header promises."""
    body = whole.body if isinstance(whole.body, bytes) else b""
    cut = web.StreamResponse(status=whole.status, headers=whole.headers)
    cut.content_length = len(body)
    await cut.prepare(request)
    await cut.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return cut


async def serve(double: ArangoDouble, host: str, port: int) -> None:
    """Until it is cancelled."""
    async with double.serving(port, host) as url:
        _log.info("a test double of ArangoDB answers at %s", url)
        await asyncio.Event().wait()
