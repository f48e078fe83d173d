"""A hole becomes one repair run, tried a few times with growing pauses, and never beside a load of its stream."""

from __future__ import annotations

from agents import repair
from app.config import settings
from models import control
from models.coverage import Coverage
from models.market import instant_ms

STREAM, HOLE = "binance:BTCUSDT:trades", (instant_ms("2025-08-20T05:00:00"), instant_ms("2025-08-20T05:00:00.500"))
WAIT_S = settings().repair_after_s


def a_run(name: str, state: str = "running", attempt: int = 1) -> control.Workflow:
    run = control.plan(repair.repair_command(name, STREAM, HOLE))
    run.state, run.updated_at = state, 1000.0  # type: ignore[assignment]
    for step in run.steps:
        step.attempt = attempt
    return run


def test_a_hole_is_asked_for_in_full_hours_and_by_one_name() -> None:
    ledger = Coverage(missing=[HOLE])
    [(name, hole)] = repair.holes_of(STREAM, ledger)
    assert hole == HOLE
    run = control.plan(repair.repair_command(name, STREAM, hole))
    assert run.queue_id == name == f"repair-binance-btcusdt-trades-{HOLE[0]}-{HOLE[1]}"
    assert {step.range_ms for step in run.steps} == {(HOLE[0], HOLE[0] + repair.HOUR_MS)}
    assert [step.target for step in run.steps] == [control.LOADER, control.CONNECTOR]


def test_a_hole_is_given_time_to_close() -> None:
    assert not repair.is_due("r", STREAM, {}, 1000.0, since_s=1000.0 - WAIT_S + 1)
    assert repair.is_due("r", STREAM, {}, 1000.0, since_s=1000.0 - WAIT_S)


def test_a_live_hole_is_loaded_when_the_candle_over_its_end_has_closed() -> None:
    closes_ms = instant_ms("2025-08-20T05:05:00")
    assert repair.candles_closed_ms(HOLE[1]) == closes_ms
    assert not repair.is_due("r", STREAM, {}, closes_ms / 1000 - 1, since_s=0.0, hole_end_ms=HOLE[1])
    assert repair.is_due("r", STREAM, {}, closes_ms / 1000, since_s=0.0, hole_end_ms=HOLE[1])


def test_nothing_is_repaired_while_its_stream_is_being_loaded() -> None:
    assert not repair.is_due("r", STREAM, {"load": a_run("load")}, 1e6, since_s=0.0)
    assert repair.is_due("r", "binance:ETHUSDT:trades", {"load": a_run("load")}, 1e6, since_s=0.0)


def test_a_failed_repair_is_tried_again_later_and_later_and_then_left() -> None:
    failed = {"r": a_run("r", "error", attempt=1)}
    assert not repair.is_due("r", STREAM, failed, 1000.0 + 2 * WAIT_S - 1, since_s=0.0)
    assert repair.is_due("r", STREAM, failed, 1000.0 + 2 * WAIT_S, since_s=0.0)
    assert not repair.is_due("r", STREAM, {"r": a_run("r", "error", settings().repair_limit)}, 1e9, since_s=0.0)
    assert not repair.is_due("r", STREAM, {"r": a_run("r", "interrupted")}, 1e9, since_s=0.0)
