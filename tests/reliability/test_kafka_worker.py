"""The whole application on a real broker where something goes wrong: complaints by their id, with their pass rules."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from adapters.embedded_log.file import partition_of
from adapters.kafka.client import Connection
from adapters.kafka.local import Cluster
from adapters.kafka.reader import KafkaReader, send_one
from tests.end_to_end.test_load import DAY, LOAD, begin, behave, verify
from tests.kafka import READY_WITHIN_S
from tests.machine import Stopwatch
from tests.processes import ROOT, Broker, Worker, empty_broker, wait_for

Start = Callable[..., Any]
KEY = b"binance:BTCUSDT"
OUTAGE_S = 17


@pytest.fixture
def broker(kafka: Any, tmp_path: Path) -> Broker:
    """Only the real one."""
    return empty_broker(kafka.bootstrap, tmp_path)


@pytest.fixture
def start_role(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Workers of one role each, with one store."""
    started: list[Worker] = []

    def start(role: str, exchange_url: str = "", **env: str) -> Worker:
        folder = tmp_path / role
        folder.mkdir(exist_ok=True)
        store = f"sqlite:///{tmp_path / 'store.db'}"
        started.append(Worker(folder, exchange_url, broker=broker, ROLE=role, STORE_URL=store, **env))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def metrics(worker: Worker) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and label values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(worker.get("/metrics")[1]):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.values()))] = sample.value
    return found


def lag(worker: Worker) -> float:
    """Records that wait; infinite while the brokers do not say."""
    known = metrics(worker).get("streamforge_lag_messages")
    return math.inf if known is None else sum(known.values())


def ends(broker: Broker, topic: str) -> int:
    with KafkaReader(Connection(broker.bootstrap)) as reader:
        return sum(end for (name, _), end in reader.ends().items() if name == topic)


def test_r27_poison_on_any_topic_is_put_aside_and_blocks_nothing(
    start_worker: Start, start_exchange: Start, broker: Broker
) -> None:
    worker = start_worker(start_exchange())
    poison = b"\xff\x00 no record of ours"
    readers = {
        "raw.trades": 1, "raw.books": 1, "market.trades": 2, "market.candles": 1, "queue-tasks": 1, "queue-control": 1,
        "queue-events": 2,
    }  # fmt: skip
    for topic in readers:
        send_one(Connection(broker.bootstrap), topic, KEY, poison)
    letters: list[Any] = []

    def all_put_aside() -> bool:
        letters[:] = list(broker.records("dead-letters"))
        return len(letters) >= sum(readers.values())

    wait_for(all_put_aside, explain=worker.said)
    found = [dict(letter.headers) for letter in letters]
    assert {(head["topic"].decode(), int(head["offset"])) for head in found} == {(topic, 0) for topic in readers}
    assert all(head["reason"] and head["partition"] for head in found)
    assert {letter.value for letter in letters} == {poison}
    wait_for(lambda: lag(worker) == 0, explain=worker.said)
    begin(worker, "after")
    wait_for(lambda: worker.get("/queues/after")[1]["state"] == "finished", explain=worker.said)


def test_r27_a_dead_letter_can_be_sent_again(start_worker: Start, broker: Broker) -> None:
    worker = start_worker()
    send_one(Connection(broker.bootstrap), "queue-control", None, b"[1]")
    wait_for(lambda: len(list(broker.records("dead-letters"))) == 1, explain=worker.said)
    done = subprocess.run(
        [sys.executable, "-m", "app", "dead-letters", "send-again", "0", "--json"], cwd=ROOT, env={**worker.env},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"sent_again": [0]}, done.stderr
    wait_for(lambda: len(list(broker.records("dead-letters"))) == 2, explain=worker.said)
    first, second = broker.records("dead-letters")
    assert first.value == second.value == b"[1]"
    assert dict(second.headers)["offset"] == b"1"


def test_r29_a_stop_ends_a_load_that_hangs_in_a_call_within_the_deadline(
    start_worker: Start, start_exchange: Start
) -> None:
    exchange = start_exchange()
    behave(exchange, {"name": "slow", "endpoint": "aggTrades", "seconds": 600, "times": 0})
    worker = start_worker(exchange)
    begin(worker, "hangs")
    wait_for(lambda: [e for e in worker.events("hangs") if e.get("type") == "api_trades"], explain=worker.said)
    watch = Stopwatch()
    worker.post("/queues/stop", {"queue_id": "hangs"})
    end = worker.wait_for_end("hangs")
    assert end["status"] == "interrupted"
    assert watch.took_s(end["timestamp"]) < 5
    last_words = [e["type"] for e in worker.events("hangs") if e["target"] == "loader-producer" and e["finished"]]
    assert sorted(last_words) == ["api_candles_5m", "api_trades"], json.dumps(worker.events("hangs"), indent=0)


def test_r19_pages_that_retention_took_before_they_were_read_are_a_gap_that_is_seen_and_filled(
    start_role: Start, start_exchange: Start, broker: Broker
) -> None:
    exchange = start_exchange()
    control = start_role("control", exchange, REPAIR_AFTER_S="2")
    start_role("ingest", exchange)
    store = start_role("store", exchange)
    process = start_role("process", exchange)
    web = start_role("web", exchange)
    begin(web, "before")
    assert web.wait_for_end("before")["status"] == "finished"
    assert process.stop() == 0
    begin(web, "cut", "2025-08-21:2025-08-22")
    wait_for(lambda: any(e.get("type") == "api_trades" and e.get("status") == "finished" for e in web.events("cut")))
    partition = partition_of(KEY, 4)
    with KafkaReader(Connection(broker.bootstrap)) as reader:
        end = reader.ends()["raw.trades", partition]
    place = TopicPartition("raw.trades", partition, end - 3)
    client = AdminClient({"bootstrap.servers": broker.bootstrap})
    for deleted in client.delete_records([place]).values():
        deleted.result()
    start_role("process", exchange)
    last = web.wait_for_end("cut")
    assert last["status"] == "error", "a load with a gap does not finish in silence"
    assert "missing" in last["error_message"]

    def filled() -> bool:
        [ledger] = [s for s in web.get("/coverage")[1]["streams"] if s["stream"].endswith(":trades")]
        return bool(ledger["stored"] == [[1755648000000, 1755820800000]])

    wait_for(filled, explain=lambda: str(web.get("/coverage")) + control.said())

    def repairs() -> list[str]:
        runs = web.get("/queues")[1]["queues"]
        return [run["state"] for run in runs if run["queue_id"].startswith("repair-binance-btcusdt-trades-")]

    wait_for(lambda: repairs() == ["finished"], explain=lambda: str(repairs()))
    begin(web, "cut", "2025-08-21:2025-08-22")
    wait_for(lambda: web.get("/queues/cut")[1]["state"] == "finished", explain=store.said)
    code, document = verify(web, "cut")
    assert code == 0, [check["examples"] for check in document["checks"] if check["differences"]]
    assert "retention" in json.dumps(document), "what could not be checked is said"


def test_r34_metrics_are_the_truth_under_a_known_load(
    start_worker: Start, start_exchange: Start, broker: Broker
) -> None:
    worker = start_worker(start_exchange())
    begin(worker, "load")
    assert worker.wait_for_end("load")["status"] == "finished"
    wait_for(lambda: not any(metrics(worker)["streamforge_backlog_messages"].values()), explain=worker.said)
    found = metrics(worker)
    pages, batches = (
        sum(ends(broker, topic) for topic in names)
        for names in (("raw.trades", "raw.candles"), ("market.trades", "market.candles"))
    )
    truth = {
        "streamforge_messages_total": {("normalize_pages",): pages, ("store_batches",): batches},
        "streamforge_dead_letters_total": {},
    }
    for name, expected in truth.items():
        for labels, value in expected.items():
            assert found[name][labels] == pytest.approx(value, rel=0.05), (name, labels)
    with KafkaReader(Connection(broker.bootstrap)) as reader:
        stored = sum(
            run["records_written"] for run in worker.get("/queues/load")[1]["steps"] if "connector" in run["target"]
        )
        assert reader.topics()["raw.trades"] == 4
    made = sum(n for labels, n in found["streamforge_rows_total"].items() if labels == ("fold_candles",))
    assert found["streamforge_rows_total"][("store_batches",)] == pytest.approx(stored + made, rel=0.05)
    assert found["streamforge_task_states"][("finished",)] == 4
    assert found["streamforge_rebalances_total"][()] >= 1
    assert found["streamforge_commit_seconds_count"][()] > 0
    assert not any(found.get("streamforge_heals_total", {}).values())


def test_r34_lag_is_what_lies_behind_the_committed_position(
    start_worker: Start, start_exchange: Start, broker: Broker, tmp_path: Path
) -> None:
    worker = start_worker(start_exchange())
    held = apsw.Connection(str(tmp_path / "store.db"))
    held.execute("BEGIN IMMEDIATE")  # the store takes nothing until this ends
    begin(worker, "waits", stages=LOAD)

    def behind() -> float:
        with KafkaReader(Connection(broker.bootstrap)) as reader:
            done = sum(
                offset for (group, topic, _), offset in reader.committed().items()
                if topic == "market.trades" and group == broker.app_id
            )  # fmt: skip
            return sum(end for (topic, _), end in reader.ends().items() if topic == "market.trades") - done

    wait_for(lambda: behind() > 1, explain=worker.said)  # messages of many pages each

    def agrees() -> bool:
        shown = sum(
            n for labels, n in metrics(worker)["streamforge_lag_messages"].items() if labels[1] == "market.trades"
        )
        return shown == behind() > 1

    wait_for(agrees, explain=lambda: f"{behind()} {metrics(worker)['streamforge_lag_messages']}")
    held.execute("ROLLBACK")
    assert worker.wait_for_end("waits")["status"] == "finished"


def test_a_day_is_loaded_by_one_worker_of_each_role(start_role: Start, start_exchange: Start) -> None:
    exchange = start_exchange()
    for role in ("control", "ingest", "process", "store", "train"):
        start_role(role, exchange)
    web = start_role("web", exchange)
    begin(web, "roles", DAY)
    assert web.wait_for_end("roles")["status"] == "finished"
    assert verify(web, "roles")[1]["differences"] == 0
    rows = {table["name"]: table["rows"] for table in web.get("/tables")[1]["tables"]}
    assert rows == {"book_by_symbol": 0, "candles_by_symbol": 1, "coverage_by_stream": 2, "tasks": 4, "workflows": 1}


class Hasty(Worker):
    """It waits five seconds for a stop that cannot end, not twenty-five."""

    program = ("-c", "from app import cli, run_worker; run_worker.STOP_WITHIN_S = 5.0; cli.main()")


def test_r18_a_long_outage_costs_a_worker_a_few_lines_and_then_all_goes_on(
    kafka_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = kafka_cluster()
    broker = empty_broker(cluster.bootstrap, tmp_path)
    worker = Hasty(tmp_path, broker=broker, STORE_URL=f"sqlite:///{tmp_path / 'store.db'}", HEAL_AFTER_S="15")
    try:
        task = {"target": "dummy-service", "type": "simulate", "payload": {"seconds": OUTAGE_S}}
        assert worker.post("/queues/start", {"queue_id": "works-on", "requests": [task]})[0] == 202
        wait_for(lambda: any(event["status"] == "loading" for event in worker.events("works-on")), explain=worker.said)
        before = len(worker.said().splitlines())
        cluster.kill_node(1, signal.SIGKILL)
        time.sleep(OUTAGE_S)  # longer than any of our clients waits for an answer
        cluster.start_node(1)
        cluster.wait_ready(READY_WITHIN_S)
        assert worker.get("/health/live")[0] == 200
        send_one(Connection(broker.bootstrap), "queue-control", None, b"[1]")
        wait_for(lambda: list(broker.records("dead-letters")), explain=worker.said)
        wait_for(lambda: lag(worker) == 0, explain=worker.said)
        assert len(worker.said().splitlines()) - before < 30, worker.said()
        assert worker.wait_for_end("works-on")["status"] == "finished"
        assert not any(event["status"] == "healed" for event in worker.events("works-on")), "it was never silent"
        assert worker.popen.poll() is None
        cluster.kill_node(1, signal.SIGKILL)
        assert worker.stop() == 7, "a worker that is told to stop does so, brokers or not"
    finally:
        worker.kill()
