"""What every call meets before its view, and what becomes of its errors.

Where the server listens on loopback it answers to loopback names only (a page that points its own name at 127.0.0.1
is refused), changing calls and WebSockets come from our own page or from no page at all, and until the tables are
recovered only health, metrics and the page itself answer.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from app.auth import SAFE_METHODS
from app.config import LOOPBACK, settings
from app.core import app
from app.errors import StreamForgeError
from app.topics import TABLES_OF_ROLE
from app.web import replicas
from app.web.calls import error, error_of

log = logging.getLogger(__name__)

ANSWERS_WHILE_RECOVERING = ("/health/", "/metrics", "/status", "/static/", "/dashboard")

WORKER = f"{app.conf.id} at {socket.gethostname()}:{settings().web_port}"  # who answered, where there are several

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def recovered() -> bool:
    """True when the tables of this worker hold what was promised, and nobody is moving them."""
    return not TABLES_OF_ROLE[settings().role] or (bool(app.tables.actives_ready) and not app.rebalancing)


def can_answer() -> bool:
    """True when what is asked here is all there: a rebalance moves a worker's own rows, but not its replicas."""
    return replicas.caught_up() if replicas.wanted() else recovered()


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what must not come in; answer what went wrong."""
    if reason := stranger(request, on_loopback=settings().web_bind in LOOPBACK):
        return error(403, reason)
    if not (can_answer() or request.path == "/" or request.path.startswith(ANSWERS_WHILE_RECOVERING)):
        return error(503, "the tables are being recovered; ask again in a second", headers={"Retry-After": "1"})
    try:
        answer = await handler(request)
        if not answer.prepared:
            answer.headers["X-Worker"] = WORKER
        return answer
    except StreamForgeError as failure:
        return error_of(failure)
    except web.HTTPException as failure:
        if failure.status < 400:
            raise
        headers = {"Allow": failure.headers["Allow"]} if "Allow" in failure.headers else None
        return error(failure.status, f"{request.method} {request.path}: {failure.reason}", headers=headers)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error(500, "this is a fault of StreamForge; the worker's log says more")


def stranger(request: web.Request, *, on_loopback: bool) -> str:
    """Why a call is refused whoever holds a token: "" where nothing is against it."""
    host = request.headers.get("Host", "")
    if on_loopback and _name(f"//{host}") not in LOOPBACK:
        return (
            f"this server listens on loopback and does not answer to {host!r}; "
            "to serve it under another name set WEB_BIND and API_TOKEN"
        )
    origin = request.headers.get("Origin")
    changes = request.method not in SAFE_METHODS or "Upgrade" in request.headers
    if changes and origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return f"calls that change something come from this server's own page, not from {origin!r}"
    return ""


def _name(url: str) -> str:
    """The host name in a URL; "" for what is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
