"""Tasks are owned by the worker that holds their partition: queue-tasks -> run_tasks -> queue-events.

A launch starts the target's work beside this agent; the row keeps its checkpoint, so that whoever holds the
partition after a crash or a rebalance goes on from there. A repeated launch starts nothing, a stop ends the work within
a deadline. A worker takes the tasks of the work that its role has, and leaves the others alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
from faust.types import TP

from app import topics
from app.config import settings
from app.core import Message, app, assignment, consumes, dead_letter, flush, is_outage
from app.errors import StreamForgeError, TaskLost
from app.telemetry import TASKS, run_of_this_task
from app.work import LETS_GO, WORK, Job, send_task
from models.control import ANY_ATTEMPT, Task, TaskMessage, apply_task
from tables.tasks import tasks

log = logging.getLogger(__name__)

OUTAGE_WAIT_S = 2.0
LAST_WORD_WAIT_S = 1.0
_at_work: dict[str, tuple[Job, asyncio.Task[None]]] = {}
_background: set[asyncio.Task[Any]] = set()
_said_last: set[tuple[str, int]] = set()  # (task, attempt) whose last word is on its way to the row


@consumes(topics.queue_tasks)
async def run_tasks(message: Message) -> None:
    """Start, stop and remember the tasks of this worker's partitions."""
    try:
        said = msgspec.json.decode(message.value, type=TaskMessage)
    except msgspec.MsgspecError as error:
        await dead_letter(message, str(error))
        return
    if said.step is not None and said.step.target not in WORK:
        return
    row = tasks.get(said.task_id)
    repeated = row is not None and message.offset <= row.at.get("queue-tasks", -1)
    if not repeated:
        row = apply_task(row, said, message.partition)
    if said.kind == "ended":
        _said_last.discard((said.task_id, said.attempt))
    if row is None:
        return
    row.at["queue-tasks"] = max(message.offset, row.at.get("queue-tasks", -1))
    tasks.put(row.task_id, row)
    act(said, row)


def act(said: TaskMessage, row: Task) -> None:
    """Begin, tell or stop the work as a record says that `row` has applied."""
    job, work = _at_work.get(said.task_id, (None, None))
    if said.kind == "launch" and row.state == "active" and row.attempt == said.attempt:
        begin(row)
    elif job and said.kind == "tell" and said.attempt in (job.attempt, ANY_ATTEMPT):
        job.told.put_nowait(said.command)
    elif job and work and job.attempt == said.attempt:
        if said.kind == "stop":
            job.stopping = True
            if job.begun:  # else it ends as soon as it begins; cancelled before that it could not say so
                work.cancel()
        elif said.kind == "ended" and not job.ended:
            work.cancel()  # its owner before us said the last word, and we began again before we had read it
    elif said.kind == "stop" and row.state == "stopping" and (row.task_id, row.attempt) not in _said_last:
        begin(row)  # nobody is at work on it any more: only its last word is missing


# --- whose tasks are they ---------------------------------------------------------------------------------------------


@app.on_partitions_revoked.connect
async def let_go_of_loaders(*_: object, revoked: Iterable[TP] = (), **__: object) -> None:
    """Before partitions are given away: loaders stop and what they sent is durable, so no two of them run.

    Other work goes on; if its partition does not come back, it is ended then (`take_over`).
    """
    await _cancel(task for job, task in _at_work.values() if job.step.target in LETS_GO)
    await flush()


@app.on_rebalance_complete.connect
async def take_over(*_: object, **__: object) -> None:
    """Tables are recovered: what was active goes on here from its checkpoint, what went elsewhere ends here."""
    owned = _owned()
    _said_last.clear()  # what was sent may be for another worker to read
    _beside(_cancel([task for job, task in _at_work.values() if job.partition not in owned]))
    for row in tasks.values():
        _begin_if_ours(row.task_id)


@app.on_before_shutdown.connect
async def let_go(*_: object, **__: object) -> None:
    """A worker that ends lets its tasks go without a word: they are still wanted, and go on after the restart."""
    await _cancel(task for _, task in _at_work.values())


def _owned() -> set[int]:
    return {tp.partition for tp in assignment() if tp.topic == topics.queue_tasks.get_topic_name()}


def _beside(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task


async def _cancel(work: Iterable[asyncio.Task[None]]) -> None:
    jobs = list(work)
    for task in jobs:
        task.cancel()
    if jobs:
        await asyncio.wait(jobs, timeout=settings().stop_deadline_s)


# --- work -------------------------------------------------------------------------------------------------------------


def begin(row: Task) -> None:
    """Start the task's work, after what an older attempt may still be doing."""
    if known := _at_work.get(row.task_id):
        if known[0].attempt < row.attempt:
            known[1].cancel()  # it was given up as silent
            known[1].add_done_callback(lambda _: _begin_if_ours(row.task_id))
        return
    job = Job(row)
    job.stopping = row.state == "stopping"
    task = asyncio.create_task(_run(job, resumed=row.cursor is not None))
    _at_work[row.task_id] = (job, task)
    task.add_done_callback(lambda _: _at_work.pop(row.task_id, None))


def _begin_if_ours(task_id: str) -> None:
    """What is to be done on a task by now, where its partition has not gone elsewhere meanwhile."""
    row = tasks.get(task_id)
    if row and row.state in ("active", "stopping") and row.partition in _owned():
        begin(row)


async def _run(job: Job, resumed: bool) -> None:
    """One attempt from start to its terminal word."""
    job.begun = True
    run_of_this_task.set(job.queue_id)
    target = job.step.target
    heartbeat = asyncio.create_task(job.heartbeat())
    with TASKS.labels(target).track_inprogress():
        try:
            if job.stopping:
                await asyncio.sleep(LAST_WORD_WAIT_S)  # perhaps it was said, and is only not read yet
                if (row := tasks.get(job.task_id)) is None or row.state == "stopping":
                    await _end(job, "interrupted", "stopped")
                return
            await asyncio.sleep(max(0.0, job.not_before - time.time()))
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
                raise  # the worker ends, or the task goes on elsewhere
            if not job.ended:
                await _end(job, "interrupted", "stopped")
        except TaskLost as error:
            await _fail(job, str(error))
        except StreamForgeError as error:
            await _end(job, "error", str(error), error=str(error))
        except Exception as error:
            log.exception("%s failed", job.task_id)
            await _fail(job, f"{type(error).__name__}: {error}")
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
    """The last word of this attempt, once: a stop that comes meanwhile does not take it back."""
    await _say_last(job, state, state, message=message, **facts)


async def _fail(job: Job, why: str) -> None:
    """This attempt failed in a way that the next one may not: the manager decides whether there is one."""
    await _say_last(job, "failed", "loading", message=f"failed: {why}", extra={"failed": why})


async def _say_last(job: Job, state: str, word: str, **facts: Any) -> None:
    """The word first, then the row: a crash between them says the word again, and the first one counts."""
    job.ended = True
    _said_last.add((job.task_id, job.attempt))
    ended = TaskMessage(kind="ended", task_id=job.task_id, queue_id=job.queue_id, attempt=job.attempt, state=state)

    async def say() -> None:
        await job.emit(word, **facts)
        await send_task(ended)

    await asyncio.shield(_beside(say()))
