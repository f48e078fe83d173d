"""Tasks are owned by the worker that holds their partition: queue-tasks -> run_tasks -> queue-events.

A launch starts the target's work beside this agent; the row keeps its checkpoint, so that whoever holds the
partition after a crash goes on from there. A repeated launch starts nothing, a stop ends the work within a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from app import topics
from app.config import settings
from app.core import Message, app, consumes, dead_letter, is_outage
from app.errors import StreamForgeError
from app.telemetry import TASKS, run_of_this_task
from app.work import WORK, Job, send_task
from models.control import Task, TaskMessage, apply_task
from tables.tasks import tasks

log = logging.getLogger(__name__)

OUTAGE_WAIT_S = 2.0
_at_work: dict[str, tuple[Job, asyncio.Task[None]]] = {}
_background: set[asyncio.Task[Any]] = set()


@consumes(topics.queue_tasks)
async def run_tasks(message: Message) -> None:
    """Start, stop and remember the tasks of this worker's partitions."""
    try:
        said = msgspec.json.decode(message.value, type=TaskMessage)
    except msgspec.MsgspecError as error:
        await dead_letter(message, str(error))
        return
    row = tasks.get(said.task_id)
    repeated = row is not None and message.offset <= row.at.get("queue-tasks", -1)
    if not repeated:
        row = apply_task(row, said, message.partition)
    if row is None:
        return
    row.at["queue-tasks"] = max(message.offset, row.at.get("queue-tasks", -1))
    tasks.put(row.task_id, row)
    if said.kind == "launch" and row.state == "active" and row.attempt == said.attempt:
        begin(row)
    elif (job := _at_work.get(said.task_id)) and said.kind in ("stop", "tell") and job[0].attempt == said.attempt:
        if said.kind == "tell":
            job[0].told.put_nowait(said.command)
        else:
            job[0].stopping = True
            job[1].cancel()
    elif said.kind == "stop" and row.state == "stopping":
        begin(row)  # nobody is at work on it any more: only its last word is missing


@app.task
async def go_on_after_restart() -> None:
    """Every task that was active when its worker ended goes on from its checkpoint. Runs after recovery."""
    for row in tasks.values():
        if row.state in ("active", "stopping"):
            begin(row)


@app.on_before_shutdown.connect
async def let_go(*_: object, **__: object) -> None:
    """A worker that ends lets its tasks go without a word: they are still wanted, and go on after the restart."""
    jobs = [task for _, task in _at_work.values()]
    for task in jobs:
        task.cancel()
    if jobs:
        await asyncio.wait(jobs, timeout=settings().stop_deadline_s)


def begin(row: Task) -> None:
    """Start the task's work, after what an older attempt may still have to say."""
    if known := _at_work.get(row.task_id):
        if known[0].attempt < row.attempt:
            known[1].add_done_callback(lambda _: begin(tasks.get(row.task_id) or row))
        return
    job = Job(row)
    job.stopping = row.state == "stopping"
    task = asyncio.create_task(_run(job, resumed=row.cursor is not None))
    _at_work[row.task_id] = (job, task)
    task.add_done_callback(lambda _: _at_work.pop(row.task_id, None))


async def _run(job: Job, resumed: bool) -> None:
    """One attempt from start to its terminal word."""
    run_of_this_task.set(job.queue_id)
    target = job.step.target
    heartbeat = asyncio.create_task(job.heartbeat())
    with TASKS.labels(target).track_inprogress():
        try:
            if job.stopping:
                await _end(job, "interrupted", "stopped")
                return
            await job.emit("loading" if resumed else "started", message="goes on" if resumed else "")
            result = await _work_through_outages(job)
            await _end(
                job,
                "finished",
                result.message,
                progress=1.0,
                records_written=result.records_written,
                extra=result.extra,
            )
        except asyncio.CancelledError:
            if not job.stopping:
                raise  # the worker ends; the task goes on elsewhere
            closing = asyncio.create_task(_end(job, "interrupted", "stopped"))
            _background.add(closing)
            closing.add_done_callback(_background.discard)
            await asyncio.shield(closing)
        except StreamForgeError as error:
            await _end(job, "error", str(error), error=str(error))
        except Exception as error:
            log.exception("%s failed", job.task_id)
            await _end(job, "error", f"{type(error).__name__}: {error}", error=f"{type(error).__name__}: {error}")
        finally:
            heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heartbeat


async def _work_through_outages(job: Job) -> Any:
    """The work, begun again from its last checkpoint for as long as something outside is away."""
    while True:
        try:
            return await WORK[job.step.target](job)
        except Exception as error:
            if not is_outage(error):
                raise
            await job.report(message=f"waits: {error}", now=True)
            await asyncio.sleep(OUTAGE_WAIT_S)


async def _end(job: Job, state: str, message: str, **facts: Any) -> None:
    """The terminal word first, then the row: a crash between them says the word again, and the first one counts."""
    await job.emit(state, message=message, **facts)
    await send_task(
        TaskMessage(kind="ended", task_id=job.task_id, queue_id=job.queue_id, attempt=job.attempt, state=state)
    )
