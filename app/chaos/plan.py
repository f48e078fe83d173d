"""What an experiment breaks and when: a plan in YAML and a seed -> the timeline, before anything is started.

Every random choice is drawn from one generator of the seed, so the same plan and seed are the same timeline. Times
count from the moment the run's command is sent. A plan that cannot be run is refused naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import yaml

from adapters.exchanges.behaviours import BEHAVIOURS, Behaviour, checked
from adapters.exchanges.tape import LISTINGS
from app.config import INTERVALS, Settings
from app.errors import CommandRejected, SetupRefused
from app.pipelines import Stages, usual
from models import control

Json = dict[str, Any]

PLANS = Path(__file__).with_name("plans")
EMBEDDED = "embedded"
ROLES = ("all", "control", "ingest", "process", "store", "train", "web")
STAGES = ("candles", "trades", "graph", "train")
# What can be broken, and how. `for_s` afterwards it is whole again: started, woken, let go.
WHATS: dict[str, tuple[str, ...]] = {
    "worker": ("kill", "pause", "stop", "join"),
    "broker": ("kill", "pause", "stop"),
    "exchange": ("kill", "pause", "stop", "behave"),
    "store": ("lock",),
}
STAYS_AWAY = ("worker",)  # may be killed or stopped for good: others take over
OWN_SETTINGS = (  # the experiment's, or of no use on brokers of its own
    "DATA_DIR", "APP_ID", "ROLE", "STORE_URL", "BINANCE_API_URL", "PARTITIONS", "WEB_BIND", "WEB_PORT", "API_TOKEN",
    "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_MECHANISM", "KAFKA_USERNAME", "KAFKA_PASSWORD",
    "KAFKA_PASSWORD_FILE", "KAFKA_CA_FILE", "KAFKA_CERT_FILE", "KAFKA_KEY_FILE", "KAFKA_REPLICATION",
)  # fmt: skip
SETTINGS = tuple(name.upper() for name in Settings.model_fields if name.upper() not in OWN_SETTINGS)
BACK_WITHIN_S = 5.0  # a process that is started again needs about so long until it is ready


class SetUp(msgspec.Struct, forbid_unknown_fields=True):
    """What is started: brokers (1, 3 or `embedded`), a worker per role named, an exchange of this seed."""

    brokers: int | str = 1
    workers: list[str] = msgspec.field(default_factory=lambda: ["all"])
    partitions: int = 4
    exchange_seed: int = 1
    settings: dict[str, str | int | float] = {}


class Job(msgspec.Struct, forbid_unknown_fields=True):
    """The one run that has to come through."""

    symbol: str = "BTCUSDT"
    range: str = "2025-08-20:2025-08-23"
    interval: str = "5m"
    stages: list[str] = msgspec.field(default_factory=lambda: ["candles", "trades"])


class When(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """As soon as a step of the run has come so far. `step` is its target, `type` (else any) its type."""

    step: str
    type: str = ""
    progress: float = 0.0

    def __str__(self) -> str:
        return f"{self.step} {self.type}".strip() + f" at {self.progress:.0%}"


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One line of `faults`. When: `after_s`, `between_s` (drawn, `times` times) or `when`.

    A worker that stops for good waits until those that are starting are ready.
    `who`: a number from 0, a role, `random`, or with `when` the `owner` of that step.
    """

    of: str
    what: str
    who: int | str = "random"
    after_s: float | None = None
    between_s: tuple[float, float] | None = None
    when: When | None = None
    for_s: float | None = None
    times: int = 1
    role: str = "all"  # join
    behaviour: Json = {}  # behave


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    about: str = ""
    setup: SetUp = msgspec.field(default_factory=SetUp)
    job: Job = msgspec.field(default_factory=Job)
    faults: list[Fault] = []
    deadline_s: float = 180.0  # from the command to the run's end

    @property
    def command(self) -> Json:
        stages = Stages(**{stage: stage in self.job.stages for stage in STAGES})
        return usual(self.job.symbol, self.job.range, self.job.interval, stages)

    @property
    def on_kafka(self) -> bool:
        return self.setup.brokers != EMBEDDED

    @property
    def joins(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.what == "join"]


@dataclass(frozen=True)
class Action:
    """One thing that is broken: at a time, or when a step has come so far."""

    of: str
    what: str
    who: int | str  # `owner`: found when it is done; "": there is only one
    at_s: float | None
    when: When | None
    for_s: float | None
    role: str = ""
    behaviour: Behaviour | None = None

    def __str__(self) -> str:
        moment = f"{self.at_s:8.2f} s" if self.at_s is not None else f"when {self.when}"
        held = "" if self.for_s is None else f" for {self.for_s:g} s"
        return f"{moment}  {self.deed}{held}"

    @property
    def deed(self) -> str:
        if self.what == "join":
            return f"join worker ({self.role})"
        if self.behaviour is not None:
            return f"exchange shows {self.behaviour.name}"
        return f"{self.what} {self.of} {self.who}".rstrip()


# --- reading ----------------------------------------------------------------------------------------------------------


def ready_plans() -> dict[str, Path]:
    """The plans that come with the application, by name."""
    return {path.stem: path for path in sorted(PLANS.glob("*.yaml"))}


def read_plan(name: str) -> Plan:
    """A file, or the name of a ready plan. Raises CommandRejected naming the field at fault and what is allowed."""
    path = Path(name) if Path(name).is_file() else ready_plans().get(name)
    if path is None:
        raise CommandRejected("plan", f"{name!r} is neither a file nor a ready plan: {', '.join(ready_plans())}")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandRejected("plan", f"{name}: {error.strerror}") from None


def parse(text: str) -> Plan:
    """Raises CommandRejected naming the field at fault and what is allowed."""
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CommandRejected("plan", f"not YAML: {' '.join(str(error).split())}") from None
    try:
        plan = msgspec.convert(said, Plan)
    except msgspec.ValidationError as error:
        raise _unreadable(error) from None
    _check_setup(plan.setup)
    _check_job(plan)
    for number, fault in enumerate(plan.faults):
        _check_fault(f"faults[{number}]", fault, plan)
    return plan


def _unreadable(error: msgspec.ValidationError) -> CommandRejected:
    what, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.+)`", what):
        kinds = {"": Plan, "setup": SetUp, "job": Job, "faults[]": Fault, "faults[].when": When}
        names = kinds[re.sub(r"\[\d+\]|\[\.\.\.\]", "[]", field)].__struct_fields__
        return CommandRejected(f"{field}.{unknown[1]}".lstrip("."), f"is not known; known: {', '.join(names)}")
    return CommandRejected(field or "plan", what)


def _check_setup(setup: SetUp) -> None:
    _one_of("setup.brokers", setup.brokers, (1, 3, EMBEDDED))
    for number, role in enumerate(setup.workers):
        _one_of(f"setup.workers[{number}]", role, ROLES)
    if not setup.workers:
        raise CommandRejected("setup.workers", f"none; name a role for each: {', '.join(ROLES)}")
    if "all" in setup.workers and set(setup.workers) != {"all"}:
        raise CommandRejected("setup.workers", "`all` beside other roles would do their work twice: one or the other")
    if setup.brokers == EMBEDDED and setup.workers != ["all"]:
        raise CommandRejected("setup.workers", "the embedded log serves one worker with the role `all`")
    if not 1 <= setup.partitions <= 256:
        raise CommandRejected("setup.partitions", f"{setup.partitions} is outside 1 .. 256")
    for name in setup.settings:
        _one_of(f"setup.settings.{name}", name, SETTINGS)


def _check_job(plan: Plan) -> None:
    for stage in plan.job.stages:
        _one_of("job.stages", stage, STAGES)
    _one_of("job.symbol", plan.job.symbol, tuple(listing.symbol for listing in LISTINGS))
    _one_of("job.interval", plan.job.interval, INTERVALS)
    if not plan.job.stages:
        raise CommandRejected("job.stages", f"none; allowed: {', '.join(STAGES)}")
    try:
        control.plan(plan.command)
    except CommandRejected as error:
        raise CommandRejected("job.range", str(error).removeprefix(f"{error.field}: ")) from None


def _check_fault(where: str, fault: Fault, plan: Plan) -> None:
    _one_of(f"{where}.of", fault.of, tuple(WHATS))
    _one_of(f"{where}.what", fault.what, WHATS[fault.of])
    _check_moment(where, fault)
    if plan.on_kafka is False and (fault.of == "broker" or fault.what == "join"):
        raise CommandRejected(f"{where}.of", "the embedded log has no brokers and one worker")
    if fault.of in ("worker", "broker") and fault.what != "join":
        _check_who(where, fault, plan)
    if fault.for_s is not None and fault.for_s < 0:
        raise CommandRejected(f"{where}.for_s", f"{fault.for_s:g} is less than 0")
    if fault.for_s is None and not (fault.of in STAYS_AWAY and fault.what != "pause") and fault.what != "behave":
        raise CommandRejected(f"{where}.for_s", f"say for how many seconds: a {fault.of} has to come back")
    if fault.what == "join":
        _one_of(f"{where}.role", fault.role, tuple(dict.fromkeys(plan.setup.workers)))
    if fault.what == "behave":
        _behaviour(where, fault)


def _check_moment(where: str, fault: Fault) -> None:
    said = [name for name in ("after_s", "between_s", "when") if getattr(fault, name) is not None]
    if len(said) != 1:
        raise CommandRejected(f"{where}.after_s", "say one of after_s, between_s and when")
    if fault.times < 1 or (fault.times > 1 and fault.between_s is None):
        raise CommandRejected(f"{where}.times", f"{fault.times}: 1 or more, and with `between_s` only")
    low, high = fault.between_s or (fault.after_s or 0.0, fault.after_s or 0.0)
    if not 0 <= low <= high:
        raise CommandRejected(f"{where}.{said[0]}", "seconds from the command on: 0 or more, the earlier first")
    if fault.when is not None:
        _one_of(f"{where}.when.step", fault.when.step, tuple(control.TYPES))
        if fault.when.type:
            _one_of(f"{where}.when.type", fault.when.type, control.TYPES[fault.when.step])
        if not 0 <= fault.when.progress <= 1:
            raise CommandRejected(f"{where}.when.progress", f"{fault.when.progress:g} is outside 0 .. 1")


def _check_who(where: str, fault: Fault, plan: Plan) -> None:
    worker = fault.of == "worker"
    count = len(plan.setup.workers) + len(plan.joins) if worker else int(plan.setup.brokers)
    words = ("random", *(["owner"] if worker and fault.when else []), *(plan.setup.workers if worker else []))
    if isinstance(fault.who, int) and not 0 <= fault.who < count:
        raise CommandRejected(f"{where}.who", f"{fault.who} is outside 0 .. {count - 1}")
    if isinstance(fault.who, str):
        _one_of(f"{where}.who", fault.who, tuple(dict.fromkeys(words)))


def _behaviour(where: str, fault: Fault) -> Behaviour:
    try:
        return checked(msgspec.convert(fault.behaviour, Behaviour))
    except msgspec.ValidationError as error:
        names = ", ".join(BEHAVIOURS)
        raise CommandRejected(f"{where}.behaviour", f"{error}; its `name` is one of {names}") from None
    except SetupRefused as error:
        raise CommandRejected(f"{where}.behaviour", str(error)) from None


def _one_of(field: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise CommandRejected(field, f"{value!r} is not known; allowed: {', '.join(map(str, allowed))}")


# --- the timeline -----------------------------------------------------------------------------------------------------


def timeline(plan: Plan, seed: int) -> list[Action]:
    """What will be broken, in order of time; what waits for a step comes last. Same plan, same seed: same list."""
    rng = Random(seed)
    moments = [(_moment(fault, rng), fault) for fault in plan.faults for _ in range(fault.times)]
    moments.sort(key=lambda found: (found[0] is None, found[0] or 0.0))
    actions: list[Action] = []
    for at_s, fault in moments:
        actions.append(
            Action(
                of=fault.of,
                what=fault.what,
                who=_who(fault, at_s, plan, actions, rng),
                at_s=at_s,
                when=fault.when,
                for_s=fault.for_s,
                role=fault.role if fault.what == "join" else "",
                behaviour=_behaviour("", fault) if fault.what == "behave" else None,
            )
        )
    return actions


def _moment(fault: Fault, rng: Random) -> float | None:
    return round(rng.uniform(*fault.between_s), 2) if fault.between_s else fault.after_s


def _who(fault: Fault, at_s: float | None, plan: Plan, before: Iterable[Action], rng: Random) -> int | str:
    if fault.of not in ("worker", "broker") or fault.what == "join":
        return ""
    if isinstance(fault.who, int) or fault.who == "owner":
        return fault.who
    roles = plan.setup.workers if fault.of == "worker" else [""] * int(plan.setup.brokers)
    wanted = [n for n, role in enumerate(roles) if fault.who in ("random", role)]
    away = {action.who for action in before if action.of == fault.of and _is_away(action, at_s)}
    return rng.choice([n for n in wanted if n not in away] or wanted)


def _is_away(action: Action, at_s: float | None) -> bool:
    """True where what an earlier action broke may not be back yet."""
    if action.at_s is None or at_s is None:
        return False
    return action.for_s is None or at_s < action.at_s + action.for_s + BACK_WITHIN_S
