"""R15 and R01, in short: live trades of many symbols through reconnects. `make soak` does it for a day."""

from __future__ import annotations

import pytest

from bench import soak
from bench.soak import Plan, Proof, checksum
from models.market import Batch, pack_columns


def batch_of(*ids: int) -> Batch:
    columns = {
        "id": list(ids), "ts_ms": [1_700_000_000_000 + n for n in ids], "price": [1.5 + n for n in ids],
        "size": [2.0] * len(ids), "quote_size": [3.0] * len(ids), "buyer_is_maker": [True] * len(ids),
        "trades": [1] * len(ids),
    }  # fmt: skip
    return Batch(
        venue="binance", symbol="ETHUSDT", channel="trades", source="live", run="soak", ts_receipt_ms=0,
        columns=pack_columns("trades", columns),
    )  # fmt: skip


def test_r15_an_hour_of_reconnects_loses_no_trade_and_leaves_no_task_behind() -> None:
    found = soak.soak(Plan(hours=1, symbols=40, speed=240), say=lambda _line: None)
    assert found.cuts >= 11
    assert found.trades > 4_000
    assert (found.lost, found.waiting, found.doubled, found.differ) == (0, 0, 0, [])
    least, most = found.lasting
    assert least == most
    assert max(sample.passing for sample in found.samples) <= 2 * 40 + 8, "a reader waits for a frame or for its time"


@pytest.mark.parametrize(
    ("batches", "lost", "doubled"),
    [([(5, 6), (7,)], 0, 0), ([(5, 6), (9,)], 2, 0), ([(5, 7)], 1, 0), ([(5, 6), (6, 7)], 0, 1), ([(), (5,)], 0, 0)],
)
def test_r15_what_is_lost_or_comes_twice_is_counted(batches: list[tuple[int, ...]], lost: int, doubled: int) -> None:
    proof = Proof()
    for ids in batches:
        proof.add(batch_of(*ids))
    assert (proof.lost, proof.doubled) == (lost, doubled)


def test_r15_the_checksum_is_of_the_rows_and_not_of_the_batches() -> None:
    whole = checksum(batch_of(5, 6, 7))
    assert checksum(batch_of(7), checksum(batch_of(5, 6))) == whole
    assert checksum(batch_of(5, 6, 7, 8), rows=3) == whole
    assert checksum(batch_of(5, 7, 6)) != whole
