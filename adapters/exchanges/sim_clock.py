"""The clock of a simulated exchange: it can stand anywhere, and run at any speed."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """Exchange time in UTC ms: the computer's, until it is set. Speed 0 stands still until it is set again."""

    def __init__(self, start_ms: int | None = None, speed: float = 1.0) -> None:
        self.skew_ms = 0  # ahead of what it should say
        self.set(start_ms, speed)

    def set(self, at_ms: int | None = None, speed: float | None = None) -> None:
        """Go on from `at_ms` (None: from the computer's time) at `speed`; whoever waits looks again."""
        self.speed = speed if speed is not None else getattr(self, "speed", 1.0)
        self._at_ms = time.time() * 1000 if at_ms is None else float(at_ms)
        self._since = time.monotonic()
        self.wake()

    def go(self, ms: int = 0, speed: float | None = None) -> None:
        """Go on from where it is, or `ms` ahead of that."""
        self.set(self.now_ms() - self.skew_ms + ms, speed)

    def wake(self) -> None:
        """Whoever waits looks again."""
        waiting, self._moved = getattr(self, "_moved", None), asyncio.Event()
        if waiting is not None:
            waiting.set()

    def now_ms(self) -> int:
        return int(self._at_ms + (time.monotonic() - self._since) * 1000 * self.speed) + self.skew_ms

    async def wait_until(self, ms: int) -> None:
        """Until the clock says `ms`; a clock that is set anew is waited for anew."""
        while (left_ms := ms - self.now_ms()) > 0:
            await self.pause(left_ms / 1000 / self.speed if self.speed else None)

    async def pause(self, real_s: float | None) -> None:
        """At most `real_s` of the computer's seconds; shorter when the clock is set."""
        try:
            async with asyncio.timeout(real_s):
                await self._moved.wait()
        except TimeoutError:
            return
