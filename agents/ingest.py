"""Load history: exchange --REST--> load --> raw.trades, raw.candles.

The pages go to the topic as the exchange sent them; each is durable before the checkpoint that follows it. Only what
the coverage ledger does not hold yet is asked for, so that a repeated load costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app import outside, topics
from app.config import settings
from app.core import put
from app.telemetry import EXCHANGE_WAITS
from app.work import Finished, Job, work
from models import spans
from models.control import LOADER, Json
from models.market import Span, encode_page_info, stream_key

CHECKPOINT_PAGES = 20
ALIGN_MS = 3_600_000  # gaps are asked for in full hours, so that candles made from trades are whole


@work(LOADER, lets_go=True)
async def load(job: Job) -> Finished:
    """The pages of one stream's missing spans, in order, onto its raw topic."""
    step = job.step
    assert step.range_ms is not None
    start, end = step.range_ms
    ledger = await asyncio.to_thread(outside.read_coverage, outside.store(), step.symbol, step.channel, step.venue)
    todo = remaining(ledger.gaps(start, end), (start, end), job.cursor)
    topic, key = topics.raw_for(step.channel), stream_key(step.venue, step.symbol)
    exchange = outside.open_exchange(lambda wait_s, why: _say_wait(job, wait_s, why), step.venue)
    pages, position = 0, (job.cursor or {}).get("position")
    try:
        for gap_start, gap_end in todo:
            resume_at = _cursor_in(job.cursor, (gap_start, gap_end))
            async for page in exchange.history(step.channel, step.symbol, gap_start, gap_end, resume_at):
                info = page.info(
                    venue=step.venue, symbol=step.symbol, channel=step.channel, asked=(gap_start, gap_end),
                    run=job.queue_id, task=job.task_id,
                )  # fmt: skip
                sent = await put(topic, key, page.body, [("page", encode_page_info(info))])
                pages += 1
                job.records_written += page.rows
                if pages % CHECKPOINT_PAGES == 0 or page.covers[1] >= gap_end:
                    place = await sent  # durable, and so is everything sent before
                    position = (f"{topic}-{place.partition}", place.offset)
                    cursor = {"gap": (gap_start, gap_end), "page": dict(page.cursor), "position": position}
                    await job.checkpoint(cursor)
                await job.report(progress=(page.covers[1] - start) / (end - start), message="")
                await _wait_for_readers(job, step.channel)
    finally:
        await exchange.close()
    return Finished(job.records_written, f"{pages} pages" if pages else "already stored", {"position": position})


def remaining(gaps: Sequence[Span], asked: Span, cursor: Json | None) -> list[Span]:
    """What a load still has to ask for: the full hours of each gap; after a checkpoint, from its gap on."""
    aligned = [(max(asked[0], start - start % ALIGN_MS), min(asked[1], end + -end % ALIGN_MS)) for start, end in gaps]
    todo = spans.union(aligned)
    if cursor is None:
        return todo
    gap: Span = tuple(cursor["gap"])
    return [gap, *spans.subtract(todo, [(asked[0], gap[1])])]


def _cursor_in(cursor: Json | None, gap: Span) -> Json | None:
    return cursor["page"] if cursor and tuple(cursor["gap"]) == gap else None


async def _wait_for_readers(job: Job, channel: str) -> None:
    """Back-pressure: a loader never runs further ahead of the store than LOADER_BACKLOG batches."""
    waiting = (topics.raw_for(channel), topics.market_for(channel))
    while sum(topics.waiting(topic) for topic in waiting) > settings().loader_backlog:
        await job.report(message="waits for the store")
        await asyncio.sleep(0.05)


def _say_wait(job: Job, wait_s: float, why: str) -> None:
    EXCHANGE_WAITS.labels(job.step.venue).inc()
    job.say_soon(f"exchange: {why}; waits {wait_s:.1f} s")
