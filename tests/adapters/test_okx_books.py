"""Frames of OKX's books as they came, and recorded books that never cross."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from adapters.exchanges.okx_books import read_book
from app.errors import ExchangeError
from models.order_book import CHAINS, BookSync, Diff, Snapshot

RECORDED = Path(os.environ.get("RECORDED_DATA", "no/such/folder")) / "ws" / "other" / "okx.jsonl.gz"


def frame(action: str, seq: int, previous: int, ts: int = 1000, **sides: list[list[str]]) -> bytes:
    book = {"asks": [], "bids": [], "ts": str(ts), "checksum": 0, "seqId": seq, "prevSeqId": previous} | sides
    return json.dumps({"arg": {"channel": "books", "instId": "BTC-USDT"}, "action": action, "data": [book]}).encode()


def take(sync: BookSync, *frames: bytes) -> None:
    for one in frames:
        found = read_book("frames", one)
        if isinstance(found, Snapshot):
            sync.snapshot(found)
        else:
            sync.diff(found)


SNAPSHOT = frame("snapshot", 10, -1, bids=[["9", "1", "0", "1"]], asks=[["11", "2", "0", "1"]])


def test_a_book_follows_the_chain_through_keep_alive_and_a_new_start_of_the_ids() -> None:
    at: list[int] = []
    sync = BookSync(CHAINS["okx"], lambda book: at.append(book.at))
    take(sync, SNAPSHOT, frame("update", 15, 10, asks=[["11", "0", "0", "0"], ["12", "3", "0", "1"]]))
    take(sync, frame("update", 15, 15), frame("update", 3, 15), frame("update", 5, 3))
    assert (sync.state, at) == ("live", [15, 15, 3, 5])
    assert sync.book
    assert sync.book.asks.top() == [(12.0, 3.0)]


def test_r05_a_missed_update_is_found_at_the_next_one() -> None:
    sync = BookSync(CHAINS["okx"])
    take(sync, SNAPSHOT, frame("update", 15, 10), frame("update", 20, 17))
    assert (sync.state, sync.wants_snapshot) == ("stale", True)


def test_a_snapshot_after_a_reconnect_is_there_when_the_gap_shows() -> None:
    sync = BookSync(CHAINS["okx"])
    take(sync, SNAPSHOT, frame("update", 15, 10))
    take(sync, frame("snapshot", 40, -1, bids=[["8", "1", "0", "1"]]), frame("update", 41, 40))
    assert sync.state == "live"
    assert sync.book
    assert (sync.book.at, sync.book.bids.top()) == (41, [(8.0, 1.0)])


def test_an_answer_of_rest_is_a_snapshot() -> None:
    body = (
        b'{"code":"0","msg":"","data":[{"asks":[["41006.8","0.6","0","1"]],"bids":[],"ts":"1629966436396","seqId":7}]}'
    )
    assert read_book("snapshot", body) == Snapshot(7, [], [(41006.8, 0.6)], True, True, 1629966436396)


@pytest.mark.parametrize(
    "bad",
    [b"pong", b'{"event":"subscribe","arg":{}}', b'{"code":"50011","msg":"Too Many Requests","data":[]}',
     SNAPSHOT.replace(b'"9"', b'"-9"'), SNAPSHOT.replace(b"snapshot", b"news")],
)  # fmt: skip
def test_r10_what_cannot_be_used_is_an_error_with_a_reason(bad: bytes) -> None:
    with pytest.raises(ExchangeError, match="book"):
        read_book("frames", bad)


@pytest.mark.skipif(not RECORDED.is_file(), reason="RECORDED_DATA names no folder with ws/other/okx.jsonl.gz")
def test_recorded_books_of_2022_without_ids_stay_in_sync_and_never_cross() -> None:
    syncs: dict[str, BookSync] = {}
    read = {Diff: 0, Snapshot: 0}
    with gzip.open(RECORDED, "rt") as lines:
        texts = [json.loads(line)["raw"] for line in lines]
    for text in texts:
        if '"channel":"books"' in text and '"action"' in text:
            sync = syncs.setdefault(json.loads(text)["arg"]["instId"], BookSync(CHAINS["okx"]))
            take(sync, text.encode())
            read[type(read_book("frames", text.encode()))] += 1
            assert sync.state == "live" or not read[Diff]
    assert (read, len(syncs)) == ({Diff: 287, Snapshot: 3}, 3)
    assert {sync.state for sync in syncs.values()} == {"live"}
