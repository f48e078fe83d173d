"""How a call is declared, and how it answers: JSON, and for every error `{"error": sentence, "field": name}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from aiohttp import web
from faust.web import View

from app.core import app
from app.errors import CommandRejected, StreamForgeError

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[web.StreamResponse]])


def call(path: str, method: str = "get") -> Callable[[Handler], Handler]:
    """Declare `handler(request, **parts of the path)` as what the worker answers at `path`."""

    def declare(handler: Handler) -> Handler:
        async def respond(_view: View, request: web.Request, **parts: str) -> web.StreamResponse:
            return await handler(request, **parts)

        own = {method: respond, "__doc__": handler.__doc__, "__module__": handler.__module__}
        app.page(path)(type(handler.__name__, (View,), own))
        return handler

    return declare


def answer(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, content_type="application/json",
        charset="utf-8", headers=headers,
    )  # fmt: skip


def error(status: int, sentence: str, *, headers: dict[str, str] | None = None, **facts: Any) -> web.Response:
    return answer({"error": sentence, **facts}, status=status, headers=headers)


def error_of(failure: StreamForgeError) -> web.Response:
    """An error as its class says: status, sentence, and the field where one is at fault."""
    field = {"field": failure.field} if isinstance(failure, CommandRejected) else {}
    retry_after_s = getattr(failure, "retry_after_s", None)
    headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s is not None else None
    return error(failure.http_status, str(failure), headers=headers, **field)
