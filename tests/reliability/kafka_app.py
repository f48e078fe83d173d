"""A small application on Kafka, for tests: numbers -> one (table, send) -> middle -> two (table).

The value of a number is its place in the sequence of its key: 0, 1, 2, ... A row says what arrived: the last place,
how many numbers were applied, how many were repeats, how many places were jumped over, and the last offset. So the
rows show every loss, every repeat and every change of order, whoever processed what in between.

As a program it is a worker: `python -m tests.reliability.kafka_app`; its settings are the variables that `main` reads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import faust
import msgspec

from adapters import faust_repair
from app.telemetry import logging_config

PARTITIONS = 4
TABLES = ("first", "second")
# Faust's are 2 GiB and 64 MiB for each partition of each table.
ROCKSDB = {"block_cache_size": 32 << 20, "write_buffer_size": 8 << 20}


class Row(msgspec.Struct):
    last: int = -1
    applied: int = 0
    repeats: int = 0
    jumped: int = 0
    offset: int = -1

    def take(self, place: int, offset: int) -> None:
        """Apply a number once: neither the same record again nor the same number in another record changes a thing."""
        if offset <= self.offset or place <= self.last:
            self.repeats += 1
        else:
            self.applied += 1
            self.jumped += place - self.last - 1
            self.last = place
        self.offset = max(self.offset, offset)


encode, decode = msgspec.json.encode, msgspec.json.Decoder(Row).decode


def make_app(
    app_id: str, bootstrap: str, *, repaired: bool = True, store: str = "memory", event_s: float = 0.0,
    slow_place_s: float = 0.0, **settings: Any,
) -> faust.App:  # fmt: skip
    """A fresh App with both agents. `event_s`: how long a number takes; `slow_place_s`: how long place 0 takes."""
    own: dict[str, Any] = {}
    if repaired:
        faust_repair.register()
        own = {"TableManager": faust_repair.TableManager, "Monitor": faust_repair.Monitor}
    app = faust.App(
        app_id,
        broker=";".join(f"kafka://{server}" for server in bootstrap.split(",")),
        store=f"{store}://",
        topic_partitions=PARTITIONS,
        topic_allow_declare=False,
        table_standby_replicas=0,
        broker_commit_interval=1.0,
        broker_commit_every=500,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        producer_linger=0.02,
        web_enabled=False,
        worker_redirect_stdouts=False,
        logging_config=logging_config("WARNING", "plain"),
        **{"stream_buffer_maxsize": 64, **own, **settings},
    )
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    numbers = app.topic(f"{app_id}-numbers", partitions=PARTITIONS, **raw)
    middle = app.topic(f"{app_id}-middle", partitions=PARTITIONS, **raw)
    first, second = (
        app.Table(name, partitions=PARTITIONS, key_type=bytes, value_type=bytes, options=dict(ROCKSDB))
        for name in TABLES
    )

    def take(table: Any, event: Any) -> None:
        row = decode(table.get(event.key) or b"{}")
        row.take(int(event.value), event.message.offset)
        table[event.key] = encode(row)

    @app.agent(numbers, name="one")
    async def one(stream: Any) -> None:
        async for event in stream.events():
            if slow_place_s and event.value == b"0":
                await asyncio.sleep(slow_place_s)
            elif event_s:
                await asyncio.sleep(event_s)
            take(first, event)
            await middle.send(key=event.key, value=event.value)

    @app.agent(middle, name="two")
    async def two(stream: Any) -> None:
        async for event in stream.events():
            take(second, event)

    return app


def main() -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    repaired = os.environ.get("REPAIR", "1") == "1"
    app = make_app(
        os.environ["APP_ID"],
        os.environ["BOOTSTRAP"],
        repaired=repaired,
        store=os.environ.get("TABLE_STORE", "memory"),
        event_s=float(os.environ.get("EVENT_S", "0")),
        slow_place_s=float(os.environ.get("SLOW_PLACE_S", "0")),
        datadir=Path(os.environ["DATADIR"]),
        **msgspec.json.decode(os.environ.get("SETTINGS", "{}")),
    )
    begun = time.monotonic()

    @app.task
    async def say_ready() -> None:  # tasks start after recovery
        os.write(1, b"ready after %.1f s\n" % (time.monotonic() - begun))

    faust.Worker(app, loglevel=logging.WARNING, redirect_stdouts=False, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
