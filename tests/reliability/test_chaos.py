"""Whole set-ups on a real broker, broken on purpose: R16, R17, R25, R28, R30.

CHAOS_REPEATS is how often each is done, each time with another seed; BROKER_DOWN_S how long the broker of R25 is away.
CHAOS_REPORT names a file that gets one JSON line per test: experiment, repetitions, messages, lost, doubled, recovery.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters.exchanges.behaviours import Behaviour
from adapters.kafka.local import Cluster
from app.chaos import run, setup
from app.chaos.plan import Action, Plan, parse, timeline
from app.chaos.run import Experiment, conduct, judge
from app.chaos.setup import Ground
from app.chaos.verdict import Verdict
from app.report import read_runs
from tests.kafka import unique
from tests.machine import Stopwatch
from tests.processes import remove_topics, wait_for

REPEATS = int(os.environ.get("CHAOS_REPEATS", "1"))
BROKER_DOWN_S = float(os.environ.get("BROKER_DOWN_S", "5"))
SESSION_S = 6.0
TAKEN_OVER_WITHIN_S = SESSION_S + 5.0
AHEAD_PAGES = 25  # a loader waits for the broker every 20 pages
SLOW = "{of: exchange, what: behave, after_s: 0, behaviour: {name: slow, endpoint: aggTrades, times: 0, seconds: %s}}"

pytestmark = pytest.mark.timeout(900 + 90 * REPEATS)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no failure, and no fault may be left out for it."""
    monkeypatch.setattr(run, "DRAIN_WITHIN_S", 300.0)
    monkeypatch.setattr(setup, "METRICS_WITHIN_S", 60.0)


class Hurried(Experiment):
    """Pages come slowly until every fault is done and every worker ready, and from then on as fast as they can."""

    undone = 0

    def until_ended(self, actions: Sequence[Action] = ()) -> str:
        self.undone = len(actions)
        return super().until_ended(actions)

    def look(self) -> None:
        super().look()
        if self.undone == len(self.injected) and not self._starting:
            self.undone = -1
            self.ground.behave_well()


class Joined(Hurried):
    """Pages come a little faster as soon as both who join are ready."""

    joined = False

    def look(self) -> None:
        super().look()
        joins = sum(fault.deed.startswith("join") for fault in self.injected)
        if joins == 2 and not self._starting and not self.joined:
            self.joined = True
            self.ground.behave_well()
            self.ground.behave(Behaviour(name="slow", endpoint="aggTrades", times=0, seconds=0.3))


def plan_of(workers: str, days: int, page_s: float, *faults: str) -> Plan:
    """Trades and candles of some days, each page of trades taking `page_s`."""
    listed = "".join(f"\n  - {fault}" for fault in (SLOW % page_s, *faults))
    return parse(
        f"setup: {{workers: {workers}, settings: {{KAFKA_SESSION_TIMEOUT_S: {SESSION_S:g}}}}}\n"
        f'job: {{range: "2025-08-20:2025-08-{20 + days}"}}\ndeadline_s: 400\nfaults:{listed}\n'
    )


@pytest.fixture
def clean(kafka: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Do an experiment on empty brokers; it has to be clean."""
    monkeypatch.setattr(run, "Experiment", Hurried)

    def do(plan: Plan, name: str, seed: int) -> Verdict:
        remove_topics(kafka.bootstrap)
        said: list[str] = []
        folder = new_folder(tmp_path, seed)
        found = conduct(plan, name, seed, folder, said.append, bootstrap=kafka.bootstrap, app_id=unique("chaos"))
        assert found.clean, "\n".join([*said, *found.lines()])
        assert found.left_out == 0, "\n".join(said)
        return found

    return do


def report(experiment: str, verdicts: list[Verdict], **more: Any) -> None:
    """One line of the report, if one is wanted."""
    if path := os.environ.get("CHAOS_REPORT"):
        line = {
            "experiment": experiment, "repetitions": len(verdicts), "messages": sum(v.messages for v in verdicts),
            "rows": sum(v.counts.expected for v in verdicts), "lost": sum(v.counts.lost for v in verdicts),
            "doubled": sum(v.counts.doubled for v in verdicts),
            "recovery_s": round(max((v.recovery_s or 0.0) for v in verdicts), 1), **more,
        }  # fmt: skip
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def test_r16_workers_killed_at_random_moments_of_a_load_lose_and_double_nothing(clean: Callable[..., Verdict]) -> None:
    kills = "{of: worker, what: kill, who: random, between_s: [0.5, 3], for_s: 0.5, times: 2}"
    plan = plan_of("[all, all]", 2, 0.5, kills)
    report("R16 worker kills", [clean(plan, "r16", seed) for seed in range(1, REPEATS + 1)])


def test_r17_one_worker_becomes_three_and_one_again_and_each_row_is_stored_once_in_order(
    clean: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Experiment", Joined)
    at = "when: {step: loader-producer, type: api_trades, progress: %s}"
    plan = plan_of(
        "[all]", 2, 4.0,
        "{of: worker, what: join, between_s: [0.2, 1], times: 2}",
        f"{{of: worker, what: stop, who: 0, {at % 0.3}}}",
        f"{{of: worker, what: stop, who: 1, {at % 0.6}}}",
    )  # fmt: skip
    found = [clean(plan, "r17", seed) for seed in range(1, REPEATS + 1)]
    for one in found:
        joins = [fault for fault in one.faults if fault.deed.startswith("join")]
        stops = [fault for fault in one.faults if fault.deed.startswith("stop")]
        assert [fault.ready_s is not None for fault in joins] == [True, True]
        assert len(stops) == 2
        assert one.disordered == 0
    report("R17 one worker, three, one", found)


def test_r25_a_broker_that_is_down_is_waited_for_and_nothing_is_lost(
    kafka_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stops asking the exchange for pages that it cannot hand on."""
    when = "when: {step: loader-producer, type: api_trades, progress: 0.1}"
    plan = plan_of("[all]", 2, 0.3, f"{{of: broker, what: kill, {when}, for_s: {BROKER_DOWN_S:g}}}")
    plan.deadline_s += BROKER_DOWN_S
    found, ahead = [], []
    for seed in range(1, REPEATS + 1):
        asked: list[int] = []
        said: list[str] = []
        with Ground(plan, new_folder(tmp_path, seed)) as ground:
            kill, mend = ground.break_broker, ground.mend_broker

            def down(*which: Any, ground: Ground = ground, asked: list[int] = asked, kill: Any = kill) -> None:
                kill(*which)
                asked.append(pages_asked(ground.exchange_url))
                ground.behave_well()  # nothing but the broker holds up the loader

            def up(*which: Any, ground: Ground = ground, asked: list[int] = asked, mend: Any = mend) -> None:
                asked.append(pages_asked(ground.exchange_url))
                mend(*which)

            monkeypatch.setattr(ground, "break_broker", down)
            monkeypatch.setattr(ground, "mend_broker", up)
            experiment = Experiment(plan, ground, said.append)
            experiment.begin()
            experiment.until_ended(timeline(plan, seed))
            found.append(judge(experiment))
        assert found[-1].clean, "\n".join([*said, *found[-1].lines()])
        first, last = asked
        ahead.append(last - first)
    assert max(ahead) <= AHEAD_PAGES
    report("R25 broker down", found, down_s=BROKER_DOWN_S, pages_ahead=max(ahead))


def test_r28_the_loader_of_a_killed_worker_is_taken_over_within_the_session_timeout(
    clean: Callable[..., Verdict],
) -> None:
    kill = "{of: worker, what: kill, who: owner, when: {step: loader-producer, type: api_trades, progress: 0.4}}"
    watch = Stopwatch()
    found = [clean(plan_of("[all, all]", 2, 0.5, kill), "r28", seed) for seed in range(1, REPEATS + 1)]
    took = [one.faults[-1].taken_over_s or 0.0 for one in found]
    assert all(0 < took_s <= watch.allowed_s(TAKEN_OVER_WITHIN_S) for took_s in took), took
    report("R28 owner of the loader killed", found, taken_over_s=round(max(took), 1))


ROLES = "[control, ingest, process, store]"


def test_r30_a_controller_killed_between_deciding_and_launching_makes_exactly_one_run(
    kafka: Cluster, tmp_path: Path
) -> None:
    """The store is locked, so that the controller lingers between writing the run's row and launching its tasks."""

    def kill_once_decided(experiment: Experiment) -> None:
        ground = experiment.ground
        decided = f"{ground.app_id}-control-workflows-changelog", 0
        with ground.open_reader() as reader:
            ground.lock_store()
            experiment.begin()
            wait_for(lambda: reader.ends()[decided] > 0)
            experiment.inject(Action("worker", "kill", 0, None, None, for_s=0.2))
            ground.unlock_store()
            assert list(reader.records("queue-tasks")) == []  # decided, not launched

    plan = plan_of(ROLES, 1, 0.02)
    found = [one_run(kafka, tmp_path, plan, seed, kill_once_decided) for seed in range(1, REPEATS + 1)]
    report("R30 controller killed between deciding and launching", found)


def test_r30_a_controller_killed_at_random_moments_makes_exactly_one_run(kafka: Cluster, tmp_path: Path) -> None:
    plan = plan_of(ROLES, 1, 0.1, "{of: worker, what: kill, who: control, between_s: [0, 1.5], for_s: 0}")
    found = [one_run(kafka, tmp_path, plan, seed, Experiment.begin) for seed in range(1, REPEATS + 1)]
    report("R30 controller killed at random", found)


def one_run(kafka: Cluster, tmp_path: Path, plan: Plan, seed: int, begin: Callable[[Experiment], None]) -> Verdict:
    """A clean experiment with one run in the store; each of its tasks was begun once and has ended once."""
    remove_topics(kafka.bootstrap)
    plan.setup.settings["HEAL_AFTER_S"] = 120  # a second attempt would be for a controller that is slow to come back
    said: list[str] = []
    with Ground(plan, new_folder(tmp_path, seed), kafka.bootstrap, unique("chaos")) as ground:
        experiment = Experiment(plan, ground, said.append)
        begin(experiment)
        experiment.until_ended(timeline(plan, seed))
        found = judge(experiment)
        assert found.clean, "\n".join([*said, *found.lines()])
        with closing(ground.open_store()) as store:
            assert [run.queue_id for run in read_runs(store)] == [experiment.queue_id]
    steps = [event for _, event in experiment.events if "task" in event.get("extra", {})]
    assert {event["extra"]["attempt"] for event in steps} == {1}
    for word in ("started", "finished"):
        assert set(Counter(e["extra"]["task"] for e in steps if e["status"] == word).values()) == {1}, word
    return found


def new_folder(tmp_path: Path, seed: int) -> Path:
    folder = tmp_path / str(seed)
    folder.mkdir()
    return folder


def pages_asked(exchange_url: str) -> int:
    with urllib.request.urlopen(f"{exchange_url}/sim/requests", timeout=150) as answer:
        return int(sum(count for path, count in json.load(answer)["answers"].items() if "aggTrades" in path))
