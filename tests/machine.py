"""Rules in seconds, on a machine that may have more to do than it can: time in which it was busy counts for nobody.

Linux says how long something that could run had to wait for a processor or for the disk (/proc/pressure), and how long
the processors were lent to other machines (`steal` in /proc/stat). On an idle machine both stand still.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def busy_s() -> float:
    """Seconds since the start in which the machine kept somebody waiting."""
    return sum(map(_stalled_s, ("cpu", "io", "memory"))) + _stolen_s()


def _stalled_s(of: str) -> float:
    try:
        some, *_ = Path("/proc/pressure", of).read_text().splitlines()
    except OSError:  # a kernel that does not count it
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


def _stolen_s() -> float:
    cpu, *_ = Path("/proc/stat").read_text().splitlines()
    return int(cpu.split()[8]) / os.sysconf("SC_CLK_TCK")


class Stopwatch:
    """Runs from where it is made."""

    def __init__(self) -> None:
        self._busy_s, self._began_s = busy_s(), time.time()

    def took_s(self, until_s: float | None = None) -> float:
        """Seconds up to now, or to a time that an event tells (since 1970), less what the machine was busy."""
        return (until_s or time.time()) - self._began_s - (busy_s() - self._busy_s)

    def allowed_s(self, rule_s: float) -> float:
        """The rule of an idle machine, for a duration that somebody else has measured meanwhile."""
        return rule_s + busy_s() - self._busy_s
