"""R18: a worker that lives but does not consume says so, and begins anew by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapters.kafka.client import Connection
from adapters.kafka.reader import send_one
from tests.processes import ROOT, empty_broker, free_port

HUNG = """
import asyncio, sys
from app import positions, topics
from app.core import app, consumes
positions.STANDS_STILL_S, positions.RESTARTS_AFTER_S = 2.0, 4.0

@consumes(topics.raw_trades)
async def normalize_pages(message):
    print("took", message.offset, flush=True)
    await asyncio.Event().wait()  # alive, and never done

@app.timer(interval=0.2)
async def tell():
    if positions.standing_still():
        print("unready", flush=True)

begin_anew = positions.restart_process

def last_words(why):  # on a machine that is so busy that no timer came in between
    print("unready" if positions.standing_still() else "ready", flush=True)
    begin_anew(why)

positions.restart_process = last_words

from app.run_worker import _work
import app.main as main
_work()
"""


def test_r18_a_partition_that_does_not_move_turns_the_worker_unready_and_then_starts_it_anew(
    kafka: Any, tmp_path: Path
) -> None:
    broker = empty_broker(kafka.bootstrap, tmp_path)
    send_one(Connection(broker.bootstrap), "raw.trades", b"binance:BTCUSDT", b"[]", [("page", b"{}")])
    script = tmp_path / "hung.py"
    script.write_text(HUNG)
    env = {**os.environ, **broker.env, "DATA_DIR": str(tmp_path), "WEB_PORT": str(free_port()), "PYTHONPATH": str(ROOT),
           "ROLE": "web"}  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    said: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:  # ends when it has been seen twice, or the test's time is over
            said.append(line.strip())
            if said.count("took 0") == 2:
                break
        assert said.count("took 0") == 2, said
        first, second = (number for number, line in enumerate(said) if line == "took 0")
        assert "unready" in said[first:second]
        assert "ready" not in said
    finally:
        child.kill()
        child.wait()
