"""Query parameters as values: what cannot be read is refused with its name, what is not known too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.errors import CommandRejected
from models.control import SYMBOL
from models.market import INTERVAL_MS, instant_ms

END_OF_TIME_MS = 1 << 53  # beyond every timestamp, and exact in every JSON reader


class Parameters:
    """The query of one call, of which only `allowed` may be said. Every method raises CommandRejected."""

    def __init__(self, query: Mapping[str, str], *allowed: str) -> None:
        if unknown := [name for name in query if name not in allowed]:
            raise CommandRejected(unknown[0], f"not a parameter of this call; allowed: {', '.join(allowed) or 'none'}")
        self._query = query

    def text(self, name: str, default: str = "") -> str:
        return self._query.get(name, default)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """An integer in [low, high]."""
        said = self._query.get(name)
        if said is None:
            return default
        if not re.fullmatch(r"-?\d{1,18}", said, re.ASCII) or not low <= int(said) <= high:
            raise CommandRejected(name, f"{said!r} is not a whole number from {low} to {high}")
        return int(said)

    def range_ms(self) -> tuple[int, int]:
        """`start` and `end` as [start_ms, end_ms): all time where they are not said."""
        start = self._moment_ms("start", 0)
        end = self._moment_ms("end", END_OF_TIME_MS)
        if start >= end:
            raise CommandRejected("end", "the range ends before it starts; `end` is exclusive")
        return start, end

    def _moment_ms(self, name: str, default: int) -> int:
        said = self._query.get(name)
        if said is None:
            return default
        if re.fullmatch(r"\d{1,16}", said, re.ASCII):
            return int(said)
        try:
            return instant_ms(said)
        except (ValueError, OverflowError):
            raise CommandRejected(name, f"{said!r} is neither milliseconds nor an ISO date or instant (UTC)") from None


def read_symbol(text: str) -> str:
    if not SYMBOL.fullmatch(text):
        raise CommandRejected("symbol", f"{text!r} is not a symbol; symbols are upper case, e.g. BTCUSDT")
    return text


def read_interval(text: str) -> str:
    if text not in INTERVAL_MS:
        raise CommandRejected("interval", f"{text!r} is not known; allowed: {', '.join(INTERVAL_MS)}")
    return text
