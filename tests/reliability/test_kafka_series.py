"""Faust on a real broker with the repair: series that lose without it. R16, R17, R18, R20, R22, R25 by table rows.

Short in the suite; CHAOS_REPEATS=20 (`make chaos`) makes each as long as the series that showed the losses, and
REPAIR=0 runs Faust as it is published, to see that they still show them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.kafka.local import Cluster
from tests.kafka import READY_WITHIN_S
from tests.machine import Stopwatch
from tests.reliability.kafka_series import FULL, REPEATS, Numbers, joins, kills, note, restarts

DOWN_S = float(os.environ.get("BROKER_DOWN_S", "5"))
SAME_KEY = int(os.environ.get("SAME_KEY_UPDATES", "1000000" if FULL else "6000"))
TABLE_ROWS = int(os.environ.get("TABLE_ROWS", "1000000" if FULL else "20000"))
RECOVERED_WITHIN_S = 5.0

pytestmark = pytest.mark.timeout(3600 if FULL else 900)


def test_repair_graceful_restarts_with_a_backlog_lose_and_repeat_nothing(kafka: Cluster, tmp_path: Path) -> None:
    restarts(Numbers(kafka.bootstrap, tmp_path), 22 if FULL else 2, 300).check()


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
def test_repair_kills_in_short_cycles_lose_and_double_nothing(kafka: Cluster, tmp_path: Path, store: str) -> None:
    kills(Numbers(kafka.bootstrap, tmp_path, store=store), 11 if FULL else 1, 1.5, 16_000 if FULL else 2_000).check()


def test_repair_on_three_brokers_restarts_and_kills_lose_nothing(
    kafka_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    three = kafka_cluster(3)
    restarts(Numbers(three.bootstrap, tmp_path, replication=3), 22 if FULL else 1, 300).check()
    if FULL:
        kills(Numbers(three.bootstrap, tmp_path, replication=3), 11, 1.5, 16_000).check()


def test_r16_no_commit_passes_a_slow_first_message_when_its_worker_is_killed(kafka: Cluster, tmp_path: Path) -> None:
    numbers = Numbers(kafka.bootstrap, tmp_path).prepare(2_000)
    for _ in range(REPEATS):
        with numbers.worker(SLOW_PLACE_S="3") as worker:
            worker.ready()
            time.sleep(1.5)  # it is at work on the first message, and the commit timer has passed
            worker.kill()
    numbers.outcome("R16 slow first message, kill -9", REPEATS, committed=numbers.finish()).check()


def test_r17_workers_that_join_and_leave_under_load_neither_skip_nor_reorder(kafka: Cluster, tmp_path: Path) -> None:
    numbers = Numbers(kafka.bootstrap, tmp_path)
    found = joins(numbers, REPEATS, 2, 300, 4_000 * REPEATS)
    found.check()
    assert not any(row.jumped for table in ("first", "second") for row in numbers.rows(table).values()), "order per key"


def test_r18_a_broker_that_restarts_is_found_again_and_consuming_goes_on(
    kafka_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = kafka_cluster()
    numbers = Numbers(cluster.bootstrap, tmp_path).prepare(4_000 * REPEATS)
    with numbers.worker(EVENT_S="0.001") as worker:
        worker.ready()
        for _ in range(REPEATS):
            numbers.until_advanced(300, worker)
            begun = time.monotonic()
            cluster.kill_node(1, signal.SIGKILL)
            cluster.start_node(1)
            cluster.wait_ready(READY_WITHIN_S)
            numbers.until_advanced(300, worker, since=begun)
        done = numbers.until_done(worker)
        worker.stop()
        assert len(worker.said().splitlines()) < 40 * REPEATS, f"an outage costs a few lines:\n{worker.said()}"
    numbers.outcome("R18 broker killed and started", REPEATS, committed=done).check()


def test_r20_a_recovery_that_is_broken_off_is_begun_again_and_ends(kafka: Cluster, tmp_path: Path) -> None:
    numbers = Numbers(kafka.bootstrap, tmp_path).prepare(3_000)
    assert numbers.finish()
    for seed in range(REPEATS):
        begun = time.monotonic()
        with numbers.worker() as worker:
            time.sleep(2.0 + (seed % 10) / 4)  # in the middle of its recovery, or just after it
            worker.kill()
        with numbers.worker() as worker:
            worker.ready()
            numbers.recovery_s.append(time.monotonic() - begun)
            worker.stop()
    numbers.outcome("R20 killed in mid-recovery", REPEATS, committed=numbers.finish()).check()


def test_r22_many_updates_of_one_key_are_counted_exactly(kafka: Cluster, tmp_path: Path) -> None:
    numbers = Numbers(kafka.bootstrap, tmp_path).prepare(SAME_KEY)
    begun = time.monotonic()
    with numbers.worker() as worker:
        worker.ready()
        numbers.until(lambda: numbers.end(numbers.middle) > SAME_KEY // 3, worker, patience_s=1800)
        worker.kill()
    done = numbers.finish()
    found = numbers.outcome(f"R22 updates of few keys, {time.monotonic() - begun:.0f} s", 1, committed=done)
    found.check()


def test_r25_a_broker_that_is_away_is_waited_for_and_drained_in_order(
    kafka_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = kafka_cluster()
    numbers = Numbers(cluster.bootstrap, tmp_path)
    with numbers.worker() as worker, numbers.producing() as produce:
        worker.ready()
        for _ in range(500):
            produce()
        numbers.until_advanced(1, worker)
        begun = time.monotonic()
        cluster.kill_node(1, signal.SIGKILL)
        for _ in range(2_000):
            produce()
        time.sleep(DOWN_S)  # how long it is away
        cluster.start_node(1)
        cluster.wait_ready(READY_WITHIN_S)
        numbers.until_advanced(1, worker, since=begun)
        numbers.until(lambda: numbers.end(numbers.numbers) == numbers.events, worker)
        done = numbers.until_done(worker)
        worker.stop()
    numbers.outcome(f"R25 broker away for {DOWN_S:g} s", 1, committed=done).check()
    assert not any(row.jumped for row in numbers.rows("second").values()), "in order"


def test_state_on_a_volume_of_its_own_is_ready_within_seconds_of_a_restart(kafka: Cluster, tmp_path: Path) -> None:
    numbers = Numbers(kafka.bootstrap, tmp_path, store="rocksdb")
    numbers.fill_table("first", TABLE_ROWS)
    with numbers.worker() as worker:
        first_s = worker.ready_after_s()
        worker.stop()
    watch = Stopwatch()
    with numbers.worker() as worker:
        again_s = worker.ready_after_s()
        allowed_s = watch.allowed_s(RECOVERED_WITHIN_S)
        worker.stop()
    note(f"{TABLE_ROWS} rows on rocksdb: first start {first_s:.1f} s, restart {again_s:.1f} s")
    assert again_s < allowed_s
