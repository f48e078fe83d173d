"""Do this worker's partitions move: the one measure behind readiness, the watchdog and the lag metrics.

A partition with records behind its committed position that stands still for STANDS_STILL_S makes the worker unready.
When it then still stands and no agent says that it waits for something outside (a store that is away is not cured by
a restart), the process starts itself anew: nothing is acknowledged, so nothing is lost. While the brokers do not say
where the positions are, nothing is said of them here either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from faust.types import TP

from app import topics
from app.core import app, positions, restart_process, waiting_agents
from app.telemetry import BEHIND, LAG, POSITION_AGE_S

STANDS_STILL_S = 30.0
RESTARTS_AFTER_S = 60.0
RECOVERS_WITHIN_S = 600.0  # while tables are read nothing else moves, and a start from the beginning helps nobody
LOOK_EVERY_S = 1.0
BEHIND_RECORDS, BEHIND_FOR_S = 500, 10.0

log = logging.getLogger(__name__)


@dataclass
class Positions:
    """Which partitions make progress. `seen`: the last position of each, and since when it is the last."""

    seen: dict[TP, tuple[int, float]] = field(default_factory=dict)

    def look(self, now_s: float, behind: Mapping[TP, int]) -> dict[TP, float]:
        """Seconds that each partition has stood still. `behind`: committed position where records wait."""
        self.seen = {
            tp: self.seen[tp] if self.seen.get(tp, (-1,))[0] == position else (position, now_s)
            for tp, position in behind.items()
        }
        return {tp: now_s - since_s for tp, (_, since_s) in self.seen.items()}


@dataclass
class Behind:
    """Which topics are read too slowly: BEHIND_RECORDS or more have waited for BEHIND_FOR_S without a break."""

    since: dict[str, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def look(self, now_s: float, lags: Mapping[str, int]) -> None:
        """Say once when a topic falls behind, and once when it has caught up. `lags`: records that wait, by topic."""
        self.since = {
            topic: self.since.get(topic, now_s) for topic, records in lags.items() if records >= BEHIND_RECORDS
        }
        behind = {topic for topic, since_s in self.since.items() if now_s - since_s >= BEHIND_FOR_S}
        for topic in sorted(behind - self.said):
            log.warning(
                "%s is read too slowly: %d records wait for this worker. Nothing is lost; start another worker of this "
                "role, or follow fewer symbols", topic, lags[topic],
            )  # fmt: skip
        for topic in sorted(self.said - self.since.keys()):
            log.warning("%s is read as fast as it is written again", topic)
        self.said = behind | (self.said & self.since.keys())
        for topic in {*lags, *self.said}:
            BEHIND.labels(topic).set(topic in self.said)


_positions, _behind = Positions(), Behind()
_shown: set[TP] = set()  # partitions with metrics


def standing_still() -> list[TP]:
    """Partitions that stand still for STANDS_STILL_S or longer."""
    return sorted(tp for tp, for_s in _look().items() if for_s >= STANDS_STILL_S)


@app.timer(interval=LOOK_EVERY_S)
async def watch_positions() -> None:
    """Start anew when a partition stands although nobody waits for anything outside."""
    patience_s = RECOVERS_WITHIN_S if app.rebalancing or app.in_recovery else RESTARTS_AFTER_S
    stuck = {tp: for_s for tp, for_s in _look().items() if for_s >= patience_s}
    if stuck and not waiting_agents():
        tp, for_s = max(stuck.items(), key=lambda item: item[1])
        restart_process(f"{tp.topic}[{tp.partition}] has stood still for {for_s:.0f} s although records wait there")


def _look() -> dict[TP, float]:
    waiting = positions(list(topics.BY_NAME))
    ages = _positions.look(
        time.monotonic(), {tp: position for tp, (position, end) in waiting.items() if end > position}
    )
    for gone in _shown - waiting.keys():  # to another worker, or unknown while the brokers say nothing
        for metric in (LAG, POSITION_AGE_S):
            metric.remove(gone.topic, str(gone.partition))
    _shown.clear()
    _shown.update(waiting)
    lags: dict[str, int] = {}
    for tp, (position, end) in waiting.items():
        lag = max(0, end - position)
        lags[tp.topic] = lags.get(tp.topic, 0) + lag
        LAG.labels(tp.topic, str(tp.partition)).set(lag)
        POSITION_AGE_S.labels(tp.topic, str(tp.partition)).set(ages.get(tp, 0.0))
    _behind.look(time.monotonic(), lags)
    return ages
