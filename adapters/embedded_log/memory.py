"""What a log knows without asking its disk: topics, positions, and the newest records of every partition.

The writer thread changes it, event loops read it. Tails are bounded in bytes over all partitions together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import apsw

from adapters.embedded_log.file import OFFSET_BITS, Record, TopicSpec, bounds, load_topics, partition_of
from app.errors import SetupRefused

RECORD_OVERHEAD_BYTES = 250  # what a small record costs in memory beside its bytes


def size_of(key: bytes | None, value: bytes | None) -> int:
    """Bytes a record is counted with wherever memory is bounded."""
    return len(key or b"") + len(value or b"") + RECORD_OVERHEAD_BYTES


class Partition:
    """`start`: first kept offset (of a topic that is not compact); `end`: next offset readers may see;
    `next`: next offset the writer will give.

    `tail`: the newest records; `tail_first` is the offset of the first one still there (`end` when there is none).
    """

    __slots__ = (
        "base", "compact", "end", "next", "number", "pid",
        "skipped", "start", "tail", "tail_first", "tombstone", "topic",
    )  # fmt: skip

    def __init__(self, spec: TopicSpec, number: int, start: int = 0, end: int = 0) -> None:
        self.topic, self.number, self.compact = spec.name, number, spec.compact
        self.pid = spec.first_id + number
        self.base = self.pid << OFFSET_BITS
        self.start, self.end, self.next = start, end, end
        self.tail: list[Record | None] = []
        self.tail_first, self.skipped = end, 0
        self.tombstone: int | None = None  # offset of a tombstone that is kept only because it is the last record

    def forget_oldest(self, count: int) -> None:
        self.tail[self.skipped : self.skipped + count] = [None] * count
        self.skipped += count
        self.tail_first += count
        if self.skipped * 2 > len(self.tail):
            del self.tail[: self.skipped]
            self.skipped = 0


class Topic:
    __slots__ = ("next_keyless", "partitions", "spec")

    def __init__(self, spec: TopicSpec, partitions: list[Partition] | None = None) -> None:
        self.spec, self.next_keyless = spec, 0
        self.partitions = partitions or [Partition(spec, number) for number in range(spec.partitions)]

    def place(self, key: bytes | None, partition: int | None) -> Partition:
        """Where a record goes: as told, else by its key as on Kafka, else in turn. Raises SetupRefused."""
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


class Memory:
    def __init__(self, db: apsw.Connection, tail_bytes: int) -> None:
        self.topics = {name: _load(db, spec) for name, spec in load_topics(db).items()}
        self.committed: dict[tuple[str, str, int], int] = {
            (group, topic, partition): offset
            for group, topic, partition, offset in db.execute("SELECT grp, topic, part, off FROM committed")
        }
        self.groups: set[tuple[str, str]] = set(db.execute("SELECT grp, topic FROM groups"))
        self._limit = tail_bytes
        self._guard = threading.Lock()  # the tails; held for microseconds
        self._chunks: deque[tuple[Partition, int, int]] = deque()  # (partition, records, bytes), oldest first
        self._held_bytes = 0

    def remember(self, fresh: Mapping[Partition, list[Record]]) -> None:
        """Make committed records visible; the oldest of all partitions make room."""
        with self._guard:
            for part, records in fresh.items():
                part.end = records[-1].offset + 1
                if part.compact:  # older offsets may have lost their records: the disk knows
                    continue
                part.tail.extend(records)
                size = sum(size_of(record.key, record.value) for record in records)
                self._chunks.append((part, len(records), size))
                self._held_bytes += size
            while self._held_bytes > self._limit:
                oldest, count, size = self._chunks.popleft()
                oldest.forget_oldest(count)
                self._held_bytes -= size

    def read(self, part: Partition, start: int, max_records: int, max_bytes: int) -> list[Record] | None:
        """Records from `start`, at least one if there is one; None when they are on disk only."""
        with self._guard:
            if start >= part.end:
                return []
            if part.compact or start < part.tail_first:
                return None
            first = start - part.tail_first + part.skipped
            found: list[Any] = part.tail[first : first + max_records]
        size = 0
        for number, record in enumerate(found, 1):
            size += len(record.key or b"") + len(record.value or b"")
            if size >= max_bytes:
                return found[:number]
        return found

    def smallest_needed(self, part: Partition) -> int:
        """No record at or above this offset may go: a registered group still has to process it."""
        needed = [
            self.committed.get((group, topic, part.number), 0)
            for group, topic in tuple(self.groups)
            if topic == part.topic
        ]
        return min([part.end, *needed])


def _load(db: apsw.Connection, spec: TopicSpec) -> Topic:
    parts = [Partition(spec, number, *bounds(db, spec, number)) for number in range(spec.partitions)]
    for part in parts if spec.compact else ():
        last = db.execute("SELECT off, v IS NULL FROM c WHERE pid = ? ORDER BY off DESC LIMIT 1", (part.pid,)).get
        part.tombstone = last[0] if last is not None and last[1] else None
    return Topic(spec, parts)
