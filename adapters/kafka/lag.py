"""How far groups are behind the ends of topics: brokers -> Backlog, measured in a thread while somebody asks.

A partition without a committed offset counts from the first record that is kept. Consumers ask, one for each group:
after an outage of a minute librdkafka's admin client never finds a group's coordinator again, or ends the process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition

from adapters.kafka.client import Connection
from adapters.kafka.session import PATIENCE_S, QUIET, as_sentence

EVERY_S = 0.5
ASKED_WITHIN_S = 60.0  # what nobody has asked for so long is measured no more; a scrape of the metrics asks more often
FRESH_S = 3.0
UNKNOWN = 1  # no fresh measure: something may be waiting

log = logging.getLogger(__name__)

Waiting = dict[tuple[str, str, int], tuple[int, int]]  # (group, topic, partition): (position, end)


class Backlog:
    """Answers at once with the last measure; while the brokers are away, with the one before."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clients: dict[str, Consumer] = {}  # by group
        self._partitions: dict[str, int] = {}
        self._wanted: dict[tuple[str, str], float] = {}  # (group, topic): when it was last asked for
        self._measured: Waiting = {}
        self._measured_s: dict[tuple[str, str], float] = {}  # (group, topic): when
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failing: set[str] = set()  # groups of which it was said
        self._over = False

    def of(self, group: str, topic: str) -> int:
        """Records that the group has not committed, a moment ago; at least UNKNOWN without a fresh measure."""
        found = self.waiting({group: [topic]}).values()
        return max(0 if self.is_fresh(group, topic) else UNKNOWN, sum(max(0, end - at) for at, end in found))

    def is_fresh(self, group: str, topic: str) -> bool:
        """False before the first answer, and while the brokers give none."""
        with self._changed:
            return monotonic() - self._measured_s.get((group, topic), float("-inf")) <= FRESH_S

    def waiting(self, groups: Mapping[str, Iterable[str]]) -> Waiting:
        """(position, end) of every partition of these topics, as last measured; what is new comes with the next."""
        wanted = {(group, topic) for group, topics in groups.items() for topic in topics}
        now_s = monotonic()
        with self._changed:
            new = not wanted <= self._wanted.keys()
            self._wanted.update(dict.fromkeys(wanted, now_s))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kafka-backlog", daemon=True)
                self._thread.start()
            elif new:
                self._changed.notify_all()
            return {place: at for place, at in self._measured.items() if place[:2] in wanted}

    def measure(self, groups: Mapping[str, Iterable[str]]) -> Waiting:
        """The same, asked now; blocks. Raises BrokerUnreachable, SetupRefused."""
        return {
            (group, *place): at
            for group, topics in groups.items()
            for place, at in self._of(group, set(topics)).items()
        }

    def _of(self, group: str, topics: set[str]) -> dict[tuple[str, int], tuple[int, int]]:
        if group not in self._clients:
            ours = {"group.id": group, "enable.auto.commit": False}  # asks about the group, never joins it
            self._clients[group] = Consumer({**self._connection.librdkafka(), **QUIET, **ours}, logger=log)
        client = self._clients[group]
        with as_sentence(self._connection):
            if not topics <= self._partitions.keys():
                known = client.list_topics(timeout=PATIENCE_S).topics
                self._partitions = {name: len(topic.partitions) for name, topic in known.items()}
            places = [(topic, number) for topic in topics for number in range(self._partitions.get(topic, 0))]
            if not places:
                return {}
            committed = _offsets(client.committed(_at(places), timeout=PATIENCE_S))
            ends = _offsets(client.offsets_for_times(_at(places, OFFSET_END), timeout=PATIENCE_S))
            if unknown := [place for place in places if committed[place] < 0]:
                committed |= _offsets(client.offsets_for_times(_at(unknown, OFFSET_BEGINNING), timeout=PATIENCE_S))
        return {place: (committed[place], end) for place, end in ends.items()}

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over:
            with self._changed:
                oldest_s = monotonic() - ASKED_WITHIN_S
                asked = [place for place, at_s in self._wanted.items() if at_s >= oldest_s]
            for group in {group for group, _ in asked}:  # one by one: that one is forbidden hides no other
                self._look(group, [topic for g, topic in asked if g == group])
            with self._changed:
                if not self._over:
                    self._changed.wait(EVERY_S)

    def _look(self, group: str, topics: Sequence[str]) -> None:
        began_s = monotonic()
        try:
            measured = self.measure({group: topics})
        except Exception as error:  # noqa: BLE001 -- whatever it was, the next look may succeed
            if group not in self._failing:
                log.warning("how far group %s is cannot be measured until this is over: %s", group, error)
            self._failing.add(group)
            self._partitions = {}
            return
        self._failing.discard(group)
        with self._changed:
            self._measured.update(measured)
            self._measured_s.update({(group, topic): began_s for topic in topics if topic in self._partitions})


def _at(places: Iterable[tuple[str, int]], offset: int = OFFSET_END) -> list[TopicPartition]:
    return [TopicPartition(*place, offset) for place in places]


def _offsets(answer: Iterable[TopicPartition]) -> dict[tuple[str, int], int]:
    """Offset by (topic, partition). Raises KafkaException where a partition has none to give."""
    found = list(answer)
    if failed := next((place.error for place in found if place.error is not None), None):
        raise KafkaException(failed)
    return {(place.topic, place.partition): place.offset for place in found}
