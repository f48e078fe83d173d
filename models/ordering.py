"""Records of a live stream in order of id, each once: what comes too early waits until the hole in front is filled.

Pure: who reads a stream offers what arrives, fetches the hole elsewhere and says how far that went, or gives it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mark:
    """A live frame's place in its stream: ids `first` .. `last`.

    Whoever reads the stream from here on knows it whole from `from_ms` on; whoever has read all up to here, to `to_ms`.
    """

    first: int
    last: int
    from_ms: int
    to_ms: int
    done: bool = True  # false: a candle that still runs
    before: int | None = None  # the id that must have come before, where the venue says so


class InOrder(Generic[T]):
    """`next_id` is the record that is due; None: the first that comes."""

    def __init__(self, next_id: int | None = None) -> None:
        self.next_id, self.repeats = next_id, 0
        self._waiting: dict[int, tuple[Mark, T]] = {}
        self._running: Mark | None = None  # the newest record that still runs: those before it should be done

    def offer(self, mark: Mark, item: T) -> list[tuple[Mark, T]]:
        """What may go on now that this has arrived, in order. What still runs goes on at once."""
        if not mark.done:
            self._running = mark
            return [(mark, item)]
        if self.next_id is None:
            self.next_id = mark.first
        if mark.last < self.next_id:
            self.repeats += 1
            return []
        self._waiting[mark.first] = (mark, item)
        return self._go_on()

    @property
    def hole(self) -> tuple[int, int] | None:
        """Ids [from, to) that lack in front of what has been seen."""
        seen = self._behind_the_hole()
        return None if seen is None or self.next_id is None else (self.next_id, seen.first)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def passed(self, last_id: int) -> list[tuple[Mark, T]]:
        """Everything up to `last_id` went on another way; what may go on behind it."""
        self.next_id = last_id + 1
        for first in [first for first, (mark, _) in self._waiting.items() if mark.last <= last_id]:
            del self._waiting[first]
        return self._go_on()

    def give_up(self) -> tuple[Mark, list[tuple[Mark, T]]]:
        """The hole stays: the record behind it, and what goes on with it."""
        seen = self._behind_the_hole()
        assert seen is not None, "there is a hole to give up"
        self.next_id = seen.first
        return seen, self._go_on()

    def _behind_the_hole(self) -> Mark | None:
        if self._waiting:
            return self._waiting[min(self._waiting)][0]
        running = self._running
        return running if running and self.next_id is not None and running.first > self.next_id else None

    def _go_on(self) -> list[tuple[Mark, T]]:
        ready: list[tuple[Mark, T]] = []
        while self.next_id is not None and (found := self._waiting.pop(self.next_id, None)):
            self.next_id = found[0].last + 1
            ready.append(found)
        return ready
