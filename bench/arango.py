"""What the ArangoDB store costs on our side: `python -m bench.arango`.

Documents per second and CPU per document against a server that answers at once and stores nothing, so that only our
side is measured; and the seconds to read a month of trades and candles into a frame, from the same server and from the
embedded store. What a real server adds can only be measured on one: `--url` (password: STORE_PASSWORD).
"""

from __future__ import annotations

import argparse
import gc
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jwt
import orjson
import pyarrow as pa

from adapters.stores.arango import ArangoStore
from adapters.stores.arango_client import Address
from adapters.stores.base import Store
from adapters.stores.collections import TRADES
from adapters.stores.sqlite import SqliteStore
from app.config import check_store_url, settings
from app.run_worker import GC_AFTER
from bench.measure import report, seconds
from bench.store import EQ, MONTH_TRADES, report_candles, tape
from models.market import TRADE_COLUMNS, Array

GOAL_DOCUMENTS_PER_S = 200_000
WRITTEN = 300_000
BATCH = 1_000
PAGE = 10_000
Json = dict[str, Any]


class AnswersAtOnce:
    """Enough of ArangoDB's HTTP for a store to write and read `pages`; every document is new, nothing is kept."""

    def __init__(self, pages: Sequence[bytes] = ()) -> None:
        self._pages, self._at = pages, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        done = ",".join(f'{{"_id":"trades/{n:015d}","_key":"{n:015d}","_rev":"_kZ{n:08d}--"}}' for n in range(BATCH))
        self._stored = self._framed(f"[{done}]".encode(), "202 Accepted")
        claims = {"iss": "arangodb", "iat": int(time.time()) - 1, "exp": int(time.time()) + 3600}
        token = jwt.encode(claims, "a-secret-of-thirty-two-bytes-or-more", "HS256")
        self._token = self._framed(orjson.dumps({"jwt": token}))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb", 1 << 20) as lines:
            while request := lines.readline():
                length = 0
                while (line := lines.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = lines.read(length) if length else b""
                connection.sendall(self._answer(request, body))

    def _answer(self, request: bytes, body: bytes) -> bytes:
        method, target, _ = request.split(b" ", 2)
        path = target.partition(b"?")[0]
        if b"/_api/document/trades" in path:
            return self._stored
        if path.endswith(b"/_open/auth"):
            return self._token
        if b"/_api/cursor" in path:
            if path.endswith(b"/cursor"):
                self._at = 0
            self._at += 1
            return self._framed(self._pages[self._at - 1], "201 Created")
        if b"/_api/document/" in path and method == b"GET":
            return self._framed(orjson.dumps({"error": True, "errorNum": 1202, "code": 404}), "404 Not Found")
        return self._framed(orjson.dumps({"version": "3.12.10", "indexes": [], "error": False}))

    @staticmethod
    def _framed(body: bytes, status: str = "200 OK") -> bytes:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-arango-queue-time-seconds: 0.000000\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def close(self) -> None:
        self._server.close()


@contextmanager
def at_once(pages: Sequence[bytes] = ()) -> Iterator[ArangoStore]:
    with closing(AnswersAtOnce(pages)) as server, closing(ArangoStore(Address((server.url,), "bench"))) as store:
        store.ensure(TRADES)
        yield store


@contextmanager
def real(url: str) -> Iterator[ArangoStore]:
    """A database of its own on a real server; it stays there, named bench_..."""
    urls, user, _ = check_store_url(url)
    address = Address(urls, f"bench_{uuid.uuid4().hex[:8]}", user, settings().read_store_password())
    with closing(ArangoStore(address)) as store:
        store.ensure(TRADES)
        yield store


def write(store: Store, columns: dict[str, Array], rows: int) -> None:
    for start in range(0, rows, BATCH):
        store.upsert_columns("trades", EQ | {name: c[start : start + BATCH] for name, c in columns.items()})


def measure_writes(store: Store, columns: dict[str, Array], goal: float | None) -> bool:
    """One thread; its own CPU, not the server's."""
    rows = min(WRITTEN, len(columns["id"]))
    write(store, columns, 10 * BATCH)  # the connection stands, the code is warm
    began_cpu = time.thread_time()
    took = seconds(lambda: write(store, columns, rows))
    cpu = (time.thread_time() - began_cpu) / rows
    report("CPU per document written", cpu * 1e6, "us")
    report("documents per second of one thread's CPU", 1 / cpu, "documents/s", goal=goal)
    return report(f"documents written, batches of {BATCH}", rows / took, "documents/s", goal=goal)


def frame(store: Store) -> pa.Table:
    return pa.Table.from_batches(store.scan("trades", eq=EQ, columns=list(TRADE_COLUMNS)))


def pages_of(columns: dict[str, Array]) -> list[bytes]:
    """A month as the cursor's pages."""
    lists = [columns[name].tolist() for name in TRADE_COLUMNS]
    rows = list(zip(*lists, strict=True))
    starts = range(0, len(rows), PAGE)
    return [
        orjson.dumps({"result": rows[at : at + PAGE], "hasMore": at != starts[-1], "id": "1", "error": False})
        for at in starts
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trades", type=int, default=MONTH_TRADES, help="rows of the month")
    arguments.add_argument("--url", default="", help="http://USER@HOST:PORT/DATABASE of a real server")
    options = arguments.parse_args()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER)  # as the worker does
    columns = tape(options.trades)
    if options.url:
        with real(options.url) as store:
            measure_writes(store, columns, None)
            write(store, columns, options.trades)
            report(f"month of {options.trades} trades into a frame", seconds(lambda: frame(store)), "s")
            report_candles(store, 1)
        return 0
    with at_once() as store:
        reached = measure_writes(store, columns, GOAL_DOCUMENTS_PER_S)
    with at_once(pages_of(columns)) as store:
        report(f"month of {options.trades} trades into a frame, ArangoDB", seconds(lambda: frame(store)), "s")
    with TemporaryDirectory() as folder, closing(SqliteStore(Path(folder) / "store.db")) as embedded:
        embedded.ensure(TRADES)
        write(embedded, columns, options.trades)
        report(f"month of {options.trades} trades into a frame, embedded", seconds(lambda: frame(embedded)), "s")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
