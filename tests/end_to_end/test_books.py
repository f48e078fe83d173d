"""A worker keeps a book in its table and on its topic; its successor says `stale` until it is in sync again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from models.market import FramesInfo, decode_book_update, encode_frames, encode_frames_info
from tests.processes import Broker, Worker, wait_for

KEY = "binance:ETHUSDT"


def test_r04_a_book_outlives_its_worker_as_stale_and_comes_back_in_sync(
    start_worker: Callable[..., Worker], broker: Broker
) -> None:
    worker = start_worker()
    leave(broker, diff(98, 100))
    leave(broker, {"lastUpdateId": 100, "bids": [["10", "3"]], "asks": [["11", "1"]]}, kind="snapshot")
    leave(broker, diff(101, 101, bids=[["10", "5"]]))
    wait_for(lambda: row(worker).get("update_id") == 101, explain=worker.said)
    assert (row(worker)["state"], row(worker)["bids"], row(worker)["asks"]) == ("live", [[10.0, 5.0]], [[11.0, 1.0]])
    worker.stop()  # with its last words committed: nothing comes again

    worker = start_worker()
    leave(broker, diff(102, 102))
    wait_for(lambda: row(worker).get("state") == "stale", explain=worker.said)
    assert row(worker)["bids"] == []
    leave(broker, {"lastUpdateId": 102, "bids": [["10", "7"]], "asks": [["11", "1"]]}, kind="snapshot")
    wait_for(lambda: row(worker).get("state") == "live", explain=worker.said)
    assert (row(worker)["update_id"], row(worker)["bids"]) == (102, [[10.0, 7.0]])
    said = [decode_book_update(record.value or b"") for record in broker.records("market.books")]
    assert [update.state for update in said][-2:] == ["stale", "live"]
    assert all(update.bids == () for update in said if update.state != "live")


def row(worker: Worker) -> dict[str, Any]:
    status, found = worker.get(f"/tables/book_by_symbol/{KEY}")
    return found if status == 200 else {}


def diff(first: int, last: int, bids: list[list[str]] | None = None) -> dict[str, Any]:
    return {"e": "depthUpdate", "E": 1_700_000_000_000 + last, "s": "ETHUSDT", "U": first, "u": last,
            "b": bids or [], "a": []}  # fmt: skip


def leave(broker: Broker, frame: dict[str, Any], kind: str = "frames") -> None:
    info = FramesInfo(venue="binance", symbol="ETHUSDT", channel="book", run="r", kind=kind, ts_receipt_ms=1)
    value = encode_frames([(1, json.dumps(frame).encode())])
    broker.leave("raw.books", value, KEY.encode(), [("frames", encode_frames_info(info))])
