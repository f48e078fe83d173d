"""What another process may do with a log that a worker owns: read it, and leave records for it.

Reads are short: an open read transaction would stop the owner's checkpoints and let its WAL grow without bound.
A record left in the inbox reaches its topic exactly once, at the latest when the next worker starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from adapters.embedded_log.file import (
    Record,
    TopicSpec,
    absolute,
    bounds,
    damage_as_sentence,
    load_topics,
    open_for_reading,
    open_for_writing,
    pack_headers,
    read_slice,
)
from app.errors import SetupRefused

SLICE_RECORDS = 500
SLICE_BYTES = 4 << 20


class LogReader:
    """Read-only view of a log, safe beside its owner. Raises SetupRefused (no log), LogDamaged."""

    def __init__(self, path: str | Path) -> None:
        self._path = absolute(path)
        self._db = open_for_reading(self._path)

    def topics(self) -> dict[str, int]:
        """Partition count by topic name."""
        with damage_as_sentence(self._path):
            return {name: spec.partitions for name, spec in sorted(load_topics(self._db).items())}

    def ends(self) -> dict[tuple[str, int], int]:
        """Next offset by (topic, partition)."""
        with damage_as_sentence(self._path):
            return {
                (name, partition): bounds(self._db, spec, partition)[1]
                for name, spec in sorted(load_topics(self._db).items())
                for partition in range(spec.partitions)
            }

    def committed(self) -> dict[tuple[str, str, int], int]:
        """Committed offset (the next one to process) by (group, topic, partition)."""
        with damage_as_sentence(self._path):
            rows = self._db.execute("SELECT grp, topic, part, off FROM committed ORDER BY 1, 2, 3")
            return {(group, topic, partition): offset for group, topic, partition, offset in rows}

    def records(self, topic: str, partition: int | None = None, start: int | None = None) -> Iterator[Record]:
        """Records kept now, partition by partition, in order of offset; `start` counts in each partition.

        Stops at the end that was there when the partition's turn came. Raises SetupRefused for an unknown topic.
        """
        spec = self._spec(topic)
        for number in range(spec.partitions) if partition is None else (partition,):
            yield from self._partition(spec, number, start)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spec(self, topic: str) -> TopicSpec:
        with damage_as_sentence(self._path):
            known = load_topics(self._db)
        if topic not in known:
            raise SetupRefused(
                f"the log {self._path} has no topic {topic!r}; it has: {', '.join(sorted(known)) or 'none'}"
            )
        return known[topic]

    def _partition(self, spec: TopicSpec, partition: int, start: int | None) -> Iterator[Record]:
        with damage_as_sentence(self._path):
            first, end = bounds(self._db, spec, partition)
        position = first if start is None else max(start, first)
        while position < end:
            with damage_as_sentence(self._path):
                records = read_slice(
                    self._db, spec, partition, position, end=end, max_records=SLICE_RECORDS, max_bytes=SLICE_BYTES
                )
            if not records:
                return
            yield from records
            position = records[-1].offset + 1


def leave_in_inbox(
    path: str | Path, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
) -> None:
    """Leave a record for the log's owner, running or not; durable when this returns. A missing log is created.

    Raises LogDamaged, SetupRefused.
    """
    real = absolute(path)
    with closing(open_for_writing(real)) as db, damage_as_sentence(real):
        db.execute("INSERT INTO inbox(topic, k, v, h) VALUES (?, ?, ?, ?)", (topic, key, value, pack_headers(headers)))
