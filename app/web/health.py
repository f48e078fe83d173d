"""Is it alive, may it get work, what does it count: /health/*, /metrics, /status.

Ready means: partitions assigned, tables recovered, positions moving (`app/positions.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import positions, topics
from app.config import LOOPBACK, settings
from app.core import app, assignment
from app.telemetry import BACKLOG, TASK_STATES
from app.web import replicas
from app.web.calls import answer, call
from app.web.guard import recovered
from models.control import TASK_STATES as TASK_STATES_KNOWN
from models.control import Json
from tables.tasks import tasks

CATALOG_WAIT_S, CATALOG_KEPT_S = 1.0, 30.0


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
        states = Counter(task.state for task in tasks.values())
        for state in TASK_STATES_KNOWN:
            TASK_STATES.labels(state).set(states[state])
        for topic in topics.TOPICS:
            if topic.readers != ("clients",):
                BACKLOG.labels(topic.name).set(topics.waiting(topic.name))
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@app.task
async def ask_early() -> None:
    """On brokers how far readers are behind is asked beside us; from now on the answer is there."""
    for topic in topics.TOPICS:
        topics.waiting(topic.name)


@call("/status")
async def show_status(_request: web.Request) -> web.Response:
    """What the page needs to know: is it ready, does a change need the token, is the market simulated."""
    return answer(
        {"app": app.conf.id, "missing": what_is_missing(), "token_needed": bool(settings().api_token),
         "exchange": bool(settings().binance_api_url), "simulated": await _catalog.read()}
    )  # fmt: skip


def is_simulated() -> bool:
    """True where the exchange answers as the simulated one does, or is on loopback: no real one is there."""
    return _catalog.known or urlsplit(settings().binance_api_url).hostname in LOOPBACK


def what_is_missing() -> list[str]:
    """Sentences; none when the worker is ready."""
    missing = []
    if settings().role != "web" and not assignment():
        missing.append("no partition is assigned")
    if not recovered():
        missing.append("the tables are being recovered")
    if not replicas.caught_up():
        missing.append("the tables of the other workers are being read")
    return missing + [f"{tp.topic}[{tp.partition}] stands still" for tp in positions.standing_still()]


def _health(word: str, missing: list[str]) -> web.Response:
    if missing:
        return answer({"error": "; ".join(missing), "missing": missing}, status=503)
    return answer({"status": word})


class Catalog:
    """What a simulated exchange serves; a real one has no such call."""

    def __init__(self) -> None:
        self._read_at, self._catalog = -CATALOG_KEPT_S, None

    @property
    def known(self) -> bool:
        return self._catalog is not None

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
