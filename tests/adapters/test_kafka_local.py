"""The broker of our own: it starts, keeps its address and data, and ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from adapters.kafka import local
from adapters.kafka.local import PORTS, Cluster
from app.errors import KafkaUnavailable, SetupRefused
from tests.kafka import QUICK, READY_WITHIN_S, unique
from tests.processes import ROOT, wait_for

MakeCluster = Callable[..., Cluster]


def make_topic(cluster: Cluster, name: str, **config: str) -> str:
    admin = AdminClient(cluster.connection().librdkafka())
    admin.create_topics([NewTopic(name, num_partitions=1, config=config)])[name].result(10)
    return name


def put(cluster: Cluster, topic: str, value: bytes) -> None:
    producer = Producer(cluster.connection().librdkafka() | {"acks": "all"})
    producer.produce(topic, value)
    assert producer.flush(30) == 0


def first_value(cluster: Cluster, topic: str) -> bytes:
    consumer = Consumer(cluster.connection().librdkafka() | {"group.id": unique("reader")})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    try:
        found = consumer.poll(30)
        assert found is not None
        assert found.error() is None, found.error()
        return bytes(found.value() or b"")
    finally:
        consumer.close()


def test_a_record_comes_back(kafka: Cluster) -> None:
    topic = make_topic(kafka, unique("kept"))
    put(kafka, topic, b"hello")
    assert first_value(kafka, topic) == b"hello"


def test_ports_lie_below_those_of_outgoing_connections(kafka: Cluster) -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(int(node.address.split(":")[1]) in PORTS for node in kafka.status())
    assert PORTS.stop <= low


def test_a_second_start_changes_nothing(kafka: Cluster) -> None:
    before = kafka.status()
    assert Cluster(kafka.folder).start() == kafka.bootstrap
    assert kafka.status() == before == Cluster(kafka.folder).status()


def test_a_killed_broker_comes_back_with_its_address_and_data(kafka_cluster: MakeCluster) -> None:
    cluster = kafka_cluster()
    bootstrap, topic = cluster.bootstrap, make_topic(cluster, "kept")
    put(cluster, topic, b"acknowledged")
    cluster.kill_node(1, signal.SIGKILL)
    assert cluster.pid(1) is None
    again = Cluster(cluster.folder, jvm=QUICK, die_with_parent=True)
    assert again.start(READY_WITHIN_S) == bootstrap
    assert first_value(again, topic) == b"acknowledged"
    again.pause(1)
    again.stop()
    assert [node.pid for node in cluster.status()] == [None]
    assert again.start(READY_WITHIN_S) == bootstrap
    assert first_value(again, topic) == b"acknowledged"
    again.kill()


def test_a_paused_broker_is_not_ready_until_it_goes_on(kafka: Cluster) -> None:
    kafka.pause(1)
    try:
        with pytest.raises(SetupRefused, match=r"was not ready within 0.5 s"):
            kafka.wait_ready(0.5)
    finally:
        kafka.resume(1)
    kafka.wait_ready(READY_WITHIN_S)


def test_three_brokers_serve_while_one_is_dead(kafka_cluster: MakeCluster) -> None:
    cluster = kafka_cluster(3)
    assert len(cluster.bootstrap.split(",")) == 3
    topic = make_topic(cluster, "kept")
    put(cluster, topic, b"before")
    cluster.kill_node(2)
    put(cluster, topic, b"during")
    assert first_value(cluster, topic) == b"before"
    with pytest.raises(SetupRefused, match="holds a cluster of 3, not 1: `python -m app kafka wipe` first"):
        Cluster(cluster.folder, 1).start()


def test_a_broker_ends_with_the_process_that_started_it(kafka_tools: None, tmp_path: Path) -> None:
    """Even when that one is killed, and the broker is paused and can do nothing itself."""
    code = (
        "import sys; from pathlib import Path; from adapters.kafka.local import Cluster\n"
        "cluster = Cluster(Path(sys.argv[1]), die_with_parent=True); cluster.start(300); cluster.pause(1)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == b"ready\n"
    cluster = Cluster(tmp_path)
    assert cluster.pid(1)
    runner.kill()
    runner.communicate()
    wait_for(lambda: cluster.pid(1) is None)


def test_the_command_starts_stops_and_wipes(kafka_tools: None, tmp_path: Path) -> None:
    def kafka(*arguments: str) -> str:
        command = [sys.executable, "-m", "app", "kafka", *arguments, "--folder", str(tmp_path / "mine")]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == ""
        return ran.stdout.strip()

    assert kafka("status") == "no Kafka here"
    try:
        bootstrap = kafka("start")
        assert kafka("status").startswith(f"{bootstrap}  runs as ")
        kafka("stop")
        assert kafka("status") == f"{bootstrap}  stopped"
    finally:
        kafka("wipe")
    assert not (tmp_path / "mine").exists()


def test_a_process_that_only_has_the_same_number_is_never_signalled(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"ports": [[20001, 20002]], "passwords": {}}')
    (tmp_path / "node1.pid").write_text(str(os.getpid()))
    cluster = Cluster(tmp_path)
    assert cluster.pid(1) is None
    cluster.stop()
    cluster.wipe()
    assert not tmp_path.exists()


def test_a_folder_that_is_no_clusters_is_not_wiped(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    Cluster(tmp_path).wipe()
    assert (tmp_path / "mine").exists()


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    local.java.cache_clear()
    try:
        with pytest.raises(KafkaUnavailable, match=r"needs `java` on the PATH; .* openjdk-17-jre-headless"):
            local.java()
        with pytest.raises(KafkaUnavailable, match=r"needs `mvn` on the PATH; .* apt-get install maven"):
            local.fetch(tmp_path / "jars")
        (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
        (tmp_path / "java").chmod(0o755)
        with pytest.raises(KafkaUnavailable, match=r"needs Java 17 or newer; .* is openjdk version"):
            local.java()
    finally:
        local.java.cache_clear()


def test_a_broker_that_cannot_start_says_why(kafka_cluster: MakeCluster) -> None:
    with pytest.raises(SetupRefused, match=r"make its storage .*none-such.*compression\.type"):
        kafka_cluster(properties={"compression.type": "none-such"})
    with pytest.raises(SetupRefused, match=r"node 1 ended: .*no-such\.pem"):
        kafka_cluster(sasl=True, properties={"ssl.keystore.location": "no-such.pem"})
