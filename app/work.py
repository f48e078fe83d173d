"""What a task's work sees: its step, its last checkpoint, and how to report.

A work function is registered for a target: `@work(LOADER) async def load(job: Job) -> Finished`. It runs beside the
agents, may be cancelled at any await, and is started again from its last checkpoint after a crash; so every effect
it has must be idempotent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import faust
import msgspec

from app import topics
from models.control import Json, Task, TaskMessage, step_event

REPORT_EVERY_S = 0.5  # more often is noise
HEARTBEAT_S = 2.0  # an active step is heard of at least every 5 s


@dataclass(frozen=True)
class Finished:
    """How a step ended well; `extra` goes into its last event."""

    records_written: int
    message: str = ""
    extra: Json = field(default_factory=dict)


class Job:
    """A task at work in this process."""

    def __init__(self, task: Task) -> None:
        self.task_id, self.queue_id, self.step = task.task_id, task.queue_id, task.step
        self.attempt, self.cursor, self.records_written = task.attempt, task.cursor, task.records_written
        self.partition, self.not_before = task.partition, task.not_before
        self.told: asyncio.Queue[Json] = asyncio.Queue()
        self.begun = self.stopping = self.ended = False  # has run at all; asked to stop; has said its last word
        self._progress: float | None = None
        self._message, self._reported_at = "", 0.0
        self._extra: Json = {}
        self._saying: set[asyncio.Future[None]] = set()

    async def report(
        self, *, records_written: int | None = None, progress: float | None = None, message: str | None = None,
        extra: Json | None = None, now: bool = False,
    ) -> None:  # fmt: skip
        """Say where the work is; at most every REPORT_EVERY_S unless `now`."""
        if records_written is not None:
            self.records_written = records_written
        self._progress = self._progress if progress is None else progress
        self._message = self._message if message is None else message
        self._extra = self._extra if extra is None else extra
        if now or time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            await self.emit("loading")

    def say_soon(self, message: str) -> None:
        """`report` for a callback that cannot await."""
        saying = asyncio.ensure_future(self.report(message=message, now=True))
        self._saying.add(saying)
        saying.add_done_callback(self._saying.discard)

    async def emit(self, status: str, **facts: Any) -> None:
        self._reported_at = time.monotonic()
        said = {"records_written": self.records_written, "progress": self._progress, "message": self._message,
                "extra": self._extra} | facts  # fmt: skip
        await send_event(step_event(status, self.queue_id, self.step, **said))

    async def heartbeat(self) -> None:
        """Repeat the last report for as long as the work says nothing new."""
        while True:
            await asyncio.sleep(max(0.1, self._reported_at + HEARTBEAT_S - time.monotonic()))
            if time.monotonic() - self._reported_at >= HEARTBEAT_S:
                await self.emit("loading")

    async def catch_up(self) -> None:
        """Until everything that was written of this task before now has been read here: what we write comes last."""
        wish: Json = {"catch_up": uuid4().hex}
        await send_task(
            TaskMessage(kind="tell", task_id=self.task_id, queue_id=self.queue_id, attempt=self.attempt, command=wish)
        )
        while await self.told.get() != wish:
            pass  # an older one

    async def checkpoint(self, cursor: Json) -> None:
        """Remember where to go on; everything before `cursor` must be durable already."""
        self.cursor = cursor
        await send_task(
            TaskMessage(kind="checkpoint", task_id=self.task_id, queue_id=self.queue_id, attempt=self.attempt,
                        cursor=cursor, records_written=self.records_written)
        )  # fmt: skip


Work = Callable[[Job], Awaitable[Finished]]
WORK: dict[str, Work] = {}
LETS_GO: set[str] = set()


def work(target: str, *, lets_go: bool = False) -> Callable[[Work], Work]:
    """Register the work of a target. `lets_go`: it stops at every rebalance and goes on from its checkpoint."""

    def register(function: Work) -> Work:
        WORK[target] = function
        if lets_go:
            LETS_GO.add(target)
        return function

    return register


async def send_event(event: Json) -> None:
    """Write a fact to queue-events; durable when this returns."""
    await _send(topics.queue_events, str(event["queue_id"]), msgspec.json.encode(event))


async def send_task(message: TaskMessage) -> None:
    """Write a record to queue-tasks; durable when this returns."""
    await _send(topics.queue_tasks, message.task_id, msgspec.json.encode(message))


async def send_command(command: Json) -> None:
    """Write a wish to queue-control; durable when this returns."""
    await _send(topics.queue_control, None, msgspec.json.encode(command))


async def _send(topic: faust.TopicT, key: str | None, value: bytes) -> None:
    sent = await topic.send(key=key.encode() if key else None, value=value)
    await asyncio.shield(sent)  # who is cancelled meanwhile does not take back what is on its way
