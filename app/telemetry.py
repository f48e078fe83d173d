"""Logs and metrics: one JSON line per log record with the run it belongs to, one Prometheus registry."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

import orjson
from prometheus_client import Counter, Gauge

run_of_this_task: ContextVar[str] = ContextVar("queue_id", default="")

MESSAGES = Counter("streamforge_messages", "Messages handled", ["agent"])
ROWS = Counter("streamforge_rows", "Rows carried by those messages", ["agent"])
RETRIES = Counter("streamforge_retries", "Messages tried again after an outage", ["agent"])
DEAD_LETTERS = Counter("streamforge_dead_letters", "Messages or rows put aside as unusable", ["topic"])
COMMANDS = Counter("streamforge_commands", "Commands answered", ["command", "answer"])
TASKS = Gauge("streamforge_tasks", "Tasks at work in this process", ["target"])
BACKLOG = Gauge("streamforge_backlog_messages", "Messages written but not yet committed by this app", ["topic"])
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


def logging_config(level: str, style: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`; libraries speak only when something is wrong."""
    formatter = JsonFormatter if style == "json" else PlainFormatter
    # Faust's services log under the name of the module that subclasses them.
    talkative = (
        "faust",
        "mode",
        "aiokafka",
        "aiohttp.access",
        "adapters.faust_repair",
        "adapters.embedded_log.transport",
    )
    quiet = {name: {"level": "WARNING"} for name in talkative}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": formatter}},
        "handlers": {"default": {"class": "logging.StreamHandler", "stream": sys.stderr, "formatter": "default"}},
        "root": {"level": level, "handlers": ["default"]},
        "loggers": quiet,
    }
