"""The live connections of one venue: exchange --WebSocket--> Hub --> Subscription.

Subscriptions come and go at run time and share connections within the exchange's limits. A connection that ends is
opened again with growing pauses; one that grows old, or that the exchange is about to close, is replaced before it is
closed, so for a moment both deliver: who reads drops the repeats by id. Nothing is replayed after a cut; `joins` of a
subscription counts the moments from which frames flow again, and what lies before them has to be asked for elsewhere.
Bounded: a subscription that is not read holds up its connection, and the exchange behind it. No frame ends a
connection: what belongs to no subscription is counted, what nobody can read is handed to `on_stray`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from app.telemetry import STREAM_CONNECTS, STREAM_IGNORED

log = logging.getLogger(__name__)

State = Literal["live", "stale", "repairing"]
_CLOSE_WAIT_S = 2.0
_SETTLE_S = 10.0  # a new connection has so long to confirm its streams before the old one is closed all the same
_RENEW_AT_MOST = 16  # times the patience: a symbol without trades is not asked about for ever


class Clock:
    """Time as the hub knows it; tests put a virtual one in its place."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Limits:
    """What the exchange allows, and how long what is waited for. Seconds, unless they say otherwise."""

    streams_per_connection: int = 1024
    streams_per_message: int = 200
    message_every_s: float = 0.3
    connects: int = 280  # in `connects_within_s`; the rest is for others behind the same address
    connects_within_s: float = 300.0
    lifetime_s: float = 23.5 * 3600  # a connection is replaced then; the exchange cuts at 24 h
    stale_s: float = 3.0  # a stream silent for so long is called stale
    stream_silent_s: float = 60.0  # ... and for so long is subscribed anew
    connection_silent_s: float = 30.0  # a connection without any frame is replaced
    open_within_s: float = 10.0
    ping_every_s: float = 15.0  # where the venue wants to be pinged
    first_wait_s: float = 0.5  # after a connection that failed; doubles up to
    longest_wait_s: float = 60.0
    frame_bytes: int = 32 << 20
    queue_frames: int = 10_000  # per subscription

    def backoff_s(self, failures: int) -> float:
        """Half of it is chance, so that connections cut together do not come back together."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


class Notice(NamedTuple):
    """What a frame is that belongs to no stream; `number` is that of the request it answers, `stream` what it names."""

    kind: Literal["confirmed", "refused", "shutdown", "pong", "unknown", "unreadable"]
    number: int | None = None
    text: str = ""
    stream: str = ""


class Wire(Protocol):
    """A venue's words on its connections."""

    venue: str
    ping: str  # a text that keeps a connection alive, where the venue wants one

    def path_of(self, name: str) -> str:
        """Where a stream is to be had: streams of different paths never share a connection."""
        ...

    def subscribe(self, names: Sequence[str], number: int) -> str: ...

    def unsubscribe(self, names: Sequence[str], number: int) -> str: ...

    def stream_of(self, frame: bytes) -> str | None:
        """The stream a frame belongs to; None when that cannot be seen."""
        ...

    def notice(self, frame: bytes) -> Notice:
        """What a frame says that belongs to no subscription. Never raises."""
        ...


class Received(NamedTuple):
    ns: int  # of receipt, UTC epoch
    frame: bytes
    conn: str


@dataclass(frozen=True)
class Health:
    """A stream as it can be shown."""

    stream: str
    state: State
    silent_s: float  # since the last frame, or since it was subscribed
    frames: int
    conn: str


class Subscription:
    """One reader of one stream; made by `Hub.subscribe`."""

    def __init__(self, name: str, hub: Hub) -> None:
        self.name, self.repairing = name, False  # the reader says when it repairs
        self.joins, self.frames, self.conn, self.refused = 0, 0, "", ""
        self._hub, self._queue = hub, deque[Received]()
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._heard_at = hub.clock.monotonic()

    async def take(self, most: int, within_s: float, wait_s: float) -> list[Received]:
        """Up to `most` frames: those of `within_s` from the first one on; none when none came in `wait_s`."""
        clock = self._hub.clock
        if not self._queue:
            await first_of(clock.sleep(wait_s), self._arrived.wait())
        if self._queue and len(self._queue) < most:
            await clock.sleep(within_s)
        taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        if not self._queue:
            self._arrived.clear()
        self._room.set()
        return taken

    def health(self) -> Health:
        silent_s = self._hub.clock.monotonic() - self._heard_at
        up = self._hub.is_up(self.name) and silent_s <= self._hub.limits.stale_s
        state: State = "repairing" if self.repairing else "live" if up else "stale"
        return Health(self.name, state, silent_s, self.frames, self.conn)

    def close(self) -> None:
        self._room.set()
        self._hub.forget(self)

    async def hand_over(self, received: Received) -> None:
        """Waits while the reader is far behind."""
        while len(self._queue) >= self._hub.limits.queue_frames and self._hub.knows(self):
            self._room.clear()
            await self._room.wait()
        self.frames += 1
        self.conn, self._heard_at = received.conn, self._hub.clock.monotonic()
        self._queue.append(received)
        self._arrived.set()

    @property
    def heard_at(self) -> float:
        return self._heard_at

    def wake(self) -> None:
        """The reader looks around although no frame has come."""
        self._arrived.set()


class Hub:
    """All live connections to one venue at `base_url` (ws://HOST:PORT); close it at the end."""

    def __init__(
        self, wire: Wire, base_url: str, *, limits: Limits | None = None, clock: Clock | None = None,
        on_stray: Callable[[bytes], None] = lambda _frame: None,
    ) -> None:  # fmt: skip
        self.wire, self.url = wire, base_url.rstrip("/")
        self.limits, self.clock, self.on_stray = limits or Limits(), clock or Clock(), on_stray
        self._readers: dict[str, list[Subscription]] = {}
        self._lines: list[_Line] = []
        self._connects = deque[float]()
        self._numbers = 0

    def subscribe(self, name: str) -> Subscription:
        """Frames of the stream from now on; the connection is made beside the caller."""
        subscription = Subscription(name, self)
        readers = self._readers.setdefault(name, [])
        readers.append(subscription)
        if len(readers) == 1:
            self._line_with_room(self.wire.path_of(name)).want(name)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        readers = self._readers.get(subscription.name, [])
        if subscription in readers:
            readers.remove(subscription)
        if not readers and self._readers.pop(subscription.name, None) is not None:
            for line in self._lines:
                line.want_no_more(subscription.name)

    def knows(self, subscription: Subscription) -> bool:
        return subscription in self._readers.get(subscription.name, ())

    def readers(self, name: str) -> Sequence[Subscription]:
        return self._readers.get(name, ())

    def is_up(self, name: str) -> bool:
        """True while an open connection has confirmed the stream."""
        return any(name in link.confirmed for line in self._lines for link in line.links)

    def healths(self) -> list[Health]:
        return [reader.health() for readers in self._readers.values() for reader in readers]

    async def close(self) -> None:
        lines, self._lines = self._lines, []
        self._readers.clear()
        await asyncio.gather(*(line.close() for line in lines))

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def may_connect(self) -> None:
        """Wait until the connect budget has room, then take from it."""
        while True:
            now = self.clock.monotonic()
            while self._connects and now - self._connects[0] >= self.limits.connects_within_s:
                self._connects.popleft()
            if len(self._connects) < self.limits.connects:
                self._connects.append(now)
                return
            await self.clock.sleep(self._connects[0] + self.limits.connects_within_s - now)

    def _line_with_room(self, path: str) -> _Line:
        for line in self._lines:
            if line.path == path and len(line.wanted) < self.limits.streams_per_connection:
                return line
        self._lines.append(_Line(self, len(self._lines), path))
        return self._lines[-1]


class _Line:
    """A set of streams and the connection that carries it now; for a moment two of them."""

    def __init__(self, hub: Hub, number: int, path: str) -> None:
        self.hub, self.number, self.path = hub, number, path
        self.wanted: set[str] = set()
        self.links: list[_Link] = []
        self.changed = asyncio.Event()
        self._made = 0
        self._task = asyncio.create_task(self._keep())

    def want(self, name: str) -> None:
        self.wanted.add(name)
        self._tell()

    def want_no_more(self, name: str) -> None:
        self.wanted.discard(name)
        self._tell()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in list(self.links)))

    def _tell(self) -> None:
        self.changed.set()
        for link in self.links:
            link.woken.set()

    async def _keep(self) -> None:
        """One connection after the other for as long as a stream is wanted."""
        limits, clock, failures, old = self.hub.limits, self.hub.clock, 0, None
        while True:
            while not self.wanted:
                self.changed.clear()
                await self.changed.wait()
            link = await self._open()
            if link is None:
                failures += 1
                await clock.sleep(limits.backoff_s(failures))
                continue
            if old is not None:
                await first_of(link.settled.wait(), link.ended.wait(), clock.sleep(_SETTLE_S))
                await old.close()
            why = await link.until_due()
            STREAM_CONNECTS.labels(self.hub.wire.venue, why).inc()
            log.info("%s: connection %s ends: %s", self.hub.wire.venue, link.name, why)
            old = link if why in ("old", "shutdown") else None
            if old is None:
                await link.close()
                failures = 1 if link.was_useful else failures + 1
                if self.wanted:
                    await clock.sleep(limits.backoff_s(failures))

    async def _open(self) -> _Link | None:
        """A new connection, or None when it cannot be made now."""
        await self.hub.may_connect()
        self._made += 1
        name = f"{self.hub.wire.venue}-{self.number}-{self._made}"
        try:
            socket = await connect(
                self.hub.url + self.path, open_timeout=self.hub.limits.open_within_s, close_timeout=_CLOSE_WAIT_S,
                max_size=self.hub.limits.frame_bytes, compression=None,
            )  # fmt: skip
        except (OSError, WebSocketException, TimeoutError) as error:
            STREAM_CONNECTS.labels(self.hub.wire.venue, "refused").inc()
            log.warning("%s: no connection: %s", self.hub.wire.venue, error)
            return None
        link = _Link(self, socket, name)
        self.links.append(link)
        return link


class _Link:
    """One WebSocket: it listens, asks for what its line wants, and knows when its time is over."""

    def __init__(self, line: _Line, socket: ClientConnection, name: str) -> None:
        self.line, self.name = line, name
        self.woken, self.settled, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.confirmed: set[str] = set()
        self.was_useful = False
        self._hub, self._socket = line.hub, socket
        self._asked: set[str] = set()
        self._open_requests: dict[int, list[str]] = {}
        self._renewed: dict[str, tuple[float, float]] = {}  # when a silent stream was asked for anew, and its patience
        self._shutdown = False
        self._opened_at = self._heard_at = self._hub.clock.monotonic()
        self._lives_s = self._hub.limits.lifetime_s * random.uniform(0.97, 1.0)  # not all of them at one moment
        works = [self._listen(), self._speak(), *([self._keep_alive()] if self._hub.wire.ping else [])]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def close(self) -> None:
        if self in self.line.links:
            self.line.links.remove(self)
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            await self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_due(self) -> str:
        """Why this connection is over: ended, silent or unused; or why it needs a successor: old, shutdown."""
        limits, clock = self._hub.limits, self._hub.clock
        while True:
            now = clock.monotonic()
            if self.ended.is_set():
                return "ended"
            if not self.line.wanted:
                return "unused"
            if self._shutdown:
                return "shutdown"
            if (lives_s := self._opened_at + self._lives_s - now) <= 0:
                return "old"
            if (patience_s := self._heard_at + limits.connection_silent_s - now) <= 0:
                return "silent"
            self._renew_silent(now)
            self.woken.clear()
            wait_s = min(lives_s, patience_s, limits.stream_silent_s / 4)
            await first_of(self.woken.wait(), self.ended.wait(), clock.sleep(wait_s))

    def _renew_silent(self, now: float) -> None:
        """Ask anew for streams that say nothing: the exchange may have forgotten them."""
        for name in self.confirmed & self.line.wanted:
            heard_at = max((reader.heard_at for reader in self._hub.readers(name)), default=now)
            renewed_at, patience_s = self._renewed.get(name, (self._opened_at, self._hub.limits.stream_silent_s))
            if heard_at > renewed_at:
                patience_s = self._hub.limits.stream_silent_s
            if now - max(heard_at, renewed_at) >= patience_s:
                longest_s = self._hub.limits.stream_silent_s * _RENEW_AT_MOST
                self._renewed[name] = (now, min(patience_s * 2, longest_s))
                self.confirmed.discard(name)
                self._asked.discard(name)
                STREAM_IGNORED.labels(self._hub.wire.venue, "silent stream").inc()
                self.line.changed.set()

    async def _listen(self) -> None:
        clock, wire = self._hub.clock, self._hub.wire
        try:
            while True:
                frame = await self._socket.recv(decode=False)
                ns, self._heard_at = clock.time_ns(), clock.monotonic()
                name = wire.stream_of(frame)
                readers = self._hub.readers(name) if name else ()
                if not readers:
                    self._heed(frame, name)
                    continue
                if name not in self.confirmed and name in self._asked:
                    self._confirm([str(name)])
                self.was_useful = True
                for reader in readers:
                    await reader.hand_over(Received(ns, frame, self.name))
        except ConnectionClosed as error:
            log.info("%s: %s", self.name, error)
        finally:
            if self in self.line.links:
                self.line.links.remove(self)
            self.ended.set()

    def _heed(self, frame: bytes, name: str | None) -> None:
        """A frame that is nobody's."""
        notice = self._hub.wire.notice(frame)
        if notice.kind == "confirmed" and (notice.number is not None or notice.stream):
            self._confirm([notice.stream, *self._open_requests.pop(notice.number or 0, [])])
        elif notice.kind == "refused" and notice.number is not None:
            for refused in self._open_requests.pop(notice.number, []):
                for reader in self._hub.readers(refused):
                    reader.refused = notice.text
                    reader.wake()
        elif notice.kind == "shutdown":
            self._shutdown = True
            self.woken.set()
        elif notice.kind == "pong":
            pass  # it was heard, that is all
        else:
            STREAM_IGNORED.labels(self._hub.wire.venue, "unknown stream" if name else notice.kind).inc()
            if notice.kind == "unreadable":
                self._hub.on_stray(frame)

    def _confirm(self, names: Sequence[str]) -> None:
        for name in set(names) & self._asked - self.confirmed:
            self.confirmed.add(name)
            for reader in self._hub.readers(name):
                reader.joins += 1
                reader.wake()
        if self.confirmed >= self.line.wanted:
            self.settled.set()

    async def _keep_alive(self) -> None:
        """The venue ends a connection on which nothing is said."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._hub.clock.sleep(self._hub.limits.ping_every_s)
                await self._socket.send(self._hub.wire.ping)

    async def _speak(self) -> None:
        """Make what is subscribed what is wanted; messages keep their distance."""
        wire, limits = self._hub.wire, self._hub.limits
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.line.changed.clear()
                gone = sorted(self._asked - self.line.wanted)[: limits.streams_per_message]
                new = sorted(self.line.wanted - self._asked)[: limits.streams_per_message]
                if not gone and not new:
                    await self.line.changed.wait()
                    continue
                number, names = self._hub.next_number(), gone or new
                if gone:
                    self._asked -= {*gone}
                    self.confirmed -= {*gone}
                else:
                    self._asked |= {*new}
                    self._open_requests[number] = new
                say = wire.unsubscribe if gone else wire.subscribe
                await self._socket.send(say(names, number))
                await self._hub.clock.sleep(limits.message_every_s)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until the first of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
