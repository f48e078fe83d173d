"""Experiments: what a plan may say, what its timeline is, how a verdict is reached, and that one can fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapters.stores.sqlite import SqliteStore
from app.chaos import plan as plans
from app.chaos.plan import When, parse, ready_plans, timeline
from app.chaos.run import conduct, has_reached
from app.chaos.setup import Ground
from app.chaos.verdict import Counts, Injected, Verdict, expected_keys, movements, recoveries
from app.children import hold_port
from app.errors import CommandRejected, RunFailed, VerifyFailed
from tests.processes import ROOT

DAY_MS = 1_755_648_000_000  # 2025-08-20
INTERVAL_MS = 300_000
KILLS = """
setup: {workers: [all, all, all]}
faults:
  - {of: worker, what: kill, between_s: [1, 20], for_s: 2, times: 5}
  - {of: broker, what: pause, between_s: [5, 9], for_s: 3}
"""
CANDLES = """
setup: {brokers: embedded}
job: {range: "2025-08-20:2025-08-21", stages: [candles]}
"""


def test_the_same_seed_is_the_same_timeline_and_another_one_is_not() -> None:
    plan = parse(KILLS)
    assert timeline(plan, 7) == timeline(parse(KILLS), 7)
    assert timeline(plan, 7) != timeline(plan, 8)
    assert [action.at_s for action in timeline(plan, 7)] == sorted(action.at_s or 0 for action in timeline(plan, 7))


def test_times_and_workers_are_drawn_inside_what_the_plan_allows() -> None:
    for seed in range(50):
        kills = [action for action in timeline(parse(KILLS), seed) if action.of == "worker"]
        assert len(kills) == 5
        assert all(1 <= (kill.at_s or 0) <= 20 and kill.who in (0, 1, 2) for kill in kills)


def test_who_is_away_is_not_drawn_again_while_others_are_there() -> None:
    text = "setup: {workers: [all, all]}\nfaults: [{of: worker, what: kill, between_s: [1, 3], times: 2}]"
    for seed in range(50):
        first, second = timeline(parse(text), seed)
        assert {first.who, second.who} == {0, 1}


def test_a_role_is_drawn_among_its_workers() -> None:
    text = "setup: {workers: [control, store, store]}\nfaults: [{of: worker, what: kill, who: store, after_s: 1}]"
    assert {timeline(parse(text), seed)[0].who for seed in range(30)} == {1, 2}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("faults: [{of: worker, what: kil, after_s: 1}]", "faults[0].what: 'kil' is not known; allowed: kill, pause"),
        ("faults: [{of: moon, what: kill, after_s: 1}]", "faults[0].of: 'moon' is not known; allowed: worker, broker"),
        ("faults: [{of: worker, what: kill}]", "faults[0].after_s: say one of after_s, between_s and when"),
        ("faults: [{of: worker, what: kill, after_s: x}]", "faults[0].after_s: Expected `float"),
        ("faults: [{of: worker, what: kill, between_s: [3, 1]}]", "faults[0].between_s: seconds"),
        ("faults: [{of: worker, what: kill, after_s: 1, times: 2}]", "faults[0].times: 2"),
        ("faults: [{of: worker, what: kill, after_s: 1, who: 4}]", "faults[0].who: 4 is outside 0 .. 0"),
        ("faults: [{of: worker, what: pause, after_s: 1}]", "faults[0].for_s: say for how many seconds"),
        ("faults: [{of: broker, what: kill, after_s: 1}]", "faults[0].for_s: say for how many seconds"),
        ("faults: [{of: worker, what: kill, who: owner, after_s: 1}]", "faults[0].who: 'owner' is not known"),
        ("faults: [{of: worker, what: kill, when: {stp: x}}]", "faults[0].when.stp: is not known; known: step"),
        ("faults: [{of: worker, what: kill, when: {step: x}}]", "faults[0].when.step: 'x' is not known; allowed"),
        (
            "faults: [{of: exchange, what: behave, after_s: 1, behaviour: {name: rude}}]",
            "faults[0].behaviour: no behaviour is called 'rude'; known are",
        ),
        ("setup: {brokers: 2}", "setup.brokers: 2 is not known; allowed: 1, 3, embedded"),
        ("setup: {workers: [all, web]}", "setup.workers: `all` beside other roles"),
        ("setup: {brokers: embedded, workers: [all, all]}", "setup.workers: the embedded log serves one worker"),
        ("setup: {settings: {DATA_DIR: x}}", "setup.settings.DATA_DIR: 'DATA_DIR' is not known; allowed: "),
        ("job: {range: yesterday}", "job.range: 'yesterday' is not"),
        ("job: {interval: 7m}", "job.interval: '7m' is not known; allowed: 1m"),
        ("job: {stages: [nap]}", "job.stages: 'nap' is not known; allowed: candles, trades"),
        ("job: {symbol: DOGE}", "job.symbol: 'DOGE' is not known; allowed: BTCUSDT"),
        ("colour: red", "colour: is not known; known: about, setup"),
        ("faults: [", "plan: not YAML"),
    ],
)
def test_a_mistake_in_a_plan_names_its_field_and_what_is_allowed(text: str, sentence: str) -> None:
    with pytest.raises(CommandRejected) as told:
        parse(text)
    assert str(told.value).startswith(sentence)


def test_every_ready_plan_can_be_read_and_says_what_it_is_about() -> None:
    assert set(ready_plans()) == {
        "worker-kills", "broker-restart", "scale", "slow-store", "month", "month-brokers"
    }  # fmt: skip
    for name in ready_plans():
        plan = plans.read_plan(name)
        assert plan.about
        assert timeline(plan, 1)


def test_an_unknown_plan_is_answered_with_those_there_are() -> None:
    with pytest.raises(CommandRejected, match="worker-kills"):
        plans.read_plan("no-such-plan")


def test_a_step_that_has_come_so_far_is_noticed() -> None:
    when = When("loader-producer", "api_trades", 0.3)
    begun = {"target": "loader-producer", "type": "api_trades", "progress": 0.2}
    assert not has_reached(when, [begun, {**begun, "type": "api_candles_5m", "progress": 1.0}])
    assert has_reached(when, [begun, {**begun, "progress": 0.3}])
    assert has_reached(when, [{**begun, "finished": True}])


# --- the verdict


def test_rows_that_lack_are_lost_and_rows_that_nobody_sent_are_foreign() -> None:
    counts = Counts()
    counts.add("trades", np.array([1, 2, 3, 4]), np.array([1, 2, 4, 9]), doubled=2)
    assert (counts.expected, counts.stored, counts.lost, counts.doubled, counts.foreign) == (4, 4, 1, 2, 1)
    assert counts.examples == ["trades 3 is lost", "trades 9 is stored, the exchange has none"]


def test_what_the_exchange_has_is_known_by_its_seed() -> None:
    keys = expected_keys(parse(CANDLES), "candles_5m")
    assert keys.tolist() == list(range(DAY_MS, DAY_MS + 86_400_000, INTERVAL_MS))


def step(at_s: float, task: str, records: int = 0, status: str = "loading") -> tuple[float, dict[str, object]]:
    return at_s, {"status": status, "records_written": records, "extra": {"task": task}}


def test_a_run_is_back_when_every_step_at_work_has_moved_after_its_longest_standstill() -> None:
    seen = [step(t / 2, "load", t) for t in range(21)]  # every half second up to 10 s
    seen += [step(0.5, "store", 1), step(2.5, "store", 1), step(7.0, "store", 2), step(10.0, "store", 3)]
    kill, later = Injected("kill worker 0", 2.2), Injected("kill worker 1", 9.9)
    recoveries([kill, later], movements(sorted(seen, key=lambda found: found[0])))
    assert kill.recovered_s == pytest.approx(7.0 - 2.2)  # the same count again is no movement
    assert later.recovered_s == pytest.approx(0.1)


def test_a_run_that_never_moves_again_has_not_recovered() -> None:
    fault = Injected("kill worker 0", 1.0)
    recoveries([fault], movements([step(0.5, "load", 1), step(0.6, "store", 1), step(3.0, "store", 2)]))
    assert fault.recovered_s is None


def verdict(state: str = "finished", lost: int = 0, late: int = 0) -> Verdict:
    return Verdict("q", state, Counts(lost=lost), late, 0, 0, 0, 1.0, 0, [])


def test_a_clean_experiment_raises_nothing_and_each_other_one_its_own_exit_code() -> None:
    verdict().raise_if_not_clean()
    with pytest.raises(VerifyFailed, match="lost 1"):
        verdict(lost=1).raise_if_not_clean()
    with pytest.raises(VerifyFailed, match="late 3"):
        verdict(late=3).raise_if_not_clean()
    with pytest.raises(RunFailed, match="is running"):
        verdict("running", lost=1).raise_if_not_clean()


# --- a whole one, on the embedded log


def test_a_row_that_is_taken_out_of_the_store_is_found_as_lost(tmp_path: Path) -> None:
    def take_out(ground: Ground) -> None:
        store = SqliteStore(ground.store_path)
        try:
            assert store.delete_before("candles_5m", DAY_MS + INTERVAL_MS) == 1
        finally:
            store.close()

    found = conduct(parse(CANDLES), "candles", 1, tmp_path, lambda _: None, before_verify=take_out)
    assert (found.counts.lost, found.counts.expected, found.counts.doubled) == (1, 288, 0)
    with pytest.raises(VerifyFailed):
        found.raise_if_not_clean()


def test_a_locked_store_and_a_killed_exchange_are_come_through(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("""
setup: {brokers: embedded}
job: {range: "2025-08-20:2025-08-22"}
faults:
  - {of: exchange, what: behave, after_s: 0, behaviour: {name: slow, endpoint: aggTrades, times: 0, seconds: 0.05}}
  - {of: store, what: lock, after_s: 0.5, for_s: 1}
  - {of: worker, what: kill, when: {step: loader-producer, type: api_trades, progress: 0.3}, for_s: 0}
  - {of: exchange, what: kill, when: {step: loader-producer, type: api_trades, progress: 0.5}, for_s: 1}
""")
    done = subprocess.run(
        [sys.executable, "-m", "app", "chaos", str(plan), "--seed", "3", "--json", "--keep", str(tmp_path / "kept")],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["wrong"], found["left_out"], found["seed"]) == ("finished", 0, 0, 3)
    assert [fault["deed"] for fault in found["faults"]] == [
        "exchange shows slow", "lock store", "kill worker 0", "kill exchange",
    ]  # fmt: skip
    assert found["recovery_s"] is not None
    assert (tmp_path / "kept" / "worker-0.log").exists()


def test_an_experiment_without_an_end_in_time_is_a_run_that_failed(tmp_path: Path) -> None:
    text = CANDLES + "deadline_s: 0.5\nfaults: [{of: exchange, what: pause, after_s: 0, for_s: 60}]"
    found = conduct(parse(text), "paused", 1, tmp_path, lambda _: None)
    assert found.state == "running"
    with pytest.raises(RunFailed):
        found.raise_if_not_clean()


def test_a_held_port_is_a_servers_of_ours_and_nobody_elses() -> None:
    port, holder = hold_port()
    with holder:
        with socket.create_server(("127.0.0.1", port)):
            pass
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
