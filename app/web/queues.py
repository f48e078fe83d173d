"""Runs over HTTP: the calls write commands to queue-control, or read the table of runs and the kept events.

A call is answered when its command is durable; the queue manager is the one who grants it. What cannot be granted is
refused here already, with the manager's own rules, and nothing is written then.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from app import outside
from app.errors import CommandRejected, UnknownRun
from app.report import describe_run, read_events, run_report
from app.web.calls import answer, call
from app.web.parameters import Parameters
from app.work import send_command
from models import control
from models.control import Json, Workflow
from tables.workflows import workflows

RUNS_PER_PAGE, EVENTS_PER_PAGE = 100, 500
PAGE_MOST = 10_000
SEEN_WITHIN_S = 1.0  # a run that was accepted can be asked for when the answer arrives


@call("/queues/start", "post")
async def start(request: web.Request) -> web.Response:
    """Ask for a run: 202 with its id and the ids of its tasks."""
    message = await read_body(request)
    if message.setdefault("command", "start") != "start":
        raise CommandRejected("command", "this call starts runs; other commands go to POST /commands")
    run = control.plan(message)
    message["queue_id"] = run.queue_id  # a generated name is written down, so that this answer can tell it
    await outside.check_symbols((step.venue, step.symbol) for step in run.steps)
    await send_command(message)
    await _until_known(run.queue_id)
    return answer(
        {"status": "accepted", "queue_id": run.queue_id, "ids": [step.task_id for step in run.steps]}, status=202
    )


@call("/queues/stop", "post")
async def stop(request: web.Request) -> web.Response:
    """Ask a run to stop; `queue_id` in the body or the query."""
    message = (await read_body(request) if request.can_read_body else {}) | dict(request.query)
    await _send({**message, "command": "stop"})
    return answer({"status": "stopping", "queue_id": message["queue_id"]}, status=202)


@call("/commands", "post")
async def send(request: web.Request) -> web.Response:
    """Any command but `start`; its answer comes as an event."""
    message = await read_body(request)
    if message.get("command") == "start":
        raise CommandRejected("command", "`start` goes to POST /queues/start")
    await _send(message)
    return answer({"status": "accepted", "command": message["command"], "queue_id": message["queue_id"]}, status=202)


@call("/queues")
@call("/queues/list")
async def list_runs(request: web.Request) -> web.Response:
    """Runs, the newest first; `state` narrows, `limit` and `after` (a queue_id) page."""
    query = Parameters(request.query, "state", "limit", "after")
    known = [run for _, run in workflows.seen.items()]
    runs = sorted(known, key=lambda run: (run.created_at, run.queue_id), reverse=True)
    if state := query.text("state"):
        runs = [run for run in runs if run.state == state or (state == "live" and run.live)]
    if after := query.text("after"):
        place = next((i for i, run in enumerate(runs) if run.queue_id == after), None)
        if place is None:
            raise CommandRejected("after", f"{after!r} is not among these runs")
        runs = runs[place + 1 :]
    limit = query.whole("limit", RUNS_PER_PAGE, 1, PAGE_MOST)
    return answer({"queues": [describe_run(run) for run in runs[:limit]], "more": len(runs) > limit})


@call("/queues/{queue_id}")
async def show_run(_request: web.Request, queue_id: str) -> web.Response:
    """State, steps, progress."""
    return answer(describe_run(known_run(queue_id)))


@call("/queues/{queue_id}/events")
async def show_events_of_run(request: web.Request, queue_id: str) -> web.Response:
    """Events in order, each with its `offset`; `after` an offset, at most `limit`."""
    query = Parameters(request.query, "after", "limit")
    after = query.whole("after", -1, -1, 1 << 53)
    limit = query.whole("limit", EVENTS_PER_PAGE, 1, PAGE_MOST)
    known_run(queue_id)
    events = await asyncio.to_thread(read_events, outside.store(), queue_id, after, limit + 1)
    return answer({"events": events[:limit], "more": len(events) > limit})


@call("/queues/{queue_id}/report")
async def show_report(_request: web.Request, queue_id: str) -> web.Response:
    """What came of a run, as far as it came. 404 for an unknown run."""
    known_run(queue_id)
    return answer(await asyncio.to_thread(run_report, outside.store(), queue_id))


async def read_body(request: web.Request) -> Json:
    """The JSON object in the body. Raises CommandRejected for anything else."""
    try:
        return control.read_command(await request.read())
    except ValueError as error:
        raise CommandRejected("body", str(error)) from None


def known_run(queue_id: str) -> Workflow:
    """Raises UnknownRun."""
    if (run := workflows.seen.get(queue_id)) is None:
        raise UnknownRun(queue_id)
    return run


async def _send(message: Json) -> None:
    """Check a command for known runs, then write it. Raises CommandRejected, UnknownRun."""
    command = control.check_command(message)
    if command.queue_id not in control.ALL:
        known_run(command.queue_id)
    await send_command(message)


async def _until_known(queue_id: str) -> None:
    until = time.monotonic() + SEEN_WITHIN_S
    while workflows.seen.get(queue_id) is None and time.monotonic() < until:  # noqa: ASYNC110 -- a table has no event
        await asyncio.sleep(0.02)
