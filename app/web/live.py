"""Facts as they happen: a topic -> show -> every WebSocket, one JSON frame per record.

Every viewer gets every record from the moment it is connected on; who wants what came before asks
GET /queues/{id}/events. A viewer has a bounded queue: who does not keep up gets a last frame that says so and is cut
off, and neither the stream nor another viewer waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import WSCloseCode, web
from prometheus_client import Gauge

from app import topics
from app.config import settings
from app.core import Message, app, consumes
from app.web.calls import call, error
from models.control import Json

FRAMES_KEPT = 1_000  # per viewer; a run makes two or three events a second, so some minutes
ALIVE_EVERY_S = 20.0  # a viewer that does not answer a ping for half as long is gone
GOODBYE_WITHIN_S = 1.0  # a viewer's answer to our last frame
SEND_WITHIN_S = 5.0  # a frame the network does not take for so long: the viewer is gone
TOO_SLOW = "you read too slowly; connect again and ask for the events you missed"
TAKES_NOTHING = "this stream takes no messages; what it shows is said in its address"
NO_JSON = "what you sent is no JSON; this stream needs no messages"
FRAME_MOST = 4_096  # bytes of what a viewer says

VIEWERS = Gauge("streamforge_viewers", "WebSockets that follow the events")


class Viewer:
    """One WebSocket and the frames it has not taken yet."""

    def __init__(self, socket: web.WebSocketResponse, kept: int, *, may_talk: bool = True) -> None:
        self._socket, self._kept, self._may_talk = socket, kept, may_talk
        self._frames: deque[str] = deque()
        self._news = asyncio.Event()
        self._over: WSCloseCode | None = None
        self._notice: Json = {}

    def show(self, frame: str) -> None:
        """Never waits."""
        if len(self._frames) < self._kept:
            self._frames.append(frame)
            self._news.set()
        else:
            self.end(WSCloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def end(self, code: WSCloseCode, notice: str = "", event: str = "cut-off") -> None:
        """The first word counts."""
        if self._over is None:
            self._over, self._notice = code, {"event": event, "message": notice} if notice else {}
            self._news.set()

    async def serve(self) -> None:
        """Until the viewer leaves or is cut off. A frame on its way is not cancelled: aiohttp could not go on then."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self.end(WSCloseCode.OK))
        try:
            while self._over is None:
                await self._news.wait()
                self._news.clear()
                while self._frames and self._over is None:
                    await self._send(self._frames.popleft())
            if self._notice:
                await self._send(orjson.dumps(self._notice).decode())
            await self._socket.close(code=self._over)
        except (TimeoutError, ConnectionError):
            pass  # it is gone, or takes nothing any more
        finally:
            reading.cancel()

    async def _send(self, frame: str) -> None:
        async with asyncio.timeout(SEND_WITHIN_S):
            await self._socket.send_str(frame)

    async def _read(self) -> None:
        async for message in self._socket:
            if not self._may_talk:
                self.end(WSCloseCode.POLICY_VIOLATION, TAKES_NOTHING, "error")
            elif not is_json(message.data):
                self.end(WSCloseCode.UNSUPPORTED_DATA, NO_JSON, "error")


class Audience:
    """Every viewer of a stream, each with at most `kept` frames it has not taken.

    `may_talk`: what a viewer says is passed over, if it is JSON. Whatever else it says is answered with an error, and
    the viewer is closed.
    """

    def __init__(self, kept: int = FRAMES_KEPT, *, may_talk: bool = True) -> None:
        self._kept, self._may_talk = kept, may_talk
        self._viewers: set[Viewer] = set()

    def __len__(self) -> int:
        return len(self._viewers)

    def show(self, value: bytes | None) -> None:
        """Hand a record to every viewer, at once; what is no JSON object is left out."""
        if self._viewers and (frame := _frame(value)):
            self.spread(frame)

    def spread(self, frame: str) -> None:
        """Hand the same text to every viewer, at once."""
        for viewer in self._viewers:
            viewer.show(frame)

    async def watch(self, request: web.Request, hello: Callable[[], str] | None = None) -> web.StreamResponse:
        """A call that becomes a viewer, until it leaves or is cut off. `hello` is the first frame it gets."""
        socket = web.WebSocketResponse(
            heartbeat=ALIVE_EVERY_S, compress=False, max_msg_size=FRAME_MOST, timeout=GOODBYE_WITHIN_S
        )
        if not socket.can_prepare(request).ok:
            return error(426, "this is a WebSocket: connect with ws://", headers={"Upgrade": "websocket"})
        viewer = Viewer(socket, self._kept, may_talk=self._may_talk)
        if hello:
            viewer.show(hello())
        self._viewers.add(viewer)  # before the answer: who has it misses nothing from then on
        try:
            with VIEWERS.track_inprogress():
                await socket.prepare(request)
                await viewer.serve()
        finally:
            self._viewers.discard(viewer)
            if request.transport:
                request.transport.abort()  # whoever took no frame for seconds takes no goodbye either
        return socket

    def end(self, notice: str) -> None:
        for viewer in list(self._viewers):
            viewer.end(WSCloseCode.GOING_AWAY, notice)


def is_json(said: Any) -> bool:
    try:
        orjson.loads(said)
    except ValueError:
        return False
    return True


def _frame(value: bytes | None) -> str:
    try:
        return (value or b"").decode() if isinstance(orjson.loads(value or b""), dict) else ""
    except ValueError:
        return ""


_audience = Audience()
audiences = [_audience]  # every one of this process


def show(value: bytes | None) -> None:
    """Hand an event to every viewer; on brokers the follower of `app.web.replicas` calls this."""
    _audience.show(value)


async def show_events(message: Message) -> None:
    """Hand every event to every viewer."""
    show(message.value)


if not settings().on_kafka:
    consumes(topics.queue_events)(show_events)


@call("/ws/queues")
async def watch_queues(request: web.Request) -> web.StreamResponse:
    """Every event of every run."""
    return await _audience.watch(request)


@app.on_before_shutdown.connect
async def say_goodbye(*_: object, **__: object) -> None:
    """The web server waits for open calls when it stops; a viewer's would never end by itself."""
    for audience in audiences:
        audience.end("the worker stops")
