"""The network: a linear skip, two convolutions over past candles, and a head that starts at zero.

    h = relu(Lin(x));  twice: h += dropout(relu(LayerNorm(conv(h))));  logit = zero_init(Lin(h)) + zero_init(Lin(x))

`conv` is SAGE, GATv2 or none; without it the network is the MLP baseline with the same trunk. LayerNorm only: norms
over the graph would read the future. At its start every logit is 0, so the worst it can learn from noise is nothing.
Shapes: x (N, F), edges (2, E) past -> present, attributes (E, 2), logits (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GATv2Conv, SAGEConv

from app.errors import RunFailed
from models.gnn.dataset import Scaler
from models.gnn.features import Floats, sigmoid
from models.gnn.graph import EDGE_ATTRIBUTES, CandleGraph, Ints, ego_graph
from models.gnn.net_config import NetConfig

Conv = Literal["SAGE", "GATv2", "none"]


class NetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to build the module again."""

    conv: Conv
    features: int
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    dropout: float = 0.25


class CandleNet(nn.Module):
    """See the head of this file. Parameters are drawn from torch's global generator: seed it before."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Linear(spec.features, spec.hidden)
        self.convs = nn.ModuleList([_conv(spec) for _ in range(spec.layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(spec.hidden) for _ in range(spec.layers)])
        self.head = _zero(nn.Linear(spec.hidden, 1))
        self.skip = _zero(nn.Linear(spec.features, 1, bias=False))

    def forward(self, x: Tensor, edges: Tensor, attributes: Tensor) -> Tensor:
        h = functional.relu(self.embed(x))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            message = functional.relu(norm(self._convolve(conv, h, edges, attributes)))
            h = h + functional.dropout(message, self.spec.dropout, self.training)
        return (self.head(h) + self.skip(x)).squeeze(-1)  # type: ignore[no-any-return]

    def _convolve(self, conv: nn.Module, h: Tensor, edges: Tensor, attributes: Tensor) -> Tensor:
        if self.spec.conv == "none":
            return conv(h)  # type: ignore[no-any-return]
        if self.spec.conv == "SAGE":
            return conv(h, edges)  # type: ignore[no-any-return]
        return conv(h, edges, attributes)  # type: ignore[no-any-return]


def _conv(spec: NetSpec) -> nn.Module:
    if spec.conv == "none":
        return nn.Linear(spec.hidden, spec.hidden)
    if spec.conv == "SAGE":
        return SAGEConv(spec.hidden, spec.hidden)  # type: ignore[no-any-return]
    # The residual is the self loop; PyG would give a self loop the mean of the other edges' attributes.
    width = spec.hidden // spec.heads
    return GATv2Conv(  # type: ignore[no-any-return]
        spec.hidden, width, heads=spec.heads, edge_dim=len(EDGE_ATTRIBUTES), add_self_loops=False
    )


def _zero(linear: nn.Linear) -> nn.Linear:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


@dataclass(frozen=True)
class Tensors:
    """A graph ready for the network, edges sorted by their present end. Shapes: x (N, F), edges (2, E), (E, 2)."""

    x: Tensor
    edges: Tensor
    attributes: Tensor

    @classmethod
    def of(cls, x: npt.NDArray[np.float32], src: Ints, dst: Ints, attributes: npt.NDArray[np.float32]) -> Tensors:
        return cls(torch.from_numpy(x), torch.from_numpy(np.stack([src, dst])), torch.from_numpy(attributes))

    def before(self, vertex: int) -> Tensors:
        """The graph as it was before `vertex` existed; since edges come from the past, nothing else changes."""
        count = int(torch.searchsorted(self.edges[1].contiguous(), vertex))
        return Tensors(self.x[:vertex], self.edges[:, :count], self.attributes[:count])


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    epochs: int = 60
    patience: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Fitted:
    net: CandleNet
    best_epoch: int
    epochs: int
    validation_loss: float


def fit(
    spec: NetSpec,
    graph: Tensors,
    y: npt.NDArray[np.float32],
    train: Ints,
    validation: Ints,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[int, float, float], None],
) -> Fitted:
    """Train full batch with early stopping on the validation log-loss; the best epoch's weights are kept.

    Shapes: y (N,), train and validation (n,) places. `on_epoch(epoch, train_loss, validation_loss)` may raise to stop.
    """
    torch.manual_seed(seed)
    net = CandleNet(spec)
    optimizer = torch.optim.AdamW(net.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    past, both = graph.before(int(train[-1]) + 1), graph.before(int(validation[-1]) + 1)
    rows, answers = torch.from_numpy(train), torch.from_numpy(y[train])
    best: tuple[float, int, dict[str, Tensor]] = (float("inf"), 0, {})
    epoch = 0
    for epoch in range(1, schedule.epochs + 1):
        loss = _step(net, optimizer, past, rows, answers, schedule.clip_norm)
        held_out = log_loss(y[validation], logits(net, both)[validation])
        if held_out < best[0]:
            best = (held_out, epoch, {name: tensor.clone() for name, tensor in net.state_dict().items()})
        on_epoch(epoch, loss, held_out)
        if epoch - best[1] >= schedule.patience:
            break
    net.load_state_dict(best[2])
    return Fitted(net.eval(), best[1], epoch, best[0])


def _step(
    net: CandleNet, optimizer: torch.optim.Optimizer, graph: Tensors, rows: Tensor, answers: Tensor, clip_norm: float
) -> float:
    net.train()
    optimizer.zero_grad()
    loss = functional.binary_cross_entropy_with_logits(net(graph.x, graph.edges, graph.attributes)[rows], answers)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
    optimizer.step()
    return float(loss.detach())


def logits(net: CandleNet, graph: Tensors) -> Floats:
    """Logit of every vertex, without dropout. Shapes: (N,) float64."""
    net.eval()
    with torch.inference_mode():
        return net(graph.x, graph.edges, graph.attributes).double().numpy()  # type: ignore[no-any-return]


def log_loss(y: npt.NDArray[Any], logit: Floats) -> float:
    return float(np.mean(np.logaddexp(0, logit) - y * logit))


def set_up(threads: int) -> None:
    """Fixed threads and deterministic kernels: the same seed gives the same bytes."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class Ensemble:
    """A trained network of several seeds, as it is served: probability = mean over seeds."""

    nets: tuple[CandleNet, ...]
    scaler: Scaler

    @classmethod
    def build(cls, config: NetConfig, tensors: Mapping[str, npt.NDArray[np.float32]], scaler: Scaler) -> Ensemble:
        """Modules from config, weights from tensors named `seed.parameter`.

        Raises RunFailed when a weight is missing, unknown or of another shape.
        """
        spec = NetSpec(
            conv=config.conv, features=config.features, hidden=config.hidden, layers=config.layers,
            heads=config.heads, dropout=config.dropout,
        )  # fmt: skip
        nets = []
        for seed in config.seeds:
            prefix = f"{seed}."
            own = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
            net = CandleNet(spec)
            try:
                net.load_state_dict(own)
            except RuntimeError as error:
                raise RunFailed(f"the weights do not fit config.json ({error}): train the model again") from error
            nets.append(net.eval())
        return cls(tuple(nets), scaler)

    def logits(self, graph: CandleGraph) -> Floats:
        """Logit of every vertex by seed. Shapes: (seeds, N)."""
        tensors = Tensors.of(self.scaler.apply(graph.x), graph.edge_src, graph.edge_dst, graph.edge_attr)
        return np.stack([logits(net, tensors) for net in self.nets])

    def last_logits(self, graph: CandleGraph) -> Floats:
        """Logit of the last vertex by seed, computed from the few vertices it depends on. Shapes: (seeds,)."""
        vertices, edges, ends = ego_graph(graph, len(graph.ts) - 1, self.nets[0].spec.layers)
        x = self.scaler.apply(graph.x[vertices])
        tensors = Tensors.of(x, ends[0], ends[1], graph.edge_attr[edges])
        return np.array([logits(net, tensors)[-1] for net in self.nets])

    def probability(self, graph: CandleGraph) -> Floats:
        """Shapes: (N,)."""
        return sigmoid(self.logits(graph)).mean(axis=0)  # type: ignore[no-any-return]
