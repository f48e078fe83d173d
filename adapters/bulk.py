"""Bulk records (raw pages, normalized batches) go around Faust's producer, which costs far more per message.

Table rows and small events stay with Faust. A record sent here is durably acknowledged when `send` returns, or when
the future of `send_soon` is done; an agent awaits it before it lets its event go, so a commit never overtakes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from adapters.embedded_log.log import IN_FLIGHT_BYTES, Appended, Log

Headers = Sequence[tuple[str, bytes]]


class BulkProducer(Protocol):
    async def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        """Returns when the record is durably acknowledged.

        Raises SetupRefused at once for an unknown topic; LogFull, LogDamaged when it cannot be stored.
        """
        ...

    async def send_soon(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()
    ) -> asyncio.Future[Appended]:
        """Returns when there is room (bytes in flight are bounded); its future is done when the record is durable."""
        ...

    async def flush(self) -> None:
        """Everything sent before is durable. Raises what the first failed record raised."""
        ...


class EmbeddedBulkProducer:
    """Appends to the log that the app's transport has open: `EmbeddedBulkProducer(app.transport.log)`."""

    def __init__(self, log: Log, max_in_flight_bytes: int = IN_FLIGHT_BYTES) -> None:
        self._log, self._limit = log, max_in_flight_bytes

    async def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        await (await self.send_soon(topic, key, value, headers))

    async def send_soon(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()
    ) -> asyncio.Future[Appended]:
        if self._log.in_flight_bytes >= self._limit:
            await self._log.room(self._limit)
        return self._log.append(topic, key, value, headers=headers)

    async def flush(self) -> None:
        await self._log.barrier()
