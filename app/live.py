"""`python -m app live`: a simulated exchange at the pace of the clock, the application, and its dashboard.

Two runs for one symbol: its live trades, order book and candles; and, once these flow, the trades of the hours before,
so that history and live join without a hole. Exchange and worker are child processes that end with this one. What they
keep in DATA_DIR/live is made anew every time: nobody traded it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console

from adapters.embedded_log.file import owner_pid
from app.children import READY_WITHIN_S, Children, interrupts_raise
from app.client import Json, Worker
from app.config import settings
from app.demo import DEMO_MARK, stay
from app.errors import LogInUse, RunFailed, SetupRefused

HOURS_BEFORE = 2
LIVELY = "10"  # times as many trades as usual: some a second, so that there is something to see
STREAMS = ("ws_trades", "ws_orderbook", "ws_candles_1m")
POLL_S = 0.25


def run(symbol: str, console: Console) -> None:
    """Until Ctrl-C. Raises LogInUse, SetupRefused, CommandRejected, RunFailed."""
    folder = empty_folder(settings().data_dir / "live")
    with interrupts_raise("stopped"), Children(folder) as children:
        exchange_url = children.start_exchange(None, more=("--lively", LIVELY))
        worker = children.start_worker(exchange_url, CANDLE_INTERVALS="1m")
        worker.start(live_command(symbol))
        wait_for_trades(worker, symbol, children)
        worker.start(history_command(symbol, time.time()))
        stay(f"{worker.url}/dashboard#{symbol}/1m", console, children.check)


def live_command(symbol: str) -> Json:
    requests = [{"target": "loader-ws", "type": kind} for kind in STREAMS]
    return {"command": "start", "queue_id": "live", "symbol": symbol, "requests": requests}


def history_command(symbol: str, now_s: float) -> Json:
    """The trades of the hours before now."""
    first, last = (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(s)) for s in (now_s - HOURS_BEFORE * 3600, now_s))
    requests = [{"target": target, "type": "api_trades"} for target in ("loader-producer", "arango-connector")]
    return {
        "command": "start", "queue_id": "history", "symbol": symbol, "time_range": f"{first}:{last}",
        "requests": requests,
    }  # fmt: skip


def wait_for_trades(worker: Worker, symbol: str, children: Children) -> None:
    """Until live ones are stored. Raises RunFailed."""
    give_up_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up_s:
        children.check()
        if any(one["symbol"] == symbol and one["channel"] == "trades" and one["stored"] for one in worker.coverage()):
            return
        time.sleep(POLL_S)
    raise RunFailed(f"no trade of {symbol} came within {READY_WITHIN_S:g} s: see {children.log_of('worker')}")


def empty_folder(folder: Path) -> Path:
    """Raises LogInUse when it is in use, SetupRefused when it holds something else."""
    folder = folder.resolve()
    if pid := owner_pid(folder / "log.db"):
        raise LogInUse(f"`make live` is running already in {folder} (process {pid})")
    if folder.exists() and any(folder.iterdir()) and not (folder / DEMO_MARK).exists():
        raise SetupRefused(f"DATA_DIR: {folder} holds files that are not ours to remove; choose another DATA_DIR")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / DEMO_MARK).touch()
    return folder
