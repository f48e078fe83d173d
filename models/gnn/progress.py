"""What a training says while it runs: one JSON line per fact on stdout.

    {"progress": 0.4, "label": "dir", "model": "SAGE", "seed": 1, "epoch": 7, "loss": 0.69, "message": ...}

At most five facts a second, the latest repeated every 1.5 s, so that silence means death. When nobody reads any
more (the parent is gone) the process ends: an orphan trains for no one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, TextIO

import msgspec

LEAST_GAP_S = 0.2
REPEAT_S = 1.5
EXIT_INTERRUPTED = 130
EXIT_ORPHANED = 1


class Interrupted(Exception):
    """The training was asked to stop."""


class Reporter:
    """Writes facts; thread-safe. Use as a context manager: inside it the last fact is repeated as a heartbeat."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._fact: dict[str, Any] = {"progress": 0.0}
        self._written_s = 0.0
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Reporter:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join()

    def say(self, **fact: Any) -> None:
        """A fact of which a newer one may take the place."""
        with self._lock:
            self._fact = fact
            if time.monotonic() - self._written_s >= LEAST_GAP_S:
                self._write(fact)

    def conclude(self, **fact: Any) -> None:
        """The last fact: always written, never repeated."""
        self._over.set()
        with self._lock:
            self._write(fact)

    def _beat(self) -> None:
        while not self._over.wait(REPEAT_S / 3):
            with self._lock:
                if not self._over.is_set() and time.monotonic() - self._written_s >= REPEAT_S:
                    self._write(self._fact)

    def _write(self, fact: dict[str, Any]) -> None:
        try:
            self._stream.write(msgspec.json.encode(fact).decode() + "\n")
            self._stream.flush()
        except BrokenPipeError:
            os._exit(EXIT_ORPHANED)  # from any thread, and with nothing published there is nothing to tidy up
        self._written_s = time.monotonic()


class StopSwitch:
    """SIGTERM and SIGINT as a wish: at once while starting, between epochs while training, no more when publishing."""

    def __init__(self) -> None:
        self._asked = False
        self._at_once = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._at_once:
            raise Interrupted

    def wait_for_epochs(self) -> None:
        """From now on only `check` stops."""
        self._at_once = False

    def check(self) -> None:
        """Raise Interrupted when a stop was asked for."""
        if self._asked:
            raise Interrupted
