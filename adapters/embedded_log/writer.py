"""The thread that alone writes to a log: it drains a queue into transactions and tells the loops what is on disk.

    append, commit, barrier -> queue -> one transaction per drain -> COMMIT -> memory -> futures, listeners

First in, first out: what was queued before is committed before or together, so an offset commit never overtakes the
records it follows. A transaction that fails is the end: its futures fail, all later ones too, and nothing is moved.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec

from adapters.embedded_log.file import Headers, Record, pack_headers, unpack_headers
from adapters.embedded_log.memory import Memory, Partition, size_of
from app.errors import LogDamaged, LogFull, StreamForgeError

DEAD_LETTERS = "dead-letters"

DRAIN_RECORDS = 256  # per commit: larger drains made commits of up to a second
DRAIN_BYTES = 1 << 20
INBOX_EVERY_S = 0.1
INBOX_SLICE = 256
RETENTION_SLICE = 2_000  # rows per transaction: 4 ms

logger = logging.getLogger(__name__)

_INSERT = "INSERT INTO m(id, ts, k, v, h) VALUES (?, ?, ?, ?, ?)"
_UPSERT = (
    "INSERT INTO c(pid, k, off, ts, v, h) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(pid, k) DO UPDATE SET"
    " off = excluded.off, ts = excluded.ts, v = excluded.v, h = excluded.h"
)
_TAKEABLE = (  # what no topic takes waits until there are dead letters
    "SELECT id, topic, k, v, h FROM inbox WHERE ? OR EXISTS"
    " (SELECT 1 FROM topics WHERE name = inbox.topic AND (NOT compact OR inbox.k IS NOT NULL)) ORDER BY id LIMIT ?"
)


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a record went: the result of an append's future."""

    topic: str
    partition: int
    offset: int
    ts_ms: int


Done = Callable[[Appended | None, StreamForgeError | None], None]
_InboxRow = tuple[str, bytes | None, bytes | None, bytes | None]  # topic, key, value, packed headers


class Append:
    """A record on its way. `done` is called on `loop`; without a loop nobody waits for it."""

    __slots__ = ("done", "headers", "key", "loop", "part", "size", "ts_ms", "value")

    def __init__(
        self, part: Partition, key: bytes | None, value: bytes | None, headers: Headers, ts_ms: int,
        loop: asyncio.AbstractEventLoop | None = None, done: Done | None = None,
    ) -> None:  # fmt: skip
        self.part, self.key, self.value, self.headers, self.ts_ms = part, key, value, headers, ts_ms
        self.loop, self.done = loop, done
        self.size = size_of(key, value)

    def tell(self, offset: int) -> None:
        if self.done is not None:
            self.done(Appended(self.part.topic, self.part.number, offset, self.ts_ms), None)

    def refuse(self, error: StreamForgeError) -> None:
        if self.loop is not None and self.done is not None:
            call_in(self.loop, self.done, None, error)


class Task:
    """Other work for the writer: `inside` its transaction, `after` the COMMIT; then its future is done."""

    __slots__ = ("after", "future", "inside")

    def __init__(
        self, inside: Callable[[apsw.Connection], None] | None = None, after: Callable[[], None] | None = None
    ) -> None:
        self.inside, self.after = inside, after
        self.future: Future[None] = Future()

    def finish(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(None)

    def refuse(self, error: StreamForgeError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Stop:
    __slots__ = ()


class Writer:
    def __init__(
        self, db: apsw.Connection, path: Path, memory: Memory, *, retention_every_s: float, commit_delay_s: float
    ) -> None:
        self.failure: StreamForgeError | None = None
        self.in_flight_bytes = 0
        self._db, self._path, self._memory = db, path, memory
        self._retention_every_s, self._commit_delay_s = retention_every_s, commit_delay_s
        self._queue: queue.SimpleQueue[Append | Task | _Stop] = queue.SimpleQueue()
        self._guard = threading.Lock()  # the counter and the listeners; held for microseconds
        self._listeners: dict[asyncio.AbstractEventLoop, set[Callable[[], None]]] = defaultdict(set)
        self._seen_version = -1
        self._inbox_due = self._retention_due = 0.0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, op: Append | Task) -> None:
        if self.failure is not None:
            op.refuse(self.failure)
            return
        if isinstance(op, Append):
            with self._guard:
                self.in_flight_bytes += op.size
        self._queue.put(op)

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, fold the WAL in, end the thread."""
        self._queue.put(_Stop())
        self._thread.join(timeout_s)

    def look_into_inbox(self) -> None:
        """A new topic may be just what a waiting record names."""
        self._seen_version = -1

    def listen(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[], None]:
        with self._guard:
            self._listeners[loop].add(callback)

        def end() -> None:
            with self._guard:
                self._listeners[loop].discard(callback)
                if not self._listeners[loop]:
                    del self._listeners[loop]

        return end

    # The thread

    def _run(self) -> None:
        ops: list[Append | Task] = []
        stopping = False
        try:
            while not stopping:
                ops, stopping = self._drain()
                self._commit(ops)
                ops = []
                self._look_around()
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except Exception as error:  # noqa: BLE001 (whatever it is, what waits for this thread must hear of it)
            self._fail(_as_failure(self._path, error), ops)
            while not stopping:
                ops, stopping = self._drain()
                self._refuse(ops)

    def _drain(self) -> tuple[list[Append | Task], bool]:
        """What is queued, up to a commit's size, and whether the stop has come."""
        ops: list[Append | Task] = []
        size = 0
        try:
            op = self._queue.get(timeout=INBOX_EVERY_S)
            while not isinstance(op, _Stop):
                ops.append(op)
                if isinstance(op, Append):
                    size += op.size
                if len(ops) >= DRAIN_RECORDS or size >= DRAIN_BYTES:
                    return ops, False
                op = self._queue.get_nowait()
        except queue.Empty:
            return ops, False
        return ops, True

    def _look_around(self) -> None:
        now = time.monotonic()
        if now >= self._inbox_due:
            self._inbox_due = now + INBOX_EVERY_S
            self._move_inbox()
        if now >= self._retention_due:
            self._retention_due = now + self._retention_every_s
            self._retain()

    def _commit(self, ops: Sequence[Append | Task]) -> None:
        appends = [op for op in ops if isinstance(op, Append)]
        tasks = [op for op in ops if isinstance(op, Task)]
        placed: list[tuple[Append, int]] = []

        def write(db: apsw.Connection) -> None:
            placed.extend(self._insert(db, appends))
            for task in tasks:
                if task.inside:
                    task.inside(db)

        if appends or any(task.inside for task in tasks):
            if self._commit_delay_s:
                time.sleep(self._commit_delay_s)
            self._transact(write)
        for task in tasks:
            if task.after:
                task.after()
        self._publish(placed)
        for task in tasks:
            task.finish()

    def _transact(self, write: Callable[[apsw.Connection], None]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            write(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _insert(self, db: apsw.Connection, appends: Sequence[Append]) -> list[tuple[Append, int]]:
        rows: list[tuple[Any, ...]] = []
        placed: list[tuple[Append, int]] = []
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

    def _upsert(self, db: apsw.Connection, part: Partition, op: Append, offset: int) -> None:
        """The record with the highest offset stays even as a tombstone: recovery waits until it has seen it."""
        db.execute(_UPSERT, (part.pid, op.key, offset, op.ts_ms, op.value, pack_headers(op.headers)))
        if part.tombstone is not None:
            db.execute("DELETE FROM c WHERE pid = ? AND off = ?", (part.pid, part.tombstone))
        part.tombstone = offset if op.value is None else None

    def _publish(self, placed: Sequence[tuple[Append, int]]) -> None:
        """After the COMMIT: memory and highwaters, then one call into every loop that waits."""
        fresh: dict[Partition, list[Record]] = defaultdict(list)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Append, int]]] = defaultdict(list)
        size = 0
        for op, offset in placed:
            part = op.part
            fresh[part].append(Record(part.topic, part.number, offset, op.ts_ms, op.key, op.value, op.headers))
            if op.loop is not None:
                by_loop[op.loop].append((op, offset))
                size += op.size
        self._memory.remember(fresh)
        with self._guard:
            self.in_flight_bytes -= size
            for loop in self._listeners if placed else ():
                by_loop.setdefault(loop, [])
        for loop, done in by_loop.items():
            call_in(loop, self._tell, loop, done)

    def _tell(self, loop: asyncio.AbstractEventLoop, done: Sequence[tuple[Append, int]]) -> None:
        for op, offset in done:
            op.tell(offset)
        self._wake(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._guard:
            callbacks = tuple(self._listeners.get(loop, ()))
        for callback in callbacks:
            callback()

    # Beside the queue

    def _move_inbox(self) -> None:
        """Records of other processes go to their topics in the transaction that removes them: exactly once."""
        version = self._db.pragma("data_version")
        if version == self._seen_version:
            return
        self._seen_version = version
        rows = self._db.execute(_TAKEABLE, (DEAD_LETTERS in self._memory.topics, INBOX_SLICE)).fetchall()
        if not rows:
            return
        moves = [self._from_inbox(*cast(_InboxRow, row[1:])) for row in rows]
        placed: list[tuple[Append, int]] = []

        def move(db: apsw.Connection) -> None:
            placed.extend(self._insert(db, moves))
            db.executemany("DELETE FROM inbox WHERE id = ?", [(row[0],) for row in rows])

        self._transact(move)
        self._publish(placed)
        if len(rows) == INBOX_SLICE:
            self._seen_version, self._inbox_due = -1, 0.0

    def _from_inbox(self, topic: str, key: bytes | None, value: bytes | None, headers: bytes | None) -> Append:
        known = self._memory.topics.get(topic)
        pairs = unpack_headers(headers)
        if known is None or (known.spec.compact and key is None):
            reason = f"a record in the inbox names the topic {topic!r}, which does not take it"
            pairs += (("topic", topic.encode()), ("reason", reason.encode()))
            known = self._memory.topics[DEAD_LETTERS]
        return Append(known.place(key, None), key, value, pairs, time.time_ns() // 1_000_000)

    def _retain(self) -> None:
        """One slice per partition and turn; a full slice asks for the next turn at once."""
        now_ms = time.time_ns() // 1_000_000
        for topic in tuple(self._memory.topics.values()):
            if topic.spec.retention_ms is None or topic.spec.compact:
                continue
            for part in topic.partitions:
                if self._retain_slice(part, now_ms - topic.spec.retention_ms):
                    self._retention_due = 0.0

    def _retain_slice(self, part: Partition, before_ms: int) -> bool:
        """Remove the oldest records older than `before_ms`; True when there may be more."""
        rows = self._db.execute(
            "SELECT id, ts FROM m WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (part.base + part.start, part.base + self._memory.smallest_needed(part), RETENTION_SLICE),
        ).fetchall()
        old = list(takewhile(lambda row: row[1] < before_ms, cast(list[tuple[int, int]], rows)))
        if not old:
            return False
        keep_from = old[-1][0] - part.base + 1

        def remove(db: apsw.Connection) -> None:
            db.execute("DELETE FROM m WHERE id >= ? AND id < ?", (part.base, part.base + keep_from))
            db.execute("INSERT OR REPLACE INTO ends(pid, next) VALUES (?, ?)", (part.pid, part.end))

        self._transact(remove)
        part.start = keep_from
        return len(old) == RETENTION_SLICE

    # Failing

    def _fail(self, error: StreamForgeError, ops: Sequence[Append | Task]) -> None:
        """Nothing of `ops` is acknowledged, and nothing is accepted from now on."""
        logger.critical("%s", error)
        self.failure = error
        self._refuse(ops)
        with self._guard:
            loops = tuple(self._listeners)
        for loop in loops:
            call_in(loop, self._wake, loop)

    def _refuse(self, ops: Sequence[Append | Task]) -> None:
        for op in ops:
            op.refuse(cast(StreamForgeError, self.failure))


def call_in(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:  # the loop is closed: nobody waits there any more
        logger.debug("a closed event loop was not told about a commit")


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
