"""One training as a process of its own: `python -m models.gnn.train WORKDIR PARENT`.

    request.json, inputs.safetensors -> folds -> baselines, networks, controls -> metrics -> artifact

Says its progress as JSON lines on stdout (`models.gnn.progress`) and ends with `{"done": folder, ...}` and exit code
0; with `{"error": sentence}` and the error's exit code; or, asked to stop by SIGTERM, with `{"interrupted": true}` and
130. Only a finished training leaves an artifact. Same request, inputs and thread count: same metrics, same weights.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import StreamForgeError
from app.parent import end_with_parent
from models.gnn import artifact, report
from models.gnn.dataset import Fold, Inputs, Part, Scaler, check_purged, fit_scaler, folds_of, load_inputs, part_of
from models.gnn.evaluate import Candidate, LabelReport, Metrics, Outcome, Role, control_of, evaluate
from models.gnn.features import Floats, grid_of, sigmoid
from models.gnn.graph import random_past_edges
from models.gnn.labels import Labels, make_labels
from models.gnn.net_config import NetConfig
from models.gnn.progress import EXIT_INTERRUPTED, Interrupted, Reporter, StopSwitch
from models.gnn.request import INPUTS_FILE, ModelType, TrainRequest, read_request

LAST, LOGISTIC = "last return", "logistic regression"
EFFORT = {"none": 1.0, "SAGE": 2.0, "GATv2": 10.0}  # of one fit, relative; for the progress only
CONTROL_SEED = 20_011  # of the random edges, and of boosting
Weights = dict[str, npt.NDArray[np.float32]]


class Contender(NamedTuple):
    """A network that is trained: its name in the report, its convolution, and which edges it is given."""

    name: str
    conv: ModelType | Literal["none"]
    role: Role

    @property
    def random_edges(self) -> bool:
        return self.role == "control"


@dataclass(frozen=True)
class View:
    """The inputs as one fold may see them: scaled by its training part, with true and with random edges."""

    fold: Fold
    scaler: Scaler
    x: npt.NDArray[np.float32]
    true: Any  # network.Tensors
    random: Any


@dataclass
class Answers:
    """What one model said about the test parts. `by_seed`: one (seeds, n) array per fold."""

    role: Role
    by_seed: list[Floats] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)

    def candidate(self, name: str) -> Candidate:
        by_seed = np.concatenate(self.by_seed, axis=1)
        loss = float(np.mean(self.validation_losses)) if self.validation_losses else None
        seeds = by_seed if self.epochs else by_seed[:0]
        return Candidate(name, self.role, by_seed.mean(axis=0), seeds, self.epochs, loss)


@dataclass
class Training:
    """One run: what is asked, where to say things, how far it is, and the weights of the last fold.

    Making one splits the data, so a range too short is refused (RunFailed) before torch is imported.
    """

    request: TrainRequest
    inputs: Inputs
    reporter: Reporter
    check_stop: Callable[[], None]
    weights: Weights = field(default_factory=dict)
    trials: int = 0
    effort_done: float = 0.0
    effort_total: float = 1.0
    labels: list[Labels] = field(init=False)
    folds: list[Fold] = field(init=False)
    parts: list[list[Part]] = field(init=False)  # by label, by fold

    def __post_init__(self) -> None:
        graph = self.inputs.graph
        grid = grid_of(self.inputs.candles, graph.spec.interval)
        self.labels = [make_labels(name, grid, self.request.horizon) for name in self.request.labels]
        self.folds = folds_of(graph)
        self.parts = [[part_of(fold, graph, labels) for fold in self.folds] for labels in self.labels]
        effort = sum(EFFORT[contender.conv] for contender in self.contenders())
        self.effort_total = effort * len(self.request.seeds) * len(self.folds) * len(self.labels)

    def run(self) -> Metrics:
        """Every label on every fold. Raises Interrupted when asked to stop."""
        views = self._views()
        reports = [self._label(labels, views, parts) for labels, parts in zip(self.labels, self.parts, strict=True)]
        self.weights |= {"scaler.mean": views[-1].scaler.mean, "scaler.std": views[-1].scaler.std}
        return Metrics(trials=self.trials, labels=reports)

    def contenders(self) -> list[Contender]:
        """The MLP, then each asked network and the same network on random past edges."""
        networks = [Contender("MLP", "none", "baseline")]
        for kind in self.request.model_types:
            networks += [Contender(kind, kind, "gnn"), Contender(control_of(kind), kind, "control")]
        return networks

    def _views(self) -> list[View]:
        graph = self.inputs.graph
        control = random_past_edges(graph, self.inputs.candles, CONTROL_SEED)
        views = []
        for fold in self.folds:
            scaler = fit_scaler(graph, fold)
            x = scaler.apply(graph.x)
            true, random = (network().Tensors.of(x, g.edge_src, g.edge_dst, g.edge_attr) for g in (graph, control))
            views.append(View(fold, scaler, x, true, random))
        return views

    def _label(self, labels: Labels, views: list[View], parts: list[Part]) -> LabelReport:
        answers: dict[str, Answers] = {}
        for view, part in zip(views, parts, strict=True):
            check_purged(part, labels)
            self._baselines(labels, view, part, answers)
            for contender in self.contenders():
                self._network(contender, labels, view, part, answers)
        test = [part.test for part in parts]
        outcome = Outcome(
            y=np.concatenate([labels.y[rows] for rows in test]),
            asked_ms=np.concatenate([labels.asked_ms[rows] for rows in test]),
            fold=np.repeat(np.arange(len(test)), [len(rows) for rows in test]),
            move=np.concatenate([labels.move[rows] for rows in test]),
        )
        sizes = {name: sum(len(getattr(part, name)) for part in parts) for name in ("train", "validation", "test")}
        trained_on = np.concatenate([labels.y[part.train] for part in parts])
        return evaluate(
            labels.name, labels.horizon_bars, outcome, [a.candidate(name) for name, a in answers.items()], sizes,
            float(trained_on.mean()),
        )  # fmt: skip

    def _baselines(self, labels: Labels, view: View, part: Part, answers: dict[str, Answers]) -> None:
        from models.gnn import baselines  # scikit-learn takes a second or two: only the child process pays

        x, y = view.x[part.train], labels.y[part.train]
        linear = baselines.fit_linear(x, y)
        self.weights[f"{labels.name}.logistic.weight"] = linear.weight
        self.weights[f"{labels.name}.logistic.bias"] = np.array([linear.bias], dtype=np.float32)
        last = self.inputs.graph.x[:, baselines.LAST_RETURN]
        said = {
            "majority": baselines.majority(y, len(part.test)),
            LAST: baselines.last_return(last[part.train], last[part.test], y),
            LOGISTIC: linear.probability(view.x[part.test]),
            "boosting": baselines.boosting(x, y, view.x[part.test], CONTROL_SEED),
        }
        for name, probability in said.items():
            answers.setdefault(name, Answers("baseline")).by_seed.append(probability[None, :])
            self.trials += 1
        self.check_stop()

    def _network(
        self, contender: Contender, labels: Labels, view: View, part: Part, answers: dict[str, Answers]
    ) -> None:
        net = network()
        graph = view.random if contender.random_edges else view.true
        spec = net.NetSpec(conv=contender.conv, features=view.x.shape[1])
        own = answers.setdefault(contender.name, Answers(contender.role))
        said = []
        for seed in self.request.seeds:
            fitted = net.fit(
                spec, graph, labels.y, part.train, part.validation, self.schedule(), seed,
                self._watch(labels.name, contender, seed),
            )  # fmt: skip
            said.append(sigmoid(net.logits(fitted.net, graph)[part.test]))
            own.epochs.append(fitted.epochs)
            own.validation_losses.append(fitted.validation_loss)
            self.effort_done += EFFORT[contender.conv]
            self.trials += 1
            if contender.role == "gnn":
                state = fitted.net.state_dict().items()
                self.weights |= {f"{labels.name}.{contender.name}.{seed}.{k}": v.numpy() for k, v in state}
        own.by_seed.append(np.stack(said))

    def schedule(self) -> Any:
        request = self.request
        return network().Schedule(epochs=request.epochs, patience=request.patience, learning_rate=request.learning_rate)

    def _watch(self, label: str, contender: Contender, seed: int) -> Callable[[int, float, float], None]:
        def on_epoch(epoch: int, loss: float, validation_loss: float) -> None:
            self.check_stop()
            within = EFFORT[contender.conv] * min(epoch / self.request.epochs, 1.0)
            self.reporter.say(
                progress=round((self.effort_done + within) / self.effort_total, 4), label=label, model=contender.name,
                seed=seed, epoch=epoch, loss=round(loss, 5), validation_loss=round(validation_loss, 5),
                message=f"trains {contender.name} on {label}",
            )  # fmt: skip

        return on_epoch


def network() -> Any:
    """The torch module, imported when it is first needed: it takes seconds, in which the process already reports."""
    from models.gnn import network as module

    return module


def publish(training: Training, metrics: Metrics) -> Path:
    """Write the artifact of a finished training."""
    request, graph = training.request, training.inputs.graph
    spec = msgspec.to_builtins(network().NetSpec(conv="none", features=graph.x.shape[1]))
    tensors = dict(sorted(training.weights.items()))
    networks: dict[str, NetConfig] = {
        kind: NetConfig(**{**spec, "conv": kind}, seeds=request.seeds) for kind in request.model_types
    }
    config = artifact.Config(
        name=request.name, version=request.version, symbol=graph.symbol, graph=graph.spec,
        schema_hash=graph.spec.schema_hash, horizon_bars=request.horizon,
        nets=dict.fromkeys(request.labels, networks),
        chosen={r.label: r.verdict.model for r in metrics.labels},
        training={
            "schedule": msgspec.to_builtins(training.schedule()), "seeds": list(request.seeds),
            "threads": request.threads, "control_seed": CONTROL_SEED,
        },
        libraries=_libraries(),
        shapes={name: value.shape for name, value in tensors.items()},
    )  # fmt: skip
    card = _card(config, metrics)
    return artifact.publish(Path(request.out_dir), config, metrics, _dataset_facts(training), card, tensors)


def _dataset_facts(training: Training) -> dict[str, Any]:
    graph = training.inputs.graph
    return {
        **training.request.dataset, "symbol": graph.symbol, "interval": graph.spec.interval, "rows": len(graph.ts),
        "start_ms": int(graph.ts[0]), "end_ms": int(graph.ts[-1]) + graph.spec.interval_ms,
        "missing_candles": int(graph.gap_bars.sum()), "edges": len(graph.edge_src),
        "sha256": graph.data_hash, "graph_sha256": graph.graph_hash,
        "folds": [
            {"train": fold.train, "validation": fold.validation, "test": fold.test} for fold in training.folds
        ],
    }  # fmt: skip


def _card(config: artifact.Config, metrics: Metrics) -> str:
    chosen = ", ".join(f"{model} for `{label}`" for label, model in config.chosen.items())
    return (
        f"# {config.name} {config.version}\n\n"
        f"Graph networks on closed {config.graph.interval} candles of {config.symbol}, horizon {config.horizon_bars} "
        f"bars; chosen by validation loss: {chosen}. Every number below is of a later time than all training data.\n\n"
        f"```\n{report.render(metrics)}\n```\n\n"
        "Not advice to trade. Weights: `model.safetensors`, average of "
        f"{len(config.training['seeds'])} seeds; inputs must be scaled with `scaler.mean` and `scaler.std`.\n"
    )


def _libraries() -> dict[str, str]:
    names = ("torch", "torch-geometric", "scikit-learn", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def summary(metrics: Metrics) -> dict[str, Any]:
    """What the last line tells the parent, small enough for an event."""
    return {
        r.label: {
            "verdict": r.verdict.word, "model": r.verdict.model, "baseline": r.verdict.baseline,
            "reason": r.verdict.reason, "standard_error": r.standard_error,
            "accuracy": {m.name: m.metrics["accuracy"].value for m in r.models},
        }
        for r in metrics.labels
    }  # fmt: skip


def train(workdir: Path, reporter: Reporter, switch: StopSwitch) -> None:
    """The whole of the process: read, train, publish, conclude."""
    request = read_request(workdir)
    os.nice(request.nice)
    inputs = load_inputs(workdir / INPUTS_FILE)
    training = Training(request, inputs, reporter, switch.check)
    reporter.say(progress=0.0, message="starting torch")
    network().set_up(request.threads)
    started_s = time.monotonic()
    switch.wait_for_epochs()
    metrics = training.run()
    switch.check()
    folder = publish(training, metrics)
    reporter.conclude(
        progress=1.0, done=str(folder), name=request.name, version=request.version, trials=metrics.trials,
        seconds=round(time.monotonic() - started_s, 2), verdicts=summary(metrics),
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Exit code of one training."""
    switch = StopSwitch()
    # For OpenMP, which reads it when torch is loaded: threads that wait by spinning make every epoch ten times slower
    # on a busy machine. Whoever sets it outside wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # of torch about itself, on every import
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m models.gnn.train WORKDIR PARENT-PID\n")
        return 2
    end_with_parent(int(arguments[1]), signal.SIGKILL)  # a worker that was killed wants nothing of it any more
    with Reporter() as reporter:
        try:
            train(Path(arguments[0]), reporter, switch)
        except Interrupted:
            reporter.conclude(interrupted=True, message="stopped as asked; no model was written")
            return EXIT_INTERRUPTED
        except StreamForgeError as error:
            reporter.conclude(error=str(error))
            return error.exit_code
        except Exception as error:  # noqa: BLE001 - the process ends here: the parent must hear why, the log gets the trace
            traceback.print_exc()
            reporter.conclude(error=f"the training failed in a way it should not ({error!r}); its log has the trace")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
