"""A child process that ends with the process that started it, however that ends (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(pid: int, number: int = signal.SIGTERM) -> None:
    """From now on this process gets the signal when its parent `pid` ends; 0: it has none to follow."""
    if not pid:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != pid:  # it ended before we could ask
        sys.exit(0)
