"""Reads whole topics beside every consumer group: broker -> Follower -> a function.

For what each process wants to see all of, whoever owns the partitions: the changelogs of other workers' tables, the
events that viewers watch. It commits nothing, survives outages, and starts over when the process does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, TopicPartition

from adapters.kafka.client import Connection
from adapters.kafka.session import QUIET

log = logging.getLogger(__name__)

RECORDS_PER_POLL = 1_000
POLL_S = 0.2
LOOKS_AGAIN_S = 5.0

Taken = Callable[[str, bytes | None, bytes | None], None]  # topic, key, value


class Follower:
    """Calls `take(topic, key, value)` for every record, in a thread of its own, in order per partition.

    `from_start`: from the first kept record on, else from what comes next. `caught_up` is set when everything that was
    there at the start has been handed over. `name` tells its thread apart.
    """

    def __init__(
        self, connection: Connection, topics: Sequence[str], take: Taken, *, from_start: bool, name: str
    ) -> None:
        self._topics, self._take, self._from_start = topics, take, from_start
        self.caught_up = threading.Event()
        self._over = threading.Event()
        self._consumer = Consumer(
            {
                **connection.librdkafka(),
                **QUIET,
                "group.id": f"{name}-{uuid4().hex[:8]}",  # never joined: partitions are assigned by hand
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
            },
            logger=log,
        )
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)

    def _follow(self) -> None:
        waiting = self._assign()
        while not self._over.is_set():
            for message in self._consumer.consume(RECORDS_PER_POLL, POLL_S):
                error = message.error()
                if error is None:
                    self._take(str(message.topic()), message.key(), message.value())
                elif error.code() == KafkaError._PARTITION_EOF:
                    waiting.discard((message.topic(), message.partition()))
            if not waiting:
                self.caught_up.set()
        self._consumer.close()

    def _assign(self) -> set[Any]:
        """Every partition of the topics; waits until the brokers name them all."""
        start = OFFSET_BEGINNING if self._from_start else OFFSET_END
        while not self._over.is_set():
            try:
                known = self._consumer.list_topics(timeout=LOOKS_AGAIN_S).topics
            except Exception as error:  # noqa: BLE001 -- librdkafka raises its own kind for every outage
                log.warning("the brokers cannot be asked for their topics: %s", error)
                self._over.wait(LOOKS_AGAIN_S)
                continue
            if all(topic in known and known[topic].partitions for topic in self._topics):
                places = [(topic, number) for topic in self._topics for number in known[topic].partitions]
                self._consumer.assign([TopicPartition(*place, start) for place in places])
                return set(places)
            self._over.wait(LOOKS_AGAIN_S)
        return set()
