"""What a network is built from, readable without torch."""

from __future__ import annotations

from typing import Literal

import msgspec


class NetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of network for one label: an average over seeds. `NetSpec` of the network module as plain fields."""

    conv: Literal["SAGE", "GATv2", "none"]
    features: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    seeds: tuple[int, ...]
