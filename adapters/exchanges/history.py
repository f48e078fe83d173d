"""History over REST, page by page, for any exchange that can be asked for trades by id and for candles.

Promise: the pages of `history` cover exactly the asked range, without a gap between them, and no row is lost
between two pages. Trades go on by id, never by time (more trades can share a millisecond than a page holds);
an empty or short page is never the end, only an id or a time reached is. What the exchange lacks is asked for
again, then said: it is `unrecoverable`, never filled. Outages are waited out for ever, limits are kept.

How a lack is known:
- Trades: ids are contiguous, so a jump is a loss: from the trade before it to the one behind it, both included.
  A silence at an edge of the range (no trade at all) proves nothing by ids; the exchange's own 1m candles are the
  witness: minutes whose candle has no volume are silent, the others are lacking. A silence without one whole
  minute in it needs no witness.
- Candles: an open time of the grid without a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adapters.exchanges.base import Exchange, Page, Parsed
from adapters.exchanges.requests import Patience, Requests
from adapters.exchanges.rows import (
    CANDLE_FIELDS,
    Read,
    defects,
    first_at_or_after,
    grid_holes,
    parse_candles,
    parse_trades,
    reached,
)
from app.errors import ExchangeError, ExchangeRefused
from models.market import INTERVAL_MS, TRADE_CHANNELS, PageInfo, Span, interval_of
from models.spans import clip, subtract, union

MINUTE_MS = 60_000
_RECENT_MS = 60_000  # rows this young may still be on their way into the exchange's database
_SETTLING_S = 5.0  # between questions about them
HISTORY = ("trades",)  # beside candles
_LOOKS = 2  # how often an empty or torn answer is asked for

Answer = tuple[bytes, Read]  # an answer's body, and its rows


class RestExchange(Exchange):
    """The REST side of an exchange: what is common to all of them; a venue says what it asks and reads."""

    channels: ClassVar[tuple[str, ...]] = ("trades",)  # of trades; `candles_<interval>` of `intervals` beside them
    intervals: ClassVar[Sequence[str]] = tuple(INTERVAL_MS)
    live_channels: ClassVar[tuple[str, ...]] = ("trades", "book", "ticker")  # beside candles
    page_rows: ClassVar[int]  # the most that a page holds

    _requests: Requests

    def __init__(self, patience: Patience | None) -> None:
        self._patience = patience or Patience()

    # -- what a venue says ---------------------------------------------------------------------------------

    async def prepare(self, symbol: str) -> None:
        """Once before the first question. Raises ExchangeRefused for an unknown symbol."""
        raise NotImplementedError

    async def ask_candles(self, symbol: str, interval: str, span: Span) -> Answer:
        """Candles that open in `span`, at most `page_rows` of the grid; others may come too."""
        raise NotImplementedError

    async def ask_trades_from(self, channel: str, symbol: str, from_id: int) -> Answer:
        """The oldest trades with ids from `from_id` on; none before them."""
        raise NotImplementedError

    async def ask_trades_at(self, symbol: str, start_ms: int, end_ms: int) -> Answer:
        """The oldest trades since `start_ms`; none, or later ones, where there is none before `end_ms`."""
        raise NotImplementedError

    def read(self, channel: str, body: bytes) -> Read:
        """A page's rows. Raises ExchangeError when the whole page cannot be read."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------

    async def history(
        self, channel: str, symbol: str, start_ms: int, end_ms: int, cursor: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Page]:
        """Pages as `Exchange.history` promises; waits until the exchange's clock has passed `end_ms`.

        Raises ExchangeRefused for an unknown symbol or channel. A page's `covers` may be empty: a page of trades
        that all share one millisecond settles nothing yet.
        """
        self.check_channel(channel, HISTORY)
        at = _Position(start_ms)
        if cursor:
            at = _Position(int(cursor["covered_to"]), cursor.get("from_id"))
        if at.covered_to >= end_ms:
            return
        await self.prepare(symbol)
        await self._requests.until(end_ms + self._patience.settle_ms, await self.server_time_ms())
        if channel == "trades":
            pages = self._trade_pages(symbol, at, end_ms)
        else:
            pages = self._candle_pages(symbol, interval_of(channel), at.covered_to, end_ms)
        async with contextlib.aclosing(pages):
            async for page in pages:
                yield page

    def check_channel(self, channel: str, others: Sequence[str] | None = None) -> None:
        """Raises ExchangeRefused for one that is neither among the `others` nor candles of a known interval."""
        others = self.channels if others is None else others
        if channel not in others and interval_of(channel) not in self.intervals:
            has = f"{', '.join(others)} and candles_<interval> of {', '.join(self.intervals)}"
            raise ExchangeRefused(f"{self.venue} has no channel {channel!r}; it has {has}")

    async def page_from(self, channel: str, symbol: str, from_id: int, covered_to_ms: int) -> Page:
        self.check_channel(channel)
        await self.prepare(symbol)
        if channel in TRADE_CHANNELS:
            return await self._trade_page_from(channel, symbol, from_id, covered_to_ms)
        return await self._candle_page_from(symbol, interval_of(channel), from_id)

    async def _trade_page_from(self, channel: str, symbol: str, from_id: int, covered_to_ms: int) -> Page:
        body, read = await self.ask_trades_from(channel, symbol, from_id)
        ids, ts = read.columns["id"], read.columns["ts_ms"]
        last_ms = max(covered_to_ms, int(ts[-1])) if len(read) else covered_to_ms
        return Page(
            body=body, ts_receipt_ms=now(), rows=len(read), covers=(covered_to_ms, last_ms), cursor={},
            first_id=int(ids[0]) if len(read) else None, last_id=int(ids[-1]) if len(read) else None,
            more=read.rows >= self.page_rows,
        )  # fmt: skip

    async def _candle_page_from(self, symbol: str, interval: str, from_id: int) -> Page:
        step = INTERVAL_MS[interval]
        start_ms, now_ms = from_id * step, await self.server_time_ms()
        end_ms = max(now_ms - now_ms % step, start_ms)  # what opens here or later still runs
        end_ms = min(end_ms, start_ms + self.page_rows * step)
        body, read = await self.ask_candles(symbol, interval, (start_ms, max(end_ms, start_ms + 1)))
        opens = read.columns["ts"]
        opens = opens[(opens >= start_ms) & (opens < end_ms)]
        ids = opens // step
        return Page(
            body=body, ts_receipt_ms=now(), rows=len(opens), cursor={},
            covers=(start_ms, int(opens[-1]) + step if len(opens) else start_ms),
            first_id=int(ids[0]) if len(ids) else None, last_id=int(ids[-1]) if len(ids) else None,
            more=len(opens) >= self.page_rows,
        )  # fmt: skip

    def parse(self, info: PageInfo, body: bytes) -> Parsed:
        read = self.read(info.channel, body)
        if info.channel in TRADE_CHANNELS:
            return parse_trades(info, read)
        return parse_candles(info, read, INTERVAL_MS[interval_of(info.channel)])

    async def close(self) -> None:
        await self._requests.close()

    # -- candles -------------------------------------------------------------------------------------------

    async def _candle_pages(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> AsyncGenerator[Page, None]:
        step = INTERVAL_MS[interval]
        while start_ms < end_ms:
            window_end_ms = min(start_ms - start_ms % step + self.page_rows * step, end_ms)
            span = (start_ms, window_end_ms)
            body, read = await self._candle_window(symbol, interval, span)
            reached_ms = reached(read, span, step)
            yield Page(
                body=body, ts_receipt_ms=now(), rows=read.rows, covers=(start_ms, reached_ms),
                cursor={"covered_to": reached_ms},
            )  # fmt: skip
            start_ms = reached_ms

    async def _candle_window(self, symbol: str, interval: str, span: Span) -> Answer:
        """The fullest of the answers; asked again when rows are missing between others, or all of them."""
        step, best = INTERVAL_MS[interval], (b"[]", Read.nothing(CANDLE_FIELDS))
        for look in itertools.count(1):
            answer = await self.ask_candles(symbol, interval, span)
            if answer[1].rows >= best[1].rows:
                best = answer
            reached_ms = reached(best[1], span, step)
            holes = grid_holes(best[1].columns["ts"], (span[0], reached_ms), step)
            late = self._is_recent(span[1]) and (reached_ms < span[1] or bool(holes))
            if (best[1].rows and not holes and not late) or (look >= _LOOKS and not late):
                break
            await asyncio.sleep(_SETTLING_S if late and look >= _LOOKS else self._patience.again_s)
        return best

    # -- trades --------------------------------------------------------------------------------------------

    async def _trade_pages(self, symbol: str, at: _Position, end_ms: int) -> AsyncGenerator[Page, None]:
        """By time to the first trade, then by id, several pages in flight; delivered in order."""
        ahead = _Ahead(
            lambda from_id: self.ask_trades_from("trades", symbol, from_id), self._patience.in_flight, self.page_rows
        )
        try:
            while at.covered_to < end_ms:
                lacking: tuple[Span, ...] = ()
                if at.from_id is None:
                    body, read, lacking = await self._first_trades(symbol, (at.covered_to, end_ms))
                else:
                    body, read = await self._next_trades(symbol, ahead, at.from_id)
                    if not read.rows:
                        body, read, lacking = await self._behind_the_last(symbol, at, end_ms)
                page, at = _trade_page(body, read, lacking, at, end_ms)
                yield page
        finally:
            await ahead.drop()

    async def _next_trades(self, symbol: str, ahead: _Ahead, from_id: int) -> Answer:
        """The page at `from_id`; a jump or nothing at all is asked for once more."""
        body, read = await ahead.take(from_id)
        if len(read) and not defects(read, from_id).jumps:
            return body, read
        await ahead.drop()
        if read.rejected and not len(read):
            return body, read
        await asyncio.sleep(self._patience.again_s)
        again = await self.ask_trades_from("trades", symbol, from_id)
        return again if len(again[1]) >= len(read) else (body, read)

    async def _first_trades(self, symbol: str, span: Span) -> tuple[bytes, Read, tuple[Span, ...]]:
        body, read = await self._trades_at(symbol, *span)
        first_ms = first_at_or_after(read, span[0])
        silence = (span[0], span[1] if first_ms is None else min(first_ms, span[1]))
        lacking, traded_ms = await self._unproven(symbol, silence)
        if first_ms is None and traded_ms is not None and traded_ms > span[0]:
            body, read = await self._trades_at(
                symbol, traded_ms, span[1]
            )  # it answers [] for times before the first trade
            first_ms = first_at_or_after(read, span[0])
            lacking = tuple(clip(lacking, span[0], span[1] if first_ms is None else first_ms))
        return body, read, lacking

    async def _behind_the_last(self, symbol: str, at: _Position, end_ms: int) -> tuple[bytes, Read, tuple[Span, ...]]:
        """No id behind the last one: go on by time, over what the exchange lacks, or end the range here."""
        body, read = await self._trades_at(symbol, at.covered_to + 1, end_ms)
        if len(read) and at.from_id is not None:
            by_id = await self.ask_trades_from("trades", symbol, at.from_id)  # there is more: was it only late?
            return (*by_id, ()) if len(by_id[1]) else (body, read, ())
        lacking, _ = await self._unproven(symbol, (at.covered_to, end_ms))
        return body, read, lacking

    async def _trades_at(self, symbol: str, start_ms: int, end_ms: int) -> Answer:
        """The oldest trades since `start_ms`; none is believed when it was said again, and `end_ms` is not recent."""
        for look in itertools.count(1):
            body, read = await self.ask_trades_at(symbol, start_ms, end_ms)
            if len(read) or (look >= _LOOKS and not self._is_recent(end_ms)):
                break
            if look < _LOOKS:
                await asyncio.sleep(self._patience.again_s)
            else:
                await self._requests.wait(_SETTLING_S, "the newest trades may still be on their way into the database")
        if read.rejected and not len(read):
            raise ExchangeError(f"none of {read.rows} trades of {symbol} can be read; has the format changed?")
        return body, read

    async def _unproven(self, symbol: str, silence: Span) -> tuple[tuple[Span, ...], int | None]:
        """What of a silence the 1m candles do not confirm, and the first minute that they say had trades."""
        first_ms = -(-silence[0] // MINUTE_MS) * MINUTE_MS
        last_ms = silence[1] // MINUTE_MS * MINUTE_MS
        if last_ms <= first_ms:
            return (), None
        silent: list[Span] = []
        traded_ms: int | None = None
        async with contextlib.aclosing(self._candle_pages(symbol, "1m", first_ms, last_ms)) as pages:
            async for page in pages:
                columns = self.read("candles_1m", page.body).columns
                opens, traded = columns["ts"], columns["volume"] > 0
                silent = union(silent, ((int(ts), int(ts) + MINUTE_MS) for ts in opens[~traded]))
                if traded_ms is None and traded.any():
                    traded_ms = int(opens[traded][0])
        lacking = [
            (silence[0] if start == first_ms else start, silence[1] if end == last_ms else end)
            for start, end in subtract([(first_ms, last_ms)], silent)
        ]
        return tuple(lacking), traded_ms

    def _is_recent(self, ts_ms: int) -> bool:
        return self._requests.clock.now_ms() - ts_ms < _RECENT_MS


class _Ahead:
    """Trade pages asked for before they are wanted: full pages of contiguous ids start `rows` apart.

    It begins with one page and asks for one more with each that fits, so a torn stretch wastes no weight.
    """

    def __init__(self, ask: Callable[[int], Any], most: int, rows: int) -> None:
        self._ask, self._most, self._rows, self._depth = ask, most, rows, 1
        self._tasks: deque[tuple[int, asyncio.Task[Answer]]] = deque()

    async def take(self, from_id: int) -> Answer:
        if self._tasks and self._tasks[0][0] != from_id:
            await self.drop()
        self._fill(from_id)
        answer = await self._tasks.popleft()[1]
        if len(answer[1]) == self._rows:
            self._depth = min(self._depth + 1, self._most)
            self._fill(from_id + self._rows)
        return answer

    def _fill(self, from_id: int) -> None:
        next_id = self._tasks[-1][0] + self._rows if self._tasks else from_id
        while len(self._tasks) < self._depth:
            self._tasks.append((next_id, asyncio.ensure_future(self._ask(next_id))))
            next_id += self._rows

    async def drop(self) -> None:
        tasks = [task for _, task in self._tasks]
        self._tasks.clear()
        self._depth = 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class _Position:
    """Everything before `covered_to` is settled; the next trade to ask for is `from_id`."""

    covered_to: int
    from_id: int | None = None


def _trade_page(
    body: bytes, read: Read, lacking: tuple[Span, ...], at: _Position, end_ms: int
) -> tuple[Page, _Position]:
    """The page and where to go on.

    A page of trades settles everything before its last millisecond, which may go on in the next page. Where a
    defect reaches into that millisecond it settles that one too, so that the defect's span is this page's alone.
    """
    ids, ts = read.columns["id"], read.columns["ts_ms"]
    last_id: int | None = None
    if len(read):
        last_id, last_ms = int(ids[-1]), int(ts[-1])
        reached_ms = last_ms + defects(read, at.from_id).touch(last_ms)
        reached_ms = end_ms if last_ms >= end_ms else max(reached_ms, at.covered_to)
        behind = _Position(reached_ms, last_id + 1)
    elif read.rejected and at.from_id is not None:
        last_id = at.from_id + len(read.rejected) - 1
        behind = _Position(at.covered_to, last_id + 1)
    else:
        behind = _Position(end_ms, at.from_id)
    page = Page(
        body=body, ts_receipt_ms=now(), rows=read.rows,
        covers=(at.covered_to, behind.covered_to), first_id=at.from_id, last_id=last_id,
        cursor={"covered_to": behind.covered_to, "from_id": behind.from_id},
        unrecoverable=tuple(clip(lacking, at.covered_to, behind.covered_to)),
    )  # fmt: skip
    return page, behind


def now() -> int:
    return int(time.time() * 1000)
