"""What StreamForge needs of an exchange. One class per venue; its words stay in its own module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.market import Array, Frame, PageInfo, Span
from models.ordering import Mark


@dataclass(frozen=True)
class Page:
    """One answer of the exchange, bytes untouched, and where to go on after it.

    `cursor` is a small JSON object, opaque to callers: give it back to `history` to resume after this page.
    """

    body: bytes
    ts_receipt_ms: int
    rows: int
    covers: Span  # after this page nothing in [start_ms, end_ms) is left to ask
    cursor: Mapping[str, Any]
    first_id: int | None = None
    last_id: int | None = None
    unrecoverable: tuple[Span, ...] = ()  # asked again, and the exchange still has nothing here
    more: bool = False  # `page_from`: there may be another page behind this one

    def info(self, *, venue: str, symbol: str, channel: str, asked: Span, run: str, task: str = "") -> PageInfo:
        """What travels beside the bytes; `asked` is the range `history` was called with."""
        return PageInfo(
            venue=venue, symbol=symbol, channel=channel, run=run, task=task, ts_receipt_ms=self.ts_receipt_ms,
            covers=self.covers, asked=asked, first_id=self.first_id, last_id=self.last_id,
            unrecoverable=self.unrecoverable,
        )  # fmt: skip


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be read: the exchange's bytes and the sentence why."""

    row: bytes
    reason: str


@dataclass(frozen=True)
class Parsed:
    """A page as columns (`models.market.TRADE_COLUMNS` / `CANDLE_COLUMNS`), in order, each row once.

    Candles are cut to `info.covers`. Trades are cut to `info.asked`: pages go by id, so the last millisecond of a
    full page is covered by the page behind it, but its rows are here already.
    `missing`: spans whose rows were there but unreadable. `unrecoverable`: spans the exchange has no row for
    (`info.unrecoverable` among them). Both lie inside `info.covers`.
    """

    columns: dict[str, Array]
    rejected: Sequence[Rejected] = ()
    missing: tuple[Span, ...] = ()
    unrecoverable: tuple[Span, ...] = field(default=())


@dataclass(frozen=True)
class RejectedFrame:
    """A frame that cannot be read, why, and the span that lacks it; None where no record of the stream is lost."""

    frame: Frame
    reason: str
    hole: Span | None


@dataclass(frozen=True)
class ParsedFrames:
    """Live frames as columns of their channel, in order, each key once."""

    columns: dict[str, Array]
    rejected: tuple[RejectedFrame, ...] = ()


class Exchange(Protocol):
    venue: str

    async def symbols(self) -> Sequence[str]:
        """Symbols that trade now. Raises ExchangeBusy, ExchangeRefused."""
        ...

    async def server_time_ms(self) -> int: ...

    def history(
        self, channel: str, symbol: str, start_ms: int, end_ms: int, cursor: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Page]:
        """Pages of `[start_ms, end_ms)`, gapless and in order; their `covers` join up to exactly the asked range.

        Waits out 429/418/5xx/lost connections itself, for ever, with capped back-off and jitter
        (`on_wait` tells how long and why). Raises ExchangeRefused where asking again changes nothing.
        """
        ...

    async def page_from(self, channel: str, symbol: str, from_id: int, covered_to_ms: int) -> Page:
        """One page of records with ids from `from_id` on, behind what is known up to `covered_to_ms`.

        It may have no row. Candles count by open time over interval; only closed ones are given. Waits as `history`.
        """
        ...

    async def book_snapshot(self, symbol: str) -> tuple[int, bytes]:
        """The id of its last update, and the order book as the exchange says it now. Waits as `history`."""
        ...

    def stream_name(self, channel: str, symbol: str) -> str:
        """What a live stream is called on the wire."""
        ...

    def mark(self, channel: str, frame: bytes) -> Mark | None:
        """A live frame's place in its stream; None when it has none. Never raises."""
        ...

    def parse_frames(self, channel: str, frames: Sequence[Frame]) -> ParsedFrames:
        """Live frames to columns; pure. A bad frame does not touch its neighbours."""
        ...

    def parse(self, info: PageInfo, body: bytes) -> Parsed:
        """A raw page to columns; pure. Raises ExchangeError when the whole page cannot be read."""
        ...

    async def close(self) -> None: ...
