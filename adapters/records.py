"""What any process may read of a broker, beside its workers: the embedded log and Kafka look the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

from adapters.embedded_log.file import Record


class RecordReader(Protocol):
    """Read-only; close it. Raises LogDamaged, BrokerUnreachable."""

    def topics(self) -> dict[str, int]:
        """Partition count by topic name."""
        ...

    def ends(self) -> dict[tuple[str, int], int]:
        """Next offset by (topic, partition)."""
        ...

    def committed(self) -> dict[tuple[str, str, int], int]:
        """Committed offset (the next one to process) by (group, topic, partition)."""
        ...

    def records(self, topic: str, partition: int | None = None, start: int | None = None) -> Iterator[Record]:
        """Records kept now, partition by partition, in order of offset; `start` counts in each partition.

        Stops at the end that was there when the partition's turn came. Raises SetupRefused for an unknown topic.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
