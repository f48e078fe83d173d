"""The command line: exit codes, one line per error, JSON and nothing else, wishes that wait, files that answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from adapters.embedded_log.log import Log
from adapters.embedded_log.reader import LogReader, leave_in_inbox
from adapters.stores.sqlite import SqliteStore
from app import cli
from app.config import settings
from models.control import step_event
from tests.app.test_report import DAY, SPECS, START, a_run, put_candles, put_event
from tests.processes import free_port, wait_for

ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]
HEAVY = {"faust", "torch", "numpy", "pyarrow", "aiohttp", "rich"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DATA_DIR of its own and a port on which nothing answers."""
    monkeypatch.chdir(tmp_path)  # away from any .env
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WEB_PORT", str(free_port()))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m app", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


class FakeWorker:
    """A worker's HTTP answers, by method and path; keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.got: list[tuple[str, str, Any, str | None]] = []
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                worker.got.append((self.command, self.path, body, self.headers.get("Authorization")))
                status, document = worker.answers.get(
                    (self.command, self.path.partition("?")[0]), (404, {"error": "no"})
                )
                document = document(self.path, body) if callable(document) else document
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            do_GET = do_POST = answer  # noqa: N815 (the names http.server calls)

            def log_message(self, *_: object) -> None:
                """Nothing: the tests look at `got`."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorker]:
    """Something that answers on WEB_PORT."""
    fake = FakeWorker()
    monkeypatch.setenv("WEB_PORT", str(fake.port))
    settings.cache_clear()
    yield fake
    fake.close()


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        if not inner or command.invoke_without_command:
            yield name, command
        yield from ((f"{name} {sub_name}", sub) for sub_name, sub in inner.items())


# --- every command


def test_every_command_has_help_with_examples_and_speaks_json() -> None:
    for name, command in commands():
        assert f"python -m app {name}" in command.help, name
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, name


def test_a_mistyped_option_is_one_line_and_exit_code_two(run: Cli) -> None:
    code, out, err = run("status", "--nope")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--nope" in err


def test_with_json_an_error_is_a_json_line_on_stderr_and_stdout_stays_empty(run: Cli) -> None:
    code, out, err = run("start", "--symbol", "BTCUSDT", "--range", "2025-08-21:2025-08-20", "--json")
    assert (code, out) == (2, "")
    told = json.loads(err)
    assert (told["field"], told["exit_code"]) == ("requests[0].time_range", 2)
    assert "ends before it starts" in told["error"]


def test_a_setting_that_cannot_be_used_is_one_line_and_exit_code_three(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_PORT", "many")
    settings.cache_clear()
    code, _, err = run("status")
    assert (code, err.count("\n")) == (3, 1)
    assert "WEB_PORT" in err


def test_a_command_that_only_asks_imports_nothing_heavy(worker: FakeWorker, folder: Path) -> None:
    worker.answers["GET", "/queues"] = (200, {"queues": [], "more": False})
    code = (
        "import sys\nfrom app import cli\nsys.argv = ['app', 'status', '--json']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = {sorted(HEAVY)} \nfound = [name for name in heavy if name in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout or "null")) == (0, {"runs": []}), done.stderr


# --- with a worker


def test_start_sends_the_usual_pipeline_and_prints_the_id(run: Cli, worker: FakeWorker) -> None:
    worker.answers["POST", "/queues/start"] = (202, {"status": "accepted", "queue_id": "q1", "ids": ["q1.0"]})
    code, out, _ = run("start", "--symbol", "BTCUSDT", "--range", "2025-08-20:2025-09-19", "--epochs", "3")
    assert (code, out) == (0, "q1\n")
    [(_, _, command, _)] = worker.got
    assert [(r["target"], r["type"]) for r in command["requests"]] == [
        ("loader-producer", "api_candles_5m"), ("loader-producer", "api_trades"),
        ("arango-connector", "api_candles_5m"), ("arango-connector", "api_trades"),
        ("graph-builder", "gnn_graph"), ("gnn-trainer", "gnn_train"),
    ]  # fmt: skip
    assert (command["command"], command["symbol"], command["epochs"]) == ("start", "BTCUSDT", 3)


def test_a_named_stage_leaves_the_others_out(run: Cli, worker: FakeWorker) -> None:
    worker.answers["POST", "/queues/start"] = (202, {"status": "accepted", "queue_id": "q1", "ids": []})
    run("start", "--symbol", "ETHUSDT", "--range", "2025-08-20:2025-08-20", "--candles", "--interval", "1m")
    kinds = [(r["target"], r["type"]) for r in worker.got[0][2]["requests"]]
    assert kinds == [("loader-producer", "api_candles_1m"), ("arango-connector", "api_candles_1m")]


def test_start_takes_a_whole_command_from_a_file(run: Cli, worker: FakeWorker, folder: Path) -> None:
    worker.answers["POST", "/queues/start"] = (202, {"status": "accepted", "queue_id": "q1", "ids": []})
    (folder / "wish.json").write_text('{"requests": [{"target": "dummy-service", "type": "simulate"}], "note": 1}')
    assert run("start", str(folder / "wish.json"), "--json")[0] == 0
    assert worker.got[0][2] == {
        "command": "start",
        "requests": [{"target": "dummy-service", "type": "simulate"}],
        "note": 1,
    }


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_command_file_that_is_no_object_is_refused(run: Cli, folder: Path, content: str) -> None:
    (folder / "wish.json").write_text(content)
    code, _, err = run("start", str(folder / "wish.json"), "--json")
    assert (code, json.loads(err)["field"]) == (2, "file")


def test_what_the_worker_rejects_keeps_its_field_and_sentence(run: Cli, worker: FakeWorker) -> None:
    worker.answers["POST", "/queues/start"] = (422, {"error": "symbol: 'NOPE' is not traded", "field": "symbol"})
    code, out, err = run("start", "--symbol", "NOPE", "--range", "2025-08-20:2025-08-21", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err) == {"error": "symbol: 'NOPE' is not traded", "field": "symbol", "exit_code": 2}


def test_an_unknown_run_is_exit_code_two(run: Cli, worker: FakeWorker) -> None:
    for arguments in (("stop", "nope"), ("status", "nope"), ("events", "nope"), ("ping", "nope"), ("report", "nope")):
        code, out, err = run(*arguments, "--json")
        assert (code, out, json.loads(err)["field"]) == (2, "", "queue_id"), arguments


def test_the_token_travels_with_what_changes_something(
    run: Cli, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cret")
    settings.cache_clear()
    worker.answers["POST", "/queues/stop"] = (202, {"status": "stopping", "queue_id": "q1"})
    assert run("stop", "q1")[:2] == (0, "q1 stopping\n")
    assert worker.got[0][3] == "Bearer s3cret"


def test_ping_prints_the_pong_that_answers_it(run: Cli, worker: FakeWorker) -> None:
    sent: list[float] = []

    def take(_path: str, body: Any) -> Any:
        sent.append(body["sent_at"])
        return {"status": "accepted"}

    def events(path: str, _body: Any) -> Any:
        stale: dict[str, Any] = {"event": "pong", "queue_id": "q1", "ping_ts": 1.0, "ponged_at": 2.0, "offset": 3}
        fresh = [{**stale, "ping_ts": at, "ponged_at": at + 0.05, "offset": 4} for at in sent]
        after = int(path.partition("after=")[2].partition("&")[0])
        return {"events": [event for event in [stale, *fresh] if event["offset"] > after]}

    worker.answers["POST", "/commands"] = (202, take)
    worker.answers["GET", "/queues/q1/events"] = (200, events)
    code, out, _ = run("ping", "q1", "--json")
    assert (code, json.loads(out)["took_ms"]) == (0, pytest.approx(50, abs=1))


def test_following_prints_every_event_once_and_ends_as_the_run_ends(run: Cli, worker: FakeWorker) -> None:
    told: list[dict[str, Any]] = [
        {"event": "accepted", "target": "queue-manager", "timestamp": 1.0, "offset": 0},
        {"event": "loading", "target": "loader-producer", "timestamp": 2.0, "offset": 5, "progress": 0.5},
        {"event": "error", "target": "queue-manager", "timestamp": 3.0, "offset": 9},
    ]
    step = {"target": "loader-producer", "type": "api_trades", "state": "error", "error": "no room"}
    asked_for: list[Any] = []

    def events(path: str, _body: Any) -> Any:
        after = int(path.partition("after=")[2].partition("&")[0])
        return {"events": [event for event in told if asked_for and event["offset"] > after][:1]}

    def start(_path: str, body: Any) -> Any:
        asked_for.append(body)
        return {"status": "accepted", "queue_id": "q1", "ids": []}

    worker.answers["POST", "/queues/start"] = (202, start)
    worker.answers["GET", "/queues/q1/events"] = (200, events)
    worker.answers["GET", "/queues/q1"] = (200, {"queue_id": "q1", "state": "error", "live": False, "steps": [step]})
    wish = ("--symbol", "BTCUSDT", "--range", "2025-08-20:2025-08-21", "--id", "q1")
    code, out, err = run("start", *wish, "--follow", "--json")
    assert [json.loads(line)["offset"] for line in out.splitlines()] == [0, 5, 9]
    assert code == 5
    assert "no room" in json.loads(err)["error"]


def test_an_event_of_a_foreign_client_is_one_line_whatever_it_holds() -> None:
    odd = {"timestamp": "soon", "progress": "half", "records_written": "many", "message": "hello"}
    assert cli.event_line(odd) == "00:00:00  None         hello"
    assert cli.event_line({"event": "loading", "timestamp": 1e300}).startswith("--:--:--  loading")


# --- without a worker


def test_without_a_worker_a_start_waits_in_the_inbox_and_the_next_one_takes_it(run: Cli, folder: Path) -> None:
    code, out, _ = run("start", "--symbol", "BTCUSDT", "--range", "2025-08-20:2025-08-21", "--json")
    told = json.loads(out)
    assert code == 0
    assert "waits in the log's inbox" in told["status"]
    [record] = taken(folder)
    command = json.loads(record.value or b"")
    assert (command["queue_id"], command["symbol"]) == (told["queue_id"], "BTCUSDT")


def test_without_a_worker_a_stop_waits_too(run: Cli, folder: Path) -> None:
    code, out, _ = run("stop", "q1")
    assert code == 0
    assert "waits in the log's inbox" in out
    assert [json.loads(record.value or b"") for record in taken(folder)] == [{"command": "stop", "queue_id": "q1"}]


def test_without_a_worker_a_bad_start_is_rejected_and_nothing_is_left(run: Cli, folder: Path) -> None:
    code, _, err = run("start", "--symbol", "BTCUSDT", "--range", "2025-08-20:2025-08-21", "--interval", "7m", "--json")
    assert (code, json.loads(err)["field"]) == (2, "requests[0].type")
    assert not (folder / "log.db").exists()


def taken(folder: Path) -> list[Any]:
    """What the next worker finds on queue-control."""
    with closing(Log.open(folder / "log.db")) as log:
        log.ensure_topic("queue-control", 1)
        log.ensure_topic("dead-letters", 1)
        wait_for(lambda: log.end("queue-control", 0) > 0)
    with LogReader(folder / "log.db") as reader:
        assert list(reader.records("dead-letters")) == []
        return list(reader.records("queue-control"))


def test_without_a_worker_and_a_store_there_is_nothing_to_ask(run: Cli) -> None:
    code, _, err = run("status")
    assert (code, err.count("\n")) == (7, 1)
    assert "python -m app worker" in err


def test_a_second_worker_on_the_same_log_gets_one_line(folder: Path) -> None:
    with closing(Log.open(folder / "log.db")):
        done = subprocess.run(
            [sys.executable, "-m", "app", "worker"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "is in use by process" in done.stderr


def test_a_worker_whose_port_is_taken_gets_one_line(worker: FakeWorker) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "worker"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "WEB_PORT" in done.stderr


# --- what the log holds


@pytest.fixture
def letters(folder: Path) -> Path:
    """A log with two dead letters: a command that was no JSON, and one whose topic is gone."""

    async def fill(log: Log) -> None:
        came = [("topic", b"queue-control"), ("partition", b"0"), ("offset", b"7"), ("reason", b"not JSON")]
        lost = [("topic", b"nowhere"), ("reason", b"names the topic 'nowhere'")]
        await log.append("dead-letters", b"key", b'{"command"', headers=[("page", b"{}"), *came])
        await log.append("dead-letters", None, b"\xff\x00", headers=lost)

    with closing(Log.open(folder / "log.db")) as log:
        for name in ("queue-control", "dead-letters"):
            log.ensure_topic(name, 1)
        asyncio.run(fill(log))
    return folder


def test_dead_letters_are_listed_with_bytes_origin_and_reason(run: Cli, letters: Path) -> None:
    code, out, _ = run("dead-letters", "--json")
    first, second = json.loads(out)["dead_letters"]
    assert code == 0
    assert (first["id"], first["topic"], first["offset"], first["reason"]) == (0, "queue-control", "7", "not JSON")
    assert (first["value"], first["encoding"]) == ('{"command"', "text")
    assert (second["topic"], second["value"], second["encoding"]) == ("nowhere", "/wA=", "base64")


def test_a_dead_letter_goes_back_with_its_key_and_headers(run: Cli, letters: Path) -> None:
    code, out, _ = run("dead-letters", "send-again", "0", "--json")
    assert (code, json.loads(out)) == (0, {"sent_again": [0]})
    with closing(Log.open(letters / "log.db")) as log:
        wait_for(lambda: log.end("queue-control", 0) == 1)
    with LogReader(letters / "log.db") as reader:
        [record] = reader.records("queue-control")
    assert (record.key, record.value, record.headers) == (b"key", b'{"command"', (("page", b"{}"),))


def test_all_means_all_that_a_topic_takes(run: Cli, letters: Path) -> None:
    assert json.loads(run("dead-letters", "send-again", "--all", "--json")[1]) == {"sent_again": [0]}


@pytest.mark.parametrize("said", [(), ("0", "--all"), ("--", "-1"), ("one",)])
def test_sending_again_takes_one_id_or_all(run: Cli, letters: Path, said: tuple[str, ...]) -> None:
    code, out, err = run("dead-letters", "send-again", "--json", *said)
    assert (code, out, json.loads(err)["field"]) == (2, "", "letter")


@pytest.mark.parametrize("letter", ["1", "17"])
def test_a_dead_letter_that_cannot_go_back_is_refused(run: Cli, letters: Path, letter: str) -> None:
    code, _, err = run("dead-letters", "send-again", letter, "--json")
    assert (code, json.loads(err)["field"]) == (2, "letter")


def test_a_record_of_the_inbox_that_no_topic_took_goes_there_once_there_is_one(run: Cli, folder: Path) -> None:
    leave_in_inbox(folder / "log.db", "later", b"key", b"value", [("page", b"{}")])
    with closing(Log.open(folder / "log.db")) as log:
        log.ensure_topic("dead-letters", 1)
        wait_for(lambda: log.end("dead-letters", 0) == 1)
        log.ensure_topic("later", 1)
    assert json.loads(run("dead-letters", "send-again", "--all", "--json")[1]) == {"sent_again": [0]}
    with closing(Log.open(folder / "log.db")) as log:
        wait_for(lambda: log.end("later", 0) == 1)
    with LogReader(folder / "log.db") as reader:
        [record] = reader.records("later")
    assert (record.key, record.value, record.headers) == (b"key", b"value", (("page", b"{}"),))


def test_without_a_log_there_are_no_dead_letters_to_read(run: Cli) -> None:
    code, _, err = run("dead-letters")
    assert (code, err.count("\n")) == (3, 1)


def test_topics_shows_declarations_records_and_positions(letters: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "topics", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {topic["name"]: topic for topic in json.loads(done.stdout)["topics"]}
    assert found["dead-letters"]["ends"] == [2]
    assert (found["raw.trades"]["partitions"], found["raw.trades"]["ends"]) == (4, [0, 0, 0, 0])


# --- settings


def test_config_names_where_a_value_comes_from(run: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("PARTITIONS=8\n")
    settings.cache_clear()
    found = {entry["name"]: entry for entry in json.loads(run("config", "--json")[1])["settings"]}
    assert (found["DATA_DIR"]["value"], found["DATA_DIR"]["source"]) == (str(folder), "environment")
    assert (found["PARTITIONS"]["value"], found["PARTITIONS"]["source"]) == (8, ".env")
    assert found["LOG_LEVEL"]["source"] == "default"


def test_config_masks_what_is_secret(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cret")
    monkeypatch.setenv("BINANCE_API_URL", "http://name:s3cret@127.0.0.1:1")
    settings.cache_clear()
    code, out, _ = run("config")
    assert code == 0
    assert "s3cret" not in out
    assert "http://********@127.0.0.1:1" in out


# --- the flow


def test_the_readme_shows_the_flow_as_it_is_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.flow import README_MARK

    done = subprocess.run([sys.executable, "-m", "app", "flow"], cwd=ROOT, capture_output=True, text=True, check=True)
    begin, end = README_MARK
    [shown] = (ROOT / "README.md").read_text().split(begin)[1:]
    assert shown.split(end)[0].strip() == f"```text\n{done.stdout.rstrip()}\n```"


def test_a_reader_that_is_not_declared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from app import flow

    wired = flow.wired_readers()
    monkeypatch.setattr(flow, "wired_readers", lambda: {**wired, "raw.trades": {"somebody"}, "new": {"somebody"}})
    assert flow.disagreements() == [
        "new is read by somebody but not declared in app/topics.py",
        "raw.trades is declared to be read by normalize_pages and is read by somebody",
    ]


# --- what the files answer


@pytest.fixture
def left(folder: Path) -> Path:
    """A store with a finished day of candles, as a worker that has gone left it."""
    with closing(SqliteStore(folder / "store.db")) as store:
        for spec in SPECS:
            store.ensure(spec)
        run = a_run(store)
        put_candles(store, 288, [(START, START + DAY)])
        put_event(store, 4, step_event("finished", "r1", run.steps[0]))
    return folder


def test_without_a_worker_the_files_answer(run: Cli, left: Path) -> None:
    assert [entry["queue_id"] for entry in json.loads(run("status", "--json")[1])["runs"]] == ["r1"]
    assert json.loads(run("status", "r1", "--json")[1])["state"] == "finished"
    assert [json.loads(line)["offset"] for line in run("events", "r1", "--json")[1].splitlines()] == [4]
    assert json.loads(run("report", "r1", "--json")[1])["complete"] is True
    assert "288 of 288 rows" in run("report", "r1")[1]


def test_coverage_names_a_stream_that_is_not_known(run: Cli, left: Path) -> None:
    [ledger] = json.loads(run("coverage", "binance:BTCUSDT:candles_5m", "--json")[1])["streams"]
    assert (ledger["stored"], ledger["missing"]) == ([[START, START + DAY]], [])
    assert "stored        2025-08-20T00:00:00Z .. 2025-08-21T00:00:00Z" in run("coverage")[1]
    code, _, err = run("coverage", "binance:NOPE:trades", "--json")
    assert (code, json.loads(err)["field"]) == (2, "stream")


def test_an_unknown_run_is_unknown_to_the_files_too(run: Cli, left: Path) -> None:
    for command in ("status", "events", "report", "verify"):
        code, out, err = run(command, "nope", "--json")
        assert (code, out, json.loads(err)["field"]) == (2, "", "queue_id"), command


def test_verify_of_a_store_without_a_log_says_what_lacks(run: Cli, left: Path) -> None:
    code, out, err = run("verify", "r1", "--json")
    assert (code, out) == (3, "")
    assert "there is no log at" in json.loads(err)["error"]


@pytest.mark.parametrize(("file", "exit_code"), [("log.db", 4), ("store.db", 9)])
def test_a_worker_whose_file_is_damaged_gets_one_line(folder: Path, file: str, exit_code: int) -> None:
    (folder / file).write_bytes(b"no database at all, but long enough to be one" * 20)
    done = subprocess.run(
        [sys.executable, "-m", "app", "worker"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (exit_code, 1), done.stderr
    assert file in done.stderr
