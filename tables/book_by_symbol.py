"""Order books as they were last seen, by `venue:symbol`; written by build_books only."""

from __future__ import annotations

import msgspec

from app.config import settings
from models.market import BookState, Level
from tables.rows import Rows


class BookRow(msgspec.Struct, kw_only=True):
    """What a view shows of a book, and the last message that was applied; the book itself is in its owner's memory."""

    state: BookState = "stale"
    source: str = ""
    ts_ms: int = 0  # exchange time of the last diff that was applied; 0: none yet
    update_id: int = 0
    ts_receipt_ms: int = 0
    bids: tuple[Level, ...] = ()  # (price, size), best first, at most 20; empty unless live
    asks: tuple[Level, ...] = ()
    features: dict[str, float | None] = {}  # of the last applied diff, as the columns of BookUpdate; None: not known
    at: dict[str, int] = {}  # offset of the last applied message, by `topic-partition`


book_by_symbol: Rows[BookRow] = Rows(
    "book_by_symbol", BookRow, partitions=settings().partitions, help="Order books: state, best levels, features"
)
