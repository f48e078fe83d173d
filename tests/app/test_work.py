"""A task's work is sure of its row only when everything that was written before has been read."""

from __future__ import annotations

import asyncio

import pytest

from app import work
from app.work import Job
from models.control import Step, Task, TaskMessage


async def test_who_catches_up_has_read_all_that_was_written_before(monkeypatch: pytest.MonkeyPatch) -> None:
    written: asyncio.Queue[TaskMessage] = asyncio.Queue()
    monkeypatch.setattr(work, "send_task", written.put)
    step = Step(task_id="r.0", target="loader-ws", type="ws_trades", symbol="ETHUSDT", interval="1m")
    job = Job(Task(task_id="r.0", queue_id="r", step=step, attempt=2))
    catching_up = asyncio.create_task(job.catch_up())
    message = await written.get()
    assert (message.kind, message.task_id, message.attempt) == ("tell", "r.0", 2)
    job.told.put_nowait({"catch_up": "of one before us"})
    await asyncio.sleep(0)
    assert not catching_up.done()
    job.told.put_nowait(message.command)
    await catching_up
