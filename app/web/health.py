"""Is it alive, may it get work, what does it count: /health/*, /metrics, /status.

Ready means: partitions assigned, tables recovered, positions moving. A partition whose committed position stands still
for a minute although records wait behind it makes the worker unready, never dead: what it waits for (a store that is
away) is not cured by a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aiohttp import web
from faust.types import TP
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import topics
from app.config import settings
from app.core import app, backlog
from app.telemetry import BACKLOG
from app.web.calls import answer, call
from app.web.guard import recovered
from models.control import Json

STANDS_STILL_S = 60.0
CATALOG_WAIT_S, CATALOG_KEPT_S = 1.0, 30.0


@dataclass
class Positions:
    """Which partitions make progress. `seen`: the last position of each, and since when it is the last."""

    seen: dict[TP, tuple[int, float]] = field(default_factory=dict)

    def standing_still(self, now_s: float, waiting: Mapping[TP, int]) -> list[TP]:
        """`waiting`: the committed position of every partition with records behind it."""
        self.seen = {
            tp: self.seen[tp] if self.seen.get(tp, (-1,))[0] == position else (position, now_s)
            for tp, position in waiting.items()
        }
        return sorted(tp for tp, (_, since_s) in self.seen.items() if now_s - since_s >= STANDS_STILL_S)


_positions = Positions()
_startup = asyncio.Event()


@call("/health/live")
async def show_live(_request: web.Request) -> web.Response:
    """200 as long as the event loop turns."""
    return answer({"status": "live"})


@call("/health/ready")
async def show_ready(_request: web.Request) -> web.Response:
    """200 when work can be given to this worker, else 503 with what is missing."""
    return _health("ready", what_is_missing())


@call("/health/startup")
async def show_startup(_request: web.Request) -> web.Response:
    """200 from the first recovery on."""
    if not _startup.is_set() and recovered():
        _startup.set()
    return _health("started", [] if _startup.is_set() else ["the tables are being recovered"])


@call("/metrics")
async def show_metrics(_request: web.Request) -> web.Response:
    """Prometheus text."""
    if recovered():
        for topic in topics.TOPICS:
            if topic.readers != ("clients",):
                BACKLOG.labels(topic.name).set(backlog(topic.name))
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@call("/status")
async def show_status(_request: web.Request) -> web.Response:
    """What the page needs to know: is it ready, does a change need the token, is the market simulated."""
    return answer(
        {"app": app.conf.id, "missing": what_is_missing(), "token_needed": bool(settings().api_token),
         "exchange": bool(settings().binance_api_url), "simulated": await _catalog.read()}
    )  # fmt: skip


def what_is_missing() -> list[str]:
    """Sentences; none when the worker is ready."""
    missing = []
    if not app.consumer.assignment():
        missing.append("no partition is assigned")
    if not recovered():
        missing.append("the tables are being recovered")
    still = _positions.standing_still(time.monotonic(), _waiting())
    return missing + [f"{tp.topic}[{tp.partition}] stands still" for tp in still]


def _waiting() -> dict[TP, int]:
    """Partitions of our topics with records behind the committed position."""
    committed: Mapping[TP, int | None] = cast(Any, app.consumer)._committed_offset  # Faust has no public name for it
    found = {}
    for tp in app.consumer.assignment():
        position = committed.get(tp) or 0
        if tp.topic in topics.BY_NAME and app.consumer.highwater(tp) > position:
            found[tp] = position
    return found


def _health(word: str, missing: list[str]) -> web.Response:
    if missing:
        return answer({"error": "; ".join(missing), "missing": missing}, status=503)
    return answer({"status": word})


class Catalog:
    """What a simulated exchange serves; a real one has no such call."""

    def __init__(self) -> None:
        self._read_at, self._catalog = -CATALOG_KEPT_S, None

    async def read(self) -> Json | None:
        """The catalog, at most half a minute old; None for a real exchange, and while there is none."""
        url = settings().binance_api_url.rstrip("/")
        if url and time.monotonic() - self._read_at >= CATALOG_KEPT_S:
            self._read_at = time.monotonic()
            self._catalog = await self._ask(f"{url}/sim/catalog")
        return self._catalog

    async def _ask(self, url: str) -> Any:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CATALOG_WAIT_S)) as session,
                session.get(url) as said,
            ):
                catalog = await said.json() if said.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return self._catalog
        return catalog if isinstance(catalog, dict) and "streams" in catalog else None


_catalog = Catalog()
