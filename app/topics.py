"""Every topic, once: the map of the flow. Read this file first; a change of the flow changes it first.

exchange --REST--> load --> raw.* --> normalize_pages --> market.* --> store_batches --> the store, coverage
                                                          market.trades --> fold_candles --> market.candles
any client --> queue-control --> manage_queue --> queue-tasks --> run_tasks --> queue-events --> any client
anything that cannot be used --> dead-letters
"""

from __future__ import annotations

from dataclasses import dataclass

import faust

from app.config import settings
from app.core import DEAD_LETTERS_TOPIC, app

HOUR_MS = 3_600_000
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
    Topic("queue-control", "none", ("clients",), ("manage_queue",), 1, _control_ms),
    Topic("queue-tasks", "task", ("manage_queue", "run_tasks"), ("run_tasks",), _market, _control_ms),
    Topic("queue-events", "run", ("manage_queue", "run_tasks"), _FOLLOWERS, 1, _control_ms),
    Topic("raw.trades", "venue:symbol", ("run_tasks",), ("normalize_pages",), _market, _raw_ms),
    Topic("raw.candles", "venue:symbol", ("run_tasks",), ("normalize_pages",), _market, _raw_ms),
    Topic("market.trades", "venue:symbol", ("normalize_pages",), ("store_batches", "fold_candles"), _market, _batch_ms),
    Topic(
        "market.candles", "venue:symbol", ("normalize_pages", "fold_candles"), ("store_batches",), _market, _batch_ms
    ),
    Topic(DEAD_LETTERS_TOPIC, "as it came", ("every agent",), ("clients",), 1, None),
)

BY_NAME = {topic.name: topic for topic in TOPICS}

queue_control = BY_NAME["queue-control"].channel()
queue_tasks = BY_NAME["queue-tasks"].channel()
queue_events = BY_NAME["queue-events"].channel()
raw_trades = BY_NAME["raw.trades"].channel()
raw_candles = BY_NAME["raw.candles"].channel()
market_trades = BY_NAME["market.trades"].channel()
market_candles = BY_NAME["market.candles"].channel()


def raw_for(channel: str) -> str:
    """The topic of a channel's raw pages."""
    return "raw.trades" if channel == "trades" else "raw.candles"


def market_for(channel: str) -> str:
    """The topic of a channel's batches."""
    return "market.trades" if channel == "trades" else "market.candles"


def changelog(table: str) -> str:
    """Faust's name for a table's changelog."""
    return f"{settings().app_id}-{table}-changelog"
