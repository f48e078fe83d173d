"""The control plane's words: commands are wishes, events are facts, a workflow is a small graph of steps.

Everything here is plain data and plain functions; the queue manager only carries messages to them and back.
The wire format is flat JSON, so that any client can take part; unknown fields are accepted and kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import orjson

from app.errors import CommandRejected
from models.market import INTERVAL_MS, Span, instant_ms

Json = dict[str, Any]
StepState = Literal["waiting", "launched", "loading", "finished", "error", "interrupted"]
RunState = Literal["reserved", "running", "stopping", "finished", "error", "interrupted"]

COMMANDS = ("start", "stop", "ping", "status", "heal", "simulate-loading", "fail-after")
TERMINAL = ("finished", "error", "interrupted")
TASK_STATES = ("active", "stopping", "failed", *TERMINAL)
ALL = ("*", "all")

LOADER, STREAMER, CONNECTOR, BUILDER, TRAINER, DUMMY = (
    "loader-producer", "loader-ws", "arango-connector", "graph-builder", "gnn-trainer", "dummy-service",
)  # fmt: skip
HISTORY_TYPES = ("api_trades", *(f"api_candles_{interval}" for interval in INTERVAL_MS))
# Live steps have no end: they run until they are stopped.
LIVE_TYPES = (
    "ws_trades", "ws_fills", "ws_orderbook", "ws_ticker", *(f"ws_candles_{interval}" for interval in INTERVAL_MS),
)  # fmt: skip
_CHANNELS = {"ws_orderbook": "book"}  # where it is not what follows the prefix
TYPES: dict[str, tuple[str, ...]] = {
    LOADER: HISTORY_TYPES,
    STREAMER: LIVE_TYPES,
    CONNECTOR: HISTORY_TYPES,
    BUILDER: ("gnn_graph",),
    TRAINER: ("gnn_train",),
    DUMMY: ("simulate",),
}
MODEL_TYPES = ("SAGE", "GATv2")
LABELS = ("dir", "vol_regime")
DEFAULT_INTERVAL = "5m"
DEFAULT_VENUE = "binance"  # whoever says none means it
HEAL_BACKOFF_S = 1.0  # before the first restart of a step; doubles with each

SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9_-]{1,19}")  # BTCUSDT, BTC-USDT, BTCUSDT_251226
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
MAX_STEPS = 200
# Collections that are not a graph's; a graph is dropped and written anew, so it may never be called so.
_RESERVED = re.compile(
    r"trades|fills|coverage|queue_state|telemetry_events|models|graphs|candles_.*|.*_edges", re.IGNORECASE
)


class Command(msgspec.Struct, kw_only=True):
    """A message of `queue-control`, its known fields typed. Defaults mean: not said."""

    command: str
    queue_id: str = ""
    target: str = ""
    venue: str = ""
    symbol: str = ""
    symbols: list[str] = []
    type: str = ""
    time_range: str = ""
    interval: str = ""
    requests: list[Json] = []
    collection_name: str = ""
    collection_inputs: list[str] = []
    collection_output: str = ""
    graph_collection: str = ""
    model_output: str = ""
    epochs: int | None = None
    learning_rate: float | None = None
    model_type: str = ""
    label: str = ""
    horizon: int | None = None
    allow_missing: bool = False  # finish although the exchange lacks a part of the range
    timestamp: float | None = None
    sent_at: float | None = None
    payload: Json = {}


class Step(msgspec.Struct, kw_only=True):
    """One piece of a run. `task_id` names the work of this step; `attempt` grows with every launch."""

    task_id: str
    target: str
    type: str
    venue: str = DEFAULT_VENUE
    symbol: str = ""
    interval: str = ""
    range_ms: Span | None = None
    needs: tuple[int, ...] = ()  # indexes into the run's steps
    params: Json = {}
    inputs: list[Json] = []  # what the steps it needs said at their end
    state: StepState = "waiting"
    attempt: int = 0
    records_written: int = 0
    progress: float | None = None
    message: str = ""
    error: str = ""
    extra: Json = {}
    updated_at: float = 0.0  # when it was launched or last heard of
    heals: int = 0  # times it was started again from its checkpoint

    @property
    def market(self) -> str:
        """The symbol, and its venue where that is not the default one: part of a name."""
        return self.symbol if self.venue == DEFAULT_VENUE else f"{self.venue}_{self.symbol}"

    @property
    def channel(self) -> str:
        """`api_trades` -> `trades`; `ws_candles_5m` -> `candles_5m`; `ws_orderbook` -> `book`."""
        return _CHANNELS.get(self.type) or self.type.removeprefix("api_").removeprefix("ws_")


class Workflow(msgspec.Struct, kw_only=True):
    """A run. `at` holds the last offset applied per topic, so that a replay changes nothing."""

    queue_id: str
    state: RunState
    steps: list[Step]
    created_at: float
    updated_at: float
    command: Json
    revision: int = 0  # grows with every change
    at: dict[str, int] = {}

    @property
    def live(self) -> bool:
        return self.state not in TERMINAL


ANY_ATTEMPT = -1  # whichever is at work


class TaskMessage(msgspec.Struct, kw_only=True):
    """A record of `queue-tasks`: what the manager wants of a task, or what the task wants remembered."""

    kind: Literal["launch", "stop", "tell", "checkpoint", "ended"]
    task_id: str
    queue_id: str
    attempt: int  # of a tell also ANY_ATTEMPT
    step: Step | None = None  # launch
    goes_on: bool = False  # launch: from the checkpoint of the attempt before
    not_before: float = 0.0  # launch: epoch seconds
    command: Json = {}  # tell
    cursor: Json | None = None  # checkpoint
    records_written: int = 0
    state: str = ""  # ended


class Task(msgspec.Struct, kw_only=True):
    """The row of a task: everything its next owner needs to go on."""

    task_id: str
    queue_id: str
    step: Step
    attempt: int
    state: str = "active"  # one of TASK_STATES
    not_before: float = 0.0  # epoch seconds
    cursor: Json | None = None
    records_written: int = 0
    partition: int = 0
    at: dict[str, int] = {}


# --- commands ---------------------------------------------------------------------------------------------------------


def read_command(value: bytes | None) -> Json:
    """The JSON object in a message. Raises ValueError for anything else; that is a dead letter, not a rejection."""
    if not value:
        raise ValueError("empty message: a command is a JSON object")
    try:
        message = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ValueError(f"a command is a JSON object, not {type(message).__name__}")
    return message


def check_command(message: Mapping[str, Any]) -> Command:
    """Types and words of a command. Raises CommandRejected naming the field and what is allowed."""
    try:
        orjson.dumps(message)  # unknown fields are kept, so they too must be writable
        command = msgspec.convert(dict(message), Command)
    except TypeError as error:
        raise CommandRejected("message", f"a value that cannot be kept: {error}") from None
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or ("command" if "`command`" in what else "message")
        raise CommandRejected(field, what) from None
    _one_of("command", command.command, COMMANDS)
    if command.command != "start" and not command.queue_id:
        raise CommandRejected("queue_id", f"`{command.command}` needs the run it is for, or `*` for every live one")
    if command.queue_id and command.queue_id not in ALL and not _NAME.fullmatch(command.queue_id):
        raise CommandRejected("queue_id", "a letter or digit, then up to 99 of A-Z a-z 0-9 _ -")
    if command.command == "start" and command.queue_id in ALL:
        raise CommandRejected("queue_id", "`*` and `all` address live runs; a new one needs a name or none")
    if command.target and command.command != "start":
        _one_of("target", command.target, tuple(TYPES))
    if command.command in ("simulate-loading", "fail-after"):
        _check_dummy(command.payload, "payload.")
    return command


def plan(message: Mapping[str, Any], now_s: float | None = None, seed: bytes = b"") -> Workflow:
    """A `start` command as a run with its steps in order of need; nothing is launched yet.

    Raises CommandRejected for an unknown target, type, symbol, interval or label, an inverted or future range,
    a wrong type, or a pipeline that asks for nothing.
    """
    now = time.time() if now_s is None else now_s
    command = check_command(message)
    requests, command.requests = command.requests, []
    if len(requests) * max(1, len(command.symbols)) > MAX_STEPS:
        raise CommandRejected("requests", f"a run has at most {MAX_STEPS} steps")
    steps: list[Step] = []
    for index, request in enumerate(requests or [{}]):
        where = f"requests[{index}]." if requests else ""
        steps += _steps_of(_inherit(command, request, where), where, now)
    queue_id = command.queue_id or generate_queue_id(steps[0], now, seed)
    steps.sort(key=lambda step: _ORDER[step.target])
    _inherit_interval(steps)
    _inherit_graph(steps)
    for index, step in enumerate(steps):
        step.task_id = f"{queue_id}.{index}"
        step.needs = tuple(i for i, other in enumerate(steps[:index]) if _needs(step, other))
    return Workflow(
        queue_id=queue_id, state="reserved", steps=steps, created_at=now, updated_at=now, command=dict(message)
    )


def generate_queue_id(step: Step, now_s: float, seed: bytes = b"") -> str:
    """`loader-{symbol}-{type}-{date}-{6 characters}`, lower case, other characters as `-`.

    The same seed gives the same six characters: a command delivered twice must name one run.
    """
    date = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%d")
    six = hashlib.sha256(seed).hexdigest()[:6] if seed else secrets.token_hex(3)
    text = f"loader-{step.symbol}-{step.type}-{date}-{six}".lower()
    return re.sub(r"[^a-z0-9-]", "-", text)


def parse_range(text: str, now_s: float, field: str = "time_range") -> Span:
    """`START:END` as dates or ISO instants, UTC, to half-open [start_ms, end_ms); two equal dates mean that day."""
    for match in re.finditer(":", text):
        try:
            start, end = instant_ms(text[: match.start()]), instant_ms(text[match.end() :])
        except (ValueError, OverflowError):
            continue
        if start == end and len(text) == len("YYYY-MM-DD:YYYY-MM-DD"):
            end += INTERVAL_MS["1d"]
        if start >= end:
            raise CommandRejected(field, f"{text!r} ends before it starts; the form is START:END, end exclusive")
        if end > now_s * 1000:
            raise CommandRejected(field, f"{text!r} reaches into the future; history ends now, {_iso(now_s)}")
        return start, end
    raise CommandRejected(field, f"{text!r} is not YYYY-MM-DD:YYYY-MM-DD or two ISO instants joined by ':'")


def _inherit(command: Command, request: Any, where: str) -> Command:
    """A request with what the command says for all of them."""
    if not isinstance(request, dict):
        raise CommandRejected(where.rstrip(".") or "requests", "a step is a JSON object")
    merged = msgspec.to_builtins(command) | request | {"command": "start", "queue_id": "", "requests": []}
    if "symbol" in request:
        merged["symbols"] = []
    try:
        return check_command(merged)
    except CommandRejected as error:
        raise CommandRejected(where + error.field, str(error).removeprefix(f"{error.field}: ")) from None


def _steps_of(request: Command, where: str, now_s: float) -> list[Step]:
    """One step per symbol of a request."""
    _one_of(f"{where}target", request.target, tuple(TYPES))
    _one_of(f"{where}type", request.type, TYPES[request.target])
    symbols = request.symbols or ([request.symbol] if request.symbol else [])
    venue = request.venue or DEFAULT_VENUE
    if request.target == DUMMY:
        _check_dummy(request.payload, f"{where}payload.")
        return [Step(task_id="", target=DUMMY, type=request.type, params=dict(request.payload))]
    if not symbols:
        raise CommandRejected(f"{where}symbol", "say which, e.g. BTCUSDT")
    for symbol in symbols:
        if not SYMBOL.fullmatch(symbol):
            raise CommandRejected(f"{where}symbol", f"{symbol!r} is not a symbol; symbols are upper case, e.g. BTCUSDT")
    interval = request.interval
    if request.type.startswith(("api_candles_", "ws_candles_")):
        said = request.type.partition("_candles_")[2]
        if interval not in ("", said):
            raise CommandRejected(f"{where}interval", f"{interval!r} contradicts the type {request.type!r}")
        interval = said
    if interval:
        _one_of(f"{where}interval", interval, tuple(INTERVAL_MS))
    if request.target == STREAMER:
        return [Step(task_id="", target=STREAMER, type=request.type, venue=venue, symbol=symbol, interval=interval)
                for symbol in symbols]  # fmt: skip
    if not request.time_range:
        raise CommandRejected(f"{where}time_range", "say which, e.g. 2025-08-20:2025-09-19 (UTC, end exclusive)")
    span = parse_range(request.time_range, now_s, f"{where}time_range")
    params = _params(request, where)
    _check_collections(request, interval or DEFAULT_INTERVAL, where)
    return [
        Step(task_id="", target=request.target, type=request.type, venue=venue, symbol=symbol, interval=interval,
             range_ms=span, params=params)
        for symbol in symbols
    ]  # fmt: skip


def _params(request: Command, where: str) -> Json:
    """What a step may say beside its stream, checked; only what was said."""
    if request.model_type:
        _one_of(f"{where}model_type", request.model_type, MODEL_TYPES)
    if request.label:
        _one_of(f"{where}label", request.label, LABELS)
    for name, low, high in (("epochs", 1, 1000), ("horizon", 1, 288), ("learning_rate", 1e-6, 1.0)):
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise CommandRejected(f"{where}{name}", f"{value} is outside {low} .. {high}")
    for name in ("collection_output", "graph_collection", "model_output"):
        if (text := getattr(request, name)) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", text):
            raise CommandRejected(f"{where}{name}", f"{text!r}: a letter, then up to 63 of A-Z a-z 0-9 _ -")
        if name in ("collection_output", "graph_collection") and _RESERVED.fullmatch(text):
            raise CommandRejected(f"{where}{name}", f"{text!r} is the name of another collection: choose another")
    names = ("collection_output", "graph_collection", "model_output", "model_type", "label",
             "epochs", "learning_rate", "horizon", "allow_missing")  # fmt: skip
    said = {name: getattr(request, name) for name in names}
    more = {name: value for name, value in request.payload.items() if name not in Command.__struct_fields__}
    return more | {name: value for name, value in said.items() if value not in ("", None, False)}


def _check_collections(request: Command, interval: str, where: str) -> None:
    """Market rows have one place each; a command may name it, but not another."""
    places = ("trades",) if request.type.endswith("_trades") else (f"candles_{interval}",)
    if request.collection_name:
        _one_of(f"{where}collection_name", request.collection_name, places)
    for name in request.collection_inputs:
        _one_of(f"{where}collection_inputs", name, (*places, "trades"))


def _check_dummy(payload: Json, where: str) -> None:
    for name, most in (("seconds", 86_400), ("records", 10**12)):
        value = payload.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise CommandRejected(f"{where}{name}", f"{value!r} is not a number from 0 to {most}")


_ORDER = {STREAMER: 0, LOADER: 0, CONNECTOR: 1, BUILDER: 2, TRAINER: 3, DUMMY: 4}


def _needs(step: Step, other: Step) -> bool:
    """Order follows from what a step needs: load -> persist -> graph -> train, per stream, then per symbol."""
    if step.target == DUMMY or (other.venue, other.symbol) != (step.venue, step.symbol):
        return False
    if step.target == CONNECTOR:
        return other.target == LOADER and other.type == step.type
    if step.target == BUILDER:
        return other.target in (LOADER, CONNECTOR)
    if step.target == TRAINER:
        return other.target == BUILDER and graph_name(step) == graph_name(other)
    return False


def _inherit_interval(steps: Iterable[Step]) -> None:
    """A graph or a training that says no interval uses the one of the run's candles."""
    loaded = [step for step in steps if step.channel.startswith("candles_") and step.target != STREAMER]
    for step in steps:
        if not step.interval and step.target in (BUILDER, TRAINER):
            same = [other.interval for other in loaded if other.symbol == step.symbol]
            step.interval = same[0] if same else DEFAULT_INTERVAL


def _inherit_graph(steps: Iterable[Step]) -> None:
    """A training that names no graph uses the one that the run builds for its symbol."""
    built = {step.symbol: graph_name(step) for step in steps if step.target == BUILDER}
    for step in steps:
        if step.target == TRAINER and "graph_collection" not in step.params and step.symbol in built:
            step.params["graph_collection"] = built[step.symbol]


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CommandRejected(field, f"{value!r} is not known; allowed: {', '.join(allowed)}")


# --- runs -------------------------------------------------------------------------------------------------------------


def ready(run: Workflow) -> list[Step]:
    """Steps that may be launched now: waiting, and all they need is finished."""
    if run.state not in ("reserved", "running"):
        return []
    return [s for s in run.steps if s.state == "waiting" and all(run.steps[i].state == "finished" for i in s.needs)]


def active(run: Workflow) -> list[Step]:
    return [step for step in run.steps if step.state in ("launched", "loading")]


def resume(run: Workflow) -> bool:
    """Make an ended run go on with what is not finished. False when there is nothing left to do."""
    open_steps = [step for step in run.steps if step.state in ("error", "interrupted", "waiting")]
    if run.live or not open_steps:
        return False
    again = {run.steps.index(step) for step in open_steps}
    for index in list(again):  # what stores or derives also needs its loaders to look for what is still missing
        again |= {i for i in run.steps[index].needs if run.steps[i].target == LOADER}
    for index in again:
        step = run.steps[index]
        step.state, step.error, step.message, step.progress = "waiting", "", "", None
        step.heals = 0
    run.state = "running"
    return True


def apply_event(run: Workflow, event: Mapping[str, Any]) -> bool:
    """Fold a step's event into the run. The first terminal word wins; words of older attempts change nothing."""
    extra = event.get("extra")
    task_id, attempt = (extra.get("task"), extra.get("attempt")) if isinstance(extra, dict) else (None, None)
    step = next((s for s in run.steps if s.task_id == task_id), None)
    status = event.get("status")
    if (
        step is None
        or attempt != step.attempt
        or step.state in TERMINAL
        or status not in ("started", "loading", *TERMINAL)
    ):
        return False
    step.state = "loading" if status == "started" else status
    written = event.get("records_written")
    if isinstance(written, int | float) and 0 <= written < 2**63:
        step.records_written = max(step.records_written, int(written))
    step.progress = event["progress"] if isinstance(event.get("progress"), int | float) else step.progress
    step.message = str(event.get("message") or "")
    step.error = str(event.get("error_message") or "")
    step.extra = {k: v for k, v in extra.items() if k not in ("task", "attempt")} if isinstance(extra, dict) else {}
    step.updated_at = time.time()
    if status == "finished":
        step.progress = 1.0
    return True


def conclude(run: Workflow) -> RunState:
    """The run's state after its steps: error if one failed, else interrupted, else finished when all have finished."""
    states = [step.state for step in run.steps]
    if active(run) or ready(run):
        return run.state
    if all(state == "finished" for state in states):
        return "finished"
    if "error" in states:
        return "error"
    if "interrupted" in states or run.state == "stopping":
        return "interrupted"
    return run.state


def heal(step: Step, limit: int, now_s: float, why: str) -> float | None:
    """Make a step that is silent or failed ready for its next attempt: epoch seconds before which that may not begin.

    None when it was tried again `limit` times already: then the step ends in error.
    """
    if step.heals >= limit:
        step.state, step.error = "error", f"given up after {limit} restarts: {why}"
        return None
    step.heals += 1
    step.attempt += 1
    step.state, step.progress = "launched", None
    not_before = now_s + HEAL_BACKOFF_S * 2.0 ** (step.heals - 1)
    step.updated_at = not_before
    return not_before


def silent(run: Workflow, now_s: float, heard_within_s: float, since_s: float = 0.0) -> list[Step]:
    """Active steps that nobody has heard of for so long; what was said before `since_s` counts as said then."""
    return [s for s in active(run) if now_s - max(s.updated_at, since_s) > heard_within_s]


def apply_task(row: Task | None, message: TaskMessage, partition: int) -> Task | None:
    """Fold a record of `queue-tasks` into the task's row; None when there is nothing to remember.

    A launch of an attempt that is known changes nothing, so that a repeated launch starts nothing twice.
    """
    if message.kind == "launch" and message.step is not None:
        if row and row.attempt >= message.attempt:
            return row
        before = row if row and message.goes_on else None
        return Task(task_id=message.task_id, queue_id=message.queue_id, step=message.step, attempt=message.attempt,
                    partition=partition, not_before=message.not_before, cursor=before.cursor if before else None,
                    records_written=before.records_written if before else 0)  # fmt: skip
    if row is None or row.attempt != message.attempt or row.state in ("failed", *TERMINAL):
        return row
    if message.kind == "stop":
        row.state = "stopping"
    elif message.kind == "checkpoint":
        row.cursor, row.records_written = message.cursor, message.records_written
    elif message.kind == "ended":
        row.state = message.state
    return row


# --- events -----------------------------------------------------------------------------------------------------------

_SUFFIX = secrets.token_hex(3)  # tells processes apart in `producer`


def make_event(
    status: str, *, queue_id: str, target: str = "queue-manager", symbol: str = "", type: str = "", message: str = "",
    records_written: int = 0, progress: float | None = None, error: str = "", extra: Json | None = None,
) -> Json:  # fmt: skip
    """One flat fact for `queue-events`: the union of what readers of the documented formats understand."""
    now = time.time()
    producer = f"{target}__{_SUFFIX}"
    event: Json = {
        "event": status, "status": status, "queue_id": queue_id, "target": target, "symbol": symbol, "type": type,
        "producer": producer, "telemetry_id": producer, "message": message, "finished": status in TERMINAL,
        "records_written": records_written, "timestamp": now, "sent_at": now, "extra": extra or {},
    }  # fmt: skip
    if progress is not None:
        event["progress"] = round(min(1.0, max(0.0, progress)), 4)
    if error:
        event["error_message"] = error
    return event


def step_event(status: str, queue_id: str, step: Step, **facts: Any) -> Json:
    """An event of a step; `extra` names task and attempt, so that only the current attempt's words count."""
    extra = {**(facts.pop("extra", None) or {}), "task": step.task_id, "attempt": step.attempt}
    return make_event(
        status, queue_id=queue_id, target=step.target, symbol=step.symbol, type=step.type, extra=extra, **facts
    )


def make_pong(run: Workflow, ping_sent_at: float | None, workers: int) -> Json:
    """The one answer of a run to a ping; flat, without a status."""
    now = time.time()
    return {"event": "pong", "queue_id": run.queue_id, "ping_ts": ping_sent_at, "ponged_at": now, "workers": workers,
            "state": run.state, "finished": False, "timestamp": now, "sent_at": now}  # fmt: skip


def graph_name(step: Step) -> str:
    """The graph a step makes or reads: the caller's name, else one of symbol, interval and range."""
    said = step.params.get("collection_output" if step.target == BUILDER else "graph_collection")
    if said:
        return str(said)
    days = "_".join(datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y%m%dt%H%M") for ms in step.range_ms or ())
    return f"graph_{step.market}_{step.interval}_{days.replace('t0000', '')}".lower()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
