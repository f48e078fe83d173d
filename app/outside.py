"""The doors to the outside world: which store and which exchange this process uses, opened once each."""

from __future__ import annotations

import asyncio
import difflib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import msgspec

from adapters.exchanges.base import Exchange
from adapters.exchanges.streams import Health, Hub, Limits
from adapters.exchanges.venues import VENUES, Venue
from adapters.stores import collections
from adapters.stores.base import Document, Store
from adapters.stores.sqlite import SqliteStore
from app.config import check_store_url, settings
from app.errors import CommandRejected, ExchangeError, SetupRefused
from models.control import DEFAULT_VENUE
from models.coverage import Coverage, stream_name

VENUE = DEFAULT_VENUE
CONTROL_COLLECTIONS = (
    collections.COVERAGE, collections.QUEUE_STATE, collections.TELEMETRY_EVENTS, collections.MODELS, collections.GRAPHS,
)  # fmt: skip
SYMBOLS_KEPT_S = 300.0
SYMBOLS_WAIT_S = 0.5  # a command must be answered within a second


@cache
def store() -> Store:
    """The writing store of this process. Raises StoreError."""
    opened = _open_store(read_only=False)
    for spec in CONTROL_COLLECTIONS:
        opened.ensure(spec)
    return opened


def reading_store() -> Store:
    """The same store, read-only, for a second process. Raises StoreError."""
    return _open_store(read_only=True)


def _open_store(*, read_only: bool) -> Store:
    """The store that STORE_URL names."""
    config = settings()
    if not config.on_arango:
        if not read_only:
            config.store_path.parent.mkdir(parents=True, exist_ok=True)
        return SqliteStore(config.store_path, read_only=read_only)
    from adapters.stores.arango import ArangoStore
    from adapters.stores.arango_client import Address
    from adapters.stores.arango_setup import Sizing

    urls, user, database = check_store_url(config.store_url)
    address = Address(urls, database, user, config.read_store_password(), config.store_ca_file, config.store_timeout_s)
    return ArangoStore(
        address, read_only=read_only, threads=config.store_threads, batch_rows=config.store_batch_rows,
        sizing=Sizing(config.store_shards, config.store_replicas),
    )  # fmt: skip


def open_exchange(on_wait: Callable[[float, str], None] | None = None, venue: str = VENUE) -> Exchange:
    """The exchange that <VENUE>_API_URL names; the caller closes it. Raises SetupRefused."""
    known = known_venue(venue)
    if not (url := settings().api_url(venue)):
        raise SetupRefused(
            f"{venue.upper()}_API_URL is not set: give the REST base of {known.title}, or of `python -m app exchange`"
        )
    return known.exchange(url, on_wait=on_wait)


def known_venue(name: str) -> Venue:
    """Raises SetupRefused."""
    if name not in VENUES:
        raise SetupRefused(f"no venue is called {name!r}; known are {', '.join(VENUES)}")
    return VENUES[name]


@cache
def parser(venue: str = VENUE) -> Exchange:
    """The exchange as a reader of its own pages; it never connects. Raises SetupRefused."""
    return known_venue(venue).exchange("http://127.0.0.1:9")


@dataclass(frozen=True)
class Live:
    """The live side of a venue in this process: its connections, and the REST side that fills their holes.

    All streams share them, so that they keep one address' limits; `snapshots` holds how many may be asked for at once.
    """

    hub: Hub
    exchange: Exchange
    snapshots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))


_live: dict[str, Live] = {}


def live(venue: str = VENUE, on_stray: Callable[[bytes], None] = lambda _frame: None) -> Live:
    """The venue's live side, opened at the first call. Raises SetupRefused."""
    if venue not in _live:
        config = settings()
        known = known_venue(venue)
        if not (url := config.ws_url(venue)):
            raise SetupRefused(f"{venue.upper()}_WS_URL is not set: give the WebSocket base of {known.title}")
        limits = Limits(
            lifetime_s=config.connection_lifetime_s, stale_s=config.stream_stale_s,
            stream_silent_s=config.stream_silent_s, connection_silent_s=config.connection_silent_s,
        )  # fmt: skip
        hub = Hub(known.wire, url, limits=known.stream_limits(limits), on_stray=on_stray)
        _live[venue] = Live(hub, open_exchange(venue=venue))
    return _live[venue]


def stream_healths() -> list[Health]:
    """Every live stream of this process; a worker of another role knows them by what their tasks report."""
    return [health for side in _live.values() for health in side.hub.healths()]


async def hang_up() -> None:
    """End every live connection."""
    sides = [*_live.values()]
    _live.clear()
    for side in sides:
        await side.hub.close()
        await side.exchange.close()


class _KnownSymbols:
    """What an exchange listed when it was last asked."""

    def __init__(self, venue: str) -> None:
        self.venue, self.names = venue, frozenset[str]()
        self.asked_at = -math.inf

    async def refresh(self) -> None:
        exchange = open_exchange(venue=self.venue)
        try:
            async with asyncio.timeout(SYMBOLS_WAIT_S):
                self.names = frozenset(await exchange.symbols())
            self.asked_at = time.monotonic()
        finally:
            await exchange.close()

    def is_stale(self) -> bool:
        return time.monotonic() - self.asked_at > SYMBOLS_KEPT_S


_symbols = {venue: _KnownSymbols(venue) for venue in VENUES}


async def check_symbols(asked: Iterable[tuple[str, str]]) -> None:
    """Raise CommandRejected for an unknown venue, and for a symbol (venue, symbol) that its exchange does not list.

    An exchange that is away rejects nothing.
    """
    wanted: dict[str, set[str]] = {}
    for venue, symbol in asked:
        if venue not in VENUES:
            raise CommandRejected("venue", f"{venue!r} is not known; allowed: {', '.join(VENUES)}")
        if symbol:
            wanted.setdefault(venue, set()).add(symbol)
    for venue, symbols in wanted.items():
        if settings().api_url(venue):
            await _check_symbols(_symbols[venue], symbols)


async def _check_symbols(listed: _KnownSymbols, symbols: set[str]) -> None:
    if listed.is_stale() or not symbols <= listed.names:
        try:
            await listed.refresh()
        except (TimeoutError, ExchangeError, OSError):
            return  # the loader will say what the exchange says
    if unknown := sorted(symbols - listed.names):
        near = difflib.get_close_matches(unknown[0], sorted(listed.names), n=5)
        some = f"did you mean {', '.join(near)}?" if near else f"for example: {', '.join(sorted(listed.names)[:5])}"
        raise CommandRejected("symbol", f"{unknown[0]!r} is not traded on {listed.venue}; {some}")


def read_ledgers(from_store: Store) -> dict[str, Coverage]:
    """Every stream's ledger by `venue:symbol:channel`."""
    if "coverage" not in from_store.collections():
        return {}
    keys = [key for batch in from_store.scan("coverage", columns=["_key"]) for key in batch.column("_key").to_pylist()]
    found = [document for document in from_store.get("coverage", keys) if document]
    return {stream_name(d["venue"], d["symbol"], d["channel"]): coverage_of(d) for d in found}


def read_coverage(from_store: Store, symbol: str, channel: str, venue: str = VENUE) -> Coverage:
    """The ledger of a stream as the store holds it; empty for an unknown stream."""
    [document] = from_store.get("coverage", [coverage_key(symbol, channel, venue)])
    return Coverage() if document is None else coverage_of(document)


def coverage_key(symbol: str, channel: str, venue: str = VENUE) -> str:
    return stream_name(venue, symbol, channel).replace(":", ".")


def coverage_of(document: Document) -> Coverage:
    names = ("stored", "missing", "unrecoverable", "asked", "raw")
    return msgspec.convert({name: document[name] for name in names if name in document}, Coverage)
