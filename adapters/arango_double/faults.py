"""A server's troubles on demand: a plan in YAML, seeded, so that a run can be repeated.

    seed: 7
    faults:
      - {kind: latency, share: 0.1, seconds: 0.4}
      - {kind: cut_after, path: /_api/document, after: 20, times: 3}
      - {kind: conflict, share: 0.02, attempts: 2}
      - {kind: outage, from_s: 30, to_s: 40}

| kind         | what happens                                                                                  |
|--------------|-----------------------------------------------------------------------------------------------|
| latency      | the request waits `seconds` before anything happens; more than the client's patience: it hangs |
| unavailable  | 503, errorNum 503                                                                             |
| queue_full   | 503, errorNum 21003                                                                           |
| queue_time   | the header of the queue time rises by `seconds` a request; 412, 21004, to who will not wait |
| not_leader   | 503, errorNum 1495 or the `number` told                                                       |
| unauthorized | 401, errorNum 11, and all tokens given out so far are over                                    |
| read_only    | 403, errorNum 1004, for what writes                                                           |
| too_large    | 413 for a body over `bytes`                                                                   |
| cut_before   | the connection is reset, nothing is done                                                      |
| cut_after    | it is done and kept, then the connection is reset: the answer is lost                         |
| cut_body     | it is done and kept, half of the answer is sent                                               |
| outage       | every connection is reset                                                                     |
| conflict     | a `share` of the documents, always the same ones, is refused with 1200 for its first `attempts` |
| bad          | a `share` of the documents, always the same ones, is refused with 1620 or the `number` told   |
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from adapters.arango_double.errors import ArangoError

Kind = Literal[
    "latency", "unavailable", "queue_full", "queue_time", "not_leader", "unauthorized", "read_only", "too_large",
    "cut_before", "cut_after", "cut_body", "outage", "conflict", "bad",
]  # fmt: skip
_REFUSALS = {"unavailable": 503, "queue_full": 21003, "not_leader": 1495, "read_only": 1004}
_OF_DOCUMENTS = ("conflict", "bad")
_READS = ("GET", "HEAD", "OPTIONS")


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the requests with `method` and with `path` in theirs (empty: all), beyond the first `after`, `times` of them
    (0: without end), between `from_s` and `to_s` seconds after the start (0: open), a `share` by chance."""

    kind: Kind
    share: float = 1.0
    method: str = ""
    path: str = ""
    after: int = 0
    times: int = 0
    from_s: float = 0.0
    to_s: float = 0.0
    seconds: float = 0.0
    number: int = 0
    attempts: int = 1
    bytes: int = 0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    faults: tuple[Fault, ...] = ()
    seed: int = 0


def read_plan(path: Path) -> Plan:
    """Raises ValueError that names the file and the field."""
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()) or {}, Plan)
    except (msgspec.ValidationError, yaml.YAMLError) as bad:
        raise ValueError(f"{path} is no plan of faults: {bad}") from bad


class Faults:
    """`now` in seconds. `made` counts what happened, by kind."""

    def __init__(self, plan: Plan, now: Callable[[], float]) -> None:
        self.made: Counter[str] = Counter()
        self.queue_time_s = 0.0
        self._now = now
        self.show(plan)

    def show(self, plan: Plan) -> None:
        """From now on this plan, from its beginning."""
        self.plan, self._start = plan, self._now()
        self._chance = random.Random(plan.seed)
        self._matched: Counter[int] = Counter()
        self._made: Counter[int] = Counter()
        self._attempts: Counter[tuple[int, str]] = Counter()

    def due(self, method: str, path: str) -> list[Fault]:
        """What happens to this request."""
        return [fault for at, fault in self._open() if self._is_due(at, fault, method, path)]

    def _open(self) -> Iterator[tuple[int, Fault]]:
        since = self._now() - self._start
        for at, fault in enumerate(self.plan.faults):
            if since >= fault.from_s and (not fault.to_s or since < fault.to_s):
                yield at, fault

    def _is_due(self, at: int, fault: Fault, method: str, path: str) -> bool:
        if fault.kind in _OF_DOCUMENTS or fault.method not in ("", method) or fault.path not in path:
            return False
        if fault.kind == "read_only" and method in _READS:
            return False
        self._matched[at] += 1
        if self._matched[at] <= fault.after or (fault.times and self._made[at] >= fault.times):
            return False
        if fault.share < 1 and self._chance.random() >= fault.share:
            return False
        self._made[at] += 1
        self.made[fault.kind] += 1
        return True

    def refuse(self, due: Sequence[Fault], size: int, patience_s: float | None) -> None:
        """Raises what the server would answer to a request of `size` bytes that waits `patience_s` in the queue."""
        rising = [fault.seconds for fault in due if fault.kind == "queue_time"]
        self.queue_time_s = self.queue_time_s + sum(rising) if rising else 0.0
        for fault in due:
            if fault.kind == "unauthorized":
                raise ArangoError(11, "not authorized to execute this request", status=401)
            if fault.kind == "too_large" and size > fault.bytes:
                raise ArangoError(413)
            if fault.kind in _REFUSALS:
                raise ArangoError(fault.number or _REFUSALS[fault.kind])
        if patience_s is not None and patience_s < self.queue_time_s:
            raise ArangoError(21004)

    def of_documents(self) -> Callable[[Any], None] | None:
        """Raises what a single document is refused with; None where no document is."""
        active = [(at, fault) for at, fault in self._open() if fault.kind in _OF_DOCUMENTS]
        if not active:
            return None

        def refuse(document: Any) -> None:
            key = str(document.get("_key") if isinstance(document, dict) else document)
            for at, fault in active:
                self._refuse_document(at, fault, key)

        return refuse

    def _refuse_document(self, at: int, fault: Fault, key: str) -> None:
        if zlib.crc32(f"{self.plan.seed}.{at}.{key}".encode()) / 2**32 >= fault.share:
            return
        self._attempts[at, key] += 1
        if fault.kind == "bad":
            self.made["bad"] += 1
            raise ArangoError(fault.number or 1620)
        if self._attempts[at, key] <= fault.attempts:
            self.made["conflict"] += 1
            raise ArangoError(fault.number or 1200, "write-write conflict")
