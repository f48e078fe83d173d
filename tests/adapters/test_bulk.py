"""Bulk records on the embedded log: acknowledged means stored, and what is in flight is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.bulk import EmbeddedBulkProducer
from adapters.embedded_log.log import Log, LogReader
from app.errors import LogFull, SetupRefused


async def test_a_record_is_stored_when_send_returns(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log.db")
    log.ensure_topic("pages", 2)
    bulk = EmbeddedBulkProducer(log)
    for number in range(10):
        await bulk.send("pages", b"binance:BTCUSDT", b"%d" % number, headers=[("run", b"r1")])
    with LogReader(log.path) as reader:
        stored = list(reader.records("pages"))
    assert [record.value for record in stored] == [b"%d" % number for number in range(10)]
    assert {record.headers for record in stored} == {(("run", b"r1"),)}
    log.close()


async def test_who_sends_too_fast_waits_for_room(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log.db", commit_delay_s=0.01)
    log.ensure_topic("pages", 1)
    bulk = EmbeddedBulkProducer(log, max_in_flight_bytes=100_000)
    futures = []
    for _ in range(200):
        futures.append(await bulk.send_soon("pages", b"k", b"v" * 5_000))
        assert log.in_flight_bytes < 110_000
    await bulk.flush()
    assert all(future.done() for future in futures)
    assert log.in_flight_bytes == 0
    log.close()


async def test_an_unknown_topic_is_refused_and_a_full_disk_reaches_the_sender(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log.db", max_pages=40)
    bulk = EmbeddedBulkProducer(log)
    with pytest.raises(SetupRefused, match="'pages'"):
        await bulk.send("pages", b"k", b"v")
    log.ensure_topic("pages", 1)
    with pytest.raises(LogFull, match="cannot grow"):
        await bulk.send("pages", b"k", b"v" * 500_000)
    with pytest.raises(LogFull):
        await bulk.flush()
    log.close()
