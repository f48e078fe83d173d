"""The file of the embedded log: its schema, its records, its owner's lock, and the sentences for a bad one.

    topics(name, partitions, compact, retention_ms, first_id)   partition id = first_id + partition
    m(id, ts, k, v, h)             id = partition id << 40 | offset; one B-tree, a partition is a range of it
    c(pid, k, off, ts, v, h)       topics declared compact: only the newest record of a key is kept
    ends(pid, next)                next offset of partitions that retention may have emptied
    committed(grp, topic, part, off) and groups(grp, topic)
    inbox(id, topic, k, v, h)      records left by other processes; the owner moves them into their topics

One process owns the file (`Lock`); any number may read it, and may leave records in the inbox.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import apsw
import msgspec

from app.errors import LogDamaged, SetupRefused

APPLICATION_ID = 0x53464C47  # "SFLG": how a file says that it is ours
SCHEMA_VERSION = 1
OFFSET_BITS = 40  # 10**12 records per partition
BUSY_TIMEOUT_MS = 5_000  # how long a connection waits for the writer of another process

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics(
    name TEXT PRIMARY KEY, partitions INT NOT NULL, compact INT NOT NULL, retention_ms INT, first_id INT NOT NULL);
CREATE TABLE IF NOT EXISTS m(id INTEGER PRIMARY KEY, ts INT NOT NULL, k BLOB, v BLOB, h BLOB);
CREATE TABLE IF NOT EXISTS c(
    pid INT NOT NULL, k BLOB NOT NULL, off INT NOT NULL, ts INT NOT NULL, v BLOB, h BLOB,
    PRIMARY KEY(pid, k)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS c_by_offset ON c(pid, off);
CREATE TABLE IF NOT EXISTS ends(pid INTEGER PRIMARY KEY, next INT NOT NULL);
CREATE TABLE IF NOT EXISTS committed(
    grp TEXT NOT NULL, topic TEXT NOT NULL, part INT NOT NULL, off INT NOT NULL,
    PRIMARY KEY(grp, topic, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups(grp TEXT NOT NULL, topic TEXT NOT NULL, PRIMARY KEY(grp, topic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inbox(
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, k BLOB, v BLOB, h BLOB);
"""

Headers = tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as it lies in the log. `ts_ms`: time given by the sender, else of the append (UTC)."""

    topic: str
    partition: int
    offset: int
    ts_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class TopicSpec(msgspec.Struct, frozen=True):
    name: str
    partitions: int
    compact: bool
    retention_ms: int | None
    first_id: int


_encode = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(Headers).decode


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes | None:
    return _encode(headers) if headers else None


def unpack_headers(blob: bytes | None) -> Headers:
    return _decode_headers(blob) if blob else ()


def murmur2(data: bytes) -> int:
    """Kafka's 32 bit hash of a key: MurmurHash2 by Austin Appleby, seed 0x9747b28c, as an unsigned number."""
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    body = len(data) & ~3
    state = 0x9747B28C ^ len(data)
    for start in range(0, body, 4):
        word = int.from_bytes(data[start : start + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        state = (state * multiplier & mask) ^ word
    if body < len(data):
        state = (state ^ int.from_bytes(data[body:], "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    return state ^ state >> 15


@lru_cache(maxsize=65_536)
def positive_hash(key: bytes) -> int:
    return murmur2(key) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition Kafka's default partitioner gives this key."""
    return positive_hash(key) % partitions


class Lock:
    """The right to write to a log. The kernel takes it back when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._file = open(_lock_path(path), "a+", encoding="ascii")  # noqa: SIM115 (held until `release`)

    def acquire(self) -> bool:
        if not _try_lock(self._file.fileno()):
            return False
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return True

    def owner_pid(self) -> int:
        """Process id of the present owner; 0 while it is still writing it down."""
        self._file.seek(0)
        return int(self._file.read() or 0)

    def release(self) -> None:
        self._file.close()


def owner_pid(path: str | Path) -> int | None:
    """Process that owns the log now; None when nobody does. Changes nothing."""
    if not _lock_path(Path(path)).exists():
        return None
    with open(_lock_path(Path(path)), encoding="ascii") as file:
        if _try_lock(file.fileno()):
            return None
        return int(file.read() or 0)


def absolute(path: str | Path) -> Path:
    """The real path behind `path`. Raises SetupRefused for a relative one."""
    if not Path(path).is_absolute():
        raise SetupRefused(f"the embedded log needs an absolute path, got {str(path)!r}: write embedded:///abs/path.db")
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> None:
    """Raises SetupRefused."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupRefused(f"the folder {path.parent} of the embedded log cannot be made: {error.strerror}") from error


def open_for_writing(path: Path) -> apsw.Connection:
    """A connection to our file; a missing or empty one gets the schema. Raises LogDamaged, SetupRefused."""
    make_folder(path)
    with damage_as_sentence(path):
        db = apsw.Connection(str(path))
        try:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            _prove_ours(db, path)
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", "normal")
            _create_schema(db)
        except BaseException:
            db.close()
            raise
    return db


def open_for_reading(path: Path) -> apsw.Connection:
    """A read-only connection to an existing log. Raises LogDamaged, SetupRefused."""
    if not path.exists():
        raise SetupRefused(f"there is no log at {path}: start a worker, or look at DATA_DIR (`python -m app config`)")
    with damage_as_sentence(path):
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            ours = _prove_ours(db, path)
        except BaseException:
            db.close()
            raise
    if not ours:
        db.close()
        raise SetupRefused(f"{path} is empty: start a worker once, it makes the log")
    return db


@contextmanager
def damage_as_sentence(path: Path) -> Iterator[None]:
    """SQLite's words for an unreadable file become LogDamaged, for an unusable place SetupRefused."""
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise LogDamaged(
            f"{path} cannot be read as a log ({error}): nothing was changed; move it away to start anew,"
            " or restore it from a copy"
        ) from error
    except (apsw.CantOpenError, apsw.PermissionsError, apsw.ReadOnlyError) as error:
        raise SetupRefused(f"{path} cannot be opened ({error}): check the path and its permissions") from error


def load_topics(db: apsw.Connection) -> dict[str, TopicSpec]:
    rows = db.execute("SELECT name, partitions, compact, retention_ms, first_id FROM topics")
    return {name: TopicSpec(name, parts, bool(compact), keep, first) for name, parts, compact, keep, first in rows}


def bounds(db: apsw.Connection, spec: TopicSpec, partition: int) -> tuple[int, int]:
    """(first kept offset, next offset) of a partition; equal when it is empty. Four seeks, no scan."""
    pid = spec.first_id + partition
    if spec.compact:
        first, last = db.execute(
            "SELECT (SELECT min(off) FROM c WHERE pid = ?1), (SELECT max(off) FROM c WHERE pid = ?1)", (pid,)
        ).get
    else:
        first, last = db.execute(
            "SELECT (SELECT min(id) FROM m WHERE id >= ?1 AND id < ?2),"
            " (SELECT max(id) FROM m WHERE id >= ?1 AND id < ?2)",
            (pid << OFFSET_BITS, (pid + 1) << OFFSET_BITS),
        ).get
        base = pid << OFFSET_BITS
        first, last = (None, None) if last is None else (first - base, last - base)
    kept = db.execute("SELECT next FROM ends WHERE pid = ?", (pid,)).get or 0
    end = max(kept, 0 if last is None else last + 1)
    return (end if first is None else first), end


def read_slice(
    db: apsw.Connection, spec: TopicSpec, partition: int, start: int, *, end: int, max_records: int, max_bytes: int
) -> list[Record]:
    """Records with `start <= offset < end` in order, at least one if there is one; a short read, closed on return."""
    pid = spec.first_id + partition
    base = 0 if spec.compact else pid << OFFSET_BITS
    if spec.compact:
        rows = db.execute(
            "SELECT off, ts, k, v, h FROM c WHERE pid = ? AND off >= ? AND off < ? ORDER BY off LIMIT ?",
            (pid, start, end, max_records),
        )
    else:
        rows = db.execute(
            "SELECT id, ts, k, v, h FROM m WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (base + start, base + end, max_records),
        )
    records: list[Record] = []
    size = 0
    for position, ts_ms, key, value, headers in rows:
        records.append(Record(spec.name, partition, position - base, ts_ms, key, value, unpack_headers(headers)))
        size += len(key or b"") + len(value or b"")
        if size >= max_bytes:
            rows.close()
            break
    return records


def _prove_ours(db: apsw.Connection, path: Path) -> bool:
    """False for an empty database. Raises LogDamaged for another program's or a newer version's file."""
    db.pragma("query_only", True)
    tables = db.execute("SELECT count(*) FROM sqlite_master").get
    mark, version = db.pragma("application_id"), db.pragma("user_version")
    db.pragma("query_only", False)
    if tables == 0 and mark in (0, APPLICATION_ID):
        return False
    if mark != APPLICATION_ID:
        raise LogDamaged(f"{path} is a database, but not a StreamForge log: choose another path; nothing was changed")
    if version > SCHEMA_VERSION:
        raise LogDamaged(
            f"{path} was written by a newer StreamForge (schema {version}, this one knows {SCHEMA_VERSION}):"
            " use that version; nothing was changed"
        )
    return True


def _create_schema(db: apsw.Connection) -> None:
    if db.pragma("user_version") == SCHEMA_VERSION:
        return
    with db:
        db.execute(_SCHEMA)
        db.pragma("application_id", APPLICATION_ID)
        db.pragma("user_version", SCHEMA_VERSION)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
