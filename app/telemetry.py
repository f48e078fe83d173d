"""Logs and metrics: one JSON line per log record with the run it belongs to, one Prometheus registry."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic
from typing import Any

import orjson
from prometheus_client import Counter, Gauge, Histogram

# Libraries, and what logs in their manner: Faust's services take the name of the module that subclasses them.
TALKATIVE = (
    "faust", "mode", "aiokafka", "aiohttp.access", "adapters.faust_repair", "app.sensors",
    "adapters.embedded_log.transport",
)  # fmt: skip

run_of_this_task: ContextVar[str] = ContextVar("queue_id", default="")

MESSAGES = Counter("streamforge_messages", "Messages handled", ["agent"])
ROWS = Counter("streamforge_rows", "Rows carried by those messages", ["agent"])
RETRIES = Counter("streamforge_retries", "Messages tried again after an outage", ["agent"])
DEAD_LETTERS = Counter("streamforge_dead_letters", "Messages or rows put aside as unusable", ["topic"])
COMMANDS = Counter("streamforge_commands", "Commands answered", ["command", "answer"])
TASKS = Gauge("streamforge_tasks", "Tasks at work in this process", ["target"])
HEALS = Counter("streamforge_heals", "Silent or failed tasks that were started again", ["target"])
BACKLOG = Gauge("streamforge_backlog_messages", "Messages written but not yet committed by this app", ["topic"])
LAG = Gauge("streamforge_lag_messages", "Records behind the committed position", ["topic", "partition"])
BEHIND = Gauge("streamforge_behind", "1 while a topic is read too slowly: records wait and wait", ["topic"])
POSITION_AGE_S = Gauge(
    "streamforge_position_age_seconds", "Seconds since it moved; 0: nothing waits", ["topic", "partition"]
)
REPAIRS = Counter("streamforge_repairs", "Holes of a ledger that were loaded again", ["stream"])
REBALANCES = Counter("streamforge_rebalances", "Times the partitions of this worker were dealt out anew")
REBALANCE_S = Gauge("streamforge_rebalance_seconds", "How long the last of them took, recovery included")
COMMIT_S = Histogram("streamforge_commit_seconds", "How long an offset commit took, flushes included")
BOOKS_LOST = Counter("streamforge_books_lost", "Order books that fell out of sync", ["venue", "state"])
TASK_STATES = Gauge("streamforge_task_states", "Tasks of this worker's partitions, by state", ["state"])
STREAM_CONNECTS = Counter("streamforge_stream_connection_ends", "Live connections that ended", ["venue", "why"])
STREAM_IGNORED = Counter("streamforge_stream_ignored", "Frames and streams nobody could use", ["venue", "what"])
STREAM_FRAMES = Counter("streamforge_stream_frames", "Live frames received", ["venue", "channel"])
STREAM_GAPS = Counter("streamforge_stream_gaps", "Holes in live streams", ["venue", "channel", "end"])
STREAM_LATE = Counter("streamforge_stream_late", "Trades older than what was said to be whole", ["venue", "channel"])
TRADES_LATE = Counter("streamforge_trades_late", "Trades of candles that were given out before", ["venue", "end"])
STREAM_LIVE = Gauge("streamforge_stream_live", "1 while frames of a stream flow, else 0", ["stream"])
STREAM_SILENT_S = Gauge("streamforge_stream_silent_seconds", "Seconds since a stream's last frame", ["stream"])
STREAM_SKEW_S = Gauge("streamforge_stream_skew_seconds", "Receipt less exchange time of the last frame", ["stream"])
EXCHANGE_WAITS = Counter("streamforge_exchange_waits", "Times a loader waited for the exchange", ["venue"])


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if run := run_of_this_task.get():
            line["queue_id"] = run
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")


class OncePerMinute(logging.Filter):
    """Lets a library say the same thing once in `every_s` seconds, and then how often it did.

    While a broker is away its client reports every attempt, some ten a second: thousands of lines that say one thing.
    The same thing is the same logger and the same text before its arguments are put in.
    """

    def __init__(self, every_s: float = 60.0, now: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._every_s, self._now = every_s, now
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # when it was last let through, how often not since

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(TALKATIVE):
            return True
        key, now = (record.name, str(record.msg)), self._now()
        last_s, hidden = self._said.get(key, (-math.inf, 0))
        if now - last_s < self._every_s:
            self._said[key] = last_s, hidden + 1
            return False
        self._said[key] = now, 0
        if hidden:
            record.msg = f"{record.getMessage()} (and {hidden} more like it before)"
            record.args = ()
        return True


def logging_config(level: str, style: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`; libraries speak only when something is wrong, and do not repeat themselves."""
    formatter = JsonFormatter if style == "json" else PlainFormatter
    handler = {"class": "logging.StreamHandler", "stream": sys.stderr, "formatter": "default", "filters": ["default"]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": formatter}},
        "filters": {"default": {"()": OncePerMinute}},
        "handlers": {"default": handler},
        "root": {"level": level, "handlers": ["default"]},
        "loggers": {name: {"level": "WARNING"} for name in TALKATIVE},
    }
