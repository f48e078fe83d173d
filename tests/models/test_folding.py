"""Candles are made only of trades that were seen whole; batches may repeat, jump and have holes."""

from itertools import pairwise

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.candles import CandleState
from models.folding import RUNS_KEPT, Folded, Folding, Segment, fold_batch
from models.market import Batch, Span, joined, pack_columns, runs_of

MINUTE = 60_000


def trades(start: int, end: int, run: str = "r", missing: tuple[Span, ...] = ()) -> Batch:
    """A trade every 10 s; its id is its number since 0, its price its id."""
    ts = np.arange(-(-start // 10_000) * 10_000, end, 10_000)
    ids = ts // 10_000
    columns = {
        "id": ids, "ts_ms": ts, "price": ids.astype(float), "size": np.ones(len(ts)), "quote_size": ids.astype(float),
        "buyer_is_maker": np.zeros(len(ts), bool), "trades": np.ones(len(ts)),
    }  # fmt: skip
    return Batch(
        venue="binance", symbol="BTCUSDT", channel="trades", source="history", run=run, ts_receipt_ms=0,
        covers=(start, end), missing=missing, columns=pack_columns("trades", columns),
    )  # fmt: skip


def opens(folding: Folding, *batches: Batch) -> list[int]:
    """Open times of the 1m candles, in the order they were made."""
    made: list[int] = []
    for batch in batches:
        made += [ts for some in fold_batch(folding, batch, ("1m",)).candles for ts in some.columns["ts"].tolist()]
    return made


@given(st.lists(st.integers(1, 5 * MINUTE - 1), max_size=6))
def test_how_the_trades_are_cut_makes_no_difference(cuts: list[int]) -> None:
    edges = sorted({0, 5 * MINUTE, *cuts})
    pieces = [trades(a, b) for a, b in pairwise(edges)]
    assert opens(Folding(), *pieces) == [i * MINUTE for i in range(5)]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("rs"), st.booleans()), max_size=12), st.integers(1, 12))
def test_batches_that_wait_together_make_the_candles_that_each_alone_makes(
    minutes: list[tuple[int, str, bool]], together: int
) -> None:
    """Repeats, jumps, holes and other runs among them."""
    batches = [
        trades(n * MINUTE, (n + 1) * MINUTE, run, ((n * MINUTE + 10_000, n * MINUTE + 20_000),) if hole else ())
        for n, run, hole in minutes
    ]
    waiting = [batches[at : at + together] for at in range(0, len(batches), together)]
    runs = [joined([some[place] for place in run]) for some in waiting for run in runs_of(some)]
    one, other = Folding(), Folding()
    assert opens(one, *runs) == opens(other, *batches)
    assert one == other


def test_a_repeated_batch_makes_no_second_candle() -> None:
    one, two = trades(0, 2 * MINUTE), trades(2 * MINUTE, 3 * MINUTE)
    assert opens(Folding(), one, one, two, two, one) == [0, MINUTE, 2 * MINUTE]


def test_a_candle_that_was_not_seen_whole_is_not_made() -> None:
    assert opens(Folding(), trades(MINUTE // 2, 3 * MINUTE)) == [MINUTE, 2 * MINUTE]


def test_after_a_jump_the_next_whole_candle_is_the_first() -> None:
    jumped = trades(3 * MINUTE + 1, 5 * MINUTE)
    assert opens(Folding(), trades(0, 2 * MINUTE + 1), jumped) == [0, MINUTE, 4 * MINUTE]


def test_a_candle_over_a_hole_is_not_made() -> None:
    hole = (MINUTE + 10_000, MINUTE + 20_000)
    assert opens(Folding(), trades(0, 3 * MINUTE, missing=(hole,))) == [0, 2 * MINUTE]


def test_an_earlier_range_of_another_run_makes_its_own_candles() -> None:
    folding = Folding()
    assert opens(folding, trades(5 * MINUTE, 6 * MINUTE, "late")) == [5 * MINUTE]
    assert opens(folding, trades(0, MINUTE, "early")) == [0]


def test_the_row_stays_small() -> None:
    folding = Folding()
    for number in range(3 * RUNS_KEPT):
        fold_batch(folding, trades(0, MINUTE, f"run{number}"), ("1m",))
    assert list(folding.segments) == [f"run{n}" for n in range(2 * RUNS_KEPT, 3 * RUNS_KEPT)]


def test_a_row_of_an_older_version_folds_no_trade_twice() -> None:
    old = CandleState(interval_ms=MINUTE, ts=MINUTE, traded=True, open=6, high=8, low=6, close=8, trades=3, last_id=8)
    folding = Folding(segments={"r": Segment(covered=(0, 90_000), states={"1m": old})})
    folded = fold_batch(folding, trades(60_000, 2 * MINUTE), ("1m",))
    [made] = folded.candles
    assert (made.columns["ts"].tolist(), made.columns["trades"].tolist()) == ([MINUTE], [6])
    late = trades(0, 10_000)
    assert fold_batch(folding, msgspec.structs.replace(late, covers=(2 * MINUTE, 2 * MINUTE)), ("1m",)) == Folded()
