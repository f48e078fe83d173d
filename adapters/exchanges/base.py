"""What StreamForge needs of an exchange. One class per venue; its words stay in its own module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.market import Array, PageInfo, Span


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

    def parse(self, info: PageInfo, body: bytes) -> Parsed:
        """A raw page to columns; pure. Raises ExchangeError when the whole page cannot be read."""
        ...

    async def close(self) -> None: ...
