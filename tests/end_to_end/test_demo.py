"""`make demo` as a user meets it: real processes, a few days instead of a month."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters.embedded_log.file import owner_pid
from adapters.stores.sqlite import SqliteStore
from tests.processes import Process, on_the_embedded_log, wait_for

RANGE = "2025-08-20:2025-08-25"
QUICK = ("--range", RANGE, "--epochs", "1")
CANDLES = 5 * 288
GENERATED = Path("demo/generated")


class Demo(Process):
    """A demo of this test, in a DATA_DIR of its own."""

    def __init__(self, folder: Path, *arguments: str, name: str = "demo") -> None:
        self.folder = folder
        super().__init__(name, ["demo", *arguments], folder, environment(folder))

    def wait_for_line(self, text: str) -> None:
        def said() -> bool:
            assert self.popen.poll() is None or text in self.said(), self.said()
            return text in self.said()

        wait_for(said, explain=self.said)

    def children(self) -> list[int]:
        """Processes that were started to end with this one."""
        wanted = f"--end-with\0{self.popen.pid}\0".encode()
        return [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if wanted in read(p)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has gone
        return b""


def environment(folder: Path) -> dict[str, str]:
    return {"DATA_DIR": str(folder), "COLUMNS": "200"}


def app(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False, env={**os.environ, **environment(folder), **env}, timeout=450,
    )  # fmt: skip


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; what still runs at the end is killed, and its children end with it."""
    started: list[Demo] = []

    def start(*arguments: str, name: str = "demo") -> Demo:
        started.append(Demo(tmp_path, *arguments, name=name))
        return started[-1]

    yield start
    for demo in started:
        demo.kill()


def test_an_interrupted_demo_goes_on_and_a_finished_one_is_shown_again(
    start_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    first = start_demo(*QUICK, name="first")
    first.wait_for_line("load trades        loading")
    assert first.stop(signal.SIGINT) == 130
    assert owner_pid(tmp_path / GENERATED / "log.db") is None
    assert "Traceback" not in first.said()
    assert first.said().splitlines()[-1].startswith("error: interrupted; the same command goes on")

    second = start_demo(*QUICK, name="second")
    assert second.popen.wait(450) == 0, second.said()
    text = second.said()
    assert f"BTCUSDT candles_5m: {CANDLES:,} of {CANDLES:,} rows in candles_5m, coverage complete" in text
    assert "Verdict: " in text
    assert "one fold: indicative only" in text
    assert "Artifact: " in text
    assert "\x1b[" not in text  # no terminal, no colours

    shown = app(tmp_path, "demo", *QUICK, "--json")
    assert shown.returncode == 0, shown.stderr
    assert "finished already" in shown.stderr
    report = json.loads(shown.stdout)
    trades = next(stream for stream in report["streams"] if stream["channel"] == "trades")
    assert (report["state"], report["complete"]) == ("finished", True)
    assert f"BTCUSDT trades: {trades['rows']:,} rows in trades, coverage complete" in text
    assert {model["artifact"] for model in report["models"]} == {
        str(next((tmp_path / GENERATED / "models").glob("*/*")))
    }

    verified = app(tmp_path / GENERATED, "verify", report["queue_id"], "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["differences"] == 0


def test_nothing_is_left_running_when_the_demo_is_killed(start_demo: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start_demo(*QUICK)
    demo.wait_for_line("load trades        loading")
    assert len(demo.children()) == 2
    again = app(tmp_path, "demo", *QUICK)
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)
    assert "is running already" in again.stderr
    demo.kill()
    wait_for(lambda: not demo.children())
    assert owner_pid(tmp_path / GENERATED / "log.db") is None


@pytest.fixture
def recorded() -> Path:
    folder = Path(os.environ.get("RECORDED_DATA", "")) / "klines" / "spot" / "5m_full"
    if not os.environ.get("RECORDED_DATA") or not folder.is_dir():
        pytest.skip("RECORDED_DATA names no folder with klines/spot/5m_full")
    return folder


def candles_of(file: Path) -> dict[int, dict[str, float]]:
    """A recorded file as it lies there, by open time."""
    names = {
        "open": "open", "high": "high", "low": "low", "close": "close", "volume": "volume",
        "quote_volume": "quote_volume", "trades": "count", "taker_buy_volume": "taker_buy_volume",
        "taker_buy_quote_volume": "taker_buy_quote_volume",
    }  # fmt: skip
    with gzip.open(file, "rt") as lines:
        return {int(row["open_time"]): {ours: float(row[theirs]) for ours, theirs in names.items()}
                for row in csv.DictReader(lines)}  # fmt: skip


@on_the_embedded_log
def test_the_recorded_month_is_stored_as_it_lies_in_the_file(
    recorded: Path, tmp_path: Path, start_exchange: Callable[..., str], start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(start_exchange("--data", str(recorded)))
    month = "2025-08-19T15:10:00:2025-09-18T15:10:00"
    done = subprocess.run(
        [sys.executable, "-m", "app", "start", "--symbol", "BTCUSDT", "--range", month, "--candles", "--id", "month",
         "--follow"],
        cwd=Path(__file__).parents[2], env={**os.environ, **worker.env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [file] = recorded.glob("BTCUSDT-*")
    expected = candles_of(file)
    with closing(SqliteStore(tmp_path / "store.db", read_only=True)) as store:
        rows = [row for batch in store.scan("candles_5m", eq={"symbol": "BTCUSDT"}) for row in batch.to_pylist()]
    assert len(rows) == len(expected) == 8640
    assert [{name: row[name] for name in expected[row["ts"]]} for row in rows] == [expected[row["ts"]] for row in rows]
    assert app(tmp_path, "verify", "month", **worker.env).returncode == 0


def test_a_demo_of_recorded_files_leaves_out_what_they_lack(
    recorded: Path, tmp_path: Path, start_demo: Callable[..., Demo]
) -> None:
    demo = start_demo("--data", str(recorded), "--range", RANGE, "--epochs", "1")
    assert demo.popen.wait(450) == 0, demo.said()
    assert "the folder has no trades of BTCUSDT" in demo.said()
    assert f"BTCUSDT candles_5m: {CANDLES:,} of {CANDLES:,} rows in candles_5m, coverage complete" in demo.said()
    assert "api_trades" not in demo.said()
    assert not (tmp_path / GENERATED).exists()  # recorded and generated data never mix
