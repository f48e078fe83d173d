"""A Kafka-like log in one SQLite file: topics, partitions, offsets, committed positions. No Faust here.

    append -> writer thread -> COMMIT -> future done, memory, highwater, readers woken

Promise: a record whose future is done survives kill -9 of the process (not necessarily a power cut); nothing is
visible to a reader before it is committed; offsets of a partition are dense and in the order of the appends.
When the file takes no more, every open and later future fails and nothing is accepted any more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import apsw
import msgspec

from adapters.embedded_log.file import (
    OFFSET_BITS,
    Headers,
    Lock,
    Record,
    TopicSpec,
    absolute,
    bounds,
    damage_as_sentence,
    make_folder,
    open_for_reading,
    open_for_writing,
    owner_pid,
    partition_of,
    read_slice,
)
from adapters.embedded_log.memory import Memory, Partition, Topic
from adapters.embedded_log.reader import LogReader, leave_in_inbox
from adapters.embedded_log.writer import DEAD_LETTERS, Append, Appended, Done, Task, Writer
from app.errors import LogInUse, SetupRefused, StreamForgeError

__all__ = ["DEAD_LETTERS", "Appended", "Log", "LogReader", "Record", "leave_in_inbox", "owner_pid", "partition_of"]

TAIL_BYTES = 32 << 20  # newest records in memory, all partitions together
IN_FLIGHT_BYTES = 4 << 20  # appended, not yet committed: beyond it `room` waits; also what a flush has to wait for
LOCK_PATIENCE_S = 0.5  # a look at the lock by `owner_pid` holds it for an instant
RETENTION_EVERY_S = 30.0
WRITER_TIMEOUT_S = 60.0

_COMMIT_OFFSET = (
    "INSERT INTO committed(grp, topic, part, off) VALUES (?, ?, ?, ?)"
    " ON CONFLICT(grp, topic, part) DO UPDATE SET off = excluded.off"
)

_R = TypeVar("_R")


class Log:
    """The one writer of a log file, shared by everything in this process that opens the same real path.

    Methods are called from event loops; `open`, `close` and `ensure_topic` block for a moment.
    """

    _shared: ClassVar[dict[Path, Log]] = {}
    _sharing: ClassVar = threading.RLock()

    @classmethod
    def open(
        cls, path: str | Path, *, synchronous: str = "normal", max_pages: int | None = None,
        tail_bytes: int = TAIL_BYTES, retention_every_s: float = RETENTION_EVERY_S, commit_delay_s: float = 0.0,
    ) -> Log:  # fmt: skip
        """The log at an absolute path; opened once per process, closed by as many `close` as there were `open`.

        `synchronous="full"` survives a power cut too, for 0.3 ms per commit. `max_pages` of 4 kB bounds the file.
        `commit_delay_s` slows every commit (tests). The options count where the log is opened first.
        Raises LogInUse, LogDamaged, SetupRefused.
        """
        real = absolute(path)
        with cls._sharing:
            log = cls._shared.get(real)
            if log is None:
                log = cls._shared[real] = cls(
                    real, synchronous, max_pages, tail_bytes, retention_every_s, commit_delay_s
                )
            log._users += 1
            return log

    def __init__(
        self, path: Path, synchronous: str, max_pages: int | None, tail_bytes: int, retention_every_s: float,
        commit_delay_s: float,
    ) -> None:  # fmt: skip
        self.path = path
        self._users = 0
        self._lock = _own(path)
        try:
            self._db = open_for_writing(path)
            self._db.pragma("synchronous", synchronous)
            if max_pages is not None:
                self._db.pragma("max_page_count", max_pages)
            with damage_as_sentence(path):
                self._memory = Memory(self._db, tail_bytes)
            self._reader_db = open_for_reading(path)
        except BaseException:
            self._lock.release()
            raise
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="log-reader")
        self._writer = Writer(
            self._db, path, self._memory, retention_every_s=retention_every_s, commit_delay_s=commit_delay_s
        )

    def close(self) -> None:
        """Give the log back; the last user's `close` writes what is queued, folds the WAL in and frees the lock."""
        with self._sharing:
            self._users -= 1
            if self._users > 0:
                return
            self._shared.pop(self.path, None)
            self._writer.stop(WRITER_TIMEOUT_S)
            self._reader.shutdown(wait=True)
            self._reader_db.close()
            self._db.close()
            self._lock.release()

    @property
    def failure(self) -> StreamForgeError | None:
        """Why the log takes no more; None while it does."""
        return self._writer.failure

    # Topics

    def ensure_topic(
        self, name: str, partitions: int, compact: bool | None = None, retention_ms: int | None = None
    ) -> None:
        """Create the topic unless it is there. `compact`: only the newest record of each key is kept (changelogs).

        A reader of a compact topic that is behind sees the newest record per key, not the ones it replaced.
        Raises SetupRefused when it is there with another number of partitions or another `compact` (None: any).
        """
        if partitions < 1:
            raise SetupRefused(f"topic {name} is declared with {partitions} partitions; it needs at least one")
        if name not in self._memory.topics:
            self._wait(self._creation(name, partitions, bool(compact), retention_ms))
        topic = self._memory.topics[name]
        spec = topic.spec
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
            topic.spec = msgspec.structs.replace(spec, retention_ms=retention_ms)
            self._wait(_statement("UPDATE topics SET retention_ms = ? WHERE name = ?", [(retention_ms, name)]))

    def topics(self) -> dict[str, int]:
        """Partition count by topic name."""
        return {name: topic.spec.partitions for name, topic in sorted(self._memory.topics.items())}

    def partitions(self, topic: str) -> int | None:
        known = self._memory.topics.get(topic)
        return known.spec.partitions if known else None

    # Writing

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (), ts_ms: int | None = None,
    ) -> asyncio.Future[Appended]:  # fmt: skip
        """Queue a record; the future is done when it is on disk. Same key, same partition as on Kafka.

        Raises SetupRefused for an unknown topic or partition, TypeError for what is not bytes; the future fails with
        LogFull or LogDamaged.
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
        if not (_bytes_or_none(key) and _bytes_or_none(value)):
            kinds = f"key {type(key).__name__} and value {type(value).__name__}"
            raise TypeError(f"a record for {topic} has {kinds}, not bytes: serialize them first")
        part = self._topic(topic).place(key, partition)
        if part.compact and key is None:
            raise SetupRefused(f"topic {topic} keeps one record per key: a record without key cannot go there")
        if ts_ms is None:
            ts_ms = time.time_ns() // 1_000_000
        pairs = _checked(headers) if headers else ()
        self._writer.put(Append(part, key, value, pairs, ts_ms, asyncio.get_running_loop(), done))

    @property
    def in_flight_bytes(self) -> int:
        """Appended and not yet committed."""
        return self._writer.in_flight_bytes

    async def room(self, limit_bytes: int = IN_FLIGHT_BYTES) -> None:
        """Wait until fewer than `limit_bytes` are in flight: the back-pressure of whoever appends.

        Raises LogFull, LogDamaged.
        """
        while self._writer.in_flight_bytes >= limit_bytes:
            await self.barrier()

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything appended before is on disk. Fails with LogFull, LogDamaged."""
        return self._submit(Task())

    # Positions

    def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> asyncio.Future[None]:
        """Store the next offset to process per (topic, partition), after everything appended before."""
        rows = [(group, topic, partition, offset) for (topic, partition), offset in offsets.items()]
        known = {(group, topic, partition): offset for _, topic, partition, offset in rows}
        return self._submit(_statement(_COMMIT_OFFSET, rows, lambda: self._memory.committed.update(known)))

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        return self._memory.committed.get((group, topic, partition))

    def register_group(self, group: str, topics: Iterable[str]) -> asyncio.Future[None]:
        """Retention keeps what a registered group has not committed yet."""
        new = [(group, topic) for topic in topics if (group, topic) not in self._memory.groups]
        statement = "INSERT OR IGNORE INTO groups(grp, topic) VALUES (?, ?)"
        return self._submit(_statement(statement, new, lambda: self._memory.groups.update(new)))

    def end(self, topic: str, partition: int) -> int:
        """The high-water mark: the offset the next visible record will have."""
        return self._partition(topic, partition).end

    async def start(self, topic: str, partition: int) -> int:
        """First kept offset; equal to `end` when the partition is empty."""
        part = self._partition(topic, partition)
        return await self._off_loop(self._first_on_disk, part) if part.compact else part.start

    # Reading

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` on the running loop after commits, and on failure; returns what ends that."""
        return self._writer.listen(asyncio.get_running_loop(), callback)

    def read_memory(
        self, topic: str, partition: int, start: int, *, max_records: int, max_bytes: int
    ) -> list[Record] | None:
        """Records from `start` out of memory; None when they are on disk only (`read` has them)."""
        return self._memory.read(self._partition(topic, partition), start, max_records, max_bytes)

    async def read(self, topic: str, partition: int, start: int, *, max_records: int, max_bytes: int) -> list[Record]:
        """Records with offset >= `start`, out of memory or off disk; empty at the end. Raises LogDamaged."""
        part = self._partition(topic, partition)
        found = self._memory.read(part, start, max_records, max_bytes)
        return await self._off_loop(self._read_disk, part, start, max_records, max_bytes) if found is None else found

    def first_readable(self, topic: str, partition: int) -> int:
        """What retention has left of a topic that is not compact begins here; 0 for a compact one."""
        part = self._partition(topic, partition)
        return 0 if part.compact else part.start

    # Private

    def _topic(self, name: str) -> Topic:
        topic = self._memory.topics.get(name)
        if topic is None:
            raise SetupRefused(
                f"topic {name!r} is not in {self.path}: declare it in app/topics.py (known: `python -m app topics`)"
            )
        return topic

    def _partition(self, topic: str, partition: int) -> Partition:
        return self._topic(topic).place(None, partition)

    def _creation(self, name: str, partitions: int, compact: bool, retention_ms: int | None) -> Task:
        made: list[TopicSpec] = []

        def insert(db: apsw.Connection) -> None:
            if name not in self._memory.topics:  # two threads may have asked
                first = db.execute("SELECT coalesce(max(first_id + partitions), 1) FROM topics").get
                made.append(TopicSpec(name, partitions, compact, retention_ms, first))
                db.execute(
                    "INSERT INTO topics VALUES (?, ?, ?, ?, ?)", (name, partitions, compact, retention_ms, first)
                )

        def remember() -> None:
            self._memory.topics.update({spec.name: Topic(spec) for spec in made})
            self._writer.look_into_inbox()

        return Task(insert, remember)

    def _submit(self, task: Task) -> asyncio.Future[None]:
        self._writer.put(task)
        return asyncio.wrap_future(task.future)

    def _wait(self, task: Task) -> None:
        self._writer.put(task)
        task.future.result(WRITER_TIMEOUT_S)

    async def _off_loop(self, call: Callable[..., _R], *args: Any) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._reader, partial(call, *args))

    def _first_on_disk(self, part: Partition) -> int:
        with damage_as_sentence(self.path):
            return bounds(self._reader_db, self._memory.topics[part.topic].spec, part.number)[0]

    def _read_disk(self, part: Partition, start: int, max_records: int, max_bytes: int) -> list[Record]:
        spec, end = self._memory.topics[part.topic].spec, 1 << OFFSET_BITS
        with damage_as_sentence(self.path):
            return read_slice(
                self._reader_db, spec, part.number, start, end=end, max_records=max_records, max_bytes=max_bytes
            )


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


def _resolve(future: asyncio.Future[Appended], appended: Appended | None, error: StreamForgeError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif appended is not None:
        future.set_result(appended)


def _statement(statement: str, rows: Sequence[tuple[Any, ...]], after: Callable[[], None] | None = None) -> Task:
    def run(db: apsw.Connection) -> None:
        db.executemany(statement, rows)

    return Task(run, after)


def _bytes_or_none(given: object) -> bool:
    return given is None or isinstance(given, bytes)


def _checked(headers: Sequence[tuple[str, object]]) -> Headers:
    """Raises TypeError for a header that could be written but not read again."""
    pairs = []
    for name, value in headers:
        if not isinstance(value, bytes):
            raise TypeError(f"header {name!r} has a value of type {type(value).__name__}, not bytes: encode it first")
        pairs.append((name, value))
    return tuple(pairs)
