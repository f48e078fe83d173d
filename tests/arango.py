"""ArangoDB for tests: the test double, or with `pytest --arango-url http://USER@HOST:PORT/` a real server.

Each store a test opens has a database of its own there. The real server's password: STORE_PASSWORD.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from adapters.arango_double.faults import Plan
from adapters.arango_double.server import ArangoDouble
from adapters.stores.arango import ArangoStore
from adapters.stores.arango_batches import Patience
from adapters.stores.arango_client import Address, Client
from tests.processes import ROOT, call, free_port, wait_for

PASSWORD = "only-for-tests"


class Double:
    """The test double as a process of its own; its data outlives it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder, self._port, self._arguments = folder, free_port(), arguments
        self.output = folder.with_suffix(".out")
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        own = ["--data", str(self._folder), "--port", str(self._port), "--password", PASSWORD]
        with self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "adapters.arango_double", *own, *self._arguments],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def answers() -> bool:
            assert self.popen.poll() is None, self.said()
            try:
                return call("GET", f"{self.url}/_api/version")[0] in (200, 401)
            except urllib.error.URLError:
                return False

        wait_for(answers, 100, self.said)

    def kill(self) -> None:
        """SIGKILL, which it cannot notice."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def said(self) -> str:
        return self.output.read_text(errors="replace")


class DoubleInThread:
    """The test double in this process, for what needs no end of a process; without a password."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self._double = ArangoDouble(folder)
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def show(self, plan: str) -> None:
        """A plan of faults, from now on."""
        told = msgspec.convert(yaml.safe_load(plan) or {}, Plan)
        done = asyncio.run_coroutine_threadsafe(self._show(told), self._loop)
        done.result()

    def made(self) -> dict[str, int]:
        """How often each fault happened."""
        return dict(self._double.faults.made)

    def __enter__(self) -> DoubleInThread:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
        self._double.close()

    async def _serve(self) -> None:
        async with self._double.serving() as self.url:
            self._ready.set()
            await self._stop.wait()

    async def _show(self, plan: Plan) -> None:
        self._double.faults.show(plan)


def address(url: str, password: str) -> Address:
    """A database of its own on a server."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return elsewhere(Address((where,), "-", parts.username or "root", password))


def settings_of(there: Address) -> dict[str, str]:
    """What a worker's process is told to use this database."""
    scheme, _, host = there.urls[0].partition("://")
    return {"STORE_URL": f"{scheme}://{there.user}@{host}/{there.database}", "STORE_PASSWORD": there.password}


def drop_database(there: Address) -> None:
    client = Client(there, threads=1)
    client.call("DELETE", f"/_api/database/{there.database}", database="_system")
    client.close()


def open_store(there: Address, **how: Any) -> ArangoStore:
    return ArangoStore(there, patience=Patience(in_all_s=2.0), **how)


@pytest.fixture(scope="session")
def arango(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The server that all tests share: give each test another `database` by `elsewhere`."""
    if url := request.config.getoption("--arango-url"):
        yield address(url, os.environ.get("STORE_PASSWORD", ""))
        return
    double = Double(tmp_path_factory.mktemp("arango") / "data")
    yield address(double.url, PASSWORD)
    double.kill()


def elsewhere(there: Address) -> Address:
    """A database of one's own on the same server."""
    return replace(there, database=f"streamforge_test_{uuid.uuid4().hex[:12]}")
