"""A simulated exchange and workers as child processes that end with this one, however it ends.

They may be killed, paused and started again: experiments do so. Start them from the main thread: the kernel ends them
with the thread that started them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from app.client import Worker
from app.config import settings
from app.errors import RunFailed, SetupRefused, WorkerUnreachable
from app.run_worker import check_address

SEED = 1
READY_WITHIN_S = 120.0
STOP_WITHIN_S = 15.0


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: everything is stopped in order."""


class Child:
    """`python -m app ARGUMENTS`, its words in a file; started again, it adds to them."""

    def __init__(
        self, name: str, arguments: list[str], own: dict[str, str], log: Path, *, ends_with_us: bool = True
    ) -> None:
        self.name, self.log = name, log
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments, self._own, self._ends_with_us = arguments, own, ends_with_us
        log.unlink(missing_ok=True)

    def start(self) -> None:
        """Does not wait until it is ready."""
        ends = ["--end-with", str(os.getpid())] if self._ends_with_us else []
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", *self._arguments, *ends],
                cwd=Path(__file__).parent.parent, env={**os.environ, **self._own},  # noqa: TID251 (handed on, not read)
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,  # Ctrl-C is for this process; it ends the others in order
            )  # fmt: skip

    @property
    def exit_code(self) -> int | None:
        """None while it lives, and before it was started."""
        return None if self.process is None else self.process.poll()

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.process is not None and self.lives:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, which it cannot notice; returns when it has gone."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def ask_to_stop(self) -> None:
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # one that is paused hears nothing else

    def wait(self, within_s: float = STOP_WITHIN_S) -> None:
        """Until it has ended; one that does not is killed."""
        if self.process is None:
            return
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Children:
    """The exchange and the workers as processes of their own, their words in files of the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        """The workers first, all at once, so that none meets an exchange that has gone."""
        workers, others = [c for c in self._all if c.name != "exchange"], [c for c in self._all if c.name == "exchange"]
        for group in (workers, others):
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.wait()

    def start_exchange(self, data: Path | None, seed: int = SEED, port: int = 0, more: Sequence[str] = ()) -> str:
        """Its address, once it answers; `more` of its arguments."""
        arguments = ["exchange", "--port", str(port), "--seed", str(seed), *more]
        arguments += ["--data", str(data.resolve())] if data else []
        child = self.make("exchange", arguments, {})
        child.start()
        give_up_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up_s:
            self.check()
            for line in child.log.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith('{"') and line.endswith("\n") and "url" in (said := json.loads(line)):
                    return str(said["url"])
            time.sleep(0.05)
        raise RunFailed(f"the simulated exchange did not start within {READY_WITHIN_S:g} s: see {child.log}")

    def start_worker(self, exchange_url: str, **settings_of_it: str) -> Worker:
        """A client of it, once its tables are recovered."""
        port = free_port(settings().web_port)
        own = {
            "DATA_DIR": str(self._folder), "STORE_URL": f"sqlite:///{self._folder / 'store.db'}",
            "BINANCE_API_URL": exchange_url, "WEB_BIND": "127.0.0.1", "WEB_PORT": str(port),
            **settings_of_it,
        }  # fmt: skip
        self.make("worker", ["worker"], own).start()
        token = settings().api_token
        worker = Worker(f"http://127.0.0.1:{port}", token.get_secret_value() if token else None)
        self.wait_until_ready(worker)
        return worker

    def make(self, name: str, arguments: list[str], own: dict[str, str]) -> Child:
        """A child that is not started yet, and will be ended with the others."""
        self._all.append(Child(name, arguments, own, self.log_of(name)))
        return self._all[-1]

    def child(self, name: str) -> Child:
        return next(child for child in self._all if child.name == name)

    def wait_until_ready(self, worker: Worker, name: str = "worker") -> None:
        """Raises RunFailed when it does not become ready, or a child has gone."""
        give_up_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up_s:
            self.check()
            with suppress(WorkerUnreachable):
                if worker.ready():
                    return
            time.sleep(0.1)
        raise RunFailed(f"the {name} was not ready within {READY_WITHIN_S:g} s: see {self.log_of(name)}")

    def log_of(self, name: str) -> Path:
        """The file with what a child said."""
        return self._folder / f"{name}.log"

    def check(self) -> None:
        """Raises RunFailed when a child has gone."""
        for child in self._all:
            if (code := child.exit_code) is not None:
                said = f"{child.last_line()} (all of it: {child.log})"
                raise RunFailed(f"the {child.name} ended with exit code {code}: {said}")


@contextmanager
def interrupts_raise(sentence: str) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted once; while things are being stopped they change nothing."""
    raised = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Interrupted(sentence)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(wanted: int) -> int:
    """`wanted` when nothing listens there, else any free one."""
    with suppress(SetupRefused):
        check_address("127.0.0.1", wanted)
        return wanted
    port, holder = hold_port()
    holder.close()
    return port


def hold_port() -> tuple[int, socket.socket]:
    """A port that nobody else is given until the socket is closed, whether a child of ours listens there or not."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bound, not listening: a server may share it
    return holder.getsockname()[1], holder
