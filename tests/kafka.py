"""A real Kafka for tests: one broker that a session shares, and clusters of its own for a test that breaks things.

Whatever a test makes on the shared broker has a name of its own (`unique`): topics, groups and app ids of other tests
are there beside it. Without Java or Maven these tests are skipped and say so.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.kafka.client import Connection
from adapters.kafka.local import Cluster, fetch, java
from app.errors import KafkaUnavailable

# A broker that nobody kills. One that a busy machine kept from its heartbeat would give up all its partitions.
STEADY = {"broker.session.timeout.ms": 60_000}
READY_WITHIN_S = 300.0  # no rule: Java on a busy machine
QUICK = ("-XX:TieredStopAtLevel=1",)  # a broker that lives for a minute is not worth optimizing: a third less CPU


def unique(name: str) -> str:
    """A topic, group or app id that no other test has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def environment(connection: Connection) -> dict[str, str]:
    """What a worker's process is told, to reach the cluster as this connection does."""
    said = {
        "KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap,
        "KAFKA_SECURITY_PROTOCOL": connection.protocol,
        "KAFKA_SASL_MECHANISM": connection.mechanism,
        "KAFKA_USERNAME": connection.username,
        "KAFKA_PASSWORD": connection.password,
        "KAFKA_CA_FILE": connection.ca_file,
    }
    return {name: value for name, value in said.items() if value}


@pytest.fixture(scope="session")
def kafka_tools() -> None:
    """Skips where no Kafka can be started."""
    try:
        java()
        fetch()
    except KafkaUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(kafka_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The broker that all tests share; leave it running."""
    cluster = Cluster(tmp_path_factory.mktemp("kafka"), jvm=QUICK, properties=STEADY, die_with_parent=True)
    try:
        cluster.start(READY_WITHIN_S)
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def kafka_cluster(kafka_tools: None, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Start clusters of the test's own, to be broken: `kafka_cluster(3)`, `kafka_cluster(acls=True, users=["w"])`."""
    made: list[Cluster] = []

    def make(brokers: int = 1, **how: Any) -> Cluster:
        made.append(Cluster(tmp_path / f"kafka{len(made)}", brokers, jvm=QUICK, die_with_parent=True, **how))
        made[-1].start(READY_WITHIN_S)
        return made[-1]

    yield make
    for cluster in made:
        cluster.kill()
