"""A small application on the embedded log, for tests: numbers -> first (table, send) -> second (table).

The value of a number is its place in the sequence of its key: 0, 1, 2, ... A row says what arrived: the last place,
how many repeats, how many places were jumped over. So a row shows every loss and every repeat.

As a program it is a worker: `python -m tests.reliability.embedded_app LOG`; it says `ready` and is judged by its log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import faust
import msgspec

from adapters import faust_repair
from adapters.embedded_log import transport
from adapters.embedded_log.log import Log, LogReader
from app.errors import StreamForgeError

APP_ID = "numbers-app"
PARTITIONS = 4
KEYS = [b"key%d" % number for number in range(12)]


class Row(msgspec.Struct):
    last: int = -1
    repeats: int = 0
    jumped: int = 0

    def take(self, place: int) -> bool:
        """True when the number is new."""
        if place <= self.last:
            self.repeats += 1
            return False
        self.jumped += place - self.last - 1
        self.last = place
        return True


encode, decode = msgspec.json.encode, msgspec.json.Decoder(Row).decode


def make_app(path: Path, *, table_manager: Any = faust_repair.TableManager, **settings: Any) -> faust.App:
    """A fresh App (one per event loop) with both agents; `app.first` and `app.second` are its tables."""
    transport.register()
    app = faust.App(
        APP_ID,
        broker=f"embedded://{path}",
        store="memory://",
        TableManager=table_manager,
        Monitor=faust_repair.Monitor,
        topic_partitions=PARTITIONS,
        table_standby_replicas=0,
        broker_commit_interval=0.2,
        web_enabled=False,
        **{"stream_buffer_maxsize": 512, **settings},
    )
    raw: dict[str, Any] = {"key_serializer": "raw", "value_serializer": "raw"}
    numbers = app.topic("numbers", partitions=PARTITIONS, key_type=bytes, value_type=bytes, **raw)
    middle = app.topic("middle", partitions=PARTITIONS, key_type=bytes, value_type=bytes, **raw)
    first = app.Table("first", partitions=PARTITIONS, key_type=bytes, value_type=bytes)
    second = app.Table("second", partitions=PARTITIONS, key_type=bytes, value_type=bytes)

    @app.agent(numbers, name="one")
    async def one(stream: Any) -> None:
        async for event in stream.events():
            row = decode(first.get(event.key) or b"{}")
            row.take(int(event.value))
            first[event.key] = encode(row)
            await middle.send(key=event.key, value=event.value)

    @app.agent(middle, name="two")
    async def two(stream: Any) -> None:
        async for event in stream.events():
            row = decode(second.get(event.key) or b"{}")
            row.take(int(event.value))
            second[event.key] = encode(row)

    app.first, app.second = first, second  # type: ignore[attr-defined]
    return app


def prepare(path: Path, events: int) -> None:
    """A log whose topic `numbers` holds this many events, spread evenly over KEYS."""

    async def fill() -> None:
        log = Log.open(path)
        log.ensure_topic("numbers", PARTITIONS)
        log.ensure_topic("middle", PARTITIONS)
        for number in range(events):
            log.append("numbers", KEYS[number % len(KEYS)], b"%d" % (number // len(KEYS)))
            if number % 1000 == 0:
                await log.room()
        await log.barrier()
        log.close()

    asyncio.run(fill())


def expected_rows(events: int) -> dict[bytes, int]:
    """Last place per key after so many events."""
    return {key: (events - 1 - number) // len(KEYS) for number, key in enumerate(KEYS) if number < events}


def rows(path: Path, table: str) -> dict[bytes, Row]:
    """A table as its changelog has it: what the next start would recover."""
    with LogReader(path) as reader:
        topic = f"{APP_ID}-{table}-changelog"
        if topic not in reader.topics():
            return {}
        return {record.key: decode(record.value) for record in reader.records(topic) if record.key and record.value}


def main() -> None:
    path = Path(sys.argv[1])
    asyncio.set_event_loop(asyncio.new_event_loop())
    try:
        # Taken before the worker is built: a log in use is one line, not a traceback.
        Log.open(
            path,
            commit_delay_s=float(os.environ.get("COMMIT_DELAY_S", "0")),
            max_pages=int(os.environ.get("MAX_PAGES", "0")) or None,
        )
    except StreamForgeError as error:
        sys.exit(f"{error}")
    app = make_app(path)

    @app.task
    async def say_ready() -> None:  # tasks start after recovery
        os.write(1, b"ready\n")

    faust.Worker(app, loglevel=logging.WARNING, redirect_stdouts=False, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
