"""The log itself: placement, durability, compaction, retention, damage, ownership, the inbox and the reader."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from adapters.embedded_log.file import murmur2, positive_hash
from adapters.embedded_log.log import DEAD_LETTERS, Log, LogReader, Record, leave_in_inbox, owner_pid, partition_of
from app.errors import LogDamaged, LogFull, LogInUse, SetupRefused

EVERYTHING = {"max_records": 1_000_000, "max_bytes": 1 << 40}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log.open(path, retention_every_s=0.02)
    yield log
    log.close()


async def values(log: Log, topic: str, partition: int = 0, start: int = 0) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) for record in await log.read(topic, partition, start, **EVERYTHING)]


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


async def commits(log: Log) -> None:
    """Wait for the next thing the writer publishes."""
    published = asyncio.Event()
    end = log.listen(published.set)
    await asyncio.wait_for(published.wait(), 150)
    end()


def in_another_process(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


# Placement and order


@given(st.binary(max_size=40))
def test_the_hash_of_a_key_is_kafkas(key: bytes) -> None:
    assert murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF
    assert positive_hash(key) == kafka_murmur2(key) & 0x7FFFFFFF


async def test_a_key_stays_on_its_partition_and_offsets_are_dense_and_in_order(log: Log) -> None:
    log.ensure_topic("t", 4)
    keys = [b"binance:BTCUSDT", b"binance:ETHUSDT", b"x"]
    sent = [log.append("t", keys[number % 3], b"%d" % number) for number in range(600)]
    for number, done in enumerate(await asyncio.gather(*sent)):
        assert done.partition == partition_of(keys[number % 3], 4)
    for partition in range(4):
        records = await log.read("t", partition, 0, **EVERYTHING)
        assert [record.offset for record in records] == list(range(log.end("t", partition)))
        numbers = [int(record.value or b"") for record in records]
        assert numbers == sorted(numbers)
    assert sum(log.end("t", partition) for partition in range(4)) == 600


async def test_records_without_key_are_spread_evenly(log: Log) -> None:
    log.ensure_topic("t", 4)
    await asyncio.gather(*(log.append("t", None, b"") for _ in range(40)))
    assert [log.end("t", partition) for partition in range(4)] == [10] * 4


async def test_a_record_comes_back_as_it_was_sent(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("t", 3)
    headers = (("queue_id", b"q1"), ("empty", b""), ("queue_id", b"q2"))
    await log.append("t", b"k", None, partition=2, headers=headers, ts_ms=1_700_000_000_123)
    expected = [Record("t", 2, 0, 1_700_000_000_123, b"k", None, headers)]
    assert await log.read("t", 2, 0, **EVERYTHING) == expected
    log.close()
    reopened = Log.open(path)  # now off disk
    assert await reopened.read("t", 2, 0, **EVERYTHING) == expected
    reopened.close()


async def test_an_unknown_topic_or_partition_is_refused_at_once(log: Log) -> None:
    with pytest.raises(SetupRefused, match="'nowhere'"):
        log.append("nowhere", b"k", b"v")
    log.ensure_topic("t", 2)
    with pytest.raises(SetupRefused, match="0 to 1"):
        log.append("t", b"k", b"v", partition=2)
    log.ensure_topic("c", 1, compact=True)
    with pytest.raises(SetupRefused, match="without key"):
        log.append("c", None, b"v")


async def test_what_could_not_be_read_again_is_refused_at_once(log: Log) -> None:
    log.ensure_topic("t", 1)
    with pytest.raises(TypeError, match="value str, not bytes"):
        log.append("t", b"k", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="header 'queue_id' has a value of type str"):
        log.append("t", b"k", b"v", headers=[("queue_id", "q1")])  # type: ignore[list-item]
    assert (await log.append("t", b"k", b"v")).offset == 0


def test_another_partition_count_is_refused_and_the_same_changes_nothing(log: Log) -> None:
    log.ensure_topic("t", 4, compact=True)
    log.ensure_topic("t", 4)
    with pytest.raises(SetupRefused, match=r"has 4 partitions .* 8 are declared"):
        log.ensure_topic("t", 8)
    with pytest.raises(SetupRefused, match="stored compact"):
        log.ensure_topic("t", 4, compact=False)
    assert log.topics() == {"t": 4}


# Durability


async def test_positions_topics_and_records_outlive_the_process(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("t", 1, retention_ms=60_000)
    for number in range(10):
        log.append("t", b"k", b"%d" % number)
    await log.commit("group", {("t", 0): 7})
    log.close()
    log = Log.open(path)
    assert log.committed("group", "t", 0) == 7
    assert log.end("t", 0) == 10
    assert (await log.append("t", b"k", b"next")).offset == 10
    log.close()


async def test_a_barrier_covers_all_that_was_appended_before(log: Log) -> None:
    log.ensure_topic("t", 1)
    futures = [log.append("t", b"k", b"v" * 10_000) for _ in range(1000)]
    await log.barrier()
    assert all(future.done() for future in futures)


async def test_closing_writes_what_is_queued(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("t", 1)
    for _ in range(2000):
        log.append("t", b"k", b"v")
    log.close()
    assert not wal_of(path).exists()
    with LogReader(path) as reader:
        assert reader.ends() == {("t", 0): 2000}


async def test_a_cancelled_sender_harms_nobody(log: Log) -> None:
    log.ensure_topic("t", 1)
    cancelled, kept = log.append("t", b"k", b"1"), log.append("t", b"k", b"2")
    cancelled.cancel()
    assert (await kept).offset == 1


def test_a_loop_that_is_gone_harms_nobody(path: Path) -> None:
    log = Log.open(path, commit_delay_s=0.05)
    log.ensure_topic("t", 1)

    async def send_and_leave() -> None:
        log.append("t", b"k", b"v")

    async def look() -> None:
        await log.barrier()
        assert log.end("t", 0) == 1

    asyncio.run(send_and_leave())
    asyncio.run(look())
    log.close()


async def test_a_full_disk_fails_the_rest_and_keeps_what_was_acknowledged(path: Path) -> None:
    log = Log.open(path, max_pages=150)
    log.ensure_topic("t", 1)
    log.ensure_topic("c", 1, compact=True)
    sent = [log.append("t", b"k", b"%d" % number + b"v" * 1000) for number in range(1000)]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    acknowledged = sum(not isinstance(outcome, LogFull) for outcome in outcomes)
    assert acknowledged < 1000
    assert "cannot grow" in str(outcomes[-1])
    with pytest.raises(LogFull):  # nothing is accepted any more, however small
        await log.append("c", b"k", b"v")
    with pytest.raises(LogFull):
        await log.commit("group", {("t", 0): 1})
    with pytest.raises(LogFull):
        await log.barrier()
    assert log.committed("group", "t", 0) is None
    log.close()
    log = Log.open(path)
    stored = await values(log, "t")
    assert [int((value or b"").split(b"v")[0]) for _, value in stored] == list(range(acknowledged))
    assert (await log.append("t", b"k", b"room again")).offset == acknowledged
    log.close()


async def test_nothing_is_visible_before_its_commit(path: Path) -> None:
    log = Log.open(path, commit_delay_s=0.05)
    log.ensure_topic("t", 1)
    sent = log.append("t", b"k", b"v")
    assert log.end("t", 0) == 0
    assert log.read_memory("t", 0, 0, **EVERYTHING) == []
    await sent
    assert log.end("t", 0) == 1
    log.close()


# Bounded memory


async def test_memory_is_bounded_over_all_partitions_and_disk_has_the_rest(path: Path) -> None:
    log = Log.open(path, tail_bytes=1_000_000)
    log.ensure_topic("t", 4)
    sent = [(number % 4, b"%d" % number + b"." * 1000) for number in range(2000)]
    for partition, value in sent:
        log.append("t", None, value, partition=partition)
    await log.barrier()
    for partition in range(4):
        assert log.read_memory("t", partition, 0, **EVERYTHING) is None
        wanted = list(enumerate(value for p, value in sent if p == partition))
        assert await values(log, "t", partition) == wanted
        newest = log.read_memory("t", partition, log.end("t", partition) - 1, **EVERYTHING)
        assert newest is not None
        assert [(record.offset, record.value) for record in newest] == wanted[-1:]
    held = sum(
        len(record.value or b"")
        for t in log._memory.topics.values()
        for p in t.partitions
        for record in p.tail
        if record
    )
    assert held <= 1_000_000
    log.close()


async def test_a_read_is_bounded_by_records_and_by_bytes(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("t", 1)
    for _ in range(50):
        log.append("t", b"k", b"v" * 99)
    await log.barrier()
    for _ in range(2):  # out of memory, then off disk
        assert len(await log.read("t", 0, 5, max_records=7, max_bytes=1 << 20)) == 7
        assert len(await log.read("t", 0, 0, max_records=50, max_bytes=1000)) == 10
        assert len(await log.read("t", 0, 0, max_records=50, max_bytes=1)) == 1
        log.close()
        log = Log.open(path)
    log.close()


# Compact topics


async def test_a_compact_topic_keeps_the_newest_record_of_each_key(log: Log) -> None:
    log.ensure_topic("c", 1, compact=True)
    for number in range(3000):
        log.append("c", b"key%d" % (number % 7), b"%d" % number)
    await log.barrier()
    assert log.end("c", 0) == 3000
    assert await values(log, "c") == [(number, b"%d" % number) for number in range(2993, 3000)]
    assert await log.start("c", 0) == 2993


async def test_a_tombstone_stays_only_while_it_is_the_last_record(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("c", 1, compact=True)
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", None), (b"b", None)):
        await log.append("c", key, value)
    assert await values(log, "c") == [(3, None)]
    log.close()
    log = Log.open(path)  # knows its last tombstone again
    assert log.end("c", 0) == 4
    assert await values(log, "c") == [(3, None)]
    await log.append("c", b"c", b"3")
    assert await values(log, "c") == [(4, b"3")]
    log.close()


# Retention


async def wait_for_start(log: Log, topic: str, start: int) -> None:
    for _ in range(500):
        if await log.start(topic, 0) == start:
            return
        await asyncio.sleep(0.01)  # retention tells nobody: it takes nothing that anybody waits for
    raise AssertionError(f"{topic} starts at {await log.start(topic, 0)}, not at {start}")


async def test_retention_takes_the_old_and_never_what_a_group_still_needs(log: Log) -> None:
    log.ensure_topic("t", 1, retention_ms=60_000)
    log.ensure_topic("kept", 1)
    await log.register_group("group", ["t"])
    now_ms = int(time.time() * 1000)
    for number in range(10):
        log.append("t", b"k", b"%d" % number, ts_ms=now_ms - (3_600_000 if number < 6 else 0))
        log.append("kept", b"k", b"%d" % number, ts_ms=0)
    await log.barrier()
    await asyncio.sleep(0.1)
    assert await log.start("t", 0) == 0, "the group has committed nothing, so it needs everything"
    await log.commit("group", {("t", 0): 4})
    await wait_for_start(log, "t", 4)
    await log.commit("group", {("t", 0): 10})
    await wait_for_start(log, "t", 6)
    with LogReader(log.path) as reader:
        assert [record.offset for record in reader.records("t")] == [6, 7, 8, 9]
        assert len(list(reader.records("kept"))) == 10


async def test_an_emptied_partition_goes_on_at_its_offset(path: Path) -> None:
    log = Log.open(path, retention_every_s=0.02)
    log.ensure_topic("t", 1, retention_ms=1000)
    for _ in range(5):
        log.append("t", b"k", b"v", ts_ms=1)
    await wait_for_start(log, "t", 5)
    log.close()
    log = Log.open(path)
    assert (await log.start("t", 0), log.end("t", 0)) == (5, 5)
    assert (await log.append("t", b"k", b"v")).offset == 5
    assert await values(log, "t") == [(5, b"v")]
    log.close()


async def test_retention_goes_through_a_long_past_in_slices(log: Log) -> None:
    log.ensure_topic("t", 1, retention_ms=1000)
    for _ in range(5000):
        log.append("t", b"k", b"v", ts_ms=1)
    await wait_for_start(log, "t", 5000)


# Damage and ownership


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"precious notes\n" * 500)
    with pytest.raises(LogDamaged, match="cannot be read as a log"):
        Log.open(path)
    assert path.read_bytes() == b"precious notes\n" * 500
    assert owner_pid(path) is None


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")
    before = path.read_bytes()
    with pytest.raises(LogDamaged, match="not a StreamForge log"):
        Log.open(path)
    with pytest.raises(LogDamaged, match="not a StreamForge log"):
        leave_in_inbox(path, "t", b"k", b"v")
    assert path.read_bytes() == before


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    Log.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LogDamaged, match=r"newer StreamForge \(schema 99"):
        Log.open(path)
    with pytest.raises(LogDamaged, match="newer"):
        LogReader(path)


def overwrite_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(20, path.stat().st_size // 4096 - 5):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


async def test_a_damaged_page_is_an_error_and_not_a_hole(path: Path) -> None:
    log = Log.open(path)
    log.ensure_topic("t", 1)
    for number in range(2000):
        log.append("t", b"k", b"%d" % number * 100)
    log.close()
    overwrite_the_middle(path)
    log = Log.open(path)
    with pytest.raises(LogDamaged, match="cannot be read"):
        await values(log, "t")
    log.close()
    with LogReader(path) as reader, pytest.raises(LogDamaged):
        list(reader.records("t"))


def test_a_second_process_is_told_who_owns_the_log(path: Path) -> None:
    assert owner_pid(path) is None
    log = Log.open(path)
    assert owner_pid(path) == os.getpid()
    attempt = (
        "import sys\nfrom adapters.embedded_log.log import Log\nfrom app.errors import LogInUse\n"
        "try: Log.open(sys.argv[1])\nexcept LogInUse as error: print(error)"
    )
    assert f"in use by process {os.getpid()}" in in_another_process(attempt, path)
    log.close()
    assert in_another_process(attempt, path) == ""
    assert owner_pid(path) is None


def test_one_process_shares_one_log(path: Path) -> None:
    first = Log.open(path)
    path.with_name("alias.db").symlink_to(path)
    second = Log.open(path.with_name("alias.db"))
    assert first is second
    first.close()
    assert owner_pid(path) == os.getpid()
    second.close()
    assert owner_pid(path) is None


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(SetupRefused, match="absolute"):
        Log.open("x.db")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupRefused, match="cannot be made"):
        Log.open(tmp_path / "file" / "log.db")
    with pytest.raises(SetupRefused, match="cannot be opened"):
        Log.open(tmp_path)


# The inbox


async def test_a_record_left_before_the_log_exists_arrives_with_its_topic(path: Path) -> None:
    leave_in_inbox(path, "queue-control", b"k", b'{"command":"start"}', [("a", b"1")])
    log = Log.open(path)
    log.ensure_topic("queue-control", 1)
    while not log.end("queue-control", 0):
        await commits(log)
    (record,) = await log.read("queue-control", 0, 0, **EVERYTHING)
    assert (record.key, record.value, record.headers) == (b"k", b'{"command":"start"}', (("a", b"1"),))
    log.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM inbox").fetchone() == (0,)


async def test_records_of_another_process_arrive_in_order_beside_the_owners_own(log: Log) -> None:
    log.ensure_topic("t", 1)
    for number in range(600):
        leave_in_inbox(log.path, "t", b"k", b"%d" % number)
        if number % 20 == 0:
            log.append("t", b"k", b"own")
    while log.end("t", 0) < 630:
        await commits(log)
    found = [value for _, value in await values(log, "t")]
    assert [value for value in found if value != b"own"] == [b"%d" % number for number in range(600)]


async def test_an_inbox_record_nobody_takes_waits_and_then_shows_in_the_dead_letters(log: Log) -> None:
    log.ensure_topic("c", 1, compact=True)
    leave_in_inbox(log.path, "nowhere", b"k", b"lost?")
    leave_in_inbox(log.path, "c", None, b"no key")
    log.ensure_topic("t", 1)
    leave_in_inbox(log.path, "t", b"k", b"fine")
    while not log.end("t", 0):
        await commits(log)
    log.ensure_topic(DEAD_LETTERS, 1)
    while log.end(DEAD_LETTERS, 0) < 2:
        await commits(log)
    lost, keyless = await log.read(DEAD_LETTERS, 0, 0, **EVERYTHING)
    assert (lost.key, lost.value, dict(lost.headers)["topic"]) == (b"k", b"lost?", b"nowhere")
    assert (keyless.value, dict(keyless.headers)["topic"]) == (b"no key", b"c")
    assert b"does not take it" in dict(lost.headers)["reason"]


# The reader beside the owner


async def test_the_reader_sees_what_is_committed_and_never_holds_the_owner_up(log: Log) -> None:
    log.ensure_topic("b", 2)
    log.ensure_topic("a", 1, compact=True)
    for number in range(1500):
        log.append("b", None, b"%d" % number, partition=number % 2)
        log.append("a", b"k%d" % (number % 3), b"%d" % number)
    await log.commit("group", {("b", 1): 3})
    with LogReader(log.path) as reader:
        assert reader.topics() == {"a": 1, "b": 2}
        assert reader.ends() == {("a", 0): 1500, ("b", 0): 750, ("b", 1): 750}
        assert reader.committed() == {("group", "b", 1): 3}
        assert [record.offset for record in reader.records("b", 1, start=700)] == list(range(700, 750))
        assert [record.offset for record in reader.records("a")] == [1497, 1498, 1499]
        halfway = reader.records("b")
        assert [next(halfway).offset for _ in range(3)] == [0, 1, 2]
        await log.append("b", None, b"more", partition=0)
        with closing(apsw.Connection(str(log.path))) as db:  # an open read would keep the WAL from folding in
            db.execute("SELECT count(*) FROM topics").get  # noqa: B018 (a new connection learns here of the WAL)
            assert db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE) == (0, 0)
        assert len(list(halfway)) == 747 + 750, "up to the end that was there when the partition's turn came"
        with pytest.raises(SetupRefused, match="it has: a, b"):
            next(reader.records("nowhere"))


def test_reading_a_log_that_is_not_there_says_so(path: Path) -> None:
    with pytest.raises(SetupRefused, match="there is no log"):
        LogReader(path)


def test_a_log_in_use_is_a_setup_that_was_refused() -> None:
    assert issubclass(LogInUse, SetupRefused)
