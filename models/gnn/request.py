"""What a training is asked to do, and the folder in which parent and child process meet.

WORKDIR/request.json        a TrainRequest
WORKDIR/inputs.safetensors  candles and graph, `models.gnn.dataset.save_inputs`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from app.errors import CommandRejected

REQUEST_FILE = "request.json"
INPUTS_FILE = "inputs.safetensors"
ModelType = Literal["SAGE", "GATv2"]
Label = Literal["dir", "vol_regime"]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,120}$")]
# The bounds of a command (`models.control`): what it accepts, a training does too.
_Epochs = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One training. `dataset` holds facts to record (collections, venue, run); nothing in it changes the result."""

    name: _Name
    version: _Name
    out_dir: str  # the artifact becomes out_dir/name/version
    labels: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1)] = ("dir", "vol_regime")
    horizon: Annotated[int, msgspec.Meta(ge=1, le=288)] = 12  # bars
    model_types: Annotated[tuple[ModelType, ...], msgspec.Meta(min_length=1)] = ("SAGE", "GATv2")
    epochs: _Epochs = 60
    patience: _Epochs = 8
    learning_rate: Annotated[float, msgspec.Meta(ge=1e-6, le=1)] = 2e-3
    seeds: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (0, 1, 2)
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10
    dataset: dict[str, Any] = {}


def write_request(workdir: Path, request: TrainRequest) -> None:
    (workdir / REQUEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(request), indent=2))


def read_request(workdir: Path) -> TrainRequest:
    """Raises CommandRejected naming the field at fault."""
    try:
        return msgspec.json.decode((workdir / REQUEST_FILE).read_bytes(), type=TrainRequest)
    except msgspec.MsgspecError as error:
        raise CommandRejected("train request", str(error)) from error
