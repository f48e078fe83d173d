"""A Kafka-like log in one SQLite file: topics, partitions, offsets, committed positions. No Faust here.

    append -> writer thread -> COMMIT -> future done, memory tail, highwater, readers woken

Promise: a record whose future is done survives kill -9 of the process (not necessarily a power cut); nothing is
visible to a reader before it is committed; offsets of a partition are dense and in the order of the appends.
When the file takes no more, every open and later future fails and nothing is accepted any more.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

import apsw
import msgspec

from adapters.embedded_log.file import (
    OFFSET_BITS,
    Lock,
    Record,
    TopicSpec,
    absolute,
    bounds,
    damage_as_sentence,
    load_topics,
    make_folder,
    open_for_reading,
    open_for_writing,
    owner_pid,
    pack_headers,
    partition_of,
    read_slice,
    unpack_headers,
)
from adapters.embedded_log.reader import LogReader, leave_in_inbox
from app.errors import LogDamaged, LogFull, LogInUse, SetupRefused, StreamForgeError

__all__ = ["DEAD_LETTERS", "Appended", "Log", "LogReader", "Record", "leave_in_inbox", "owner_pid", "partition_of"]

DEAD_LETTERS = "dead-letters"

DRAIN_RECORDS = 256  # per commit: larger drains made commits of up to a second
DRAIN_BYTES = 1 << 20
TAIL_BYTES = 32 << 20  # newest records in memory, all partitions together
RECORD_OVERHEAD_BYTES = 250  # what a small record costs in memory beside its bytes
IN_FLIGHT_BYTES = 32 << 20  # appended, not yet committed: beyond it `room` waits
LOCK_PATIENCE_S = 0.5  # a look at the lock by `owner_pid` holds it for an instant
INBOX_EVERY_S = 0.1
INBOX_SLICE = 256
RETENTION_EVERY_S = 30.0
RETENTION_SLICE = 2_000  # rows per transaction: 4 ms
CLOSE_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)

_INSERT = "INSERT INTO m(id, ts, k, v, h) VALUES (?, ?, ?, ?, ?)"
_UPSERT = (
    "INSERT INTO c(pid, k, off, ts, v, h) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(pid, k) DO UPDATE SET"
    " off = excluded.off, ts = excluded.ts, v = excluded.v, h = excluded.h"
)
_COMMIT_OFFSET = (
    "INSERT INTO committed(grp, topic, part, off) VALUES (?, ?, ?, ?)"
    " ON CONFLICT(grp, topic, part) DO UPDATE SET off = excluded.off"
)


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a record went: the result of an append's future."""

    topic: str
    partition: int
    offset: int
    ts_ms: int


_TAKEABLE = (  # what no topic takes waits until there are dead letters
    "SELECT id, topic, k, v, h FROM inbox WHERE ? OR EXISTS"
    " (SELECT 1 FROM topics WHERE name = inbox.topic AND (NOT compact OR inbox.k IS NOT NULL)) ORDER BY id LIMIT ?"
)

_R = TypeVar("_R")
_InboxRow = tuple[str, bytes | None, bytes | None, bytes | None]  # topic, key, value, packed headers

Done = Callable[[Appended | None, StreamForgeError | None], None]


class Partition:
    """A partition in memory. `end`: next offset readers may see; `next`: next offset the writer will give.

    `tail`: the newest records, `tail_first` the offset of the first one still there (`end` when there is none).
    """

    __slots__ = ("base", "compact", "end", "next", "number", "pid", "skipped", "start", "tail", "tail_first",
                 "tombstone", "topic")  # fmt: skip

    def __init__(self, spec: TopicSpec, number: int, start: int, end: int) -> None:
        self.topic, self.number, self.compact = spec.name, number, spec.compact
        self.pid = spec.first_id + number
        self.base = self.pid << OFFSET_BITS
        self.start, self.end, self.next = start, end, end
        self.tail: list[Record | None] = []
        self.tail_first, self.skipped = end, 0
        self.tombstone: int | None = None  # offset of a tombstone that is kept only because it is the last record

    def extend_tail(self, records: list[Record]) -> None:
        self.tail.extend(records)
        self.end = records[-1].offset + 1

    def forget_oldest(self, count: int) -> None:
        self.tail[self.skipped : self.skipped + count] = [None] * count
        self.skipped += count
        self.tail_first += count
        if self.skipped * 2 > len(self.tail):
            del self.tail[: self.skipped]
            self.skipped = 0


class _Topic:
    __slots__ = ("next_keyless", "partitions", "spec")

    def __init__(self, spec: TopicSpec, partitions: list[Partition]) -> None:
        self.spec, self.partitions, self.next_keyless = spec, partitions, 0

    def place(self, key: bytes | None, partition: int | None) -> Partition:
        """Raises SetupRefused for a partition that is not there."""
        if partition is not None:
            if not 0 <= partition < len(self.partitions):
                raise SetupRefused(
                    f"topic {self.spec.name} has partitions 0 to {len(self.partitions) - 1}, not {partition}"
                )
            return self.partitions[partition]
        if key is None:
            self.next_keyless = (self.next_keyless + 1) % len(self.partitions)
            return self.partitions[self.next_keyless]
        return self.partitions[partition_of(key, len(self.partitions))]


class _Append:
    __slots__ = ("done", "headers", "key", "loop", "part", "size", "ts_ms", "value")

    def __init__(
        self, part: Partition, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]],
        ts_ms: int, loop: asyncio.AbstractEventLoop | None, done: Done,
    ) -> None:  # fmt: skip
        self.part, self.key, self.value, self.headers, self.ts_ms = part, key, value, headers, ts_ms
        self.loop, self.done = loop, done
        self.size = len(key or b"") + len(value or b"") + RECORD_OVERHEAD_BYTES


class _Task:
    """Work for the writer inside its transaction; its future is done after the COMMIT."""

    __slots__ = ("after", "future", "inside")

    def __init__(
        self, inside: Callable[[apsw.Connection], None] | None, after: Callable[[], None] | None = None
    ) -> None:
        self.inside, self.after = inside, after
        self.future: Future[None] = Future()


class _Stop:
    __slots__ = ()


class Log:
    """The one writer of a log file, shared by everything in this process that opens the same real path.

    Methods are called from event loops, except `open`, `close` and `ensure_topic`, which block briefly.
    """

    _shared: ClassVar[dict[Path, Log]] = {}  # one registry per process is the point
    _sharing: ClassVar = threading.RLock()

    @classmethod
    def open(
        cls, path: str | Path, *, synchronous: str = "normal", max_pages: int | None = None,
        tail_bytes: int = TAIL_BYTES, retention_every_s: float = RETENTION_EVERY_S, commit_delay_s: float = 0.0,
    ) -> Self:  # fmt: skip
        """The log at an absolute path; opened once per process, closed by as many `close` as there were `open`.

        `synchronous="full"` survives a power cut too, for 0.3 ms per commit. `max_pages` of 4 kB bounds the file.
        `commit_delay_s` slows every commit (tests). Raises LogInUse, LogDamaged, SetupRefused.
        """
        real = absolute(path)
        with cls._sharing:
            log = cls._shared.get(real)
            if log is None:
                log = cls._shared[real] = cls(
                    real, synchronous, max_pages, tail_bytes, retention_every_s, commit_delay_s
                )
            log._users += 1
            return log  # type: ignore[return-value]

    def __init__(
        self, path: Path, synchronous: str, max_pages: int | None, tail_bytes: int, retention_every_s: float,
        commit_delay_s: float,
    ) -> None:  # fmt: skip
        self.path = path
        self._users = 0
        self._tail_limit, self._retention_every_s, self._commit_delay_s = tail_bytes, retention_every_s, commit_delay_s
        self._lock_file = _own(path)
        try:
            self._db = open_for_writing(path)
            self._db.pragma("synchronous", synchronous)
            self._db.pragma("wal_autocheckpoint", 1000)
            if max_pages is not None:
                self._db.pragma("max_page_count", max_pages)
            with damage_as_sentence(path):
                self._topics = {name: self._load(spec) for name, spec in load_topics(self._db).items()}
                self._committed: dict[tuple[str, str, int], int] = {
                    (group, topic, part): offset
                    for group, topic, part, offset in self._db.execute("SELECT grp, topic, part, off FROM committed")
                }
                self._groups: set[tuple[str, str]] = set(self._db.execute("SELECT grp, topic FROM groups"))
            self._reader_db = open_for_reading(path)
        except BaseException:
            self._lock_file.release()
            raise
        self.failure: StreamForgeError | None = None
        self._queue: queue.SimpleQueue[_Append | _Task | _Stop] = queue.SimpleQueue()
        self._guard = threading.Lock()  # tails, listeners and counters; held for microseconds
        self._in_flight_bytes = 0
        self._chunks: deque[tuple[Partition, int, int]] = deque()  # (partition, records, bytes), oldest first
        self._tail_bytes = 0
        self._listeners: dict[asyncio.AbstractEventLoop, set[Callable[[], None]]] = defaultdict(set)
        self._seen_version = -1
        self._inbox_due = self._retention_due = 0.0
        self._retention_from = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="log-reader")
        self._writer = threading.Thread(target=self._write_until_stopped, name="log-writer", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Give the log back; the last user's `close` writes what is queued, folds the WAL in and frees the lock."""
        with self._sharing:
            self._users -= 1
            if self._users > 0:
                return
            self._shared.pop(self.path, None)
            self._queue.put(_Stop())
            self._writer.join(CLOSE_TIMEOUT_S)
            self._reader.shutdown(wait=True)
            self._reader_db.close()
            self._db.close()
            self._lock_file.release()

    # Topics

    def ensure_topic(
        self, name: str, partitions: int, compact: bool | None = None, retention_ms: int | None = None
    ) -> None:
        """Create the topic unless it is there. `compact`: only the newest record of each key is kept (changelogs).

        A reader of a compact topic that is behind sees the newest record per key, not the ones it replaced.
        Raises SetupRefused when it is there with another number of partitions or another `compact` (None: any).
        """
        known = self._topics.get(name)
        if known is None:
            self._wait(_Task(*self._creating(name, partitions, bool(compact), retention_ms)))
            return
        spec = known.spec
        if spec.partitions != partitions:
            raise SetupRefused(
                f"topic {name} has {spec.partitions} partitions in {self.path}, {partitions} are declared: keys would"
                " move. Declare the stored number, or start with a new log"
            )
        if compact is not None and spec.compact != compact:
            raise SetupRefused(
                f"topic {name} is stored {'compact' if spec.compact else 'whole'} in {self.path}, declared otherwise:"
                " declare it as stored, or start with a new log"
            )
        if retention_ms is not None and retention_ms != spec.retention_ms:
            known.spec = msgspec.structs.replace(spec, retention_ms=retention_ms)
            self._wait(
                _Task(lambda db: _run(db, "UPDATE topics SET retention_ms = ? WHERE name = ?", (retention_ms, name)))
            )

    def topics(self) -> dict[str, int]:
        """Partition count by topic name."""
        return {name: topic.spec.partitions for name, topic in self._topics.items()}

    def partitions(self, topic: str) -> int | None:
        known = self._topics.get(topic)
        return known.spec.partitions if known else None

    def is_compact(self, topic: str) -> bool:
        return self._topic(topic).spec.compact

    # Writing

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (), ts_ms: int | None = None,
    ) -> asyncio.Future[Appended]:  # fmt: skip
        """Queue a record; the future is done when it is on disk. Same key, same partition as on Kafka.

        Raises SetupRefused for an unknown topic or partition; the future fails with LogFull or LogDamaged.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self.append_then(
            topic, key, value, partial(_resolve, future), partition=partition, headers=headers, ts_ms=ts_ms
        )
        return future

    def append_then(
        self, topic: str, key: bytes | None, value: bytes | None, done: Done, *, partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (), ts_ms: int | None = None,
    ) -> None:  # fmt: skip
        """`append` that calls `done(appended, None)` or `done(None, error)` on this loop instead of a future."""
        loop = asyncio.get_running_loop()
        part = self._topic(topic).place(key, partition)
        if part.compact and key is None:
            raise SetupRefused(f"topic {topic} keeps one record per key: a record without key cannot go there")
        op = _Append(part, key, value, headers, time.time_ns() // 1_000_000 if ts_ms is None else ts_ms, loop, done)
        if self.failure is not None:
            loop.call_soon(done, None, self.failure)
            return
        with self._guard:
            self._in_flight_bytes += op.size
        self._queue.put(op)

    @property
    def in_flight_bytes(self) -> int:
        """Appended and not yet committed."""
        return self._in_flight_bytes

    async def room(self, limit_bytes: int = IN_FLIGHT_BYTES) -> None:
        """Wait until fewer than `limit_bytes` are in flight: the back-pressure of whoever appends."""
        while self._in_flight_bytes >= limit_bytes and self.failure is None:
            await self.barrier()

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything appended before is on disk. Fails with LogFull, LogDamaged."""
        return self._submit(_Task(None))

    # Positions

    def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> asyncio.Future[None]:
        """Store the next offset to process per (topic, partition), after everything appended before."""
        rows = [(group, topic, partition, offset) for (topic, partition), offset in offsets.items()]

        def remember() -> None:
            self._committed.update({(group, topic, part): offset for group, topic, part, offset in rows})

        return self._submit(_Task(lambda db: _run_many(db, _COMMIT_OFFSET, rows), remember))

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        return self._committed.get((group, topic, partition))

    def register_group(self, group: str, topics: Iterable[str]) -> asyncio.Future[None]:
        """Retention keeps what a registered group has not committed yet."""
        new = [(group, topic) for topic in topics if (group, topic) not in self._groups]
        return self._submit(
            _Task(
                lambda db: _run_many(db, "INSERT OR IGNORE INTO groups(grp, topic) VALUES (?, ?)", new),
                lambda: self._groups.update(new),
            )
        )

    def end(self, topic: str, partition: int) -> int:
        """The high-water mark: the offset the next visible record will have."""
        return self._partition(topic, partition).end

    async def start(self, topic: str, partition: int) -> int:
        """First kept offset; equal to `end` when the partition is empty."""
        part = self._partition(topic, partition)
        if not part.compact:
            return part.start
        return (await self._off_loop(self._bounds_now, part))[0]

    # Reading

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` on the running loop after every commit, and on failure; returns what ends that."""
        loop = asyncio.get_running_loop()
        with self._guard:
            self._listeners[loop].add(callback)

        def end() -> None:
            with self._guard:
                self._listeners[loop].discard(callback)
                if not self._listeners[loop]:
                    del self._listeners[loop]

        return end

    def read_memory(
        self, topic: str, partition: int, start: int, *, max_records: int, max_bytes: int
    ) -> list[Record] | None:
        """Records from `start` out of memory; None when they are on disk only (`read` has them)."""
        part = self._partition(topic, partition)
        with self._guard:
            if start >= part.end:
                return []
            if part.compact or start < part.tail_first:
                return None
            first = start - part.tail_first + part.skipped
            found: list[Any] = part.tail[first : first + max_records]
        return _cut(found, max_bytes)

    async def read(self, topic: str, partition: int, start: int, *, max_records: int, max_bytes: int) -> list[Record]:
        """Records with offset >= `start`, out of memory or off disk; empty at the end. Raises LogDamaged."""
        found = self.read_memory(topic, partition, start, max_records=max_records, max_bytes=max_bytes)
        if found is not None:
            return found
        part = self._partition(topic, partition)
        return await self._off_loop(self._read_disk, part, start, max_records, max_bytes)

    def first_readable(self, topic: str, partition: int) -> int:
        """What retention has left of a topic that is not compact begins here; 0 for a compact one."""
        part = self._partition(topic, partition)
        return 0 if part.compact else part.start

    # The writer thread

    def _write_until_stopped(self) -> None:
        try:
            while self._write_once():
                pass
        except Exception as error:  # noqa: BLE001 (the thread must not die without failing what waits for it)
            self._fail(_as_failure(self.path, error), [])
            self._refuse_until_stopped()

    def _write_once(self) -> bool:
        ops, stop = self._drain()
        try:
            if ops:
                self._commit_ops(ops)
            now = time.monotonic()
            if now >= self._inbox_due:
                self._inbox_due = now + INBOX_EVERY_S
                self._move_inbox()
            if now >= self._retention_due:
                self._retention_due = now + self._retention_every_s
                self._retain()
        except (apsw.Error, LogDamaged) as error:
            self._fail(_as_failure(self.path, error), ops)
            if not stop:
                self._refuse_until_stopped()
            return False
        if stop:
            with damage_as_sentence(self.path):
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return not stop

    def _drain(self) -> tuple[list[_Append | _Task], bool]:
        ops: list[_Append | _Task] = []
        size = 0
        try:
            op = self._queue.get(timeout=INBOX_EVERY_S)
            while not isinstance(op, _Stop):
                ops.append(op)
                if isinstance(op, _Append):
                    size += op.size
                if len(ops) >= DRAIN_RECORDS or size >= DRAIN_BYTES:
                    return ops, False
                op = self._queue.get_nowait()
        except queue.Empty:
            return ops, False
        return ops, True

    def _commit_ops(self, ops: list[_Append | _Task]) -> None:
        appends = [op for op in ops if isinstance(op, _Append)]
        tasks = [op for op in ops if isinstance(op, _Task)]
        placed: list[tuple[_Append, int]] = []
        if appends or any(task.inside for task in tasks):
            if self._commit_delay_s:
                time.sleep(self._commit_delay_s)
            self._transact(lambda db: placed.extend(self._insert(db, appends)), tasks)
        for task in tasks:
            if task.after:
                task.after()
        self._publish(placed)
        for task in tasks:
            if task.future.set_running_or_notify_cancel() and not task.future.done():
                task.future.set_result(None)

    def _transact(self, write: Callable[[apsw.Connection], None], tasks: Sequence[_Task] = ()) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            write(db)
            for task in tasks:
                if task.inside:
                    task.inside(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _insert(self, db: apsw.Connection, appends: list[_Append]) -> list[tuple[_Append, int]]:
        rows: list[tuple[Any, ...]] = []
        placed: list[tuple[_Append, int]] = []
        for op in appends:
            part = op.part
            offset = part.next
            part.next = offset + 1
            placed.append((op, offset))
            if part.compact:
                self._upsert(db, part, op, offset)
            else:
                rows.append((part.base + offset, op.ts_ms, op.key, op.value, pack_headers(op.headers)))
        if rows:
            db.executemany(_INSERT, rows)
        return placed

    def _upsert(self, db: apsw.Connection, part: Partition, op: _Append, offset: int) -> None:
        """The record with the highest offset stays even as a tombstone: recovery waits until it has seen it."""
        db.execute(_UPSERT, (part.pid, op.key, offset, op.ts_ms, op.value, pack_headers(op.headers)))
        if part.tombstone is not None:
            db.execute("DELETE FROM c WHERE pid = ? AND off = ?", (part.pid, part.tombstone))
        part.tombstone = offset if op.value is None else None

    def _publish(self, placed: list[tuple[_Append, int]]) -> None:
        """After the COMMIT: memory tails, highwaters, then one call into every loop that waits."""
        fresh: dict[Partition, list[Record]] = defaultdict(list)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Append, int]]] = defaultdict(list)
        size = 0
        for op, offset in placed:
            part = op.part
            size += op.size
            if op.loop is not None:
                by_loop[op.loop].append((op, offset))
            fresh[part].append(Record(part.topic, part.number, offset, op.ts_ms, op.key, op.value, tuple(op.headers)))
        with self._guard:
            self._in_flight_bytes -= size
            self._remember(fresh)
            for loop in self._listeners:
                by_loop.setdefault(loop, [])
        for loop, done in by_loop.items():
            _call_in(loop, self._tell, loop, done)

    def _remember(self, fresh: Mapping[Partition, list[Record]]) -> None:
        for part, records in fresh.items():
            if part.compact:
                part.end = records[-1].offset + 1
                continue
            part.extend_tail(records)
            size = sum(len(r.key or b"") + len(r.value or b"") + RECORD_OVERHEAD_BYTES for r in records)
            self._chunks.append((part, len(records), size))
            self._tail_bytes += size
        while self._tail_bytes > self._tail_limit:
            oldest, count, size = self._chunks.popleft()
            oldest.forget_oldest(count)
            self._tail_bytes -= size

    def _tell(self, loop: asyncio.AbstractEventLoop, done: list[tuple[_Append, int]]) -> None:
        for op, offset in done:
            op.done(Appended(op.part.topic, op.part.number, offset, op.ts_ms), None)
        self._wake(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._guard:
            callbacks = tuple(self._listeners.get(loop, ()))
        for callback in callbacks:
            callback()

    def _move_inbox(self) -> None:
        """Records of other processes go to their topics in the transaction that removes them: exactly once."""
        version = self._db.pragma("data_version")
        if version == self._seen_version:
            return
        rows = self._db.execute(_TAKEABLE, (DEAD_LETTERS in self._topics, INBOX_SLICE)).fetchall()
        if rows:
            moves = [self._from_inbox(*cast(_InboxRow, row[1:])) for row in rows]
            placed: list[tuple[_Append, int]] = []

            def move(db: apsw.Connection) -> None:
                placed.extend(self._insert(db, moves))
                db.executemany("DELETE FROM inbox WHERE id = ?", [(row[0],) for row in rows])

            self._transact(move)
            with self._guard:
                self._in_flight_bytes += sum(op.size for op in moves)
            self._publish(placed)
        if len(rows) < INBOX_SLICE:
            self._seen_version = version
        else:
            self._inbox_due = 0.0

    def _from_inbox(self, topic: str, key: bytes | None, value: bytes | None, headers: bytes | None) -> _Append:
        known = self._topics.get(topic)
        extra = list(unpack_headers(headers))
        now_ms = time.time_ns() // 1_000_000
        if known is None or (known.spec.compact and key is None):
            reason = f"a record in the inbox names the topic {topic!r}, which does not take it"
            extra += [("source_topic", topic.encode()), ("reason", reason.encode())]
            known = self._topics[DEAD_LETTERS]
        return _Append(known.place(key, None), key, value, extra, now_ms, None, _ignore)

    def _retain(self) -> None:
        """One slice per partition and turn; a full slice asks for the next turn at once."""
        now_ms = time.time_ns() // 1_000_000
        for topic in list(self._topics.values()):
            if topic.spec.retention_ms is None or topic.spec.compact:
                continue
            for part in topic.partitions:
                if self._retain_slice(part, now_ms - topic.spec.retention_ms):
                    self._retention_due = 0.0

    def _retain_slice(self, part: Partition, before_ms: int) -> bool:
        keep_from = part.start
        limit = self._smallest_needed(part)
        for row, ts_ms in self._db.execute(
            "SELECT id, ts FROM m WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (part.base + part.start, part.base + limit, RETENTION_SLICE),
        ):
            if ts_ms >= before_ms:
                break
            keep_from = row - part.base + 1
        if keep_from == part.start:
            return False
        full = keep_from - part.start >= RETENTION_SLICE

        def remove(db: apsw.Connection) -> None:
            db.execute("DELETE FROM m WHERE id >= ? AND id < ?", (part.base, part.base + keep_from))
            db.execute("INSERT OR REPLACE INTO ends(pid, next) VALUES (?, ?)", (part.pid, part.end))

        self._transact(remove)
        part.start = keep_from
        return full

    def _smallest_needed(self, part: Partition) -> int:
        """No record at or above this offset may go: a known group still has to process it."""
        needed = [
            self._committed.get((group, topic, part.number), 0)
            for group, topic in list(self._groups)
            if topic == part.topic
        ]
        return min([part.end, *needed])

    # Failing

    def _fail(self, error: StreamForgeError, ops: Sequence[_Append | _Task]) -> None:
        """Nothing of `ops` is acknowledged, and nothing is accepted from now on."""
        logger.critical("%s", error)
        self.failure = error
        for op in ops:
            self._refuse(op)
        with self._guard:
            loops = list(self._listeners)
        for loop in loops:
            _call_in(loop, self._wake, loop)

    def _refuse(self, op: _Append | _Task) -> None:
        if isinstance(op, _Append):
            if op.loop is not None:
                _call_in(op.loop, op.done, None, self.failure)
        elif op.future.set_running_or_notify_cancel():
            op.future.set_exception(self.failure)

    def _refuse_until_stopped(self) -> None:
        while not isinstance(op := self._queue.get(), _Stop):
            self._refuse(op)

    # Small parts

    def _topic(self, name: str) -> _Topic:
        topic = self._topics.get(name)
        if topic is None:
            raise SetupRefused(
                f"topic {name!r} is not in {self.path}: declare it in app/topics.py (known: `python -m app topics`)"
            )
        return topic

    def _partition(self, topic: str, partition: int) -> Partition:
        return self._topic(topic).place(None, partition)

    def _load(self, spec: TopicSpec) -> _Topic:
        parts = [Partition(spec, number, *bounds(self._db, spec, number)) for number in range(spec.partitions)]
        if spec.compact:
            for part in parts:
                last = self._db.execute(
                    "SELECT off, v IS NULL FROM c WHERE pid = ? ORDER BY off DESC LIMIT 1", (part.pid,)
                ).get
                part.tombstone = last[0] if last is not None and last[1] else None
        return _Topic(spec, parts)

    def _creating(
        self, name: str, partitions: int, compact: bool, retention_ms: int | None
    ) -> tuple[Callable[[apsw.Connection], None], Callable[[], None]]:
        if partitions < 1:
            raise SetupRefused(f"topic {name} is declared with {partitions} partitions; it needs at least one")
        made: list[TopicSpec] = []

        def insert(db: apsw.Connection) -> None:
            first = db.execute("SELECT coalesce(max(first_id + partitions), 1) FROM topics").get
            made.append(TopicSpec(name, partitions, compact, retention_ms, first))
            db.execute("INSERT INTO topics VALUES (?, ?, ?, ?, ?)", (name, partitions, compact, retention_ms, first))

        def remember() -> None:
            self._topics[name] = _Topic(made[0], [Partition(made[0], number, 0, 0) for number in range(partitions)])
            self._seen_version = -1  # a record may be waiting in the inbox for just this topic

        return insert, remember

    def _submit(self, task: _Task) -> asyncio.Future[None]:
        self._put(task)
        return asyncio.wrap_future(task.future)

    def _wait(self, task: _Task) -> None:
        self._put(task)
        task.future.result(CLOSE_TIMEOUT_S)

    def _put(self, task: _Task) -> None:
        if self.failure is not None:
            task.future.set_exception(self.failure)
        else:
            self._queue.put(task)

    async def _off_loop(self, call: Callable[..., _R], *args: Any) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._reader, partial(call, *args))

    def _bounds_now(self, part: Partition) -> tuple[int, int]:
        with damage_as_sentence(self.path):
            return bounds(self._reader_db, self._topics[part.topic].spec, part.number)

    def _read_disk(self, part: Partition, start: int, max_records: int, max_bytes: int) -> list[Record]:
        with damage_as_sentence(self.path):
            return read_slice(
                self._reader_db, self._topics[part.topic].spec, part.number, start, end=1 << OFFSET_BITS,
                max_records=max_records, max_bytes=max_bytes,
            )  # fmt: skip


def _own(path: Path) -> Lock:
    """The lock on `path`. Raises LogInUse when another process keeps it."""
    make_folder(path)
    lock = Lock(path)
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while not lock.acquire():
        if time.monotonic() >= give_up:
            pid = lock.owner_pid()
            lock.release()
            raise LogInUse(
                f"{path} is in use by process {pid}: stop it, or talk to it over HTTP (`python -m app status`)"
            )
        time.sleep(0.02)
    return lock


def _as_failure(path: Path, error: Exception) -> StreamForgeError:
    if isinstance(error, StreamForgeError):
        return error
    if isinstance(error, (apsw.FullError, apsw.IOError)):
        return LogFull(
            f"{path} cannot grow ({error}): free space on its disk and start again;"
            " what was acknowledged is kept, nothing else is accepted"
        )
    return LogDamaged(
        f"{path} cannot be written ({error}): what was acknowledged is kept; look at the file and its disk"
    )


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:  # the loop is closed: nobody waits there any more
        logger.debug("a closed event loop was not told about a commit")


def _resolve(future: asyncio.Future[Appended], appended: Appended | None, error: StreamForgeError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif appended is not None:
        future.set_result(appended)


def _ignore(appended: Appended | None, error: StreamForgeError | None) -> None:
    """Who left it in the inbox does not wait for it."""


def _cut(records: list[Record], max_bytes: int) -> list[Record]:
    """The first records up to `max_bytes`, at least one."""
    size = 0
    for number, record in enumerate(records, 1):
        size += len(record.key or b"") + len(record.value or b"")
        if size >= max_bytes:
            return records[:number]
    return records


def _run(db: apsw.Connection, statement: str, row: tuple[Any, ...]) -> None:
    db.execute(statement, row)


def _run_many(db: apsw.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    db.executemany(statement, rows)
