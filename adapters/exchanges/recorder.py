"""Records live frames of a Binance-type exchange, as received, into a file the simulated exchange can play.

    WebSocket frames, REST depth --> Recorder --> SYMBOL_..._TIME.jsonl.gz ({recv_ns, kind, conn, url, raw})

One JSON object a line, in order of receipt: `connect` when a connection opened (`url` is its address), `ws` a frame
(`conn` names the connection by that address), `rest` the body of an order book asked for after each connect, so that
the book can be rebuilt. Nothing is kept in memory: a frame is written before the next is read. A lost connection is
opened again, with back-off; what was sent meanwhile is missing, and the second `connect` line says where.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import websockets

from adapters.exchanges.sim_replay import RecordedLine
from app.errors import SetupRefused
from models.market import INTERVAL_MS

STREAMS = {"trades": "aggTrade", "fills": "trade", "depth": "depth@100ms", "ticker": "bookTicker"}
_STREAMS_PER_CONNECTION = 200  # an address may be some 8,000 characters long
_SNAPSHOT_LEVELS = 1000
_LARGEST_FRAME = 64 * 1024 * 1024
_WAITS_S = (1, 60)  # between two tries: doubled from the first to the second, with jitter
_SNAPSHOT_EVERY_S = 0.5
_SYNCED_EVERY_S = 5.0  # a killed recorder loses at most so much


def streams_of(symbols: Sequence[str], channels: Sequence[str]) -> list[str]:
    """The exchange's stream names. Raises SetupRefused for a channel there is none of."""
    found = []
    for channel in channels:
        interval = channel.removeprefix("candles_")
        stream = f"kline_{interval}" if channel != interval and interval in INTERVAL_MS else STREAMS.get(channel)
        if stream is None:
            known = ", ".join([*STREAMS, "candles_1m"])
            raise SetupRefused(f"no stream belongs to the channel {channel!r}; there are {known} and other intervals")
        found += [f"{symbol.lower()}@{stream}" for symbol in symbols]
    return found


class Recorder:
    """Use as a context manager: leaving it completes the file."""

    def __init__(
        self, symbols: Sequence[str], channels: Sequence[str], folder: Path, *, ws_url: str, api_url: str
    ) -> None:
        """`ws_url` is the base below which `/stream` lies, `api_url` the REST base.

        Raises SetupRefused when a channel has no stream or the folder cannot be written.
        """
        streams = streams_of(symbols, channels)
        groups = [streams[i : i + _STREAMS_PER_CONNECTION] for i in range(0, len(streams), _STREAMS_PER_CONNECTION)]
        self._urls = [f"{ws_url.rstrip('/')}/stream?streams={'/'.join(group)}" for group in groups]
        self._api_url = api_url.rstrip("/")
        self._encoder = msgspec.json.Encoder()
        self.counts: Counter[str] = Counter()  # kind: lines
        name = symbols[0].lower() if len(symbols) == 1 else f"multi{len(symbols)}"
        self.path = folder / f"{name}_{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = gzip.open(self.path, "xb", compresslevel=6)  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise SetupRefused(f"{self.path} cannot be written ({error.strerror}); choose another --out") from error
        self._lines = io.BufferedWriter(self._file)
        self._synced = time.monotonic()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._file.close()

    async def run(self) -> None:
        """Until it is cancelled; a line is written whole or not at all."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for url in self._urls:
                tasks.create_task(self._keep_connected(url, session))

    async def _keep_connected(self, url: str, session: aiohttp.ClientSession) -> None:
        wait_s: float = _WAITS_S[0]
        while True:
            try:
                async with websockets.connect(url, max_size=_LARGEST_FRAME, compression=None) as connection:
                    self._write("connect", None, url, "")
                    snapshots = asyncio.create_task(self._take_snapshots(url, session))
                    try:
                        async for frame in connection:
                            self._write("ws", url, None, frame if isinstance(frame, str) else frame.decode())
                            wait_s = _WAITS_S[0]
                    finally:
                        snapshots.cancel()
            except (OSError, websockets.WebSocketException):
                self.counts["lost"] += 1
            await asyncio.sleep(wait_s * random.uniform(0.5, 1))
            wait_s = min(2 * wait_s, _WAITS_S[1])

    async def _take_snapshots(self, url: str, session: aiohttp.ClientSession) -> None:
        """The books of the connection's depth streams; the first frames are on their way before."""
        streams = url.partition("?streams=")[2].split("/")
        for symbol in [stream.partition("@")[0].upper() for stream in streams if "@depth" in stream]:
            asked = f"{self._api_url}/api/v3/depth?symbol={symbol}&limit={_SNAPSHOT_LEVELS}"
            await asyncio.sleep(_SNAPSHOT_EVERY_S)
            while (body := await self._asked(asked, session)) is None:
                pass
            self._write("rest", None, asked, body)

    async def _asked(self, url: str, session: aiohttp.ClientSession) -> str | None:
        """The body; None, after the wait the exchange asks for, when it is busy or away."""
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return await answer.text()
                wait_s = float(answer.headers.get("Retry-After", _WAITS_S[0]))
        except (aiohttp.ClientError, TimeoutError):
            wait_s = _WAITS_S[0]
        await asyncio.sleep(wait_s)
        return None

    def _write(self, kind: str, conn: str | None, url: str | None, raw: str) -> None:
        line = RecordedLine(time.time_ns(), kind, conn, url, raw)
        self._lines.write(self._encoder.encode(line) + b"\n")
        self.counts[kind] += 1
        if time.monotonic() - self._synced > _SYNCED_EVERY_S:
            self._lines.flush()
            self._file.flush()
            self._synced = time.monotonic()


async def record(recorder: Recorder, seconds: float | None, stopped: asyncio.Event) -> None:
    """Record until `stopped`, or for `seconds`; the file is complete when this returns."""
    with recorder:
        running = asyncio.create_task(recorder.run())
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([running, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running  # its error
        finally:
            running.cancel()
            waiting.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)


async def run_until_interrupted(
    symbols: Sequence[str],
    channels: Sequence[str],
    folder: Path,
    *,
    ws_url: str,
    api_url: str,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Record until SIGINT or SIGTERM, or for `seconds`; gives the file and what is in it.

    Raises SetupRefused when the addresses are not given: without `ws_url` an exchange on this machine is meant.
    """
    if not api_url:
        raise SetupRefused("BINANCE_API_URL is not set; the order books come from there")
    if not ws_url:
        if urlsplit(api_url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise SetupRefused("--url is needed: the exchange's WebSocket base, below which /stream lies")
        ws_url = api_url.replace("http", "ws", 1)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    recorder = Recorder(symbols, channels, folder, ws_url=ws_url, api_url=api_url)
    await record(recorder, seconds, stopped)
    counts = dict(recorder.counts)
    lost = counts.pop("lost", 0)
    return {"file": str(recorder.path), "lines": sum(counts.values()), "lost": lost, "kinds": counts}
