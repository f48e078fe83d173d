"""Commands become runs, runs become tasks: queue-control, queue-events -> manage_queue -> queue-tasks, queue-events.

The only reader of commands and the only writer of runs. Reserve -> launch -> confirm: the run's row is written, its
tasks are sent, then the row says so; a crash between any two of these repeats them, and a launch that is known
starts nothing. What is not a JSON object goes to dead-letters; a wish that cannot be granted is answered `rejected`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from app import outside, topics
from app.config import settings
from app.core import Message, consumes, dead_letter, stop_process
from app.errors import CommandRejected, StoreBusy, StoreError, UnknownRun
from app.telemetry import COMMANDS, HEALS
from app.work import send_event, send_task
from models import control
from models.control import Command, Json, Step, TaskMessage, Workflow
from tables.workflows import workflows

log = logging.getLogger(__name__)

COPY_WAIT_S = 0.3  # a ping must be answered within a second
_uncopied: dict[str, Json] = {}  # the newest document of each run that the store does not have yet
_copying: asyncio.Task[None] | None = None


@consumes(topics.queue_control, topics.queue_events)
async def manage_queue(message: Message) -> None:
    """Answer commands, follow events, launch what is ready."""
    try:
        said = control.read_command(message.value)
    except ValueError as error:
        await dead_letter(message, str(error))
        return
    if message.topic == topics.queue_events.get_topic_name():
        await follow(said, message.offset)
    else:
        await answer(said, message)


async def answer(said: Json, message: Message) -> None:
    """One command, one answer."""
    try:
        command = control.check_command(said)
        await _ANSWERS[command.command](command, said, message)
        COMMANDS.labels(command.command, "accepted").inc()
    except CommandRejected as error:
        word = said.get("command")
        COMMANDS.labels(word if isinstance(word, str) and word in control.COMMANDS else "unknown", "rejected").inc()
        log.info("rejected: %s", error)
        queue_id = said.get("queue_id")
        await send_event(control.make_event(
            "rejected", queue_id=queue_id if isinstance(queue_id, str) else "", error=str(error),
            message=str(error), extra={"field": error.field},
        ))  # fmt: skip


async def follow(said: Json, offset: int) -> None:
    """A step's fact: fold it into its run, launch what is ready now, conclude the run when nothing is left."""
    run = workflows.get(str(said.get("queue_id")))
    if run is None or "task" not in (said.get("extra") or {}):
        return
    if offset <= run.at.get("queue-events", -1):
        await _go_on(run)  # repeated after a crash: what followed from it may not have happened
        return
    run.at["queue-events"] = offset
    if control.apply_event(run, said):
        run.updated_at = time.time()
        for step in control.active(run):
            if why := step.extra.pop("failed", None):
                await _start_again(run, step, str(why))
        await _go_on(run)


async def start(command: Command, said: Json, message: Message) -> None:
    offset = message.offset
    run = control.plan(said, now_s=message.ts_s, seed=f"{offset}".encode() + message.value)
    await outside.check_symbols((step.venue, step.symbol) for step in run.steps)
    known = workflows.get(run.queue_id)
    text = f"{len(run.steps)} steps" if len(run.steps) > 1 else "1 step"
    if known:
        if known.at.get("queue-control", -1) < offset:
            known.at["queue-control"] = offset
            text = "goes on" if control.resume(known) else f"known already: {known.state}"
        run = known
    else:
        run.at["queue-control"] = offset
    await _keep(run)
    await send_event(control.make_event("accepted", queue_id=run.queue_id, message=text))
    await _go_on(run)


async def stop(command: Command, said: Json, message: Message) -> None:
    for run in addressed(command):
        if message.offset > run.at.get("queue-control", -1):
            run.at["queue-control"] = message.offset
            for step in run.steps:
                if command.target in ("", step.target):
                    await _stop_step(run, step)
            if run.live and not command.target:
                run.state = "stopping"
            await send_event(control.make_event("accepted", queue_id=run.queue_id, message="stopping"))
        await _go_on(run)


async def _stop_step(run: Workflow, step: Step) -> None:
    if step.state in ("launched", "loading"):
        await send_task(_task_message("stop", run, step))
    elif step.state == "waiting":
        step.state = "interrupted"


async def ping(command: Command, said: Json, message: Message) -> None:
    for run in addressed(command):
        await send_event(control.make_pong(run, command.sent_at, workers=1))


async def heal(command: Command, said: Json, message: Message) -> None:
    """Start silent steps again from their checkpoint; `payload` may say of which task and attempt, and why."""
    wanted, why = command.payload, str(command.payload.get("why") or "asked for")
    for run in addressed(command):
        if message.offset > run.at.get("queue-control", -1):
            run.at["queue-control"] = message.offset
            for step in control.active(run):
                meant = wanted.get("task", step.task_id), wanted.get("attempt", step.attempt)
                if command.target in ("", step.target) and meant == (step.task_id, step.attempt):
                    await _start_again(run, step, why)
        await _go_on(run)


async def _start_again(run: Workflow, step: Step, why: str) -> None:
    """The next attempt of a step from its checkpoint, after a pause; after HEAL_LIMIT of them its end."""
    limit = settings().heal_limit
    not_before = control.heal(step, limit, time.time(), why)
    if not_before is None:
        await send_task(_task_message("stop", run, step))  # whoever still has it lets go
        await send_event(control.step_event("error", run.queue_id, step, message=step.error, error=step.error))
        return
    launch = _task_message("launch", run, step)
    launch.step, launch.goes_on, launch.not_before = step, True, not_before
    await send_task(launch)
    text = f"started again ({step.heals} of {limit}): {why}"
    await send_event(control.step_event("healed", run.queue_id, step, message=text))
    HEALS.labels(step.target).inc()


async def status(command: Command, said: Json, message: Message) -> None:
    for run in addressed(command):
        extra = {"state": run.state, "steps": msgspec.to_builtins(run.steps)}
        await send_event({**control.make_event("status", queue_id=run.queue_id, message=run.state, extra=extra)})


async def tell(command: Command, said: Json, message: Message) -> None:
    """`simulate-loading` and `fail-after` go to the dummy steps that are at work."""
    runs = addressed(command)
    told = [(run, step) for run in runs for step in control.active(run) if step.target == control.DUMMY]
    if not told:
        raise CommandRejected("queue_id", f"no {control.DUMMY} is at work in {command.queue_id!r}")
    for run, step in told:
        task_message = _task_message("tell", run, step)
        task_message.command = said
        await send_task(task_message)


_ANSWERS = {
    "start": start, "stop": stop, "ping": ping, "status": status, "heal": heal, "simulate-loading": tell,
    "fail-after": tell,
}  # fmt: skip


def addressed(command: Command) -> list[Workflow]:
    """The runs a command means. Raises UnknownRun."""
    if command.queue_id in control.ALL:
        return [run for run in workflows.values() if run.live]
    run = workflows.get(command.queue_id)
    if run is None:
        raise UnknownRun(command.queue_id)
    return [run]


async def _go_on(run: Workflow) -> None:
    """Launch what is ready; when nothing is left to do, say how the run ended."""
    was_live = run.live
    for step in control.ready(run):
        step.attempt += 1
        step.state, step.updated_at = "launched", time.time()
        step.inputs = [run.steps[i].extra for i in step.needs]
        launch = _task_message("launch", run, step)
        launch.step = step
        launch.goes_on = step.target == control.STREAMER  # what passed since it was stopped is a hole it has to fill
        await send_task(launch)
        run.state = "running"
    run.state = control.conclude(run)
    if was_live and not run.live:
        for step in run.steps:
            if step.state == "waiting":
                step.state = "interrupted"
        failed = next((step for step in run.steps if step.state == "error"), None)
        await send_event(control.make_event(
            run.state, queue_id=run.queue_id, message=f"run {run.state}",
            error=f"{failed.target} {failed.type}: {failed.error}" if failed else "",
            records_written=sum(step.records_written for step in run.steps if step.target == control.LOADER),
        ))  # fmt: skip
    await _keep(run)


async def _keep(run: Workflow) -> None:
    """The run's row, and its copy in the store. A store that is away is waited for beside the agent, not in it."""
    run.revision = max(run.revision + 1, int(time.time() * 1000))
    workflows.put(run.queue_id, run)
    document = {
        "queue_id": run.queue_id,
        "status": run.state,
        "version": run.revision,
        "updated_ms": run.revision,
        "state": msgspec.to_builtins(run),
    }
    global _copying  # noqa: PLW0603 -- one copier for all runs
    _uncopied[run.queue_id] = document
    if _copying is None or _copying.done():
        _copying = asyncio.create_task(_copy())
    await asyncio.wait({_copying}, timeout=COPY_WAIT_S)


async def _copy() -> None:
    """Until the store has the newest of every run; an older revision never replaces a newer one there."""
    while _uncopied:
        documents = list(_uncopied.values())
        try:
            result = await asyncio.to_thread(outside.store().upsert, "queue_state", documents)
        except StoreBusy as error:
            await asyncio.sleep(error.retry_after_s)
            continue
        except StoreError as error:
            stop_process(error)
        for index, _, why in result.errors:
            log.error("the run %s cannot be stored: %s", documents[index]["queue_id"], why)
        for document in documents:
            if _uncopied[document["queue_id"]] is document:
                del _uncopied[document["queue_id"]]


def _task_message(kind: Any, run: Workflow, step: Step) -> TaskMessage:
    return TaskMessage(kind=kind, task_id=step.task_id, queue_id=run.queue_id, attempt=step.attempt)
