"""`python -m app demo`: a month through every stage, beside nothing: exchange, worker, one command, a report.

The simulated exchange and the worker are child processes that end with this one, however it ends. Each source has a
folder of its own under DATA_DIR/demo, so generated and recorded data never mix, and a run id made of source and range:
the second time the same run is shown, and an interrupted one goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters.embedded_log.file import owner_pid
from app.children import READY_WITHIN_S, Children, Interrupted, interrupts_raise
from app.client import TERMINAL, Worker
from app.config import settings
from app.errors import LogInUse, RunFailed, SetupRefused, StreamForgeError, UnknownRun, WorkerUnreachable
from app.pipelines import Stages, usual
from app.progress import shown as shown_on
from app.report import first_failed

Json = dict[str, Any]

SYMBOL, INTERVAL, RANGE = "BTCUSDT", "5m", "2025-08-20:2025-09-19"  # generated: 8,640 candles of 5 minutes
ANSWER_WITHIN_S = 30.0
POLL_S = 0.25
INTERRUPTED = "interrupted; the same command goes on where this stopped"
DEMO_MARK = ".streamforge-demo"  # only a folder with this file in it is ever removed by FRESH=1


@dataclass(frozen=True)
class Wish:
    """What the caller asked for."""

    data: Path | None = None
    keep: bool = False
    fresh: bool = False
    time_range: str = ""
    epochs: int | None = None


@dataclass(frozen=True)
class Shown:
    """What a demo leaves behind: the run's id and state, where it lies, where its page was."""

    queue_id: str
    state: str
    folder: Path
    page: str
    seconds: float


def run(wish: Wish, console: Console, after: Callable[[Shown], bool]) -> None:
    """Run to the report, which `after` prints; it answers whether the coverage is whole.

    Raises SetupRefused, LogInUse (the demo of this source is running), RunFailed, Interrupted.
    """
    folder = prepare_folder(wish)
    with interrupts_raise(INTERRUPTED), Children(folder) as children:
        began_s = time.monotonic()
        exchange_url = children.start_exchange(wish.data)
        command = compose(wish, _get_json(f"{exchange_url}/sim/catalog"), console)
        worker = children.start_worker(exchange_url)
        console.print(f"run {command['queue_id']} in {folder}", highlight=False, soft_wrap=True)
        if _state_of(worker, command["queue_id"]) == "finished":
            console.print("this run is finished already: nothing to do (FRESH=1 starts over)", highlight=False)
        else:
            start_and_follow(worker, command, console, children)
        state = _state_of(worker, command["queue_id"]) or "unknown"
        shown = Shown(command["queue_id"], state, folder, worker.url, time.monotonic() - began_s)
        whole = after(shown)
        if state != "finished" or not whole:
            raise RunFailed(_why(worker, command["queue_id"], state))
        if wish.keep:
            stay(f"{worker.url}/", console, children.check)


def prepare_folder(wish: Wish) -> Path:
    """The source's own folder. Raises LogInUse when a demo is at work in it, SetupRefused when it is someone else's."""
    folder = (settings().data_dir / "demo" / source_name(wish.data)).resolve()
    if pid := owner_pid(folder / "log.db"):
        raise LogInUse(f"the demo in {folder} is running already (process {pid}): stop it with Ctrl-C where it runs")
    if folder.exists() and any(folder.iterdir()) and not (folder / DEMO_MARK).exists():
        raise SetupRefused(f"DATA_DIR: {folder} holds files that no demo made; choose another DATA_DIR")
    if wish.fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DEMO_MARK).touch()
    return folder


def source_name(data: Path | None) -> str:
    """`generated`, or the recorded folder's name with a mark of its whole path."""
    if data is None:
        return "generated"
    if not data.is_dir():
        raise SetupRefused(f"DATA: {data} is not a folder; give one with recorded files in the exchange's own formats")
    path = str(data.resolve())
    name = re.sub(r"[^a-z0-9]+", "-", data.resolve().name.lower()).strip("-")[:32]
    return f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:6]}"


# --- the command ------------------------------------------------------------------------------------------------------


def compose(wish: Wish, catalog: Json, console: Console) -> Json:
    """The one `start` command, of what the exchange has; what it lacks is left out and said, never invented.

    Raises SetupRefused when there are no candles to begin with.
    """
    if catalog["source"] == "generated":
        symbol, interval, time_range, trades = SYMBOL, INTERVAL, wish.time_range or RANGE, True
    else:
        symbol, interval, time_range, trades = choose(catalog, wish.time_range)
        for text in left_out(catalog.get("left_out", {})):
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        if not trades:
            lacks = f"the folder has no trades of {symbol} for {time_range}: their steps are left out"
            console.print(lacks, highlight=False, soft_wrap=True)
    queue_id = f"demo-{source_name(wish.data)}-{symbol}-{interval}-{time_range}".lower()
    return usual(
        symbol, time_range, interval, Stages(trades=trades), epochs=wish.epochs,
        queue_id=re.sub(r"[^a-z0-9]+", "-", queue_id).strip("-"),
    )  # fmt: skip


def left_out(files: dict[str, str]) -> Iterator[str]:
    """One line per reason for which files are not served."""
    by_reason: dict[str, list[str]] = {}
    for name, why in files.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"left out: {names[0]}{others}: {why}"


def choose(catalog: Json, asked_range: str = "") -> tuple[str, str, str, bool]:
    """Symbol, interval, range and whether there are trades of all of it, out of what a recorded folder has.

    BTCUSDT if it is there, else the symbol with most candles; 5m if it is there, else the finest.
    """
    from models.control import parse_range  # numpy: only for a recorded folder
    from models.market import INTERVAL_MS

    candles = [s for s in catalog["streams"] if s["channel"].startswith("candles_")]
    if not candles:
        raise SetupRefused("DATA: the folder holds no candles that can be served; see `python -m app exchange --help`")
    by_symbol: dict[str, int] = {}
    for stream in candles:
        by_symbol[stream["symbol"]] = by_symbol.get(stream["symbol"], 0) + (stream["rows"] or 0)
    symbol = SYMBOL if SYMBOL in by_symbol else max(sorted(by_symbol), key=by_symbol.__getitem__)
    intervals = {s["channel"].removeprefix("candles_"): s for s in candles if s["symbol"] == symbol}
    interval = INTERVAL if INTERVAL in intervals else min(intervals, key=INTERVAL_MS.__getitem__)
    start, end = intervals[interval]["start_ms"], intervals[interval]["end_ms"]
    if asked_range:
        start, end = parse_range(asked_range, time.time(), "--range")
    trades = any(
        s["channel"] == "trades" and s["symbol"] == symbol and s["start_ms"] <= start and end <= s["end_ms"]
        for s in catalog["streams"]
    )
    return symbol, interval, asked_range or f"{_iso(start)}:{_iso(end)}", trades


def start_and_follow(worker: Worker, command: Json, console: Console, children: Children) -> None:
    """Send the command, wait for its answer, show the steps until the run has ended. Raises RunFailed."""
    queue_id = command["queue_id"]
    seen = worker.last_offset(queue_id)
    worker.start(command)
    _await_answer(worker, queue_id, seen, children)
    answered_s = time.monotonic()
    with shown_on(console) as update:
        while True:
            children.check()
            try:
                state = worker.run(queue_id)
            except WorkerUnreachable:  # busy for a moment; one that has gone is found by `check`
                if time.monotonic() - answered_s > ANSWER_WITHIN_S:
                    raise
            else:
                answered_s = time.monotonic()
                update(state)
                if state["state"] in TERMINAL:
                    return
            time.sleep(POLL_S)


def _await_answer(worker: Worker, queue_id: str, after: int, children: Children) -> None:
    give_up_s = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < give_up_s:
        children.check()
        with suppress(UnknownRun):
            for event in worker.events(queue_id, after=after):
                after = event["offset"]
                if event["event"] == "accepted":
                    return
                if event["event"] == "rejected":
                    raise RunFailed(
                        f"the worker rejected the run: {event.get('error_message') or event.get('message')}"
                    )
        time.sleep(POLL_S / 2)
    raise RunFailed(f"the worker did not answer within {ANSWER_WITHIN_S:g} s: see {children.log_of('worker')}")


def _state_of(worker: Worker, queue_id: str) -> str | None:
    try:
        return str(worker.run(queue_id)["state"])
    except UnknownRun:
        return None


def _why(worker: Worker, queue_id: str, state: str) -> str:
    """One sentence of what went wrong in a run."""
    if failed := first_failed(worker.run(queue_id)["steps"]):
        return f"run {queue_id} ended in {state}: {failed}"
    if state == "finished":
        return f"run {queue_id} is finished, but its coverage has holes: `python -m app coverage` lists them"
    return f"run {queue_id} ended as {state}; run the demo again to go on"


def stay(page: str, console: Console, check: Callable[[], None]) -> None:
    """Until Ctrl-C. That ends what is kept running the way it is meant to, so it is no error."""
    console.print(f"\nThe page is at {page} ; Ctrl-C ends it.", highlight=False, soft_wrap=True)
    with suppress(Interrupted):
        while True:
            check()
            time.sleep(0.5)


def _get_json(url: str) -> Json:
    try:
        with urllib.request.urlopen(url, timeout=READY_WITHIN_S) as answer:
            found: Json = json.load(answer)
            return found
    except OSError as error:
        raise StreamForgeError(f"the simulated exchange does not answer at {url}: {error}") from error


def _iso(ms: int) -> str:
    """`2025-08-20`, or with the time of day where it is not midnight."""
    text = datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text.removesuffix("T00:00:00")
