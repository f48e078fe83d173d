"""What Faust does inside, as metrics: commits and rebalances. Nothing is counted per event."""

from __future__ import annotations

import time
from typing import Any

from adapters import faust_repair
from app.telemetry import COMMIT_S, REBALANCE_S, REBALANCES


class Sensors(faust_repair.Monitor):
    def on_commit_initiated(self, consumer: Any) -> Any:
        return time.monotonic()

    def on_commit_completed(self, consumer: Any, state: Any) -> None:
        COMMIT_S.observe(time.monotonic() - state)

    def on_rebalance_start(self, app: Any) -> dict[str, Any]:
        REBALANCES.inc()
        return {**super().on_rebalance_start(app), "began": time.monotonic()}

    def on_rebalance_end(self, app: Any, state: dict[str, Any]) -> None:
        super().on_rebalance_end(app, state)
        REBALANCE_S.set(time.monotonic() - state["began"])
