"""The page: three files without a build step, served with a policy that lets them load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from app.web.calls import call, error

_FOLDER = Path(__file__).parent / "static"
FILES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
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


def _file(name: str) -> web.StreamResponse:
    return web.FileResponse(_FOLDER / name, headers={**HEADERS, "Content-Type": f"{FILES[name]}; charset=utf-8"})
