"""The control plane of a real worker, asked as any client would: by JSON on the topic, or by HTTP."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.kafka.local import Cluster
from tests.kafka import QUICK, READY_WITHIN_S, STEADY
from tests.machine import Stopwatch
from tests.processes import Process, Worker, empty_broker, free_port, wait_for

Start = Callable[..., Any]
DUMMY = {"target": "dummy-service", "type": "simulate"}


@pytest.fixture(scope="module", params=["embedded", "kafka"])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("worker")
    if request.param == "embedded":
        shared = Worker(folder)
        yield shared
        shared.kill()
        return
    own = Cluster(tmp_path_factory.mktemp("brokers"), jvm=QUICK, properties=STEADY, die_with_parent=True)
    own.start(READY_WITHIN_S)
    shared = Worker(folder, broker=empty_broker(own.bootstrap, folder))
    yield shared
    shared.kill()
    own.kill()


def start_dummy(worker: Any, queue_id: str, **payload: float) -> None:
    status, answer = worker.post(
        "/queues/start", {"command": "start", "queue_id": queue_id, "requests": [DUMMY | {"payload": payload}]}
    )
    assert (status, answer["queue_id"]) == (202, queue_id)
    wait_for(lambda: [e for e in worker.events(queue_id) if e.get("event") == "started"])


def pongs(worker: Any, queue_id: str) -> list[dict[str, Any]]:
    return [e for e in worker.events(queue_id) if e["event"] == "pong"]


def test_a_step_starts_reports_and_ends_with_exactly_one_word(worker: Worker) -> None:
    start_dummy(worker, "d1", seconds=1.2)
    assert worker.wait_for_end("d1")["status"] == "finished"
    words = [e["status"] for e in worker.events("d1") if e["target"] == "dummy-service"]
    assert words[0] == "started"
    assert set(words[1:-1]) == {"loading"}
    assert words[-1] == "finished"


def test_a_ping_gets_exactly_one_pong_within_a_second(worker: Worker) -> None:
    start_dummy(worker, "d2")
    for number in range(5):
        watch = Stopwatch()
        assert worker.post("/commands", {"command": "ping", "queue_id": "d2", "sent_at": number})[0] == 202
        wait_for(lambda: len(pongs(worker, "d2")) > number)  # noqa: B023 -- awaited within this turn
        assert watch.took_s(pongs(worker, "d2")[number]["ponged_at"]) < 1.0
    assert [p["ping_ts"] for p in pongs(worker, "d2")] == list(range(5))
    assert {type(p["ponged_at"]) for p in pongs(worker, "d2")} == {float}


def test_stop_ends_the_work_within_five_seconds_as_interrupted(worker: Worker) -> None:
    start_dummy(worker, "d3")
    watch = Stopwatch()
    assert worker.post("/queues/stop", {"queue_id": "d3"})[0] == 202
    end = worker.wait_for_end("d3")
    assert end["status"] == "interrupted"
    assert watch.took_s(end["timestamp"]) < 5
    wait_for(lambda: worker.get("/queues/d3")[1]["state"] == "interrupted")


def test_metrics_show_what_waits_on_the_topics(worker: Worker) -> None:
    text = worker.get("/metrics")[1]
    assert 'streamforge_backlog_messages{topic="raw.trades"} 0.0' in text


def test_every_live_run_is_addressed_by_a_star(start_worker: Start) -> None:
    worker = start_worker()
    for name in ("a", "b"):
        start_dummy(worker, name)
    worker.post("/commands", {"command": "ping", "queue_id": "*", "sent_at": 1.0})
    wait_for(lambda: len(pongs(worker, "a")) == len(pongs(worker, "b")) == 1)
    worker.post("/queues/stop", {"queue_id": "all"})
    assert {worker.wait_for_end(name)["status"] for name in ("a", "b")} == {"interrupted"}


def test_an_active_step_is_heard_of_at_least_every_five_seconds(worker: Worker) -> None:
    watch = Stopwatch()
    start_dummy(worker, "d4")
    wait_for(lambda: len([e for e in worker.events("d4") if e["event"] == "loading"]) >= 2)
    times = [e["timestamp"] for e in worker.events("d4") if e["target"] == "dummy-service"]
    assert max(b - a for a, b in itertools.pairwise(times)) < watch.allowed_s(5)


def test_a_failing_step_ends_its_run_in_error(worker: Worker) -> None:
    start_dummy(worker, "d5")
    worker.post("/commands", {"command": "fail-after", "queue_id": "d5", "payload": {"seconds": 0.1}})
    end = worker.wait_for_end("d5")
    assert end["status"] == "error"
    assert "failed after" in end["error_message"]


def test_the_same_queue_id_twice_is_the_same_run(worker: Worker) -> None:
    start_dummy(worker, "d6")
    worker.post("/queues/start", {"command": "start", "queue_id": "d6", "requests": [DUMMY]})
    wait_for(lambda: len([e for e in worker.events("d6") if e.get("status") == "accepted"]) == 2)
    assert len([e for e in worker.events("d6") if e.get("status") == "started"]) == 1


def test_what_is_no_command_is_put_aside_and_the_next_good_one_answered(start_worker: Start) -> None:
    worker, nonsense = start_worker(), [b"[1]", b"nonsense", b"null", b""]
    for value in nonsense:
        worker.broker.leave("queue-control", value)
        worker.broker.leave("queue-control", b'{"command":"stop","queue_id":"nobody"}')
    wait_for(lambda: len([e for e in worker.events("nobody") if e["event"] == "rejected"]) == len(nonsense))
    letters = list(worker.broker.records("dead-letters"))
    assert [letter.value or b"" for letter in letters] == nonsense
    headers = [dict(letter.headers) for letter in letters]
    assert [(head["topic"], head["offset"]) for head in headers] == [
        (b"queue-control", b"%d" % n) for n in (0, 2, 4, 6)
    ]
    assert all(head["reason"] for head in headers)


def test_a_command_left_while_no_worker_runs_is_done_by_the_next_one(start_worker: Start) -> None:
    worker = start_worker()
    worker.stop()
    command = {"command": "start", "queue_id": "later", "requests": [DUMMY | {"payload": {"seconds": 0.1}}]}
    worker.broker.leave("queue-control", json.dumps(command).encode())
    worker = start_worker()
    assert worker.wait_for_end("later")["status"] == "finished"


def test_a_killed_worker_goes_on_with_its_runs(start_worker: Start) -> None:
    worker = start_worker()
    start_dummy(worker, "d")
    worker.kill()
    worker = start_worker()
    worker.post("/commands", {"command": "simulate-loading", "queue_id": "d", "payload": {"seconds": 0.2}})
    assert worker.wait_for_end("d")["status"] == "finished"


def test_a_second_worker_on_the_same_log_gets_one_line(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = Worker(tmp_path)
    request.addfinalizer(first.kill)
    second = Process("second", ["worker"], first.folder, first.env | {"WEB_PORT": str(free_port())})
    assert second.popen.wait(150) == 3
    assert len(second.said().strip().splitlines()) == 1
    assert first.get("/health/ready")[0] == 200
