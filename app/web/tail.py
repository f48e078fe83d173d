"""Topics as they come, for people: the records' facts as JSON frames, and the newest dead letters.

A batch is shown as what it is about (symbol, rows, times), not row by row. Nothing is made while nobody looks.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from aiohttp import web

from app.broker import open_reader
from app.core import DEAD_LETTERS_TOPIC, app
from app.topics import WATCHED
from app.web import live
from app.web.calls import answer, call, error
from app.web.follow import UNREADABLE, follow
from app.web.live import Audience
from app.web.parameters import Parameters
from models.control import Json
from models.market import decode_batch, decode_book_update

LETTERS_PER_PAGE, MOST_LETTERS = 50, 500
PREVIEW_CHARACTERS = 300
FRAMES_PER_S = 20  # of one topic; the rest is counted

_tails = {topic: Audience() for topic in WATCHED if topic != "queue-events"}
live.audiences += _tails.values()
_budget: dict[str, Any] = {}  # topic: (second, frames shown in it, records left out)


@call("/ws/topic/{topic}")
async def watch_topic(request: web.Request, topic: str) -> web.StreamResponse:
    """Every event of queue-events; of the other topics the facts of at most FRAMES_PER_S records a second."""
    if topic == "queue-events":
        return await live.watch_queues(request)
    if (audience := _tails.get(topic)) is None:
        return error(404, f"{topic!r} cannot be watched; today: {', '.join(WATCHED)}", field="topic")
    return await audience.watch(request)


@call("/dead-letters")
async def list_dead_letters(request: web.Request) -> web.Response:
    """The newest ones, newest last, and how many there are."""
    query = Parameters(request.query, "limit")
    limit = query.whole("limit", LETTERS_PER_PAGE, 1, MOST_LETTERS)
    return answer(await asyncio.to_thread(_newest_letters, limit))


@app.task
async def follow_what_is_watched() -> None:
    await follow(tuple(_tails), _take, lambda: None)


def _take(topic: str, key: bytes | None, value: bytes | None) -> None:
    if len(audience := _tails[topic]) and (left_out := _may_show(topic, time.monotonic())) is not None:
        facts = {"topic": topic, **facts_of(topic, value or b""), "key": _text(key)}
        audience.spread(orjson.dumps(facts | ({"left_out": left_out} if left_out else {})).decode())


def _may_show(topic: str, now: float) -> int | None:
    """How many records were left out before this one; None when this is left out too."""
    second, shown, left_out = _budget.get(topic, (-1, 0, 0))
    if int(now) != second:
        shown = 0
    if shown >= FRAMES_PER_S:
        _budget[topic] = (int(now), shown, left_out + 1)
        return None
    _budget[topic] = (int(now), shown + 1, 0)
    return int(left_out)


def facts_of(topic: str, value: bytes) -> Json:
    """What a record is about; of one that cannot be read, its first characters."""
    try:
        if topic == "market.books":
            book = decode_book_update(value)
            best = [side[0][0] if side else None for side in (book.bids, book.asks)]
            return {"symbol": book.symbol, "state": book.state, "update_id": book.update_id, "best": best}
        if topic.startswith("market."):
            batch = decode_batch(value)
            return {"symbol": batch.symbol, "channel": batch.channel, "source": batch.source, "rows": len(batch),
                    "run": batch.run}  # fmt: skip
    except UNREADABLE:
        pass
    return {"bytes": len(value), "value": _text(value)}


def _newest_letters(limit: int) -> Json:
    with open_reader() as reader:
        end = reader.ends().get((DEAD_LETTERS_TOPIC, 0), 0)
        records = list(reader.records(DEAD_LETTERS_TOPIC, 0, max(0, end - limit))) if end else []
    letters = []
    for record in records:
        notes = {name: value.decode(errors="replace") for name, value in record.headers}
        letters.append({
            "id": record.offset, "ts_ms": record.ts_ms, "topic": notes.get("topic", ""),
            "partition": notes.get("partition", ""), "offset": notes.get("offset", ""),
            "reason": notes.get("reason", ""), "value": _text(record.value), "bytes": len(record.value or b""),
        })  # fmt: skip
    return {"dead_letters": letters, "total": end}


def _text(value: bytes | None) -> str:
    return (value or b"")[: 4 * PREVIEW_CHARACTERS].decode(errors="replace")[:PREVIEW_CHARACTERS]
