"""The tables of every worker, as this one shows them: changelogs -> Follower -> replicas.

On brokers a worker has the rows of its own partitions only. One that answers questions about all of them follows the
changelogs, which are compacted: a row is seen as soon as its owner's write is there, whoever owns it, and a row of a
partition that went to another worker is never shown old. The events that viewers watch are followed in the same way,
because a consumer group would hand each of them to one worker only.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import Any

from adapters.kafka.follower import Follower
from app import topics
from app.config import settings
from app.core import connection
from app.topics import changelog
from app.web import live
from tables import book_by_symbol, candles_by_symbol, coverage_by_stream, tasks, workflows
from tables.rows import Rows

TABLES: tuple[Rows[Any], ...] = (
    book_by_symbol.book_by_symbol, candles_by_symbol.candles_by_symbol, coverage_by_stream.coverage_by_stream,
    tasks.tasks, workflows.workflows,
)  # fmt: skip
SHOWS_ALL = ("all", "web")  # roles that answer questions about every worker's rows

_followers: list[Follower] = []


def wanted() -> bool:
    """True where this worker's own rows are not all there are, and it is asked for them."""
    return settings().on_kafka and settings().role in SHOWS_ALL


def start(loop: AbstractEventLoop) -> None:
    """Follow every table of every role of this layout, and the events. The followers end with the process."""
    if not wanted():
        return
    replica_of: dict[str, dict[str, bytes]] = {}
    for rows in TABLES:
        replica: dict[str, bytes] = {}
        rows.replica = replica
        names = [changelog(table, role) for table, role in topics.shown_tables() if table == rows.name]
        replica_of |= dict.fromkeys(names, replica)

    def take_row(topic: str, key: bytes | None, value: bytes | None) -> None:
        name = (key or b"").decode()
        if value is None:
            replica_of[topic].pop(name, None)
        else:
            replica_of[topic][name] = value

    def take_event(_topic: str, _key: bytes | None, value: bytes | None) -> None:
        loop.call_soon_threadsafe(live.show, value)

    events = str(topics.queue_events.get_topic_name())
    _followers.append(Follower(connection(), list(replica_of), take_row, from_start=True, name="tables"))
    _followers.append(Follower(connection(), [events], take_event, from_start=False, name="events"))


def caught_up() -> bool:
    """True when nothing is missing that was there when this process began."""
    return not wanted() or (bool(_followers) and all(follower.caught_up.is_set() for follower in _followers))
