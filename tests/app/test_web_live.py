"""WebSockets: every viewer gets every frame, and who does not keep up is cut off alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from app.web.live import NO_JSON, TOO_SLOW, Audience

Client = TestClient[Any, Any]
KEPT = 50


@pytest.fixture
async def audience() -> Audience:
    return Audience(kept=KEPT)


@pytest.fixture
async def client(audience: Audience) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_get("/ws", audience.watch)
    async with TestClient(TestServer(app)) as client:
        yield client


def event(number: int, padding: int = 0) -> bytes:
    return orjson.dumps({"event": "loading", "number": number, "padding": "x" * padding})


async def settle(audience: Audience, viewers: int) -> None:
    async with asyncio.timeout(150):
        while len(audience) != viewers:  # noqa: ASYNC110 -- what the other end of a socket does can only be looked at
            await asyncio.sleep(0.005)


async def test_every_viewer_gets_every_frame_in_order_and_unchanged(client: Client, audience: Audience) -> None:
    viewers = [await client.ws_connect("/ws") for _ in range(3)]
    sent = [event(number) for number in range(KEPT * 4)]
    for frame in sent:
        audience.show(frame)
        await asyncio.sleep(0)
    for viewer in viewers:
        assert [(await viewer.receive_str()).encode() for _ in sent] == sent
        await viewer.close()
    await settle(audience, 0)


async def test_a_slow_viewer_is_told_and_cut_off_while_others_miss_nothing(client: Client, audience: Audience) -> None:
    slow, quick = await client.ws_connect("/ws"), await client.ws_connect("/ws")
    frames = 400
    for number in range(frames):
        audience.show(event(number, padding=200_000))  # 80 MB: far beyond every buffer on the way
        assert orjson.loads(await quick.receive_str())["number"] == number
    seen = []
    while (message := await slow.receive(timeout=150)).type is WSMsgType.TEXT:
        seen.append(orjson.loads(message.data))
    assert message.type is WSMsgType.CLOSE
    assert message.data == WSCloseCode.TRY_AGAIN_LATER
    assert seen.pop() == {"event": "cut-off", "message": TOO_SLOW}
    assert [said["number"] for said in seen] == list(range(len(seen)))  # no frame is left out before the end
    assert len(seen) < frames
    await settle(audience, 1)
    await quick.close()


async def test_a_viewer_that_reads_nothing_at_all_is_dropped(
    client: Client, audience: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.web.live.SEND_WITHIN_S", 0.2)
    dead = await client.ws_connect("/ws")
    for number in range(KEPT + 10):
        audience.show(event(number, padding=1_000_000))
        await asyncio.sleep(0.001)
    await settle(audience, 0)
    await dead.close()


async def test_what_is_no_json_object_reaches_no_viewer(client: Client, audience: Audience) -> None:
    viewer = await client.ws_connect("/ws")
    for value in (b"nonsense", b"[1]", b"null", b"", None, b"\xff"):
        audience.show(value)
    audience.show(event(1))
    assert orjson.loads(await viewer.receive_str())["number"] == 1
    await viewer.close()


@pytest.mark.parametrize("rubbish", ["hello", "{]", "", b"\xff\x00"])
async def test_a_viewer_that_sends_rubbish_is_answered_with_an_error_and_closed(
    client: Client, audience: Audience, rubbish: str | bytes
) -> None:
    loud, quiet = await client.ws_connect("/ws"), await client.ws_connect("/ws")
    await (loud.send_bytes(rubbish) if isinstance(rubbish, bytes) else loud.send_str(rubbish))
    assert orjson.loads(await loud.receive_str()) == {"event": "error", "message": NO_JSON}
    assert (await loud.receive()).data == WSCloseCode.UNSUPPORTED_DATA
    await settle(audience, 1)
    audience.show(event(7))
    assert orjson.loads(await quiet.receive_str())["number"] == 7


async def test_what_a_viewer_says_changes_nothing_and_too_much_ends_it(client: Client, audience: Audience) -> None:
    viewer = await client.ws_connect("/ws")
    await viewer.send_str('{"hello": 1}')
    audience.show(event(7))
    assert orjson.loads(await viewer.receive_str())["number"] == 7
    await viewer.send_str("x" * 10_000)
    assert (await viewer.receive(timeout=150)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
    await settle(audience, 0)


async def test_at_the_end_every_viewer_is_told(client: Client, audience: Audience) -> None:
    viewer = await client.ws_connect("/ws")
    audience.end("the worker stops")
    assert orjson.loads(await viewer.receive_str()) == {"event": "cut-off", "message": "the worker stops"}
    assert (await viewer.receive()).data == WSCloseCode.GOING_AWAY


async def test_a_plain_call_is_told_to_connect(client: Client) -> None:
    answer = await client.get("/ws")
    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
