"""What the REST and the WebSocket side of a simulated exchange share: its clock, what it is told to show, and a log.

Every time a behaviour shows itself a line goes into the log, so a test can compare what was stored with the tape and
with what was done to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from adapters.exchanges.behaviours import Active, Behaviour, checked
from adapters.exchanges.sim_clock import Clock

_LINES_KEPT = 50_000


class Stage:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.active: list[Active] = []
        self.log: deque[dict[str, Any]] = deque(maxlen=_LINES_KEPT)

    def show(self, behaviour: Behaviour) -> None:
        """Switch on, beside those that are on already. Raises SetupRefused."""
        checked(behaviour)
        if behaviour.name == "clock":
            self.clock.set(behaviour.at, behaviour.speed)
        if behaviour.name == "clock_skew":
            self.clock.skew_ms += behaviour.offset_ms or 0
        self.active.append(Active(behaviour, self.clock.now_ms()))
        self.clock.wake()

    def show_none(self) -> None:
        self.active.clear()
        self.clock.wake()
        self.clock.skew_ms = 0

    def shown(self) -> list[dict[str, Any]]:
        return [{"name": on.behaviour.name, "seen": on.seen, "shown": on.shown} for on in self.active]

    def unknown(self, symbol: str) -> bool:
        """Delisted, or called by a name it does not have any more."""
        return any(
            on.behaviour.symbol == symbol and on.lasts(self.clock.now_ms())
            for name in ("delisted", "renamed")
            for on in self.named(name)
        )

    def source_name(self, symbol: str) -> str:
        """What the source calls `symbol`."""
        return next((on.behaviour.symbol for on in self.named("renamed") if on.behaviour.text == symbol), symbol)

    def named(self, name: str) -> Iterator[Active]:
        return (on for on in self.active if on.behaviour.name == name)

    def due(self, name: str, endpoint: str, symbol: str) -> Active | None:
        """The first that shows itself on this request; it is counted, and noted when it did show."""
        return next((on for on in self.named(name) if on.due(name, endpoint, symbol)), None)

    def is_due(self, name: str, endpoint: str, symbol: str, **detail: Any) -> bool:
        on = self.due(name, endpoint, symbol)
        if on is not None:
            self.note(on, endpoint, symbol, **detail)
        return on is not None

    def note(self, on: Active, endpoint: str, symbol: str, **detail: Any) -> None:
        on.shown += 1
        self.log.append(
            {"at_ms": self.clock.now_ms(), "name": on.behaviour.name, "endpoint": endpoint, "symbol": symbol, **detail}
        )

    def lines(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        return [line for line in self.log if not names or line["name"] in names]
