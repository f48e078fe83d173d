"""Facts as they happen: queue-events -> show_events -> every WebSocket, one JSON frame per record.

Every viewer gets every event from the moment it is connected on; who wants what came before asks
GET /queues/{id}/events. A viewer has a bounded queue: who does not keep up gets a last frame that says so and is cut
off, and neither the stream nor another viewer waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib

import orjson
from aiohttp import WSCloseCode, web
from prometheus_client import Gauge

from app import topics
from app.core import Message, app, consumes
from app.web.calls import call, error

FRAMES_KEPT = 1_000  # per viewer; at a busy run's 20 events a second, most of a minute
SEND_WITHIN_S = 5.0  # a frame the network does not take for so long: the viewer is gone
TOO_SLOW = "you read too slowly; connect again and ask for the events you missed"
FRAME_MOST = 4_096  # bytes of what a viewer says; nothing it says matters

VIEWERS = Gauge("streamforge_viewers", "WebSockets that follow the events")


class Viewer:
    """One WebSocket and the frames it has not taken yet."""

    def __init__(self, socket: web.WebSocketResponse, kept: int = FRAMES_KEPT) -> None:
        self._socket = socket
        self._frames: asyncio.Queue[str] = asyncio.Queue(kept)
        self._over = asyncio.Event()
        self._code, self._notice = WSCloseCode.OK, ""

    def show(self, frame: str) -> None:
        """Never waits."""
        try:
            self._frames.put_nowait(frame)
        except asyncio.QueueFull:
            self.end(WSCloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def end(self, code: WSCloseCode, notice: str) -> None:
        if not self._over.is_set():
            self._code, self._notice = code, notice
            self._over.set()

    async def serve(self) -> None:
        """Until the viewer leaves or is cut off."""
        sending = asyncio.create_task(self._send())
        reading = asyncio.create_task(self._read())
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait((sending, reading, over), return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, reading, over):
            task.cancel()
        await asyncio.gather(sending, reading, over, return_exceptions=True)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(SEND_WITHIN_S):
                if self._notice and not self._socket.closed:
                    await self._socket.send_str(orjson.dumps({"event": "cut-off", "message": self._notice}).decode())
                await self._socket.close(code=self._code)

    async def _send(self) -> None:
        while True:
            frame = await self._frames.get()
            async with asyncio.timeout(SEND_WITHIN_S):
                await self._socket.send_str(frame)

    async def _read(self) -> None:
        async for _ in self._socket:
            pass


_viewers: set[Viewer] = set()


@consumes(topics.queue_events)
async def show_events(message: Message) -> None:
    """Hand every event to every viewer."""
    if _viewers and (frame := frame_of(message.value)):
        for viewer in _viewers:
            viewer.show(frame)


def frame_of(value: bytes | None) -> str:
    """A record as a frame; "" for what is not JSON, which the queue manager puts aside."""
    try:
        orjson.loads(value or b"")
        return (value or b"").decode()
    except ValueError:
        return ""


@call("/ws/queues")
async def watch_queues(request: web.Request) -> web.StreamResponse:
    """Every event of every run."""
    return await _watch(request)


@call("/ws/topic/{topic}")
async def watch_topic(request: web.Request, topic: str) -> web.StreamResponse:
    """Every record of a topic; today queue-events."""
    if topic != topics.queue_events.get_topic_name():
        return error(404, f"{topic!r} cannot be watched; today: queue-events", field="topic")
    return await _watch(request)


async def _watch(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(heartbeat=20.0, compress=False, max_msg_size=FRAME_MOST, timeout=SEND_WITHIN_S)
    if not socket.can_prepare(request).ok:
        return error(426, "this is a WebSocket: connect with ws://", headers={"Upgrade": "websocket"})
    await socket.prepare(request)
    viewer = Viewer(socket)
    _viewers.add(viewer)
    try:
        with VIEWERS.track_inprogress():
            await viewer.serve()
    finally:
        _viewers.discard(viewer)
    return socket


@app.on_before_shutdown.connect
async def say_goodbye(*_: object, **__: object) -> None:
    """The web server waits for open calls when it stops; a viewer's would never end by itself."""
    for viewer in list(_viewers):
        viewer.end(WSCloseCode.GOING_AWAY, "the worker stops")
