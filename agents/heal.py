"""Tasks that nobody hears of are started again: the table of runs -> find_silent_tasks -> queue-control (`heal`).

The queue manager answers, because it alone writes runs. A killed worker cannot report itself: silence counts.
"""

from __future__ import annotations

import logging
import time

from app.config import settings
from app.core import app, hears
from app.work import send_command
from models import control
from tables.workflows import workflows

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
NOT_TAKEN_FACTOR = 6  # a launched task waits so many times longer: perhaps its role has no worker yet
_asked: dict[str, int] = {}  # attempt for which a restart was asked, by task
_recovered_at = time.time()


@app.on_rebalance_complete.connect
async def count_from_now(*_: object, **__: object) -> None:
    """While the runs had no owner, or the brokers were away, nobody heard of their tasks: silence counts from here."""
    global _recovered_at  # noqa: PLW0603 -- the one moment of this process
    _recovered_at = time.time()


@app.timer(interval=LOOK_EVERY_S)
async def find_silent_tasks() -> None:
    """Ask for a restart of every task that is not heard of; once for each attempt."""
    now, patience_s = time.time(), settings().heal_after_s
    if not hears("queue-events"):
        await count_from_now()
        return
    for run in workflows.values():
        for step in control.silent(run, now, patience_s, _recovered_at):
            quiet_s = now - max(step.updated_at, _recovered_at)
            taken = step.state == "loading"
            if _asked.get(step.task_id) == step.attempt or (not taken and quiet_s < patience_s * NOT_TAKEN_FACTOR):
                continue
            _asked[step.task_id] = step.attempt
            why = f"not heard of for {quiet_s:.0f} s" if taken else f"no worker took it within {quiet_s:.0f} s"
            log.warning("%s: %s", step.task_id, why)
            payload = {"task": step.task_id, "attempt": step.attempt, "why": why}
            await send_command({"command": "heal", "queue_id": run.queue_id, "payload": payload})
