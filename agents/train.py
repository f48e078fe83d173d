"""A stored graph becomes a model: the store -> train (a child process) -> DATA_DIR/models, models.

Training never runs in the worker's own process: ping and stop are answered while it goes on, and a stop ends it
between epochs or, after the deadline, at once. The artifact appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from adapters.stores import graphs
from app import outside
from app.config import settings
from app.core import on_abandon
from app.errors import RunFailed, StoreError, TaskLost
from app.work import Finished, Job, work
from models.control import TRAINER, Json, Step, graph_name
from models.gnn.dataset import save_inputs
from models.gnn.request import INPUTS_FILE, TrainRequest, write_request

log = logging.getLogger(__name__)


@work(TRAINER)
async def train(job: Job) -> Finished:
    """Prepare the inputs, follow the child, publish what it made."""
    workdir = settings().work_dir / job.task_id
    request = training_request(job.step, job.queue_id)
    await asyncio.to_thread(prepare, job.step, request, workdir)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "models.gnn.train", str(workdir), str(os.getpid()),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    on_abandon.append(child.kill)
    try:
        said = asyncio.create_task(child.stderr.read() if child.stderr else asyncio.sleep(0, b""))
        done = await follow(job, child)
        code = await child.wait()
    finally:
        await _end_child(child)
        on_abandon.remove(child.kill)
        shutil.rmtree(workdir, ignore_errors=True)
    if code != 0 or "done" not in done:
        last = (await said).decode(errors="replace").strip().splitlines()[-1:]
        if code < 0:
            raise TaskLost(f"the training was killed by signal {-code}")
        raise RunFailed(str(done.get("error") or f"the training ended with exit code {code}: {' '.join(last)}"))
    await asyncio.to_thread(publish, request, job.queue_id, done)
    extra = {"model": request.name, "version": request.version, "artifact": done["done"],
             "model_filename": f"{done['done']}/model.safetensors", "verdicts": done.get("verdicts")}  # fmt: skip
    return Finished(1, f"model {request.name} in {done['done']}", extra)


def training_request(step: Step, queue_id: str) -> TrainRequest:
    """What the child is asked for; names come from the run, so that a repeated training replaces its own artifact."""
    params = step.params
    said: Json = {name: params[name] for name in ("epochs", "learning_rate", "horizon") if name in params}
    if "label" in params:
        said["labels"] = (params["label"],)
    if "model_type" in params:
        said["model_types"] = (params["model_type"],)
    return TrainRequest(
        name=params.get("model_output") or f"gnn_{step.market}_{step.interval}".lower(),
        version=queue_id, out_dir=str(settings().models_dir), threads=settings().train_threads,
        dataset={"venue": step.venue, "symbol": step.symbol, "interval": step.interval, "range_ms": step.range_ms,
                 "graph": graph_name(step), "run": queue_id},
        **said,
    )  # fmt: skip


def prepare(step: Step, request: TrainRequest, workdir: Path) -> None:
    """Candles and graph from the store into the child's folder. Raises RunFailed when they are not there."""
    assert step.range_ms is not None
    store = outside.store()
    candles = graphs.read_candles(store, step.venue, step.symbol, step.interval, *step.range_ms)
    graph = graphs.read_graph(store, graph_name(step))
    workdir.mkdir(parents=True, exist_ok=True)
    save_inputs(workdir / INPUTS_FILE, candles, graph)
    write_request(workdir, request)


async def follow(job: Job, child: asyncio.subprocess.Process) -> Json:
    """The child's lines as progress; its last word."""
    done: Json = {}
    assert child.stdout is not None
    async for line in child.stdout:
        try:
            fact: Json = msgspec.json.decode(line)
        except msgspec.DecodeError:
            log.warning("the training said: %s", line.decode(errors="replace").rstrip())
            continue
        if "done" in fact or "error" in fact:
            done = fact
        else:
            extra = {name: fact[name] for name in ("label", "model", "epoch", "loss") if fact.get(name) is not None}
            await job.report(progress=fact.get("progress"), message=fact.get("message") or "trains", extra=extra)
    return done


def publish(request: TrainRequest, queue_id: str, done: dict[str, Any]) -> None:
    """The model's document, after its artifact is whole."""
    artifact = Path(done["done"])
    result = outside.store().upsert("models", [{
        "model": request.name, "version": request.version, "queue_id": queue_id, "created_ms": int(time.time() * 1000),
        "verdict": msgspec.json.encode(done.get("verdicts")).decode(), "path": str(artifact),
        "metrics": msgspec.json.decode((artifact / "metrics.json").read_bytes()),
    }])  # fmt: skip
    if result.errors:
        raise StoreError(f"the model cannot be registered: {result.errors[0][2]}; its artifact is in {artifact}")


async def _end_child(child: asyncio.subprocess.Process) -> None:
    """Ask it to stop between epochs; after the deadline it is killed."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(child.wait()), settings().stop_deadline_s / 2)
        except (TimeoutError, asyncio.CancelledError):
            child.kill()
