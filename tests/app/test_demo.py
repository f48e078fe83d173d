"""What the demo makes of a source, and how a run's progress is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app import demo, progress
from app.children import Children
from app.client import Worker
from app.demo import DEMO_MARK, Wish, choose, compose, left_out, prepare_folder, source_name
from app.errors import RunFailed, SetupRefused
from models.control import plan

Json = dict[str, Any]

DAY = 86_400_000
START = 1_755_648_000_000  # 2025-08-20


def stream(symbol: str, channel: str, rows: int = 100, start: int = START, end: int = START + 30 * DAY) -> Json:
    return {"symbol": symbol, "channel": channel, "start_ms": start, "end_ms": end, "rows": rows}


def catalog(*streams: Json) -> Json:
    return {"source": "recorded", "streams": list(streams), "left_out": {}}


class SilentWorker(Worker):
    """Takes a command and never says a word of it."""

    def start(self, command: Json) -> Json:
        return command

    def events(self, queue_id: str, after: int = -1, limit: int = 0) -> list[Json]:
        return []


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_generated_month_is_the_whole_pipeline_under_one_name() -> None:
    command = compose(Wish(), {"source": "generated", "streams": []}, quiet())
    run = plan(command)
    assert run.queue_id == "demo-generated-btcusdt-5m-2025-08-20-2025-09-19"
    assert run == plan(command, now_s=run.created_at)  # the same wish is the same run
    assert [(step.target, step.type) for step in run.steps] == [
        ("loader-producer", "api_candles_5m"), ("loader-producer", "api_trades"),
        ("arango-connector", "api_candles_5m"), ("arango-connector", "api_trades"),
        ("graph-builder", "gnn_graph"), ("gnn-trainer", "gnn_train"),
    ]  # fmt: skip
    assert {step.range_ms for step in run.steps} == {(START, START + 30 * DAY)}


def test_steps_of_trades_that_a_folder_lacks_are_left_out_and_said(tmp_path: Path) -> None:
    console = quiet()
    command = compose(Wish(data=tmp_path), catalog(stream("BTCUSDT", "candles_5m")), console)
    assert "api_trades" not in {request["type"] for request in command["requests"]}
    assert "no trades of BTCUSDT" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ([stream("BTCUSDT", "candles_5m"), stream("ETHUSDT", "candles_5m", 999)], ("BTCUSDT", "5m", False)),
        ([stream("ETHUSDT", "candles_5m", 9), stream("XRPUSDT", "candles_5m", 10)], ("XRPUSDT", "5m", False)),
        ([stream("BTCUSDT", "candles_1h"), stream("BTCUSDT", "candles_15m")], ("BTCUSDT", "15m", False)),
        ([stream("BTCUSDT", "candles_5m"), stream("BTCUSDT", "trades")], ("BTCUSDT", "5m", True)),
        ([stream("BTCUSDT", "candles_5m"), stream("ETHUSDT", "trades")], ("BTCUSDT", "5m", False)),
        ([stream("BTCUSDT", "candles_5m"), stream("BTCUSDT", "trades", end=START + DAY)], ("BTCUSDT", "5m", False)),
    ],
)
def test_a_folder_decides_symbol_interval_and_trades(
    streams: list[dict[str, Any]], expected: tuple[str, str, bool]
) -> None:
    symbol, interval, time_range, trades = choose(catalog(*streams))
    assert (symbol, interval, trades) == expected
    assert time_range == "2025-08-20:2025-09-19"


def test_a_folder_that_begins_within_a_day_is_asked_to_the_minute() -> None:
    begins = START + 15 * 3_600_000 + 600_000
    time_range = choose(catalog(stream("BTCUSDT", "candles_5m", start=begins)))[2]
    assert time_range == "2025-08-20T15:10:00:2025-09-19"
    assert plan(compose(Wish(time_range=time_range), {"source": "generated"}, quiet())).steps[0].range_ms == (
        begins, START + 30 * DAY,
    )  # fmt: skip


def test_a_folder_without_candles_is_refused() -> None:
    with pytest.raises(SetupRefused, match="no candles"):
        choose(catalog(stream("BTCUSDT", "trades")))


def test_every_source_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "spot", tmp_path / "b" / "spot"
    for folder in (first, second):
        folder.mkdir(parents=True)
    assert len({source_name(None), source_name(first), source_name(second)}) == 3
    assert source_name(first) == source_name(tmp_path / "a" / ".." / "a" / "spot")


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupRefused, match="is not a folder"):
        source_name(tmp_path / "missing")


def test_fresh_removes_what_a_demo_made_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.config import settings

    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    settings.cache_clear()
    try:
        folder = prepare_folder(Wish())
        (folder / "left").touch()
        assert prepare_folder(Wish()) == folder
        assert (folder / "left").exists()
        prepare_folder(Wish(fresh=True))
        assert not (folder / "left").exists()
        (folder / DEMO_MARK).unlink()
        (folder / "precious").touch()
        with pytest.raises(SetupRefused, match="no demo made"):
            prepare_folder(Wish(fresh=True))
        assert (folder / "precious").exists()
    finally:
        settings.cache_clear()


def test_a_worker_that_never_answers_is_told_with_the_file_of_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ANSWER_WITHIN_S", 0.0)
    with Children(tmp_path) as children, pytest.raises(RunFailed) as told:
        demo.start_and_follow(SilentWorker("http://127.0.0.1:9"), {"queue_id": "q"}, quiet(), children)
    assert str(told.value).endswith(f"see {tmp_path / 'worker.log'}")


# --- progress


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def state(status: str, records: int = 0, share: float | None = None, message: str = "") -> Json:
    step = {"target": "loader-producer", "type": "api_trades", "state": status, "records_written": records}
    return {"steps": [{**step, "progress": share, "message": message, "error": ""}]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def test_without_a_terminal_a_step_gets_at_most_a_line_every_two_seconds(clock: Clock) -> None:
    console = quiet()
    with progress.shown(console) as update:
        for tick in range(100):
            clock.now_s += 0.1
            update(state("loading", records=tick * 100, share=tick / 100))
        update(state("finished", records=10_000, message="10 pages"))
    told = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(told) in (6, 7)
    assert told[-1] == "load trades        finished     10,000 records  10 pages"
    assert "1,000/s" in told[3]


def test_a_line_that_says_nothing_new_is_not_repeated(clock: Clock) -> None:
    console = quiet()
    with progress.shown(console) as update:
        for _ in range(100):
            clock.now_s += 0.1
            update(state("loading", share=0.5, message="trains"))
    assert len(console.file.getvalue().splitlines()) == 1  # type: ignore[attr-defined]


def test_on_a_terminal_each_step_has_a_bar_with_rate_and_last_word() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with progress.shown(console) as update:
        update(state("waiting"))
        update(state("loading", records=500, share=0.5))
        update(state("finished", records=1000, share=1.0))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "load trades" in told
    assert "100%" in told
    assert "1,000" in told
    assert "finished" in told


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = progress.Rate()
    assert rate.at(0.0, 0) == 0.0
    assert rate.at(1.0, 500) == 500.0
    assert rate.at(30.0, 500) == 0.0


def test_files_that_are_left_out_are_told_by_reason() -> None:
    told = list(left_out({"a.csv": "six columns", "b.csv": "six columns", "c.txt": "no name"}))
    assert told == ["left out: a.csv and 1 more: six columns", "left out: c.txt: no name"]
