"""Who may change something over HTTP: everyone on loopback, beyond it only who holds API_TOKEN."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web

from app.config import settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@web.middleware
async def require_token(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """401 for a changing call without the token, wherever a token is set. Reading stays open."""
    token = settings().api_token
    if token and request.method not in SAFE_METHODS:
        said = request.headers.get("Authorization", "")
        if not hmac.compare_digest(said.encode(), f"Bearer {token.get_secret_value()}".encode()):
            return web.json_response(
                {"error": "this call changes something: send `Authorization: Bearer API_TOKEN`"}, status=401
            )
    return await handler(request)
