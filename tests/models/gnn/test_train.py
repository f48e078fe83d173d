"""One training as its parent sees it: lines while it lives, a model at its end, nothing when it was stopped."""

from __future__ import annotations

import csv
import gzip
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from app.errors import CommandRejected, RunFailed
from models import control
from models.gnn import progress, report
from models.gnn.artifact import CONFIG, MANIFEST, load_artifact
from models.gnn.dataset import Inputs, load_inputs, save_inputs
from models.gnn.graph import GraphSpec, build_graph
from models.gnn.progress import EXIT_INTERRUPTED, Interrupted, Reporter
from models.gnn.request import INPUTS_FILE, REQUEST_FILE, TrainRequest, read_request, write_request
from models.gnn.train import Training, publish
from models.market import CANDLE_COLUMNS

ROOT = Path(__file__).parents[3]
MONTH = sorted(Path(os.environ.get("RECORDED_DATA", "no/such/folder")).glob("klines/spot/5m_full/BTCUSDT*"))


def request_of(workdir: Path, **changes: Any) -> TrainRequest:
    few = {"epochs": 3, "patience": 3, "seeds": (0, 1), "horizon": 6, "nice": 0}
    return TrainRequest(**{"name": "gnn_btc", "version": "v1", "out_dir": str(workdir / "models"), **few, **changes})


def prepare(workdir: Path, candles, graph, **changes: Any) -> Path:
    workdir.mkdir(exist_ok=True)
    save_inputs(workdir / INPUTS_FILE, candles, graph)
    write_request(workdir, request_of(workdir, **changes))
    return workdir


def start(workdir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "models.gnn.train", str(workdir), str(os.getpid())],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(child: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]], str]:
    out, err = child.communicate(timeout=150)
    return child.returncode, [msgspec.json.decode(line) for line in out.splitlines()], err.decode()


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def test_a_training_reports_and_leaves_a_checked_model(candles, graph, tmp_path):
    workdir = prepare(tmp_path, candles, graph, dataset={"collections": ["candles_5m", "btc_graph"]})
    code, facts, err = finish(start(workdir))
    assert (code, err) == (0, "")
    *before, last = facts
    shares = [fact["progress"] for fact in before]
    assert shares == sorted(shares)
    assert {"label", "model", "epoch", "loss", "message"} <= set(before[-1])
    loaded = load_artifact(Path(last["done"]))
    assert loaded.folder == workdir / "models" / "gnn_btc" / "v1"
    assert loaded.dataset["sha256"] == graph.data_hash
    assert loaded.dataset["collections"] == ["candles_5m", "btc_graph"]
    assert set(last["verdicts"]) == {"dir", "vol_regime"}
    names = [model.name for model in loaded.metrics.labels[0].models]
    assert names == [
        "majority", "last return", "logistic regression", "boosting", "MLP",
        "SAGE", "SAGE random edges", "GATv2", "GATv2 random edges",
    ]  # fmt: skip
    assert "one fold: indicative only" in (loaded.folder / "card.md").read_text()
    assert report.render(loaded.metrics) in (loaded.folder / "card.md").read_text()
    served = loaded.ensemble("vol_regime", "GATv2")
    np.testing.assert_allclose(served.last_logits(graph), served.logits(graph)[:, -1], atol=1e-5)
    assert not list(workdir.rglob("*.partial"))
    assert "code_version" not in msgspec.json.decode((loaded.folder / CONFIG).read_bytes())  # nobody knows it here


def test_a_stop_ends_the_training_between_epochs_without_a_model(candles, graph, tmp_path):
    workdir = prepare(tmp_path, candles, graph, epochs=1000, patience=1000, labels=("dir",))
    child = start(workdir)
    assert child.stdout is not None
    for line in child.stdout:
        if "epoch" in msgspec.json.decode(line):
            break
    child.send_signal(signal.SIGTERM)
    code, facts, _ = finish(child)
    assert code == EXIT_INTERRUPTED
    assert len([fact for fact in facts if "epoch" in fact]) < 20  # of a thousand
    assert facts[-1]["interrupted"]
    assert not (workdir / "models").exists()


def test_a_range_too_short_is_one_sentence_and_no_model(make_candles, tmp_path):
    candles = make_candles(500)
    workdir = prepare(tmp_path, candles, build_graph(candles, GraphSpec(), symbol="BTCUSDT"))
    code, facts, err = finish(start(workdir))
    assert code == RunFailed.exit_code
    assert "too short to train on" in facts[-1]["error"]
    assert "there are 500" in facts[-1]["error"]
    assert "Traceback" not in err
    assert not (workdir / "models").exists()


def test_a_parent_that_is_gone_ends_the_training(candles, graph, tmp_path):
    workdir = prepare(tmp_path, candles, graph, epochs=1000, patience=1000, labels=("dir",))
    child = start(workdir)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.stdout.close()  # what remains of a parent that was killed
    assert child.wait(timeout=150) == progress.EXIT_ORPHANED
    assert child.stderr is not None
    child.stderr.close()
    assert not (workdir / "models").exists()


def run_here(inputs: Inputs, out_dir: Path, **changes: Any) -> Path:
    request = request_of(out_dir, epochs=2, labels=("vol_regime",), **changes)
    training = Training(request, inputs, Reporter(io.StringIO()), lambda: None)
    return publish(training, training.run())


@pytest.mark.usefixtures("one_thread")
def test_the_same_seeds_give_the_same_metrics_and_the_same_bytes(candles, graph, tmp_path):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    inputs = Inputs(candles, graph)
    first, again, other = (
        run_here(inputs, tmp_path / name, seeds=seeds) for name, seeds in (("a", (1, 2)), ("b", (1, 2)), ("c", (3, 4)))
    )
    assert (first / MANIFEST).read_bytes() == (again / MANIFEST).read_bytes()
    for name in ("model.safetensors", "metrics.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.usefixtures("one_thread")
def test_a_stop_is_heard_before_the_first_epoch_too(candles, graph, tmp_path):
    def stopped() -> None:
        raise Interrupted

    training = Training(request_of(tmp_path), Inputs(candles, graph), Reporter(io.StringIO()), stopped)
    with pytest.raises(Interrupted):
        training.run()


def test_a_request_comes_back_as_it_was_written(tmp_path):
    request = request_of(tmp_path, dataset={"run": "loader-1"}, model_types=("SAGE",), learning_rate=0.01)
    write_request(tmp_path, request)
    assert read_request(tmp_path) == request


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_types", ["GCN"]), ("labels", ["up"]), ("labels", []), ("epochs", 0), ("learning_rate", 0),
     ("seeds", []), ("name", "../escape"), ("version", "a/b"), ("horizon", "12")],
)  # fmt: skip
def test_a_request_that_cannot_be_granted_is_rejected_by_its_field(tmp_path, field, value):
    good = msgspec.to_builtins(request_of(tmp_path))
    (tmp_path / REQUEST_FILE).write_bytes(msgspec.json.encode({**good, field: value}))
    with pytest.raises(CommandRejected, match=field):
        read_request(tmp_path)


BOUNDS = [("epochs", 1, 1000), ("horizon", 1, 288), ("learning_rate", 1e-6, 1.0)]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [(field, value, True) for field, low, high in BOUNDS for value in (low, high)]
    + [(field, value, False) for field, low, high in BOUNDS for value in (low / 2 if high == 1 else 0, high + 1)],
)
def test_a_training_accepts_what_a_command_accepts_and_no_more(tmp_path, field, value, allowed):
    command = {
        "command": "start", "symbol": "BTCUSDT", "time_range": "2025-08-20:2025-08-21",
        "requests": [{"target": control.TRAINER, "type": "gnn_train", field: value}],
    }  # fmt: skip
    write_request(tmp_path, request_of(tmp_path, **{field: value}))
    with nullcontext() if allowed else pytest.raises(CommandRejected, match=field):
        control.plan(command)
    with nullcontext() if allowed else pytest.raises(CommandRejected, match=field):
        read_request(tmp_path)


def test_the_last_fact_is_repeated_while_nothing_new_is_said(monkeypatch):
    monkeypatch.setattr(progress, "REPEAT_S", 0.05)
    stream = io.StringIO()
    with Reporter(stream) as reporter:
        reporter.say(progress=0.5)
        deadline_s = time.monotonic() + 150
        while stream.getvalue().count("\n") < 4 and time.monotonic() < deadline_s:
            progress.threading.Event().wait(0.01)
        reporter.conclude(done="here")
    lines = [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]
    assert lines[:4] == [{"progress": 0.5}] * 4
    assert lines[-1] == {"done": "here"}


def test_no_more_than_five_facts_are_said_in_a_second():
    stream = io.StringIO()
    reporter = Reporter(stream)
    began_s = time.monotonic()
    for epoch in range(1000):
        reporter.say(progress=epoch / 1000)
    reporter.conclude(done="here")
    assert stream.getvalue().count("\n") <= 4 + 5 * (time.monotonic() - began_s)
    assert stream.getvalue().endswith('{"done":"here"}\n')


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not MONTH, reason="RECORDED_DATA names no folder with klines/spot/5m_full: no month to train on")
def test_the_recorded_month_gives_numbers_an_honest_pipeline_gives(tmp_path):
    """BTCUSDT, 60 minutes ahead: direction near chance, volatility clearly predictable."""
    candles = recorded_month()
    save_inputs(tmp_path / INPUTS_FILE, candles, build_graph(candles, GraphSpec(), symbol="BTCUSDT"))
    request = request_of(tmp_path, horizon=12, model_types=("SAGE",), seeds=(0,), epochs=12)
    training = Training(request, load_inputs(tmp_path / INPUTS_FILE), Reporter(io.StringIO()), lambda: None)
    direction, regime = training.run().labels
    auc = {r.label: {m.name: m.metrics["auc"].value for m in r.models} for r in (direction, regime)}
    assert max(auc["dir"].values()) < 0.68
    assert 0.70 < auc["vol_regime"]["logistic regression"] < 0.80
    assert direction.standard_error == pytest.approx(0.038, abs=0.001)
    assert direction.samples["test"] == 2075


def recorded_month() -> dict[str, Any]:
    with gzip.open(MONTH[0], "rt") as file:
        rows = list(csv.DictReader(file))
    called = {"ts": "open_time", "trades": "count"}
    columns = {
        name: np.array([float(row[called.get(name, name)]) for row in rows]).astype(dtype)
        for name, dtype in CANDLE_COLUMNS.items()
        if name != "closed"
    }
    return {**columns, "closed": np.ones(len(rows), dtype=bool)}
