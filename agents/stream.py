"""Follow live streams: exchange --WebSocket--> stream --> raw.trades, raw.candles, raw.books.

A task is one stream of one symbol; the streams of a process share the venue's connections. Frames go on as they were
received, some milliseconds of them in one message. Trades and closed candles go on in order of id: where one lacks,
those behind it wait while the hole is asked for over REST, as pages, which go first. What cannot be had within FILL_S
is said to lack, and the ledger's repair asks for it later. The checkpoint names the next id, so whoever follows the
stream after a crash or a rebalance begins with the hole in front of its first frame. It runs until it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from adapters.exchanges.base import Page
from adapters.exchanges.streams import Received
from app import outside, topics
from app.config import settings
from app.core import Message, app, dead_letter, put
from app.errors import ExchangeError, ExchangeRefused
from app.outside import Live
from app.telemetry import STREAM_FRAMES, STREAM_GAPS, STREAM_LATE, STREAM_LIVE, STREAM_SILENT_S, STREAM_SKEW_S
from app.work import Finished, Job, work
from models.control import STREAMER, Json
from models.coverage import stream_name
from models.market import (
    INTERVAL_MS,
    TRADE_CHANNELS,
    Frame,
    FramesInfo,
    PageInfo,
    Span,
    encode_frames,
    encode_frames_info,
    encode_page_info,
    stream_key,
)
from models.ordering import InOrder, Mark
from tables.tasks import tasks

log = logging.getLogger(__name__)

MESSAGE_FRAMES = 500
MESSAGE_BYTES = 1 << 20
LOOK_EVERY_S = 0.25  # without a frame
REPORT_EVERY_S = 2.0
CHECKPOINT_EVERY_S = 5.0  # what comes again after a crash is dropped by id, so it may be this old
FILL_S = 5.0  # live frames wait so long for the hole in front of them
AGAIN_S = 0.5  # what was streamed just now may still be on its way into the exchange's database
REORDER_S = 0.25  # two connections may deliver in turn before it is a hole
CLOSING_S = 5.0  # the frame that closes a candle comes up to 2.4 s late
QUIET_S = 10.0  # without a trade; then the exchange is asked whether there was none, once in
QUIET_EVERY_S = 30.0
SETTLED_MS = 5_000  # a trade this old is in the exchange's database
SNAPSHOT_EVERY_S = 2.0  # of one symbol
_strays: set[asyncio.Task[None]] = set()


@work(STREAMER, lets_go=True)
async def stream(job: Job) -> Finished:
    """One live stream onto its raw topic until it is stopped."""
    side = outside.live(job.step.venue, on_stray=_put_stray_aside)
    channel = job.step.channel
    if channel == "book":
        reader: _Reader = _Book(job, side)
    else:
        reader = _Reader(job, side) if channel == "ticker" else _Ordered(job, side)
    try:
        await reader.run()
    finally:
        reader.close()
    raise AssertionError("a live stream has no end")


@app.on_before_shutdown.connect
async def hang_up(*_: object, **__: object) -> None:
    """The connections end with the worker."""
    await outside.hang_up()


class _Reader:
    """Any stream: frames onto the raw topic, none of them twice."""

    def __init__(self, job: Job, side: Live) -> None:
        self.job, self.side, self.exchange = job, side, side.exchange
        self.channel, self.symbol = job.step.channel, job.step.symbol
        self.venue, self.clock = self.exchange.venue, side.hub.clock
        self.name = stream_name(self.venue, self.symbol, self.channel)
        self.subscription = side.hub.subscribe(self.exchange.stream_name(self.channel, self.symbol))
        self._pending: list[Frame] = []
        self._pending_bytes = 0
        self._conn, self._last_id = "", -1
        self._reported_at, self._state = -REPORT_EVERY_S, ""
        self._gaps: dict[str, int] = {}
        self._skew_s = 0.0

    async def run(self) -> None:
        """Never returns. Raises ExchangeRefused when the exchange does not know the stream."""
        flush_s = settings().stream_flush_ms / 1000
        await self.begin()
        while True:
            frames = await self.subscription.take(MESSAGE_FRAMES, flush_s, LOOK_EVERY_S)
            if self.subscription.refused:
                raise ExchangeRefused(f"{self.name}: {self.subscription.refused}")
            for received in frames:
                await self.read(received)
            await self.flush()
            await self.care()
            await self.report()

    def close(self) -> None:
        self.subscription.close()
        for gauge in (STREAM_LIVE, STREAM_SILENT_S, STREAM_SKEW_S):
            with contextlib.suppress(KeyError):
                gauge.remove(self.name)

    async def begin(self) -> None:
        """Before the first frame."""

    async def read(self, received: Received) -> None:
        """One frame into the next message, unless it is a repeat. One without a place goes on as it is."""
        mark = self.exchange.mark(self.channel, received.frame)
        if mark is None or self.is_next(mark):
            await self.add(received)

    def is_next(self, mark: Mark) -> bool:
        """False for a repeat."""
        if mark.last <= self._last_id and mark.before != self._last_id:  # ids may stand still, or begin anew
            return False
        self._last_id = mark.last
        return True

    async def care(self) -> None:
        """After each message: what a stream needs beside its frames."""

    async def add(self, received: Received) -> None:
        self._pending.append((received.ns, received.frame))
        self._pending_bytes += len(received.frame)
        self._conn = received.conn
        if len(self._pending) >= MESSAGE_FRAMES or self._pending_bytes >= MESSAGE_BYTES:
            await self.flush()

    def covered(self) -> Span | None:
        """What the pending frames complete."""
        return None

    async def flush(self) -> None:
        if self._pending:
            frames, self._pending, self._pending_bytes = self._pending, [], 0
            await self.put_frames(frames, covers=self.covered())
            self.job.records_written += len(frames)
            STREAM_FRAMES.labels(self.venue, self.channel).inc(len(frames))

    async def put_frames(self, frames: Sequence[Frame], **said: Any) -> asyncio.Future[Any]:
        info = FramesInfo(
            venue=self.venue, symbol=self.symbol, channel=self.channel, run=self.job.queue_id, task=self.job.task_id,
            conn=self._conn,
            ts_receipt_ms=frames[-1][0] // 1_000_000 if frames else self.clock.time_ns() // 1_000_000, **said,
        )  # fmt: skip
        return await self._put(encode_frames(frames), "frames", encode_frames_info(info))

    async def _put(self, value: bytes, header: str, info: bytes) -> asyncio.Future[Any]:
        key = stream_key(self.venue, self.symbol)
        return await put(topics.raw_for(self.channel), key, value, [(header, info)])

    def gap(self, end: str) -> None:
        """A hole was found, and ended so."""
        self._gaps[end] = self._gaps.get(end, 0) + 1
        STREAM_GAPS.labels(self.venue, self.channel, end).inc()

    async def report(self) -> None:
        """How the stream is, at once when that changes."""
        health, now = self.subscription.health(), self.clock.monotonic()
        if health.state == self._state and now - self._reported_at < REPORT_EVERY_S:
            return
        changed, self._state, self._reported_at = health.state != self._state, health.state, now
        STREAM_LIVE.labels(self.name).set(health.state == "live")
        STREAM_SILENT_S.labels(self.name).set(health.silent_s)
        STREAM_SKEW_S.labels(self.name).set(self._skew_s)
        extra = {
            "stream": self.name, "state": health.state, "silent_s": round(health.silent_s, 1), "conn": health.conn,
            "skew_s": round(self._skew_s, 3), "gaps": self._gaps,
        }  # fmt: skip
        await self.job.report(message=health.state, extra=extra, now=changed)


class _Ordered(_Reader):
    """Trades and candles: in order of id, holes first."""

    def __init__(self, job: Job, side: Live) -> None:
        super().__init__(job, side)
        self._order: InOrder[Received] = InOrder()
        self._told_to: int | None = None  # ms; what went out covers the stream up to here
        self._done_to: int | None = None  # ms; what is pending completes it up to here
        self._joins, self._hole_since, self._in_vain = 0, 0.0, False
        self._sent: asyncio.Future[Any] | None = None
        self._checkpoint_at = 0.0
        self._checkpointed: int | None = None
        self._step_ms = 0 if self.channel in TRADE_CHANNELS else INTERVAL_MS[job.step.interval]
        self._asked_at = self._advanced_at = self.clock.monotonic()

    async def begin(self) -> None:
        """Where the one before has ended; else with the candle that runs now, or the first trade that comes."""
        if not self.job.cursor:  # perhaps one was written before a crash, and is only not read yet
            await self.job.catch_up()
        if cursor := self.job.cursor or remembered(self.job):
            self._order.next_id, self._told_to = cursor["next_id"], cursor["covered_to"]
            self._checkpointed = self._told_to
        if self._step_ms and self._order.next_id is None:
            self._order.next_id = await self.exchange.server_time_ms() // self._step_ms
            self._told_to = self._order.next_id * self._step_ms

    async def read(self, received: Received) -> None:
        mark = self.exchange.mark(self.channel, received.frame)
        if mark is None:
            await self.add(received)
            return
        self._skew_s = (received.ns / 1e6 - mark.to_ms) / 1000 if mark.done else self._skew_s
        await self._go_on(self._order.offer(mark, received))

    async def _go_on(self, ready: Sequence[tuple[Mark, Received]]) -> None:
        for mark, received in ready:
            if mark.done:
                self._told_to = mark.from_ms if self._told_to is None else self._told_to
                if mark.to_ms < self._told_to:  # it was said that nothing was traded then
                    STREAM_LATE.labels(self.venue, self.channel).inc()
                self._done_to = max(mark.to_ms, self._done_to or self._told_to)
            await self.add(received)

    def covered(self) -> Span | None:
        if self._told_to is None or self._done_to is None:
            return None
        span = (self._told_to, max(self._told_to, self._done_to))
        self._told_to, self._done_to, self._advanced_at = span[1], None, self.clock.monotonic()
        return span

    async def _put(self, value: bytes, header: str, info: bytes) -> asyncio.Future[Any]:
        self._sent = await super()._put(value, header, info)
        return self._sent

    async def care(self) -> None:
        now = self.clock.monotonic()
        self._hole_since = (self._hole_since or now) if self._order.hole else 0.0
        patience_s = CLOSING_S if self._step_ms else REORDER_S
        if self._order.hole and self._in_vain:  # the frames in front of which it was asked for were still to come
            self._in_vain = False
            await self._give_up()
        elif self._order.next_id is not None and (
            self._joins != self.subscription.joins
            or (self._hole_since and now - self._hole_since >= patience_s)
            or self._is_overdue(now)
        ):
            self._joins, self._asked_at = self.subscription.joins, now
            await self._fill()
        if now >= self._checkpoint_at:
            self._checkpoint_at = now + CHECKPOINT_EVERY_S
            await self._checkpoint()

    def _is_overdue(self, now: float) -> bool:
        """A candle should have closed, or nobody has traded for long: the stream alone does not tell."""
        silent_s, asked_s = now - self._advanced_at, now - self._asked_at
        if self._step_ms:
            return silent_s >= self._step_ms / 1000 + CLOSING_S and asked_s >= 2 * CLOSING_S
        return silent_s >= QUIET_S and asked_s >= QUIET_EVERY_S

    async def _fill(self) -> None:
        """Fetch what lies in front of the frames that wait, or behind the last one before a cut."""
        await self.flush()
        had_hole, first_id = self._order.hole is not None, self._order.next_id
        self.subscription.repairing = had_hole
        await self.report()
        self._in_vain = False
        try:
            async with asyncio.timeout(FILL_S):
                await self._fetch()
        except (TimeoutError, ExchangeError) as error:
            self._in_vain = self._order.hole is None
            log.warning("%s from %s: %s", self.name, first_id, str(error) or "not to be had in time")
        finally:
            self.subscription.repairing = False
        self._hole_since = 0.0
        if self._order.hole is not None:
            await self._give_up()
        elif had_hole or self._order.next_id != first_id:
            self.gap("filled")

    async def _fetch(self) -> None:
        """Page after page from the next id on, until nothing lacks in front of what has been seen."""
        while True:
            next_id, told_to = self._order.next_id, self._told_to
            assert next_id is not None
            assert told_to is not None
            asked_ms = 0 if self._step_ms else await self.exchange.server_time_ms()
            page = await self.exchange.page_from(self.channel, self.symbol, next_id, told_to)
            whole = page.last_id is not None and page.first_id == next_id
            whole = whole and page.last_id == next_id + page.rows - 1
            if whole:
                await self._put_page(page)
            if self._order.hole is None and not (whole and page.more):
                await self._put_quiet(page, asked_ms - SETTLED_MS)
                return
            if not whole:
                await asyncio.sleep(AGAIN_S)

    async def _put_quiet(self, page: Page, to_ms: int) -> None:
        """Nothing was traded up to here: so candles close although their symbol is quiet."""
        if page.last_id is None and self._told_to is not None and not self._step_ms and to_ms > self._told_to:
            await self.put_frames([], covers=(self._told_to, to_ms))
            self._told_to, self._advanced_at = to_ms, self.clock.monotonic()

    async def _put_page(self, page: Page) -> None:
        start, end = page.covers
        info = PageInfo(
            venue=self.venue, symbol=self.symbol, channel=self.channel, run=self.job.queue_id, task=self.job.task_id,
            ts_receipt_ms=page.ts_receipt_ms, covers=page.covers, first_id=page.first_id, last_id=page.last_id,
            asked=page.covers if self._step_ms else (start, end + 1),  # the last millisecond's trades are rows of it
        )  # fmt: skip
        await self._put(page.body, "page", encode_page_info(info))
        self.job.records_written += page.rows
        self._told_to, self._advanced_at = end, self.clock.monotonic()
        assert page.last_id is not None
        await self._go_on(self._order.passed(page.last_id))
        await self.flush()

    async def _give_up(self) -> None:
        """Say what lacks, and go on live."""
        behind, ready = self._order.give_up()
        assert self._told_to is not None
        lost = (self._told_to, max(self._told_to, behind.from_ms))
        log.warning("%s lacks %d .. %d ms for now", self.name, *lost)
        self.gap("missing")
        await self.put_frames([], covers=lost, lacks=True)
        self._told_to = lost[1]
        await self._go_on(ready)
        await self.flush()

    async def _checkpoint(self) -> None:
        """The next id, once everything in front of it is durable."""
        next_id, told_to = self._order.next_id, self._told_to
        if told_to == self._checkpointed or self._sent is None or told_to is None:
            return
        await self._sent
        self._checkpointed = told_to
        await self.job.checkpoint({"next_id": next_id, "covered_to": told_to})


class _Book(_Reader):
    """Diffs as they come, and a snapshot of the book whenever their chain begins, breaks, or its reader asks."""

    def __init__(self, job: Job, side: Live) -> None:
        super().__init__(job, side)
        self._joins, self._wanted, self._first_id = 0, False, 0  # a snapshot older than the first diff is useless
        self._asked_at = -SNAPSHOT_EVERY_S
        self._asking: asyncio.Task[None] | None = None

    def close(self) -> None:
        super().close()
        if self._asking:
            self._asking.cancel()

    def is_next(self, mark: Mark) -> bool:
        last = self._last_id
        if not super().is_next(mark):
            return False
        joined = mark.before == last if mark.before is not None else mark.first <= last + 1
        if last >= 0 and not joined:
            self._want(mark.first)
            self.gap("snapshot")
        return True

    async def care(self) -> None:
        if self._joins != self.subscription.joins:
            self._joins = self.subscription.joins
            self._want(0)
        while not self.job.told.empty():
            if "snapshot" in self.job.told.get_nowait():
                self._want(0)
        now = self.clock.monotonic()
        idle = self._asking is None or self._asking.done()
        if self._wanted and idle and self._joins and now - self._asked_at >= SNAPSHOT_EVERY_S:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())

    def _want(self, first_id: int) -> None:
        self._wanted, self._first_id = True, max(self._first_id, first_id)
        self.subscription.repairing = True

    async def _ask(self) -> None:
        """One snapshot, in turn with the other symbols; one that is too old is asked for again."""
        try:
            async with self.side.snapshots:
                last_id, body = await self.exchange.book_snapshot(self.symbol)
        except ExchangeError as error:
            log.warning("%s: no snapshot: %s", self.name, error)
            return
        if last_id < self._first_id - 1:
            return
        self._wanted = self.subscription.repairing = False
        await self.put_frames([(time.time_ns(), body)], kind="snapshot")


def remembered(job: Job) -> Json | None:
    """The task's checkpoint as its row knows it now."""
    row = tasks.get(job.task_id)
    return row.cursor if row and row.attempt == job.attempt else None


def _put_stray_aside(frame: bytes) -> None:
    """A frame that nobody can read, and that belongs to no stream."""
    message = Message("live", 0, 0, b"", frame, {}, time.time())
    aside = asyncio.get_running_loop().create_task(dead_letter(message, "a live connection carried what is not JSON"))
    _strays.add(aside)
    aside.add_done_callback(_strays.discard)
