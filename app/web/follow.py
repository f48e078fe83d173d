"""Records of topics as they come, beside every consumer group: topics -> follow -> a function on the event loop.

From now on only: who wants what was before asks the store. Nobody waits for what follows, neither the writers nor a
group; where it falls too far behind it goes on at the end, and `skipped` is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from adapters.embedded_log.log import Log
from adapters.kafka.follower import Follower
from app.config import settings
from app.core import connection, embedded_log
from app.web.replicas import SHOWS_ALL

RECORDS_PER_READ, BYTES_PER_READ = 200, 1 << 20

# What a record that is not as it has to be raises where it is read; whoever writes such a one must not end a worker.
UNREADABLE = (ValueError, LookupError, StopIteration)

Take = Callable[[str, bytes | None, bytes | None], None]  # topic, key, value

_followers: list[Follower] = []  # they end with the process


async def follow(topics: Sequence[str], take: Take, skipped: Callable[[], None]) -> None:
    """Call `take` for every record from now on, where viewers are served; on the embedded log until it is cancelled."""
    if settings().role not in SHOWS_ALL:
        return
    if settings().on_kafka:
        loop = asyncio.get_running_loop()

        def hand_over(topic: str, key: bytes | None, value: bytes | None) -> None:
            loop.call_soon_threadsafe(take, topic, key, value)

        _followers.append(Follower(connection(), topics, hand_over, from_start=False, name="market"))
    else:
        await _follow_log(embedded_log(), topics, take, skipped)


async def _follow_log(log: Log, topics: Sequence[str], take: Take, skipped: Callable[[], None]) -> None:
    places = {(name, n): log.end(name, n) for name in topics for n in range(log.partitions(name) or 0)}
    news = asyncio.Event()
    stop = log.listen(news.set)
    try:
        while True:
            await news.wait()
            news.clear()
            for (name, number), position in places.items():
                places[name, number] = await _take_all(log, name, number, position, take, skipped)
    finally:
        stop()


async def _take_all(
    log: Log, topic: str, partition: int, position: int, take: Take, skipped: Callable[[], None]
) -> int:
    """Hand over what lies between the position and the end; the new position."""
    while position < (end := log.end(topic, partition)):
        found = log.read_memory(topic, partition, position, max_records=RECORDS_PER_READ, max_bytes=BYTES_PER_READ)
        if not found:  # on disk only: a viewer is not worth reading it again
            skipped()
            return end
        for record in found:
            take(topic, record.key, record.value)
        position = found[-1].offset + 1
        await asyncio.sleep(0)  # agents first
    return position
