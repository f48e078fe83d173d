"""Workers on the embedded log that are killed, stopped, starved of disk and started twice. Judged by table rows.

EMBEDDED_KILLS sets how many kills and stops a series has (default 2; the full series is 12).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.embedded_log.log import LogReader, leave_in_inbox, owner_pid
from adapters.faust_repair import SEND_FAILED_EXIT
from tests.reliability.embedded_app import APP_ID, KEYS, PARTITIONS, expected_rows, prepare, rows

ROOT = Path(__file__).parents[2]
SERIES = int(os.environ.get("EMBEDDED_KILLS", "2"))
STEP = 500  # events processed between two kills, at least
EVENTS = 2 * STEP * (SERIES + 1)
PATIENCE_S = 300.0


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def worker(path: Path, **environment: str):
    return process("-m", "tests.reliability.embedded_app", str(path), **environment)


def until(condition: Callable[[], bool], child: subprocess.Popen[bytes] | None = None) -> None:
    """Another process makes it true; there is nothing to wait on but its log."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if child is not None and child.poll() is not None:
            raise AssertionError(f"the worker ended with {child.returncode}: {child.stderr.read().decode()[-2000:]}")
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.02)


def wait_ready(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline().endswith(b"ready\n")


def processed(path: Path, topic: str = "middle") -> int:
    with LogReader(path) as reader:
        return sum(
            offset for (group, name, _), offset in reader.committed().items() if (group, name) == (APP_ID, topic)
        )


def until_advanced(path: Path, child: subprocess.Popen[bytes]) -> None:
    goal = min(processed(path) + STEP, EVENTS)
    until(lambda: processed(path) >= goal, child)


def finish(path: Path, events: int) -> None:
    """Let a worker process what is left, and stop it."""
    with worker(path) as child:
        wait_ready(child)
        until(lambda: last_places(path, "second") == expected_rows(events), child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


def last_places(path: Path, table: str) -> dict[bytes, int]:
    return {key: row.last for key, row in rows(path, table).items()}


def assert_nothing_jumped(path: Path, events: int) -> None:
    for table in ("first", "second"):
        assert last_places(path, table) == expected_rows(events)
        assert {key: row.jumped for key, row in rows(path, table).items()} == dict.fromkeys(KEYS, 0)


def test_no_event_is_lost_over_kills(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    prepare(path, EVENTS)
    for _ in range(SERIES):
        with worker(path) as child:
            until_advanced(path, child)
            child.kill()
    finish(path, EVENTS)
    assert_nothing_jumped(path, EVENTS)
    with LogReader(path) as reader:
        for partition in range(PARTITIONS):
            offsets = [record.offset for record in reader.records("middle", partition)]
            assert offsets == list(range(len(offsets)))


def test_a_stop_under_backlog_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    prepare(path, EVENTS)
    for _ in range(SERIES):
        with worker(path) as child:
            wait_ready(child)
            until_advanced(path, child)
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE_S) == 0
    finish(path, EVENTS)
    assert_nothing_jumped(path, EVENTS)
    for table in ("first", "second"):
        assert {key: row.repeats for key, row in rows(path, table).items()} == dict.fromkeys(KEYS, 0)


def test_no_offset_is_committed_without_its_changelog_row(tmp_path: Path) -> None:
    """F-3: the writer takes 0.4 s per commit, so thousands of rows wait in its queue when the kill comes."""
    path, events = tmp_path / "log.db", 1_000
    prepare(path, events)
    with worker(path, COMMIT_DELAY_S="0.4") as child:
        until(lambda: processed(path, "numbers") > 300, child)
        child.kill()
    with LogReader(path) as reader:
        committed = {part: offset for (_, topic, part), offset in reader.committed().items() if topic == "numbers"}
        last_row = {key: row.last for key, row in rows(path, "first").items()}
        for partition, offset in committed.items():
            for record in reader.records("numbers", partition):
                if record.offset < offset:
                    assert last_row[record.key] >= int(record.value)
    finish(path, events)
    assert_nothing_jumped(path, events)


ACKNOWLEDGER = """
import asyncio, sys
from adapters.embedded_log.log import Log
async def main():
    log = Log.open(sys.argv[1]); log.ensure_topic("t", 3)
    places = [log.end("t", p) for p in range(3)]
    number = sum(places)
    while True:
        futures = [log.append("t", b"k%d" % (n % 50), b"%d" % n) for n in range(number, number + 40)]
        number += 40
        for future in futures:
            done = await future
            print(done.partition, done.offset, flush=True)
asyncio.run(main())
"""


def test_every_acknowledged_record_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged: set[tuple[int, int]] = set()
    for _ in range(SERIES):
        with process("-c", ACKNOWLEDGER, str(path)) as child:
            assert child.stdout is not None
            for _ in range(500):
                partition, offset = child.stdout.readline().split()
                acknowledged.add((int(partition), int(offset)))
            child.kill()
            for line in child.stdout.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    partition, offset = line.split()
                    acknowledged.add((int(partition), int(offset)))
    with LogReader(path) as reader:
        stored = [(record.partition, record.offset) for record in reader.records("t")]
        ends = reader.ends()
    assert acknowledged <= set(stored)
    assert sorted(stored) == [(p, offset) for p in range(3) for offset in range(ends["t", p])]


def test_a_second_worker_gets_one_line_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    prepare(path, 24)
    with worker(path) as first:
        until(lambda: processed(path) == 24, first)
        with worker(path) as second:
            _, said = second.communicate(timeout=PATIENCE_S)
        assert second.returncode not in (0, None)
        lines = said.decode().strip().splitlines()
        assert len(lines) == 1, lines
        assert f"in use by process {first.pid}" in lines[0]
        leave_in_inbox(path, "numbers", KEYS[0], b"2")
        until(lambda: last_places(path, "second")[KEYS[0]] == 2, first)
        assert owner_pid(path) == first.pid
        first.kill()
        first.wait()
        assert owner_pid(path) is None
    finish(path, 25)


def test_an_inbox_record_arrives_exactly_once_over_kills(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    sent = 0
    prepare(path, 0)
    for number in range(SERIES):
        for _ in range(20):  # while nobody runs
            leave_in_inbox(path, "numbers", KEYS[0], b"%d" % sent)
            sent += 1
        with worker(path) as child:
            for _ in range(20):  # beside the worker
                leave_in_inbox(path, "numbers", KEYS[0], b"%d" % sent)
                sent += 1
            until(lambda: ends(path, "numbers") > 0, child)
            if number % 2:
                until(lambda total=sent: ends(path, "numbers") == total, child)
            child.kill()
    with worker(path) as child:
        until(lambda: ends(path, "numbers") >= sent, child)
    with LogReader(path) as reader:
        assert [int(record.value) for record in reader.records("numbers")] == list(range(sent))


def ends(path: Path, topic: str) -> int:
    with LogReader(path) as reader:
        return sum(end for (name, _), end in reader.ends().items() if name == topic)


def test_a_full_disk_ends_the_worker_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path, events = tmp_path / "log.db", 6_000
    prepare(path, events)
    pages = path.stat().st_size // 4096 + 20  # 80 kB more: a third of what comes
    with worker(path, MAX_PAGES=str(pages)) as child:
        _, said = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == SEND_FAILED_EXIT
    assert b"cannot grow" in said
    assert processed(path, "numbers") < events
    finish(path, events)
    assert_nothing_jumped(path, events)
