"""Every topic, once: the map of the flow. Read this file first; a change of the flow changes it first.

exchange --REST--> load --> raw.* --> normalize_pages --> market.* --> store_batches --> the store, coverage
exchange --WebSocket--> stream --> raw.*                  market.trades --> fold_candles --> market.candles
                                   raw.books --> build_books --> market.books
any client --> queue-control --> manage_queue --> queue-tasks --> run_tasks --> queue-events --> any client
anything that cannot be used --> dead-letters
"""

from __future__ import annotations

from dataclasses import dataclass

import faust

from adapters.kafka.admin import TopicSpec
from app import core
from app.config import settings
from app.core import DEAD_LETTERS_TOPIC, app
from models.market import TRADE_CHANNELS

HOUR_MS = 3_600_000
BOOK_CHANNELS = ("book", "ticker")  # diffs and snapshots; best prices
_market = settings().partitions


@dataclass(frozen=True)
class Topic:
    """A declaration: it creates the topic, feeds `make flow` and names who may write and read it."""

    name: str
    key: str  # what the key means; one key's records stay in order
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    partitions: int
    retention_ms: int | None  # None: kept for ever

    def channel(self) -> faust.TopicT:
        return app.topic(
            self.name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw",
            partitions=self.partitions,
        )  # fmt: skip


_control_ms = 90 * 24 * HOUR_MS  # runs live in their table and in the store; the topics are for who reads along
_raw_ms = settings().raw_retention_h * HOUR_MS
_batch_ms = settings().market_retention_h * HOUR_MS

_FOLLOWERS = ("manage_queue", "keep_events", "show_events", "clients")

TOPICS = (
    Topic("queue-control", "none", ("clients", "find_silent_tasks", "find_holes"), ("manage_queue",), 1, _control_ms),
    Topic("queue-tasks", "task", ("manage_queue", "run_tasks", "build_books"), ("run_tasks",), _market, _control_ms),
    Topic("queue-events", "run", ("manage_queue", "run_tasks"), _FOLLOWERS, 1, _control_ms),
    Topic("raw.trades", "venue:symbol", ("run_tasks",), ("normalize_pages",), _market, _raw_ms),
    Topic("raw.candles", "venue:symbol", ("run_tasks",), ("normalize_pages",), _market, _raw_ms),
    Topic("raw.books", "venue:symbol", ("run_tasks",), ("build_books",), _market, _raw_ms),
    Topic("market.trades", "venue:symbol", ("normalize_pages",), ("store_batches", "fold_candles"), _market, _batch_ms),
    Topic(
        "market.candles", "venue:symbol", ("normalize_pages", "fold_candles"), ("store_batches",), _market, _batch_ms
    ),
    Topic("market.books", "venue:symbol", ("build_books",), ("clients",), _market, _batch_ms),
    Topic(DEAD_LETTERS_TOPIC, "as it came", ("every agent",), ("clients",), 1, None),
)

BY_NAME = {topic.name: topic for topic in TOPICS}

queue_control = BY_NAME["queue-control"].channel()
queue_tasks = BY_NAME["queue-tasks"].channel()
queue_events = BY_NAME["queue-events"].channel()
raw_trades = BY_NAME["raw.trades"].channel()
raw_candles = BY_NAME["raw.candles"].channel()
raw_books = BY_NAME["raw.books"].channel()
market_trades = BY_NAME["market.trades"].channel()
market_candles = BY_NAME["market.candles"].channel()
market_books = BY_NAME["market.books"].channel()


# What viewers can see live.
WATCHED = ("queue-events", "market.trades", "market.candles", "market.books", DEAD_LETTERS_TOPIC)


def raw_for(channel: str) -> str:
    """The topic of a channel's raw pages and frames."""
    if channel in BOOK_CHANNELS:
        return "raw.books"
    return "raw.trades" if channel in TRADE_CHANNELS else "raw.candles"


def market_for(channel: str) -> str:
    """The topic of a channel's batches, or of its books."""
    if channel in BOOK_CHANNELS:
        return "market.books"
    return "market.trades" if channel in TRADE_CHANNELS else "market.candles"


# A role is one Faust app with a group of its own: which agents it runs (as `readers` names them), and which tables it
# keeps, with their partitions: those of the topics whose events write them. `run_tasks` runs in every role that has
# work to do, and takes the tasks of that work only.
AGENTS_OF_ROLE: dict[str, tuple[str, ...]] = {
    "control": ("manage_queue", "find_silent_tasks", "find_holes"),
    "ingest": ("run_tasks",),
    "process": ("normalize_pages", "fold_candles", "build_books"),
    "store": ("store_batches", "keep_events", "run_tasks"),
    "train": ("run_tasks",),
    "web": ("clients",),  # whoever asks over HTTP
}
TABLES_OF_ROLE: dict[str, dict[str, int]] = {
    "control": {"workflows": 1},
    "ingest": {"tasks": _market},
    "process": {"book_by_symbol": _market, "candles_by_symbol": _market},
    "store": {"coverage_by_stream": _market, "tasks": _market},
    "train": {"tasks": _market},
    "web": {},
}
AGENTS_OF_ROLE["all"] = (*dict.fromkeys(name for agents in AGENTS_OF_ROLE.values() for name in agents),)
TABLES_OF_ROLE["all"] = {name: count for tables in TABLES_OF_ROLE.values() for name, count in tables.items()}


def readers_of(topic: str) -> list[str]:
    """The groups that read a topic in this layout: this one alone, or those of the roles whose agents do."""
    wanted = set(BY_NAME[topic].readers) - {"clients"}
    return [settings().group_of(role) for role in _layout() if wanted & set(AGENTS_OF_ROLE[role])]


def waiting(topic: str) -> int:
    """Records of a topic that not every reader has had its effect of."""
    return core.backlog(topic, readers_of(topic))


def rights_of(role: str) -> tuple[list[str], list[str]]:
    """The topics that a role's workers read, and those they write: what an ACL has to allow them."""
    agents = {*AGENTS_OF_ROLE[role], *(["every agent"] if role != "web" else [])}
    own = [spec.name for spec in specs(role)[len(TOPICS) :]]
    read = [topic.name for topic in TOPICS if agents & {*topic.readers} - {"clients"}]
    if "clients" in agents:  # followed beside the group: what is shown live, and the changelogs of every table
        read = [*dict.fromkeys([*read, *WATCHED, *(changelog(*table) for table in shown_tables())])]
    write = [topic.name for topic in TOPICS if agents & {*topic.writers}]
    return [*dict.fromkeys([*read, *own])], [*dict.fromkeys([*write, *own])]


def shown_tables() -> list[tuple[str, str]]:
    """(table, role) of every table in this layout: tables of one name in several roles have different rows."""
    return [(table, role) for role in _layout() for table in TABLES_OF_ROLE[role]]


def changelog(table: str, role: str = "") -> str:
    """Faust's name for a table's changelog; without a role, this worker's own."""
    return f"{settings().group_of(role or settings().role)}-{table}-changelog"


def leader_topic(role: str) -> str:
    """Faust's name for the topic whose owner leads a group."""
    return f"{settings().group_of(role)}-__assignor-__leader"


def specs(*roles: str) -> list[TopicSpec]:
    """Every topic that workers of these roles need on a broker: the declared ones, changelogs, leader topics."""
    found = [TopicSpec(t.name, t.partitions, compact=False, retention_ms=t.retention_ms) for t in TOPICS]
    for role in roles:
        changelogs = TABLES_OF_ROLE[role].items()
        found += [TopicSpec(changelog(name, role), count, compact=True) for name, count in changelogs]
        found.append(TopicSpec(leader_topic(role), 1, compact=False))
    return found


def _layout() -> list[str]:
    """The roles that make the application, where this worker is one of them: itself, or all but `all`."""
    return ["all"] if settings().role == "all" else [role for role in AGENTS_OF_ROLE if role != "all"]
