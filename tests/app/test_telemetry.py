"""What a worker logs when a library has one thing to say, again and again."""

from __future__ import annotations

import logging

from app.telemetry import OncePerMinute


def test_a_library_that_repeats_itself_is_heard_once_a_minute_and_then_says_how_often() -> None:
    now_s = 0.0
    once = OncePerMinute(now=lambda: now_s)

    def heard(name: str, message: str, *arguments: object) -> str | None:
        record = logging.LogRecord(name, logging.ERROR, "", 0, message, arguments, None)
        return record.getMessage() if once.filter(record) else None

    assert heard("aiokafka", "no answer from %s", 1) == "no answer from 1"
    assert [heard("aiokafka", "no answer from %s", node) for node in (1, 2, 3)] == [None, None, None]
    assert heard("aiokafka", "another thing") == "another thing"
    assert heard("agents.store", "ours") == heard("agents.store", "ours") == "ours"
    now_s = 61.0
    assert heard("aiokafka", "no answer from %s", 4) == "no answer from 4 (and 3 more like it before)"
    now_s = 122.0
    assert heard("aiokafka", "no answer from %s", 5) == "no answer from 5"
