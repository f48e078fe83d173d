"""The pages, served with a policy that lets them load nothing from elsewhere.

`/` is three files without a build step; `/dashboard` is what `make dashboard` has built.
"""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from app.web.calls import call, error

_FOLDER = Path(__file__).parent / "static"
FILES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
FILES_BUILT = {"js": "text/javascript", "css": "text/css"}
_BUILT = _FOLDER / "dashboard"
_BUILT_FILE = re.compile(r"[\w-]+\.(js|css)", re.ASCII)
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time, answered 304: a new version shows at once
}


@call("/")
async def show_page(_request: web.Request) -> web.StreamResponse:
    """The page."""
    return _file("index.html")


@call("/static/{name}")
async def show_file(request: web.Request, name: str) -> web.StreamResponse:
    """One of the page's files."""
    return _file(name) if name in FILES else error(404, f"{request.path}: no such file")


@call("/dashboard")
async def show_dashboard(_request: web.Request) -> web.StreamResponse:
    """The market live."""
    return _built(_BUILT / "index.html", "text/html")


@call("/dashboard/assets/{name}")
async def show_built_file(request: web.Request, name: str) -> web.StreamResponse:
    """One of the dashboard's files; a new build gives them new names."""
    if not (known := _BUILT_FILE.fullmatch(name)):
        return error(404, f"{request.path}: no such file")
    return _built(_BUILT / "assets" / name, FILES_BUILT[known[1]])


def _file(name: str) -> web.StreamResponse:
    return _served(_FOLDER / name, FILES[name])


def _built(path: Path, kind: str) -> web.StreamResponse:
    return _served(path, kind) if path.is_file() else error(404, "the dashboard is not built: run `make dashboard`")


def _served(path: Path, kind: str) -> web.StreamResponse:
    return web.FileResponse(path, headers={**HEADERS, "Content-Type": f"{kind}; charset=utf-8"})
