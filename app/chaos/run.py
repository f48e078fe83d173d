"""`python -m app chaos`: a plan and a seed -> a local set-up, one run, faults -> what was lost, doubled or late.

The timeline is printed before anything starts. Then brokers, exchange and workers start, one command is sent, faults
are done as the timeline says, and what is seen is printed as it happens. When the run has ended and every reader is
through, the store is compared with the exchange. Workers run as under any supervisor: one that ends by itself is
started again, and counted.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adapters.stores.base import Store
from app.chaos import verdict
from app.chaos.plan import Action, Plan, When, timeline
from app.chaos.setup import Ground, LocalWorker
from app.chaos.verdict import Injected, Verdict
from app.children import Child
from app.errors import BrokerUnreachable, RunFailed, UnknownRun
from app.report import read_run
from app.verify import verify_run
from models.control import TERMINAL, Workflow

Json = dict[str, Any]
Say = Callable[[str], None]
Answer = TypeVar("Answer")

LOOK_EVERY_S = 0.05
AGAIN_AFTER_S = 1.0  # a worker that ended by itself is started again
DRAIN_WITHIN_S = 60.0
DRAINED = ("queue-control", "queue-events", "queue-tasks", *verdict.MARKET)
TOLD = ("accepted", "rejected", "started", "healed", *TERMINAL)  # events that are printed


@dataclass
class Pending:
    """Something to be mended at a time."""

    at_s: float
    mend: Callable[[], None]
    injected: Injected | None = None


@dataclass
class Experiment:
    """One plan on one ground. `say` gets the timeline's lines."""

    plan: Plan
    ground: Ground
    say: Say
    queue_id: str = "chaos"
    events: list[tuple[float, Json]] = field(default_factory=list)  # seconds from the command on
    injected: list[Injected] = field(default_factory=list)
    restarts: int = 0
    _began: float = 0.0
    _told: int = 0
    _pending: list[Pending] = field(default_factory=list)
    _starting: list[tuple[LocalWorker, Injected | None]] = field(default_factory=list)

    def begin(self) -> None:
        """Send the command; from here on seconds count."""
        self.ground.follow_events(self._hear)
        self._began = time.monotonic()
        self.ground.send({**self.plan.command, "queue_id": self.queue_id})

    def until_ended(self, actions: Sequence[Action] = ()) -> str:
        """Do the actions until the run has ended; its state, `running` when the deadline came first."""
        waiting = list(actions)
        while self.state not in TERMINAL and self.now_s < self.plan.deadline_s:
            for action in [action for action in waiting if self._is_due(action)]:
                waiting.remove(action)
                self.inject(action)
            self.look()
            time.sleep(LOOK_EVERY_S)
        return self.state

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def state(self) -> str:
        """The run's, as its events say."""
        ends = [e for _, e in self.events if e.get("target") == "queue-manager" and e.get("finished")]
        return str(ends[-1]["status"]) if ends else "running"

    def look(self) -> None:
        """Mend what is due, start again what ended by itself, tell what is new."""
        for pending in [pending for pending in self._pending if pending.at_s <= self.now_s]:
            self._mend(pending)
        for worker in self.ground.ended_by_itself():
            self.tell(f"{worker.child.name} ended with {worker.child.exit_code}: {worker.child.last_line()[:200]}")
            self.restarts += 1
            worker.child.process = None
            self._later(AGAIN_AFTER_S, partial(self._start, worker))
        for worker, injected in [found for found in self._starting if self.ground.is_ready(found[0])]:
            self._starting.remove((worker, injected))
            self.tell(f"{worker.child.name} is ready")
            if injected is not None:
                injected.ready_s = self.now_s
        for at_s, event in self.events[self._told :]:
            self._told += 1
            told = event.get("status") in TOLD or verdict.goes_on(event)
            if told and event.get("queue_id") == self.queue_id:
                self.say(f"{at_s:8.2f} s    {_event_line(event)}")

    def mend_all(self) -> None:
        """Everything is there again, now; what a plan leaves away stays away unless its role has no worker left."""
        for pending in list(self._pending):
            self._mend(pending)
        roles = {worker.role for worker in self.ground.workers if worker.child.lives}
        for worker in self.ground.workers:
            if worker.role not in roles:
                roles.add(worker.role)
                self._start(worker)

    def tell(self, what: str) -> None:
        self.say(f"{self.now_s:8.2f} s  {what}")

    # --- faults

    def _is_due(self, action: Action) -> bool:
        leaves = action.of == "worker" and action.what == "stop" and action.for_s is None
        if leaves and self._starting:
            return False  # as an orchestrator does: nobody leaves before those who come are ready
        if action.when is None:
            return action.at_s is not None and action.at_s <= self.now_s
        return has_reached(action.when, [event for _, event in self.events])

    def inject(self, action: Action) -> None:
        """Do one action, and remember when it has to be mended."""
        fault = Injected(action.deed, self.now_s)
        if action.of == "worker":
            self._break_worker(action, fault)
        elif action.of == "broker":
            number = int(action.who)
            self._note(fault)
            self.ground.break_broker(number, action.what)
            self._later(action.for_s, lambda: self.ground.mend_broker(number, action.what), fault)
        elif action.of == "exchange":
            self._break_exchange(action, fault)
        else:
            self._note(fault)
            self.ground.lock_store()
            self._later(action.for_s, self.ground.unlock_store, fault)

    def _break_worker(self, action: Action, fault: Injected) -> None:
        if action.what == "join":
            self._note(fault)
            self._starting.append((self.ground.add_worker(action.role), fault))
            fault.over_s = fault.at_s
            return
        number = action.who
        if number == "owner" and action.when is not None:
            number = -1 if (found := self.ground.owner_of(action.when.step)) is None else found
            fault.deed = f"{action.deed} (worker {number})"
        if not (0 <= int(number) < len(self.ground.workers) and self.ground.workers[int(number)].child.lives):
            self.tell(f"{fault.deed}: it is not there")
            return
        worker = self.ground.workers[int(number)]
        self._note(fault)
        if action.what == "pause":
            worker.paused = True
            worker.child.signal(signal.SIGSTOP)
            self._later(action.for_s, lambda: self._wake(worker), fault)
            return
        if action.what == "kill":
            worker.child.kill()
        else:
            worker.child.ask_to_stop()
        if action.for_s is not None:
            self._later(action.for_s, lambda: self._start(worker, fault), fault)

    def _break_exchange(self, action: Action, fault: Injected) -> None:
        exchange = self.ground.exchange
        assert exchange is not None
        self._note(fault)
        if action.behaviour is not None:
            self.ground.behave(action.behaviour)
            if action.for_s is not None:
                self._later(action.for_s, self.ground.behave_well, fault)
        elif action.what == "pause":
            exchange.signal(signal.SIGSTOP)
            self._later(action.for_s, lambda: exchange.signal(signal.SIGCONT), fault)
        else:
            if action.what == "kill":
                exchange.kill()
            else:
                exchange.ask_to_stop()
            self._later(action.for_s, partial(_start_again, exchange), fault)

    def _note(self, fault: Injected) -> None:
        self.injected.append(fault)
        self.tell(fault.deed)

    def _later(self, after_s: float | None, mend: Callable[[], None], injected: Injected | None = None) -> None:
        self._pending.append(Pending(self.now_s + (after_s or 0.0), mend, injected))

    def _mend(self, pending: Pending) -> None:
        self._pending.remove(pending)
        pending.mend()
        if pending.injected is not None:
            pending.injected.over_s = self.now_s
            self.tell(f"over: {pending.injected.deed}")

    def _wake(self, worker: LocalWorker) -> None:
        worker.child.signal(signal.SIGCONT)
        worker.paused = False

    def _start(self, worker: LocalWorker, fault: Injected | None = None) -> None:
        _start_again(worker.child)
        self._starting.append((worker, fault))

    def _hear(self, event: Json) -> None:
        self.events.append((self.now_s, event))

    # --- the end

    def drain(self) -> Workflow | None:
        """Until every reader has committed all there is and the run's copy in the store has ended; that copy."""
        give_up_s = time.monotonic() + DRAIN_WITHIN_S
        while time.monotonic() < give_up_s:
            self.look()
            with suppress(BrokerUnreachable, UnknownRun), self.ground.open_reader() as reader:
                run = _with_store(self.ground, lambda store: read_run(store, self.queue_id))
                if not verdict.waiting(reader, DRAINED, self.ground.app_id) and not run.live:
                    return run
            time.sleep(LOOK_EVERY_S * 2)
        return None


def _start_again(child: Child) -> None:
    child.wait()  # one that was asked to stop may still be at it
    child.start()


def has_reached(when: When, events: list[Json]) -> bool:
    """Whether a step has come so far, or ended."""
    steps = (e for e in events if e.get("target") == when.step and when.type in ("", e.get("type")))
    return any(e.get("finished") or float(e.get("progress") or 0.0) >= when.progress for e in steps)


def conduct(
    plan: Plan, name: str, seed: int, folder: Path, say: Say, *, bootstrap: str = "", app_id: str = "streamforge",
    before_verify: Callable[[Ground], None] | None = None,
) -> Verdict:  # fmt: skip
    """The whole experiment in an empty folder. `before_verify` may spoil what was stored, to see that it is found.

    Raises RunFailed when the ground does not hold (no worker becomes ready), SetupRefused.
    """
    actions = timeline(plan, seed)
    say(f"timeline of {name} with seed {seed}: {len(actions)} faults")
    for action in actions:
        say(str(action))
    with Ground(plan, folder, bootstrap, app_id) as ground:
        say(f"{len(ground.workers)} workers are ready; the run begins")
        experiment = Experiment(plan, ground, say)
        experiment.begin()
        experiment.until_ended(actions)
        found = judge(experiment, before_verify)
    return replace(found, plan=name, seed=seed, left_out=len(actions) - len(found.faults))


def judge(experiment: Experiment, before_verify: Callable[[Ground], None] | None = None) -> Verdict:
    """Mend everything, wait until every reader is through, compare the exchange, the topics and the store.

    Of a run that is still at work only rows are counted. Raises RunFailed when readers do not get through.
    """
    ground, plan, state, took_s = experiment.ground, experiment.plan, experiment.state, experiment.now_s
    ended = state in TERMINAL
    stored_at_end = _with_store(ground, lambda store: verdict.rows_stored(store, plan))
    experiment.tell(f"the run is {state}")
    experiment.mend_all()
    if ended and experiment.drain() is None:
        raise RunFailed(f"the run is {state}, but not all records were read within {DRAIN_WITHIN_S:g} s")
    if before_verify is not None:
        before_verify(ground)
    verdict.recoveries(experiment.injected, verdict.movements(experiment.events))
    verdict.takeovers(experiment.injected, experiment.events)
    with ground.open_reader() as reader:
        disordered = verdict.disordered(reader) if "trades" in plan.job.stages else 0
        messages = verdict.messages(reader)

    def compare(store: Store) -> tuple[verdict.Counts, int, int]:
        found = verify_run(store, ground.open_reader, experiment.queue_id)["differences"] if ended else 0
        late = verdict.rows_stored(store, plan) - stored_at_end if ended else 0
        return verdict.count(store, plan), max(0, late), found

    counts, late, differences = _with_store(ground, compare)
    return Verdict(
        queue_id=experiment.queue_id, state=state, counts=counts, late=late, disordered=disordered,
        messages=messages, differences=differences, seconds=round(took_s, 2), restarts=experiment.restarts,
        faults=experiment.injected,
    )  # fmt: skip


@contextmanager
def folder_of(keep: Path | None) -> Iterator[Path]:
    """`keep`, which has to be empty and stays; or one that is removed in the end."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="streamforge-chaos-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if keep.exists() and any(keep.iterdir()):
        raise RunFailed(f"--keep: {keep} is not empty; an experiment wants a folder of its own")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()


def _with_store(ground: Ground, ask: Callable[[Store], Answer]) -> Answer:
    store = ground.open_store()
    try:
        return ask(store)
    finally:
        store.close()


def _event_line(event: Json) -> str:
    target = " ".join(str(event[name]) for name in ("target", "type") if event.get(name))
    return f"{target}: {event.get('status')} {event.get('error_message') or event.get('message') or ''}".rstrip()
