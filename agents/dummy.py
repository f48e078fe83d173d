"""A service that does nothing, on request: for trying the control plane from any client."""

from __future__ import annotations

import asyncio
import time

from app.errors import RunFailed
from app.work import Finished, Job, work
from models.control import DUMMY, Json


@work(DUMMY)
async def simulate(job: Job) -> Finished:
    """Stay alive until told: `simulate-loading` for some seconds and finish, or `fail-after` some seconds.

    A `start` whose payload says `seconds` needs no further word.
    """
    command: Json = {"command": "simulate-loading", "payload": job.step.params}
    if "seconds" not in job.step.params:
        command = (job.cursor or {}).get("command") or await job.told.get()
        await job.checkpoint({"command": command})
    seconds = float(command.get("payload", {}).get("seconds", 1.0))
    records = int(command.get("payload", {}).get("records", 100))
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        await job.report(
            records_written=int(records * passed / seconds), progress=passed / seconds, message="simulated"
        )
        await asyncio.sleep(min(0.1, seconds - passed))
    if command["command"] == "fail-after":
        raise RunFailed(f"failed after {seconds:g} s, as asked")
    return Finished(records, "simulated")
