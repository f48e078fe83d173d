"""A task's work is begun and stopped as its records say, however close they follow each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents import run_tasks
from app import work
from models.control import DUMMY, Json, Step, Task, TaskMessage, apply_task


async def test_a_stop_right_behind_its_launch_is_answered_with_a_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are read before the work has had a turn: a task of asyncio that is cancelled then never runs at all."""
    rows: dict[str, Task] = {}
    said: asyncio.Queue[Json] = asyncio.Queue()

    async def drop(_: Any) -> None: ...

    monkeypatch.setattr(run_tasks, "tasks", rows)
    monkeypatch.setattr(run_tasks, "LAST_WORD_WAIT_S", 0.0)
    monkeypatch.setattr(run_tasks, "send_task", drop)
    monkeypatch.setattr(work, "send_event", said.put)
    monkeypatch.setattr(run_tasks, "_said_last", set())
    step = Step(task_id="r.0", target=DUMMY, type="simulate")
    for kind in ("launch", "stop"):
        record = TaskMessage(kind=kind, task_id="r.0", queue_id="r", attempt=1, step=step if kind == "launch" else None)
        row = apply_task(rows.get("r.0"), record, 0)
        assert row is not None
        rows["r.0"] = row
        run_tasks.act(record, row)
    async with asyncio.timeout(150):
        assert (await said.get())["status"] == "interrupted"
        await asyncio.gather(*(at_work for _, at_work in run_tasks._at_work.values()))
    assert run_tasks._at_work == {}
