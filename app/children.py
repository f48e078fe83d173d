"""A simulated exchange and a worker as child processes that end with this one, however it ends."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from app.client import Worker
from app.config import settings
from app.errors import RunFailed, SetupRefused, WorkerUnreachable
from app.run_worker import check_address

SEED = 1
READY_WITHIN_S = 120.0
STOP_WITHIN_S = 15.0


class Children:
    """The exchange and the worker as processes of their own, their words in files of the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        """The worker first, so that it never meets an exchange that has gone."""
        for _name, child, _log in reversed(self._running):
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        for file in self._files:
            file.close()

    def start_exchange(self, data: Path | None) -> str:
        """Its address, once it answers."""
        arguments = ["exchange", "--port", "0", "--seed", str(SEED)]
        arguments += ["--data", str(data.resolve())] if data else []
        child = self._start("exchange", arguments, {}, stdout=subprocess.PIPE)
        assert child.stdout is not None
        self._files.append(child.stdout)
        ready = json.loads(self._first_line(child.stdout) or "{}")
        if "url" not in ready:
            self.check()
            raise RunFailed(
                f"the simulated exchange did not start within {READY_WITHIN_S:g} s: see {self.log_of('exchange')}"
            )
        return str(ready["url"])

    def start_worker(self, exchange_url: str) -> Worker:
        """A client of it, once its tables are recovered."""
        port = free_port(settings().web_port)
        own = {
            "DATA_DIR": str(self._folder), "STORE_URL": f"sqlite:///{self._folder / 'store.db'}",
            "BINANCE_API_URL": exchange_url, "WEB_BIND": "127.0.0.1", "WEB_PORT": str(port),
        }  # fmt: skip
        self._start("worker", ["worker"], own)
        token = settings().api_token
        worker = Worker(f"http://127.0.0.1:{port}", token.get_secret_value() if token else None)
        give_up_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up_s:
            self.check()
            with suppress(WorkerUnreachable):
                if worker.ready():
                    return worker
            time.sleep(0.1)
        raise RunFailed(f"the worker was not ready within {READY_WITHIN_S:g} s: see {self.log_of('worker')}")

    def log_of(self, name: str) -> Path:
        """The file with what a child said."""
        return self._folder / f"{name}.log"

    def check(self) -> None:
        """Raises RunFailed when a child has gone."""
        for name, child, log in self._running:
            if (code := child.poll()) is not None:
                raise RunFailed(f"the {name} ended with exit code {code}: {_last_line(log)} (all of it: {log})")

    def _start(
        self, name: str, arguments: list[str], own: dict[str, str], stdout: int | None = None
    ) -> subprocess.Popen[bytes]:
        log = self.log_of(name)
        file = log.open("wb")
        self._files.append(file)
        child = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments, "--end-with", str(os.getpid())],
            cwd=Path(__file__).parent.parent, env={**os.environ, **own},  # noqa: TID251 (handed on, not read)
            stdin=subprocess.DEVNULL, stdout=file if stdout is None else stdout, stderr=file,
            start_new_session=True,  # Ctrl-C is for this process; it ends the others in order
        )  # fmt: skip
        self._running.append((name, child, log))
        return child

    def _first_line(self, stream: IO[bytes]) -> bytes:
        give_up_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up_s:
            if select.select([stream], [], [], 0.2)[0]:
                return stream.readline()
            self.check()
        return b""


def free_port(wanted: int) -> int:
    """`wanted` when nothing listens there, else any free one."""
    with suppress(SetupRefused):
        check_address("127.0.0.1", wanted)
        return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
