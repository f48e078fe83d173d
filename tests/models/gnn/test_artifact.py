"""A model is published whole or not at all, and is not believed before it was checked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from app.errors import RunFailed
from models.gnn import artifact
from models.gnn.artifact import CONFIG, FILES, MANIFEST, WEIGHTS, Config, load_artifact, publish
from models.gnn.evaluate import Metrics
from models.gnn.net_config import NetConfig
from models.gnn.network import CandleNet, NetSpec

SEEDS = (0, 1)
SPEC = NetSpec(conv="SAGE", features=39)


def tensors_of(spec: NetSpec = SPEC) -> dict[str, np.ndarray]:
    found = {"scaler.mean": np.zeros(39, dtype=np.float32), "scaler.std": np.ones(39, dtype=np.float32)}
    for seed in SEEDS:
        torch.manual_seed(seed)
        net = CandleNet(spec)
        torch.nn.init.normal_(net.head.weight)
        found |= {f"dir.SAGE.{seed}.{name}": value.numpy() for name, value in net.state_dict().items()}
    return found


def publish_one(out_dir: Path, graph, card: str = "# card\n", **changes) -> Path:
    tensors = changes.pop("tensors", None) or tensors_of()
    net = NetConfig(**{**msgspec.to_builtins(SPEC), "conv": "SAGE"}, seeds=SEEDS)
    facts = {
        "name": "gnn_btc", "version": "v1", "symbol": "BTCUSDT", "graph": graph.spec,
        "schema_hash": graph.spec.schema_hash, "horizon_bars": 12, "nets": {"dir": {"SAGE": net}},
        "chosen": {"dir": "SAGE"}, "training": {}, "libraries": {}, "code_version": "test",
        "shapes": {name: value.shape for name, value in tensors.items()},
    }  # fmt: skip
    config = Config(**{**facts, **changes})
    return publish(out_dir, config, Metrics(trials=1, labels=[]), {"rows": 3}, card, tensors)


def test_a_published_model_is_served_as_it_was_trained(graph, tmp_path):
    loaded = load_artifact(publish_one(tmp_path, graph))
    assert loaded.config.graph == graph.spec
    assert loaded.dataset == {"rows": 3}
    served = loaded.ensemble("dir")
    assert len(served.nets) == len(SEEDS)
    whole = served.logits(graph)
    np.testing.assert_allclose(served.last_logits(graph), whole[:, -1], atol=1e-5)
    np.testing.assert_allclose(served.probability(graph), (1 / (1 + np.exp(-whole))).mean(axis=0), atol=1e-9)
    assert whole.std() > 0


def test_the_manifest_names_the_hash_of_every_file_and_nothing_else_lies_there(graph, tmp_path):
    folder = publish_one(tmp_path, graph)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST}
    assert manifest["sha256"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused(graph, tmp_path, name):
    folder = publish_one(tmp_path, graph)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(RunFailed, match=f"{name} is not the file that was published"):
        load_artifact(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused(graph, tmp_path, name):
    folder = publish_one(tmp_path, graph)
    (folder / name).unlink()
    with pytest.raises(RunFailed, match="no complete model"):
        load_artifact(folder)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Another file with a manifest that agrees: what remains to be caught is what is inside."""
    (folder / name).write_bytes(content)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def test_weights_of_another_shape_are_refused(graph, tmp_path):
    folder = publish_one(tmp_path, graph)
    other = {**tensors_of(), "scaler.mean": np.zeros(40, dtype=np.float32)}
    forge(folder, WEIGHTS, save(other))
    with pytest.raises(RunFailed, match=r"other tensors than its config\.json lists"):
        load_artifact(folder)


def test_weights_that_are_not_numbers_are_refused(graph, tmp_path):
    folder = publish_one(tmp_path, graph)
    forge(folder, WEIGHTS, save({**tensors_of(), "scaler.mean": np.full(39, np.nan, dtype=np.float32)}))
    with pytest.raises(RunFailed, match="not finite"):
        load_artifact(folder)


def test_weights_of_another_network_than_the_config_names_are_refused(graph, tmp_path):
    folder = publish_one(tmp_path, graph, tensors=tensors_of(NetSpec(conv="SAGE", features=39, hidden=16)))
    with pytest.raises(RunFailed, match="do not fit"):
        load_artifact(folder).ensemble("dir")


def test_a_config_with_another_schema_is_refused(graph, tmp_path):
    folder = publish_one(tmp_path, graph)
    forge(folder, CONFIG, (folder / CONFIG).read_bytes().replace(b'"visibility_bars": 288', b'"visibility_bars": 999'))
    with pytest.raises(RunFailed, match="another graph spec"):
        load_artifact(folder)
    forge(folder, CONFIG, b"[]")
    with pytest.raises(RunFailed, match="no complete model"):
        load_artifact(folder)


def test_a_version_is_replaced_whole(graph, tmp_path):
    publish_one(tmp_path, graph, card="old")
    folder = publish_one(tmp_path, graph, card="new")
    load_artifact(folder)
    assert (folder / "card.md").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]


def test_the_same_model_is_the_same_bytes(graph, tmp_path):
    first, second = (publish_one(tmp_path / name, graph) for name in ("a", "b"))
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


def test_a_disk_that_refuses_leaves_the_old_model_and_no_half_one(graph, tmp_path, monkeypatch):
    publish_one(tmp_path, graph, card="old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="make room"):
        publish_one(tmp_path, graph, card="new")
    monkeypatch.undo()
    loaded = load_artifact(tmp_path / "gnn_btc" / "v1")
    assert (loaded.folder / "card.md").read_text() == "old"
    assert [path.name for path in loaded.folder.parent.iterdir()] == ["v1"]


def test_a_file_too_large_for_a_model_is_not_read(graph, tmp_path, monkeypatch):
    folder = publish_one(tmp_path, graph)
    monkeypatch.setattr(artifact, "MAX_FILE_BYTES", 100)
    with pytest.raises(RunFailed, match="not read"):
        load_artifact(folder)
