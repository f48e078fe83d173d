"""What the answers to a batch mean, and when to try again. Pure functions and numbers; no connection here.

Error numbers: https://docs.arangodb.com/3.12/develop/error-codes/. Which of them are the document's own fault is
taken from ArangoDB's Kafka Connect sink (`ArangoWriter.DATA_ERROR_NUMS`); everything else may pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

CONFLICT = 1200  # another writer was faster
NOT_FOUND = 1202
EXISTS = 1210  # a document of this key, or a unique index
DATA_ERRORS = frozenset({
    1208, 1210, 1216, 1221, 1222, 1226, 1233, 1466, 1469, 1504, 1505, 1524, 1542, 1543, 1561, 1562, 1563, 1569, 1572,
    1578, 1593, 1594, 1620, 4001, 4003, 4010,
})  # fmt: skip
# Of a whole call: nothing that time heals. 11 forbidden, 1203 no such collection, 1228 no such database.
FATAL = frozenset({11, 1203, 1228})

Answer = dict[str, Any]


@dataclass
class Sorted:
    """The answers to one batch, by place."""

    done: dict[int, Answer] = field(default_factory=dict)
    refused: dict[int, tuple[int, str]] = field(default_factory=dict)  # (error number, message)
    again: dict[int, tuple[int, str]] = field(default_factory=dict)  # may succeed when sent again


def sort_answers(places: Sequence[int], answers: Sequence[Answer], final: frozenset[int] = frozenset()) -> Sorted:
    """Each document's answer read. `final`: error numbers that the caller itself decides about."""
    if len(answers) != len(places):  # a proxy or a defect: then nothing is known of any document
        short = f"{len(answers)} answers to {len(places)} documents"
        return Sorted(again=dict.fromkeys(places, (0, short)))
    found = Sorted()
    for place, answer in zip(places, answers, strict=True):
        if "errorNum" not in answer:
            found.done[place] = answer
            continue
        number, message = int(answer["errorNum"]), str(answer.get("errorMessage", ""))
        kind = found.refused if number in DATA_ERRORS or number in final else found.again
        kind[place] = (number, message)
    return found


@dataclass(frozen=True)
class Patience:
    """Capped exponential back-off with jitter: how long to wait before try `n`, and for how long in all."""

    first_s: float = 0.05
    most_s: float = 2.0
    in_all_s: float = 6.0

    def delay(self, tried: int, said_s: float = 0.0, chance: Callable[[], float] = random.random) -> float:
        """Seconds before the next try after `tried` (from 1); never less than half of what the server said."""
        capped = min(self.most_s, self.first_s * 2.0 ** min(tried - 1, 20))
        return max(capped, min(said_s, self.most_s)) * (0.5 + 0.5 * chance())


def winners(keys: Sequence[str], ranks: Sequence[int] | None, keep: bool) -> list[int]:
    """Places of the rows to write, one a key: the last of the highest rank, with `keep` the first."""
    if len(set(keys)) == len(keys):
        return list(range(len(keys)))
    chosen: dict[str, int] = {}
    for place, key in enumerate(keys):
        before = chosen.get(key)
        if before is None or (not keep and (ranks is None or ranks[place] >= ranks[before])):
            chosen[key] = place
    return sorted(chosen.values())
