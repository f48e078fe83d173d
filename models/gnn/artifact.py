"""A trained model as files that can be checked before they are believed: safetensors and JSON, never pickle.

    NAME/VERSION/  model.safetensors  config.json  metrics.json  dataset.json  card.md  MANIFEST.json

Published whole or not at all: written into a folder beside, MANIFEST.json (SHA-256 of every other file) last, then
renamed. Readers look for the manifest only. The same training gives the same bytes, so no file holds a time of day.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.errors import RunFailed
from models.gnn.dataset import Scaler
from models.gnn.evaluate import Metrics
from models.gnn.graph import GraphSpec
from models.gnn.net_config import NetConfig

if TYPE_CHECKING:
    from models.gnn.network import Ensemble

WEIGHTS, CONFIG, METRICS, DATASET, CARD = "model.safetensors", "config.json", "metrics.json", "dataset.json", "card.md"
MANIFEST = "MANIFEST.json"
FILES = (WEIGHTS, CONFIG, METRICS, DATASET, CARD)
MAX_FILE_BYTES = 64 * 1024 * 1024


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of config.json: what is needed to build and feed the modules again."""

    schema: int = 1
    name: str
    version: str
    symbol: str
    graph: GraphSpec
    schema_hash: str
    horizon_bars: int
    nets: dict[str, dict[str, NetConfig]]  # by label, by model
    chosen: dict[str, str]  # by label: the network the verdict speaks of
    training: dict[str, Any]
    libraries: dict[str, str]
    shapes: dict[str, tuple[int, ...]]  # of every tensor in model.safetensors
    code_version: str | msgspec.UnsetType = msgspec.UNSET  # git commit; left out where none is known


class Manifest(msgspec.Struct, frozen=True):
    schema: int
    sha256: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A verified model. `tensors` are float32 arrays named `label.model.seed.parameter` and `label.logistic.*`."""

    folder: Path
    config: Config
    metrics: Metrics
    dataset: dict[str, Any]
    tensors: dict[str, npt.NDArray[np.float32]]

    @property
    def scaler(self) -> Scaler:
        return Scaler(self.tensors["scaler.mean"], self.tensors["scaler.std"])

    def ensemble(self, label: str, model: str | None = None) -> Ensemble:
        """The modules of a label's network (the chosen one by default), averaged over seeds. Imports torch."""
        from models.gnn.network import Ensemble  # slow: only who serves a network pays for it

        name = model or self.config.chosen[label]
        nets, prefix = self.config.nets[label][name], f"{label}.{name}."
        own = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        return Ensemble.build(nets, own, self.scaler)


def publish(
    out_dir: Path,
    config: Config,
    metrics: Metrics,
    dataset: Mapping[str, Any],
    card: str,
    tensors: Mapping[str, npt.NDArray[np.float32]],
) -> Path:
    """Write the artifact and return its folder; one of the same name and version is replaced whole.

    Raises RunFailed when the disk does not take it; nothing is published then.
    """
    folder = out_dir / config.name / config.version
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    contents = {
        WEIGHTS: save({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}),
        CONFIG: _json(config), METRICS: _json(metrics), DATASET: _json(dict(dataset)), CARD: card.encode(),
    }  # fmt: skip
    manifest = Manifest(1, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    try:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in {**contents, MANIFEST: _json(manifest)}.items():
            _write(partial / name, content)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"the model cannot be written to {folder} ({error}): make room or name another folder"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load_artifact(folder: Path) -> Artifact:
    """Read and verify a published model without torch.

    Raises RunFailed when there is no manifest, a file differs from it, or a tensor is not what config.json says.
    """
    try:
        manifest = msgspec.json.decode(_read(folder / MANIFEST), type=Manifest)
        contents = {name: _read(folder / name) for name in FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest.sha256.get(name):
                raise RunFailed(f"the model in {folder} is damaged: {name} is not the file that was published")
        config = msgspec.json.decode(contents[CONFIG], type=Config)
        metrics = msgspec.json.decode(contents[METRICS], type=Metrics)
        tensors = load(contents[WEIGHTS])
        facts = msgspec.json.decode(contents[DATASET], type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise RunFailed(f"there is no complete model in {folder} ({error}): train it again") from error
    _check_tensors(folder, config, tensors)
    return Artifact(folder, config, metrics, facts, tensors)


def _check_tensors(folder: Path, config: Config, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    if config.graph.schema_hash != config.schema_hash:
        raise RunFailed(f"the model in {folder} was made for another graph spec than it names: train it again")
    if {name: value.shape for name, value in tensors.items()} != config.shapes:
        raise RunFailed(f"the model in {folder} holds other tensors than its config.json lists: train it again")
    if not all(value.dtype == np.float32 and np.isfinite(value).all() for value in tensors.values()):
        raise RunFailed(f"the model in {folder} holds a tensor that is not finite float32: train it again")


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise RunFailed(f"{path.name} is larger than any model of ours: it is not read")
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
