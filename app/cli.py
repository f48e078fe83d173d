"""`python -m app`: every command, its help with examples, and the shape of what it prints.

Commands speak to the running worker over HTTP. Without one, wishes wait on the brokers or in the log's inbox, and
reading commands read the files. `--json` gives one document (or one line per event) on stdout and nothing else there;
an error is one line on stderr. Exit codes are those of `app/errors.py`. Nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from app import terminal
from app.errors import CommandRejected, RunFailed, SetupRefused, StreamForgeError, VerifyFailed, WorkerUnreachable
from app.parent import end_with_parent

Json = dict[str, Any]
Answer = TypeVar("Answer")

EXIT_INTERRUPTED = 130
POLL_S = 0.3
PONG_WITHIN_S = 3.0

app = typer.Typer(
    name="python -m app", add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="One Faust application: market history in, dependable data and graph networks out.",
)  # fmt: skip
dead_letters_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
topics_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(dead_letters_app, name="dead-letters")
app.add_typer(topics_app, name="topics")
kafka_app = typer.Typer(rich_markup_mode=None)
app.add_typer(kafka_app, name="kafka", help="A real Kafka on this machine, for development.")

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else there.")]
EndWith = Annotated[int, typer.Option("--end-with", hidden=True, help="End when the parent process with this id ends.")]


# --- processes --------------------------------------------------------------------------------------------------------


@app.command()
def worker(
    role: Annotated[str, typer.Option(help="all, control, ingest, process, store, train or web; see ROLE.")] = "",
    as_json: AsJson = False,
    end_with: EndWith = 0,
) -> None:
    """Run the application on the broker and store that the settings name, until SIGTERM or Ctrl-C.

    \b
    Examples:
      python -m app worker
      BINANCE_API_URL=http://127.0.0.1:8090 DATA_DIR=var/mine python -m app worker
      KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 python -m app worker --role process
    """
    from app import config as setup
    from app import run_worker

    end_with_parent(end_with)
    if role:
        setup.choose_role(role)
    run_worker.run()


@app.command()
def exchange(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8090,
    seed: Annotated[int, typer.Option(help="Seed of the generated market: same seed, same bytes.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder of recorded files to serve instead.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Recording (or folder of one session's) to play instead.")] = None,
    start: Annotated[str | None, typer.Option(help="Where its clock starts (2025-08-05T12:00Z); default: now.")] = None,
    speed: Annotated[float, typer.Option(min=0, help="Seconds of its clock in a second; 0 stands still.")] = 1,
    symbols: Annotated[int, typer.Option(min=1, help="Symbols of the generated market.")] = 5,
    lively: Annotated[float, typer.Option(min=0.01, help="Times as many trades as usual.")] = 1,
    faults: Annotated[Path | None, typer.Option(help="Fault plan (YAML or JSON): behaviours to show.")] = None,
    as_json: AsJson = False,
    end_with: EndWith = 0,
) -> None:
    """Serve a simulated exchange that speaks Binance's and OKX's formats, and print its address when ready.

    \b
    Examples:
      python -m app exchange --port 8090 --seed 7
      python -m app exchange --speed 60 --start 2025-08-05T12:00Z --faults plan.yaml
      python -m app exchange --replay recordings/btcusdt_20240808.jsonl.gz --speed 10
      python -m app exchange --data recordings/spot
    """
    import asyncio

    from adapters.exchanges import simulated
    from models.market import instant_ms

    end_with_parent(end_with)
    try:
        start_ms = instant_ms(start) if start else None
    except ValueError as error:
        raise SetupRefused(f"--start {start} is no time such as 2025-08-05T12:00Z ({error})") from error
    source = simulated.open_source(seed, data, replay, symbols, lively)
    asyncio.run(simulated.main(source, host, port, faults, start_ms, speed))


@app.command()
def record(
    symbols: Annotated[list[str], typer.Argument(help="Symbols, e.g. BTCUSDT ETHUSDT.")],
    channels: Annotated[
        str, typer.Option(help="trades, fills, depth, ticker, candles_1m, ...; with commas.")
    ] = "trades,depth",
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("recordings"),
    url: Annotated[str, typer.Option(help="WebSocket base; default: BINANCE_WS_URL.")] = "",
    seconds: Annotated[float | None, typer.Option(min=0, help="For so long; default: until Ctrl-C.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record live frames and order books, as received, into a file that `exchange --replay` plays.

    \b
    Examples:
      python -m app record BTCUSDT ETHUSDT --channels trades,depth,ticker --out recordings --seconds 600
      BINANCE_API_URL=http://127.0.0.1:8090 python -m app record ETHUSDT --channels fills,depth
    """
    import asyncio

    from adapters.exchanges import recorder
    from app.config import settings

    names, kinds, api_url = [symbol.upper() for symbol in symbols], channels.split(","), settings().binance_api_url
    ws_url = url or settings().ws_url()
    made = asyncio.run(
        recorder.run_until_interrupted(names, kinds, out, ws_url=ws_url, api_url=api_url, seconds=seconds)
    )
    emit(made, as_json, lambda: [f"{made['file']}: {made['lines']} lines, connection lost {made['lost']} times"])


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of recorded files in the exchange's own formats.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up until Ctrl-C and print the page's address.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier demo of this source left.")] = False,
    time_range: Annotated[str, typer.Option("--range", help="Another range than the source's own.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None,
    as_json: AsJson = False,
) -> None:
    """A month through every stage to a report: exchange, worker, one command. Run twice, it is the same run.

    \b
    Examples:
      python -m app demo
      python -m app demo --keep
      python -m app demo --data recordings/spot
    """
    from rich.console import Console

    from adapters.stores.sqlite import SqliteStore
    from app import demo as show
    from app import report as reports
    from app.children import Interrupted

    console = Console(stderr=as_json)

    def after(shown: show.Shown) -> bool:
        store = SqliteStore(shown.folder / "store.db", read_only=True)
        try:
            made = reports.run_report(store, shown.queue_id)
        finally:
            store.close()
        document = {
            **made,
            "folder": str(shown.folder),
            "page": f"{shown.page}/",
            "wall_seconds": round(shown.seconds, 1),
        }
        emit(document, as_json, lambda: ["", *reports.lines(made, shown.page), "", f"{shown.seconds:.1f} s in all"])
        return bool(made["complete"])

    try:
        show.run(show.Wish(data, keep, fresh, time_range, epochs), console, after)
    except Interrupted as error:
        fail(str(error), EXIT_INTERRUPTED, as_json)


@app.command()
def live(
    symbol: Annotated[str, typer.Option(help="One that the simulated exchange has.")] = "ETHUSDT",
    as_json: AsJson = False,
) -> None:
    """A market as it trades: simulated exchange, worker, dashboard, until Ctrl-C. Its data is made anew every time.

    \b
    Examples:
      python -m app live
      python -m app live --symbol BTCUSDT
    """
    from rich.console import Console

    from app import live as show
    from app.children import Interrupted

    try:
        show.run(symbol, Console(stderr=as_json))
    except Interrupted as error:
        fail(str(error), EXIT_INTERRUPTED, as_json)


@app.command()
def chaos(
    plan: Annotated[str, typer.Argument(help="A YAML file, or a plan that comes along; without it: their list.")] = "",
    seed: Annotated[int, typer.Option(help="Of every random choice: same seed, same timeline.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Empty folder for logs and data, which stays.")] = None,
    as_json: AsJson = False,
) -> None:
    """Break a local set-up while it loads, and count what was lost, doubled or late.

    Starts brokers, an exchange and workers of its own, kills and pauses them as the plan and the seed say, and ends
    with a verdict. Without a plan it names those that come along. Exit 0 clean, 5 the run did not finish, 6 something
    differs.

    \b
    Examples:
      python -m app chaos worker-kills --seed 7
      python -m app chaos my-plan.yaml --keep var/chaos --json
    """
    from app.chaos import plan as plans
    from app.chaos import run as experiments
    from app.children import Interrupted, interrupts_raise

    if not plan:
        known = {name: plans.read_plan(name).about.strip() for name in plans.ready_plans()}
        emit({"plans": known}, as_json, lambda: [f"{name:<16} {about}" for name, about in known.items()])
        return
    wanted = plans.read_plan(plan)
    logging.getLogger("adapters.kafka").setLevel(logging.CRITICAL)  # that brokers are away is what was asked for

    def say(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    try:
        with interrupts_raise("interrupted; everything it started is stopped"), experiments.folder_of(keep) as folder:
            found = experiments.conduct(wanted, Path(plan).stem, seed, folder, say)
    except Interrupted as error:
        fail(str(error), EXIT_INTERRUPTED, as_json)
    emit(found.document(), as_json, found.lines)
    found.raise_if_not_clean()


# --- wishes -----------------------------------------------------------------------------------------------------------


@app.command()
def start(
    file: Annotated[str, typer.Argument(help="JSON file with a whole command; `-` reads it from stdin.")] = "",
    symbol: Annotated[str, typer.Option(help="For example BTCUSDT.")] = "",
    venue: Annotated[str, typer.Option(help="binance, binance_um or okx; binance unless said.")] = "",
    time_range: Annotated[str, typer.Option("--range", help="START:END, UTC, end exclusive.")] = "",
    interval: Annotated[str, typer.Option(help="Interval of the candles.")] = "5m",
    candles: Annotated[bool, typer.Option("--candles", help="Load and store candles.")] = False,
    trades: Annotated[bool, typer.Option("--trades", help="Load and store trades.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Build the graph.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Train on it.")] = False,
    queue_id: Annotated[str, typer.Option("--id", help="Name of the run; generated when not given.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Finish with the list of what lacks.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print its events until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a run; prints its id. Without a stage named, all four: candles, trades, graph, train.

    \b
    Examples:
      python -m app start --symbol BTCUSDT --range 2025-08-20:2025-09-19 --follow
      python -m app start --symbol ETHUSDT --range 2025-08-20:2025-08-20 --candles --interval 1m
      python -m app start --venue okx --symbol BTC-USDT --range 2025-08-20:2025-08-20 --trades
      python -m app start command.json
    """
    from app.pipelines import Stages, usual

    if file:
        command = read_command_file(file)
        if queue_id:
            command["queue_id"] = queue_id
    else:
        wanted = (candles, trades, graph, train)
        stages = Stages(*wanted) if any(wanted) else Stages()
        command = usual(
            symbol, time_range, interval, stages,
            venue=venue or None, queue_id=queue_id or None, epochs=epochs, allow_missing=allow_missing or None,
        )  # fmt: skip
    try:
        named = str(command.get("queue_id") or "")
        after = the_worker().last_offset(named) if follow and named else -1
        answer = the_worker().start(command)
    except WorkerUnreachable:
        answer = leave_start(command)
    run = answer["queue_id"]
    if not follow:
        emit(answer, as_json, lambda: [run if answer["status"] == "accepted" else f"{run} {answer['status']}"])
    elif answer["status"] != "accepted":
        raise WorkerUnreachable(f"{run} {answer['status']}: there is nothing to follow until a worker runs")
    else:
        follow_events(run, after, as_json)
        end_as(the_worker().run(run))


@app.command()
def stop(run: Annotated[str, typer.Argument(help="The run, or `all`.")], as_json: AsJson = False) -> None:
    """Ask a run to stop; what it has stored stays, and `start` with the same id goes on.

    \b
    Examples:
      python -m app stop loader-btcusdt-api-candles-5m-20250919-3fa9c1
      python -m app stop all
    """
    try:
        answer = the_worker().stop(run)
    except WorkerUnreachable:
        answer = {**leave({"command": "stop", "queue_id": run}), "queue_id": run}
    emit(answer, as_json, lambda: [f"{run} {answer['status']}"])


@app.command()
def ping(run: Annotated[str, typer.Argument(help="The run.")], as_json: AsJson = False) -> None:
    """Ask a run for a sign of life; prints its pong and how long it took.

    \b
    Examples:
      python -m app ping demo-generated-btcusdt
    """
    source, sent_at = the_worker(), time.time()
    after = source.last_offset(run)
    source.command({"command": "ping", "queue_id": run, "sent_at": sent_at})
    while time.time() - sent_at < PONG_WITHIN_S:
        for event in source.events(run, after=after):
            after = event["offset"]
            if event.get("event") == "pong" and event.get("ping_ts") == sent_at:
                print_pong(event, sent_at, as_json)
                return
        time.sleep(0.05)
    raise WorkerUnreachable(f"{run} did not answer the ping within {PONG_WITHIN_S:g} s")


# --- questions --------------------------------------------------------------------------------------------------------


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="The run; without it, all runs.")] = "", as_json: AsJson = False
) -> None:
    """Runs and their states, or one run's steps with their progress.

    \b
    Examples:
      python -m app status
      python -m app status demo-generated-btcusdt --json
    """
    if run:
        found = ask(lambda source: source.run(run))
        emit(found, as_json, lambda: run_lines(found))
    else:
        runs = ask(lambda source: source.runs())
        emit(
            {"runs": runs}, as_json,
            lambda: [f"{r['state']:<12} {r['progress']:>4.0%}  {r['queue_id']}" for r in runs] or ["no runs"],
        )  # fmt: skip


@app.command()
def events(
    run: Annotated[str, typer.Argument(help="The run.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """The events of a run, oldest first; with --json one per line.

    \b
    Examples:
      python -m app events demo-generated-btcusdt
      python -m app events demo-generated-btcusdt --follow --json
    """
    if follow:
        follow_events(run, -1, as_json)
        return
    after = -1
    while page := ask(partial(_events_behind, run, after)):
        print_events(page, as_json)
        after = page[-1]["offset"]


@app.command()
def coverage(
    stream: Annotated[str, typer.Argument(help="For example binance:BTCUSDT:trades; without it, all.")] = "",
    as_json: AsJson = False,
) -> None:
    """What is stored, missing and unrecoverable, per stream.

    \b
    Examples:
      python -m app coverage
      python -m app coverage binance:BTCUSDT:candles_5m
    """
    found = ask(lambda source: source.coverage())
    if stream:
        found = [ledger for ledger in found if ledger["stream"] == stream]
        if not found:
            raise CommandRejected("stream", f"{stream!r} is not known; `python -m app coverage` lists the known ones")
    emit(
        {"streams": found},
        as_json,
        lambda: [line for ledger in found for line in coverage_lines(ledger)] or ["nothing"],
    )


@app.command()
def report(run: Annotated[str, typer.Argument(help="The run.")], as_json: AsJson = False) -> None:
    """What came of a run: rows, coverage, graph, models with intervals, verdict, artifact.

    \b
    Examples:
      python -m app report demo-generated-btcusdt
    """
    from app import report as reports
    from app.config import settings

    found, page = ask(lambda source: source.report(run)), settings().web_url
    emit({**found, "page": f"{page}/"}, as_json, lambda: reports.lines(found, page))


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="The run.")],
    limit: Annotated[int, typer.Option(min=1, help="Differences listed per check.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Reconcile what the exchange served, what the topics carried and what the store holds. Exit 6 on a difference.

    \b
    Examples:
      python -m app verify demo-generated-btcusdt
    """
    from app import verify as checks
    from app.broker import open_reader
    from app.files import open_store

    with open_store() as store:
        found = checks.verify_run(store, open_reader, run, limit=limit)
    emit(found, as_json, lambda: checks.lines(found))
    if found["differences"]:
        raise VerifyFailed(f"{run}: {found['differences']} differences between source, topics and store")


@topics_app.callback()
def topics(context: typer.Context, as_json: AsJson = False) -> None:
    """Every declared topic, with its records and the committed positions; or make them on the brokers.

    \b
    Examples:
      python -m app topics
      python -m app topics apply
      python -m app topics diff --json
    """
    if context.invoked_subcommand is None:
        from app import topic_state

        found = topic_state.topics()
        emit({"topics": found}, as_json, lambda: topic_state.lines(found))


@topics_app.command("apply")
def apply_topics(as_json: AsJson = False) -> None:
    """Make every topic on the brokers as declared, changelogs included, before any worker runs. Twice changes nothing.

    \b
    Examples:
      KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 python -m app topics apply
    """
    from app import topic_state

    done = topic_state.apply()
    emit(
        {"changed": done}, as_json,
        lambda: [topic_state.change_line(change) for change in done]
        or ["every topic is as declared; nothing was changed"],
    )  # fmt: skip


@topics_app.command("diff")
def diff_topics(as_json: AsJson = False) -> None:
    """What on the brokers is not as declared; exit code 3 when anything is.

    \b
    Examples:
      python -m app topics diff
    """
    from app import topic_state

    found = topic_state.differences()
    lines = [difference["sentence"] for difference in found]
    emit({"differences": found}, as_json, lambda: lines or ["every topic is as declared"])
    if found:
        raise SetupRefused(f"{len(found)} differences: `python -m app topics apply` mends what can be mended")


@topics_app.command("describe")
def describe_topics(as_json: AsJson = False) -> None:
    """Partitions, replicas, offsets and the settings that matter, as the brokers have them.

    \b
    Examples:
      python -m app topics describe
      python -m app topics describe --json
    """
    from app import topic_state

    found = topic_state.describe()
    emit({"topics": found}, as_json, lambda: topic_state.described_lines(found))


@app.command()
def flow(as_json: AsJson = False) -> None:
    """The topics, agents and tables of the application as they are wired; the README shows the same.

    \b
    Examples:
      python -m app flow
    """
    from app import flow as drawn

    emit(drawn.document(), as_json, drawn.lines)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting: its effective value, where it comes from, what it means. Secrets are masked.

    \b
    Examples:
      python -m app config
      WEB_PORT=7000 python -m app config --json
    """
    from app.effective import effective

    found = effective()
    width = max(len(entry["name"]) for entry in found)
    emit(
        {"settings": found}, as_json,
        lambda: [f"{e['name']:<{width}}  {e['value']!s:<28}  {e['source']:<11}  {e['description']}" for e in found],
    )  # fmt: skip


@dead_letters_app.callback()
def dead_letters(context: typer.Context, as_json: AsJson = False) -> None:
    """List what could not be used, with its bytes, where it came from and why; or send it again.

    \b
    Examples:
      python -m app dead-letters
      python -m app dead-letters send-again 17
    """
    if context.invoked_subcommand is None:
        from app import topic_state

        found = topic_state.dead_letters()
        emit({"dead_letters": found}, as_json, lambda: topic_state.letter_lines(found))


@dead_letters_app.command("send-again")
def send_again(
    letter: Annotated[int | None, typer.Argument(min=0, help="Its id, as the list shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back on the topics they came from; a running worker takes them at once, else the next one.

    \b
    Examples:
      python -m app dead-letters send-again 17
      python -m app dead-letters send-again --all
    """
    from app import topic_state

    if (letter is not None) == everything:
        raise CommandRejected("letter", "say one id, or --all")
    sent = topic_state.send_again(letter)
    emit({"sent_again": sent}, as_json, lambda: [f"{len(sent)} sent again"])


# --- a Kafka of our own -----------------------------------------------------------------------------------------------

InFolder = Annotated[Path, typer.Option(help="Where its data, ports and logs are.")]
KAFKA_FOLDER = Path(".kafka")


@kafka_app.command("start")
def kafka_start(
    brokers: Annotated[int | None, typer.Option(min=1, max=3, help="One or three; an existing one keeps its.")] = None,
    folder: InFolder = KAFKA_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Start a real Kafka on loopback and print its HOST:PORT; one that runs is left as it is.

    \b
    Examples:
      python -m app kafka start
      KAFKA_BOOTSTRAP_SERVERS=$(python -m app kafka start) python -m app worker
    """
    from adapters.kafka.local import Cluster

    bootstrap = Cluster(folder, brokers).start()
    emit({"bootstrap": bootstrap}, as_json, lambda: [bootstrap])


@kafka_app.command("stop")
def kafka_stop(folder: InFolder = KAFKA_FOLDER, as_json: AsJson = False) -> None:
    """Stop it; its data stays, and the next start has the same address.

    \b
    Examples:
      python -m app kafka stop
    """
    from adapters.kafka.local import Cluster

    Cluster(folder).stop()
    emit({"stopped": str(folder)}, as_json, list)


@kafka_app.command("wipe")
def kafka_wipe(folder: InFolder = KAFKA_FOLDER, as_json: AsJson = False) -> None:
    """Stop it and remove its data.

    \b
    Examples:
      python -m app kafka wipe
    """
    from adapters.kafka.local import Cluster

    Cluster(folder).wipe()
    emit({"wiped": str(folder)}, as_json, list)


@kafka_app.command("status")
def kafka_status(folder: InFolder = KAFKA_FOLDER, as_json: AsJson = False) -> None:
    """Its nodes, their addresses and processes.

    \b
    Examples:
      python -m app kafka status
    """
    from adapters.kafka.local import Cluster

    nodes = Cluster(folder).status()
    emit(
        {"nodes": [vars(node) for node in nodes]}, as_json,
        lambda: [f"{n.address}  {f'runs as {n.pid}' if n.pid else 'stopped'}" for n in nodes] or ["no Kafka here"],
    )  # fmt: skip


# --- how commands speak -----------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run a command; every expected error becomes one line on stderr and its exit code."""
    as_json = "--json" in sys.argv
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except StreamForgeError as error:
        fail(str(error), error.exit_code, as_json, getattr(error, "field", None))
    except typer.TyperException as error:  # a mistyped command line
        option = getattr(getattr(error, "param", None), "name", None)
        fail(error.format_message(), CommandRejected.exit_code, as_json, option)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", EXIT_INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        sys.exit(0)


def fail(sentence: str, exit_code: int, as_json: bool, field: str | None = None) -> NoReturn:
    line = " ".join(sentence.split())
    document = {"error": line, "field": field, "exit_code": exit_code}
    print(json.dumps(document) if as_json else f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)


def emit(document: Any, as_json: bool, lines: Callable[[], Iterable[str]]) -> None:
    """The one place that writes answers to stdout."""
    if as_json:
        print(json.dumps(document, default=str), flush=True)
    else:
        terminal.write(lines())


def the_worker() -> Any:
    from app.client import Worker
    from app.config import settings

    token = settings().api_token
    return Worker(settings().web_url, token.get_secret_value() if token else None)


def ask(question: Callable[[Any], Answer]) -> Answer:
    """The worker's answer; without a worker, the files'."""
    try:
        return question(the_worker())
    except WorkerUnreachable:
        from app.files import Files

        return question(Files())


def _events_behind(run: str, after: int, source: Any) -> list[Json]:
    page: list[Json] = source.events(run, after)
    return page


def leave_start(command: Json) -> Json:
    """Check a `start` as the worker would, then leave it in the inbox under its name. Raises CommandRejected."""
    from models.control import plan

    run = plan(command)
    return {**leave({**command, "queue_id": run.queue_id}), "queue_id": run.queue_id}


def leave(command: Json) -> Json:
    """Leave a command for the next worker."""
    from adapters.embedded_log.file import owner_pid
    from app import broker
    from app.config import settings
    from models.control import check_command

    check_command(command)
    broker.leave("queue-control", None, json.dumps(command).encode())
    if settings().on_kafka:
        return {"status": "left on the topic; no worker answered over HTTP"}
    if owner_pid(settings().log_path):
        return {"status": "left in the inbox of the running worker, which did not answer over HTTP"}
    return {"status": "waits in the log's inbox: no worker runs, the next one takes it"}


def read_command_file(file: str) -> Json:
    try:
        command = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandRejected("file", f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise CommandRejected("file", f"{file} is not JSON: {error}") from None
    if not isinstance(command, dict):
        raise CommandRejected("file", f"{file}: a command is a JSON object, not {type(command).__name__}")
    return {"command": "start", **command}


def follow_events(run: str, after: int, as_json: bool) -> None:
    """Print events until the run has ended and its last word is printed."""
    source = the_worker()
    while True:
        ended = not source.run(run)["live"] and after >= 0
        page = source.events(run, after)
        print_events(page, as_json)
        after = page[-1]["offset"] if page else after
        if ended and not page:
            return
        time.sleep(0 if page else POLL_S)


def print_events(page: list[Json], as_json: bool) -> None:
    for event in page:
        print_event(event, as_json)


def print_event(event: Json, as_json: bool) -> None:
    emit(event, as_json, lambda: [event_line(event)])


def print_pong(event: Json, sent_at: float, as_json: bool) -> None:
    took_ms = (event["ponged_at"] - sent_at) * 1000
    emit({**event, "took_ms": round(took_ms, 1)}, as_json, lambda: [f"{event['queue_id']} pong after {took_ms:.0f} ms"])


def event_line(event: Json) -> str:
    """One line of whatever any client wrote: a field of another type than ours is left out or shown as it is."""
    said_s, share, rows = (event.get(name) for name in ("timestamp", "progress", "records_written"))
    parts = (
        _time_of_day(said_s),
        f"{event.get('event')!s:<11}",
        " ".join(str(event[name]) for name in ("target", "type") if event.get(name)),
        f"{share:.0%}" if isinstance(share, int | float) else "",
        f"{rows:,}" if isinstance(rows, int) and rows else "",
        event.get("error_message") or event.get("message") or "",
    )
    return "  ".join(str(part) for part in parts if part)


def _time_of_day(epoch_s: Any) -> str:
    try:
        return time.strftime("%H:%M:%S", time.gmtime(epoch_s if isinstance(epoch_s, int | float) else 0))
    except (OverflowError, OSError, ValueError):  # no moment of this calendar
        return "--:--:--"


def run_lines(run: Json) -> Iterator[str]:
    from app.progress import step_name

    yield f"{run['queue_id']}: {run['state']}, {run['progress']:.0%}"
    for step in run["steps"]:
        share = f"{step['progress']:>4.0%}" if step.get("progress") is not None else "    "
        rows = f"{step['records_written']:>12,}"
        yield f"  {step_name(step):<20} {step['state']:<12} {share} {rows}  {step['error'] or step['message']}".rstrip()


def coverage_lines(ledger: Json) -> Iterator[str]:
    from models.market import instant_text

    yield ledger["stream"]
    for kind in ("stored", "missing", "unrecoverable"):
        for begin, end in ledger[kind]:
            yield f"  {kind:<13} {instant_text(begin)} .. {instant_text(end)}"


def end_as(run: Json) -> None:
    """Raises RunFailed unless the run is finished."""
    if run["state"] != "finished":
        from app.report import first_failed

        failed = first_failed(run["steps"])
        raise RunFailed(f"run {run['queue_id']} ended in {run['state']}" + (f": {failed}" if failed else ""))
