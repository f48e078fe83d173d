"""Any Kafka client can take part: commands as JSON on `queue-control`, facts as JSON on `queue-events`."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.processes import Broker, Worker, empty_broker, wait_for

DUMMY = [{"target": "dummy-service", "type": "simulate"}]


@pytest.fixture
def broker(kafka: Any, tmp_path: Path) -> Broker:
    return empty_broker(kafka.bootstrap, tmp_path)


def kcat() -> str:
    found = shutil.which("kcat") or shutil.which("kafkacat")
    if found is None:
        pytest.skip("kcat is not installed: apt-get install kcat")
    return found


def take_part(send: Callable[[dict[str, Any]], None], events: Callable[[], list[dict[str, Any]]], said: Any) -> None:
    """start, ping, stop, as the client can; what comes back of it."""

    def seen(word: str) -> bool:
        return any(event.get("event") == word and event.get("queue_id") == "theirs" for event in events())

    send({"command": "start", "queue_id": "theirs", "requests": DUMMY})
    wait_for(lambda: seen("started"), explain=said)
    send({"command": "ping", "queue_id": "theirs", "sent_at": time.time()})
    wait_for(lambda: seen("pong"), explain=said)
    send({"command": "stop", "queue_id": "theirs"})
    wait_for(lambda: seen("interrupted"), explain=said)


def test_kcat_can_start_ping_and_stop_a_run_and_read_its_events(start_worker: Any, broker: Broker) -> None:
    program, worker = kcat(), start_worker()

    def send(command: dict[str, Any]) -> None:
        line = json.dumps(command).encode()
        subprocess.run(
            [program, "-b", broker.bootstrap, "-t", "queue-control", "-P"], input=line, check=True, timeout=20
        )

    def events() -> list[dict[str, Any]]:
        command = [program, "-b", broker.bootstrap, "-t", "queue-events", "-C", "-o", "beginning", "-e", "-q"]
        lines = subprocess.run(command, capture_output=True, check=True, timeout=150).stdout.splitlines()
        return [json.loads(line) for line in lines if line]

    take_part(send, events, worker.said)


def test_a_few_lines_of_plain_confluent_kafka_do_the_same(start_worker: Any, broker: Broker) -> None:
    worker: Worker = start_worker()
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "theirs"})
    consumer.assign([TopicPartition("queue-events", 0, OFFSET_BEGINNING)])
    found: list[dict[str, Any]] = []

    def send(command: dict[str, Any]) -> None:
        producer.produce("queue-control", json.dumps(command).encode())
        producer.flush(10)

    def events() -> list[dict[str, Any]]:
        found.extend(json.loads(record.value() or b"{}") for record in consumer.consume(100, 0.2) if not record.error())
        return found

    take_part(send, events, worker.said)
    consumer.close()
