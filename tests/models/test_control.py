"""Commands, runs and events as plain data."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CommandRejected
from models import control
from models.control import Json, Step, Task, TaskMessage, Workflow

NOW = 1_760_000_000.0
MONTH: Json = {
    "command": "start", "symbol": "BTCUSDT", "time_range": "2025-08-20:2025-09-18", "requests": [
        {"target": "gnn-trainer", "type": "gnn_train", "graph_collection": "btc_graph", "model_output": "gnn_btc"},
        {"target": "graph-builder", "type": "gnn_graph", "collection_output": "btc_graph"},
        {"target": "arango-connector", "type": "api_trades"},
        {"target": "arango-connector", "type": "api_candles_5m"},
        {"target": "loader-producer", "type": "api_trades"},
        {"target": "loader-producer", "type": "api_candles_5m", "interval": "5m"},
    ],
}  # fmt: skip


def month() -> Workflow:
    return control.plan(MONTH | {"queue_id": "month"}, NOW)


def event_of(run: Workflow, index: int, status: str, **facts: object) -> Json:
    step = run.steps[index]
    return control.step_event(status, run.queue_id, step, **facts)


def launch(run: Workflow) -> list[Step]:
    steps = control.ready(run)
    for step in steps:
        step.attempt, step.state = step.attempt + 1, "launched"
    run.state = "running"
    return steps


def test_order_follows_from_need_not_from_the_list() -> None:
    run = month()
    kinds = [(step.target, step.type) for step in run.steps]
    assert kinds == [
        ("loader-producer", "api_trades"), ("loader-producer", "api_candles_5m"),
        ("arango-connector", "api_trades"), ("arango-connector", "api_candles_5m"),
        ("graph-builder", "gnn_graph"), ("gnn-trainer", "gnn_train"),
    ]  # fmt: skip
    assert [step.needs for step in run.steps] == [(), (), (0,), (1,), (0, 1, 2, 3), (4,)]
    assert {step.interval for step in run.steps[4:]} == {"5m"}


def test_two_equal_dates_mean_that_day() -> None:
    start, end = control.parse_range("2025-08-20:2025-08-20", NOW)
    assert end - start == 86_400_000


@pytest.mark.parametrize("text", ["2025-08-19T15:10:00Z:2025-09-18T15:10:00Z", "2025-08-19T15:10:2025-09-18T15:10"])
def test_instants_are_utc_and_their_end_is_exclusive(text: str) -> None:
    assert control.parse_range(text, NOW) == (1755616200000, 1758208200000)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"command": "begin"}, "command"),
        ({"symbol": 5}, "symbol"),
        ({"symbol": "btc/usdt"}, "requests[0].symbol"),
        ({"time_range": "2025-09-18:2025-08-20"}, "requests[0].time_range"),
        ({"time_range": "2025-09-18:2099-01-01"}, "requests[0].time_range"),
        ({"time_range": "a month"}, "requests[0].time_range"),
        ({"requests": [{"target": "loader", "type": "api_trades"}]}, "requests[0].target"),
        ({"requests": [{"target": "loader-producer", "type": "api_candles_7m"}]}, "requests[0].type"),
        (
            {"requests": [{"target": "loader-producer", "type": "api_candles_5m", "interval": "1m"}]},
            "requests[0].interval",
        ),
        ({"requests": [{"target": "graph-builder", "type": "gnn_graph", "interval": "7m"}]}, "requests[0].interval"),
        ({"requests": [{"target": "gnn-trainer", "type": "gnn_train", "epochs": 0}]}, "requests[0].epochs"),
        ({"requests": [{"target": "gnn-trainer", "type": "gnn_train", "epochs": "ten"}]}, "requests[0].epochs"),
        ({"requests": [{"target": "gnn-trainer", "type": "gnn_train", "label": "up"}]}, "requests[0].label"),
        (
            {"requests": [{"target": "loader-producer", "type": "api_trades", "collection_name": "mine"}]},
            "requests[0].collection_name",
        ),
        ({"requests": ["load"]}, "requests[0]"),
        ({"requests": {}}, "requests"),
        ({"queue_id": "a b"}, "queue_id"),
        ({"queue_id": "*"}, "queue_id"),
    ],
)
def test_a_wish_that_cannot_be_granted_names_the_field(change: Json, field: str) -> None:
    with pytest.raises(CommandRejected) as caught:
        control.plan(MONTH | change, NOW)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("value", [b"", None, b"[1]", b"nonsense", b'"start"', b"null"])
def test_what_is_no_json_object_is_no_command(value: bytes | None) -> None:
    with pytest.raises(ValueError, match=r"JSON|empty"):
        control.read_command(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_json_object_or_a_value_error(value: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(control.read_command(value), dict)


@given(
    st.dictionaries(
        st.sampled_from(
            ["command", "queue_id", "symbol", "symbols", "type", "target", "time_range", "interval", "requests"]
        ),
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2),
    )
)  # fmt: skip
def test_any_json_object_is_planned_or_rejected(message: Json) -> None:
    with contextlib.suppress(CommandRejected):
        assert control.plan(message, NOW).steps


def test_a_command_delivered_twice_names_one_run() -> None:
    assert control.plan(MONTH, NOW, seed=b"17").queue_id == control.plan(MONTH, NOW, seed=b"17").queue_id
    assert control.plan(MONTH, NOW, seed=b"17").queue_id != control.plan(MONTH, NOW, seed=b"18").queue_id


def test_several_symbols_are_several_pipelines() -> None:
    run = control.plan(MONTH | {"symbol": "", "symbols": ["BTCUSDT", "ETHUSDT"]}, NOW)
    assert len(run.steps) == 12
    builder = next(s for s in run.steps if s.target == control.BUILDER and s.symbol == "ETHUSDT")
    assert {run.steps[i].symbol for i in builder.needs} == {"ETHUSDT"}


def test_a_run_goes_through_its_steps_in_order_and_finishes() -> None:
    run = month()
    waves = []
    while steps := launch(run):
        waves.append([run.steps.index(step) for step in steps])
        for step in steps:
            assert control.apply_event(run, event_of(run, run.steps.index(step), "finished", records_written=3))
    assert waves == [[0, 1], [2, 3], [4], [5]]
    assert control.conclude(run) == "finished"


def test_a_failed_step_stops_what_depends_on_it() -> None:
    run = month()
    launch(run)
    control.apply_event(run, event_of(run, 0, "error", error="no"))
    control.apply_event(run, event_of(run, 1, "finished"))
    assert [run.steps.index(step) for step in launch(run)] == [3]
    control.apply_event(run, event_of(run, 3, "finished"))
    assert launch(run) == []
    assert control.conclude(run) == "error"


def test_the_first_terminal_word_wins() -> None:
    run = month()
    launch(run)
    assert control.apply_event(run, event_of(run, 0, "error", error="no"))
    assert not control.apply_event(run, event_of(run, 0, "finished"))
    assert run.steps[0].state == "error"


def test_words_of_an_older_attempt_change_nothing() -> None:
    run = month()
    launch(run)
    old = event_of(run, 0, "finished")
    run.steps[0].attempt += 1
    assert not control.apply_event(run, old)


def test_a_resumed_run_repeats_only_what_is_not_finished() -> None:
    run = month()
    while steps := launch(run):
        for step in steps:
            status = "error" if step.target == control.BUILDER else "finished"
            control.apply_event(run, event_of(run, run.steps.index(step), status))
    run.state = control.conclude(run)
    assert run.state == "error"
    assert control.resume(run)
    assert [s.state for s in run.steps] == ["waiting", "waiting", "finished", "finished", "waiting", "waiting"]
    assert not control.resume(run)


def test_a_finished_run_has_nothing_to_resume() -> None:
    run = month()
    for step in run.steps:
        step.state = "finished"
    run.state = control.conclude(run)
    assert not control.resume(run)


def test_a_stopped_run_is_interrupted_when_its_last_step_is() -> None:
    run = month()
    launch(run)
    run.state = "stopping"
    assert control.ready(run) == []
    control.apply_event(run, event_of(run, 0, "interrupted"))
    assert control.conclude(run) == "stopping"
    control.apply_event(run, event_of(run, 1, "finished"))
    assert control.conclude(run) == "interrupted"


def launch_message(attempt: int) -> TaskMessage:
    step = Step(task_id="r.0", target=control.DUMMY, type="simulate", attempt=attempt)
    return TaskMessage(kind="launch", task_id="r.0", queue_id="r", attempt=attempt, step=step)


def task_message(kind: str, attempt: int = 1, **facts: object) -> TaskMessage:
    return TaskMessage(kind=kind, task_id="r.0", queue_id="r", attempt=attempt, **facts)  # type: ignore[arg-type]


def test_a_repeated_launch_starts_nothing_twice() -> None:
    row = control.apply_task(None, launch_message(1), 2)
    assert row == Task(task_id="r.0", queue_id="r", step=launch_message(1).step, attempt=1, partition=2)  # type: ignore[arg-type]
    row = control.apply_task(row, task_message("checkpoint", cursor={"id": 5}, records_written=7), 2)
    assert control.apply_task(row, launch_message(1), 2) is row
    assert row is not None
    assert row.cursor == {"id": 5}


def test_a_new_attempt_begins_without_the_old_checkpoint() -> None:
    row = control.apply_task(None, launch_message(1), 0)
    row = control.apply_task(row, task_message("checkpoint", cursor={"id": 5}), 0)
    row = control.apply_task(row, task_message("ended", state="error"), 0)
    row = control.apply_task(row, launch_message(2), 0)
    assert row is not None
    assert (row.attempt, row.cursor, row.state) == (2, None, "active")


def test_a_task_that_is_started_again_goes_on_from_its_checkpoint() -> None:
    row = control.apply_task(None, launch_message(1), 0)
    row = control.apply_task(row, task_message("checkpoint", cursor={"id": 5}, records_written=7), 0)
    again = launch_message(2)
    again.goes_on, again.not_before = True, 12.5
    row = control.apply_task(row, again, 0)
    assert row is not None
    assert (row.attempt, row.cursor, row.records_written, row.not_before) == (2, {"id": 5}, 7, 12.5)


def test_a_step_is_started_again_with_growing_pauses_and_then_given_up() -> None:
    run = month()
    [step, *_] = launch(run)
    pauses = [(control.heal(step, 3, 100.0, "silent") or 0.0) - 100.0 for _ in range(3)]
    assert pauses == [1.0, 2.0, 4.0]
    assert (step.state, step.attempt, step.heals) == ("launched", 4, 3)
    assert control.heal(step, 3, 100.0, "silent") is None
    assert step.state == "error"
    assert "3 restarts: silent" in step.error


def test_only_active_steps_that_nobody_heard_of_are_silent() -> None:
    run = month()
    [first, second, *_] = launch(run)
    first.updated_at, second.updated_at = 100.0, 111.0
    assert control.silent(run, 115.0, 10.0) == [first]
    assert control.silent(run, 115.0, 10.0, since_s=110.0) == [], "while nobody listened there was no silence"
    first.state = "finished"
    assert control.silent(run, 115.0, 10.0) == []


def test_a_resumed_run_may_be_healed_as_often_as_a_new_one() -> None:
    run = month()
    [step, *_] = launch(run)
    step.heals, step.state, run.state = 3, "error", "error"
    assert control.resume(run)
    assert step.heals == 0


def test_an_ended_task_stays_ended() -> None:
    row = control.apply_task(None, launch_message(1), 0)
    row = control.apply_task(row, task_message("ended", state="finished"), 0)
    row = control.apply_task(row, task_message("stop"), 0)
    assert row is not None
    assert row.state == "finished"
    assert control.apply_task(None, task_message("stop"), 0) is None


def test_an_event_is_one_flat_object_with_the_documented_fields() -> None:
    step = Step(task_id="r.0", target=control.LOADER, type="api_trades", symbol="BTCUSDT", attempt=1)
    event = control.step_event("loading", "r", step, records_written=5, progress=1.2, message="m")
    for name in ("event", "status", "queue_id", "target", "symbol", "type", "producer", "message", "finished",
                 "records_written", "timestamp", "sent_at", "extra"):  # fmt: skip
        assert name in event
    assert event["progress"] == 1.0
    assert event["producer"] == event["telemetry_id"]
    assert event["finished"] is False


@pytest.mark.parametrize("name", ["trades", "Coverage", "candles_5m", "queue_state", "other_edges"])
@pytest.mark.parametrize("where", ["requests", "payload"])
def test_a_graph_never_takes_another_collections_name(name: str, where: str) -> None:
    said = {"collection_output": name} if where == "requests" else {"payload": {"collection_output": name}}
    command = MONTH | {"requests": [{"target": "graph-builder", "type": "gnn_graph", **said}]}
    if where == "payload":
        assert control.graph_name(control.plan(command, NOW).steps[0]) == "graph_btcusdt_5m_20250820_20250918"
        return
    with pytest.raises(CommandRejected) as caught:
        control.plan(command, NOW)
    assert caught.value.field == "requests[0].collection_output"


@pytest.mark.parametrize("payload", [{"seconds": "x"}, {"seconds": -1}, {"seconds": None}, {"records": 1e30}])
def test_a_dummy_is_told_numbers(payload: Json) -> None:
    request = {"target": "dummy-service", "type": "simulate", "payload": payload}
    with pytest.raises(CommandRejected):
        control.plan({"command": "start", "requests": [request]}, NOW)
    with pytest.raises(CommandRejected):
        control.check_command({"command": "fail-after", "queue_id": "r", "payload": payload})


def test_a_number_that_cannot_be_kept_is_rejected() -> None:
    with pytest.raises(CommandRejected):
        control.plan(MONTH | {"note": 10**30}, NOW)


def test_a_pipeline_has_an_end() -> None:
    with pytest.raises(CommandRejected, match="at most"):
        control.plan(MONTH | {"requests": MONTH["requests"] * 50}, NOW)


def test_a_training_finds_the_graph_its_run_builds() -> None:
    build = {"target": "graph-builder", "type": "gnn_graph"}
    train = {"target": "gnn-trainer", "type": "gnn_train"}
    for builder, trainer in ((build, train), (build | {"collection_output": "mine"}, train)):
        run = control.plan(MONTH | {"requests": [trainer, builder]}, NOW)
        assert run.steps[1].needs == (0,)
        assert control.graph_name(run.steps[0]) == control.graph_name(run.steps[1])


def test_a_stop_that_meets_the_end_leaves_a_finished_run_finished() -> None:
    run = month()
    for step in run.steps:
        step.state = "finished"
    run.state = "stopping"
    assert control.conclude(run) == "finished"


@pytest.mark.parametrize("facts", [{"records_written": "x"}, {"records_written": 1e30}, {"records_written": None}])
def test_a_foreign_word_in_an_event_changes_no_number(facts: Json) -> None:
    run = month()
    launch(run)
    control.apply_event(run, event_of(run, 0, "loading") | facts)
    assert run.steps[0].records_written == 0


LIVE = {"command": "start", "symbols": ["BTCUSDT", "ETHUSDT"], "requests": [
    {"target": "loader-ws", "type": "ws_trades"}, {"target": "loader-ws", "type": "ws_orderbook"},
    {"target": "loader-ws", "type": "ws_candles_1m"},
]}  # fmt: skip


def test_a_live_step_is_one_stream_of_one_symbol_and_needs_no_range() -> None:
    run = control.plan(LIVE, NOW)
    assert {(step.symbol, step.channel) for step in run.steps} == {
        (symbol, channel) for symbol in ("BTCUSDT", "ETHUSDT") for channel in ("trades", "book", "candles_1m")
    }
    assert all(step.range_ms is None and step.needs == () for step in run.steps)
    assert {step.interval for step in run.steps if step.channel == "candles_1m"} == {"1m"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"type": "api_trades"}, "type"),
        ({"type": "ws_candles_7m"}, "type"),
        ({"type": "ws_candles_1m", "interval": "5m"}, "interval"),
    ],
)
def test_a_live_step_that_makes_no_sense_is_rejected(request_: Json, field: str) -> None:
    with pytest.raises(CommandRejected) as caught:
        control.plan({**LIVE, "requests": [{"target": "loader-ws", **request_}]}, NOW)
    assert caught.value.field == f"requests[0].{field}"


def test_a_live_run_has_no_end_but_a_stop() -> None:
    run = control.plan(LIVE, NOW)
    for step in run.steps:
        step.state = "loading"
    assert control.conclude(run) == run.state
    for step in run.steps:
        step.state = "interrupted"
    run.state = "stopping"
    assert control.conclude(run) == "interrupted"
