"""What came of a run: what was stored, what is covered, the graph, the models and what they are worth.

`run_report` reads the store only, so the worker, the web and a command without a worker give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson

from adapters.stores.base import Store
from app.errors import UnknownRun
from app.outside import read_coverage
from models import spans
from models.control import BUILDER, CONNECTOR, LOADER, TRAINER, Step, Workflow, graph_name
from models.coverage import Coverage
from models.gnn.evaluate import Metrics
from models.gnn.report import render
from models.market import INTERVAL_MS, Span, interval_of

Json = dict[str, Any]


def run_report(store: Store, queue_id: str) -> Json:
    """The report of a run, as far as the run has come, as a JSON document. Raises UnknownRun.

    `streams`: rows and coverage per stream; `graphs`; `models`: metrics, intervals and verdicts as in metrics.json;
    `complete`: true when every asked moment of every stream is stored; `seconds` per step from its first event.
    """
    run = read_run(store, queue_id)
    streams = [_stream(store, *stream) for stream in streams_of(run)]
    times = step_times(store, run)
    steps = [_step(step, times.get(step.task_id)) for step in run.steps]
    return {
        "queue_id": queue_id, "state": run.state, "started_s": run.created_at,
        "seconds": _seconds_of_run(run, times),
        "error": first_failed(steps),
        "complete": all(stream["complete"] for stream in streams),
        "steps": steps,
        "streams": streams,
        "graphs": [graph for step in run.steps if step.target == BUILDER if (graph := _graph(store, step))],
        "models": [model for step in run.steps if step.target == TRAINER if (model := _model(store, step))],
    }  # fmt: skip


def read_run(store: Store, queue_id: str) -> Workflow:
    """A run as the store keeps it. Raises UnknownRun."""
    known = store.get("queue_state", [queue_id]) if "queue_state" in store.collections() else [None]
    if known[0] is None:
        raise UnknownRun(queue_id)
    return msgspec.convert(known[0]["state"], Workflow)


def read_runs(store: Store) -> list[Workflow]:
    """Every run, the newest first."""
    if "queue_state" not in store.collections():
        return []
    found = [
        msgspec.convert(orjson.loads(state), Workflow)
        for batch in store.scan("queue_state", columns=["state"])
        for state in batch.column("state").to_pylist()
    ]
    return sorted(found, key=lambda run: run.created_at, reverse=True)


def read_events(store: Store, queue_id: str, after: int = -1, limit: int | None = None) -> list[Json]:
    """The kept events of a run behind an offset of `queue-events`, in order, each with its `offset`.

    What lies before is not read, so following a run costs what is new.
    """
    if "telemetry_events" not in store.collections():
        return []
    columns = ["offset", "body"]
    behind = store.scan("telemetry_events", eq={"queue_id": queue_id}, lo=after + 1, columns=columns, limit=limit)
    return [
        {**orjson.loads(body), "offset": offset}
        for batch in behind
        for offset, body in zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    ]


def describe_run(run: Workflow) -> Json:
    """A run as JSON, with the share of its steps' work that is done."""
    shown: Json = msgspec.to_builtins(run)
    del shown["at"]
    done = [1.0 if step.state == "finished" else step.progress or 0.0 for step in run.steps]
    return {**shown, "live": run.live, "progress": round(sum(done) / len(done), 4) if done else 0.0}


def describe_coverage(stream: str, ledger: Coverage, asked: Span | None = None) -> Json:
    """A ledger as JSON: its spans, its extent (or the one asked for), and the share of that which is stored."""
    venue, symbol, channel = stream.split(":")
    known: list[Span] = [*ledger.stored, *ledger.missing, *ledger.unrecoverable]
    extent = min((span[0] for span in known), default=0), max((span[1] for span in known), default=0)
    start, end = asked or extent
    return {
        "stream": stream, "venue": venue, "symbol": symbol, "channel": channel, "start_ms": start, "end_ms": end,
        "stored_share": round(spans.length(ledger.stored) / (end - start), 6) if end > start else 0.0,
        "stored": ledger.stored, "missing": ledger.missing, "unrecoverable": ledger.unrecoverable,
    }  # fmt: skip


def first_failed(steps: Iterable[Json]) -> str:
    """The first failed step of a run and what it said, as half a sentence; empty where none failed."""
    return next((f"{step['target']} {step['type']}: {step['error']}" for step in steps if step["state"] == "error"), "")


def streams_of(run: Workflow) -> list[tuple[str, str, str, list[Span]]]:
    """(venue, symbol, channel, asked spans) of what a run loads or stores, each stream once."""
    asked: dict[tuple[str, str, str], list[Span]] = {}
    for step in run.steps:
        if step.target in (LOADER, CONNECTOR) and step.range_ms:
            key = (step.venue, step.symbol, step.channel)
            asked[key] = spans.union(asked.get(key, []), [step.range_ms])
    return [(*stream, wanted) for stream, wanted in asked.items()]


def step_times(store: Store, run: Workflow) -> dict[str, tuple[float, float]]:
    """First and last word of each step, epoch seconds, over all its attempts.

    Any client may write events of a run: one whose `extra.task` or `timestamp` is of another type is no step's word.
    """
    times: dict[str, tuple[float, float]] = {}
    for event in read_events(store, run.queue_id):
        extra, said_s = event.get("extra"), event.get("timestamp")
        task = extra.get("task") if isinstance(extra, dict) else None
        if isinstance(task, str) and isinstance(said_s, int | float):
            first, last = times.get(task, (said_s, said_s))
            times[task] = (min(first, said_s), max(last, said_s))
    return times


def _seconds_of_run(run: Workflow, times: dict[str, tuple[float, float]]) -> float:
    ends = [last for _, last in times.values()]
    return round(max(ends) - run.created_at, 2) if ends else 0.0


def _step(step: Step, times: tuple[float, float] | None) -> Json:
    shown: Json = {
        "target": step.target, "type": step.type, "venue": step.venue, "symbol": step.symbol,
        "state": step.state, "attempt": step.attempt,
        "records_written": step.records_written, "message": step.message, "error": step.error,
        "seconds": round(times[1] - times[0], 2) if times else None,
    }  # fmt: skip
    return shown


def _stream(store: Store, venue: str, symbol: str, channel: str, asked: list[Span]) -> Json:
    start, end = asked[0][0], asked[-1][1]
    known = read_coverage(store, symbol, channel, venue) if "coverage" in store.collections() else None
    stored = spans.subtract(asked, spans.subtract(asked, known.stored)) if known else []
    collection = "trades" if channel == "trades" else f"candles_{interval_of(channel)}"
    eq = {"venue": venue, "symbol": symbol}
    there = collection in store.collections()
    rows = sum(store.count(collection, eq=eq, lo=lo, hi=hi) for lo, hi in asked) if there else 0
    holes = spans.subtract(asked, stored)
    shown: Json = {
        "venue": venue, "symbol": symbol, "channel": channel, "collection": collection, "rows": rows, "asked": asked,
        "covered": spans.length(stored) / spans.length(asked), "complete": not holes, "holes": holes,
        "missing": spans.clip(known.missing, start, end) if known else [],
        "unrecoverable": spans.clip(known.unrecoverable, start, end) if known else [],
    }  # fmt: skip
    if channel != "trades":
        shown["candles_expected"] = sum((hi - lo) // INTERVAL_MS[interval_of(channel)] for lo, hi in asked)
    return shown


def _graph(store: Store, step: Step) -> Json | None:
    name = graph_name(step)
    document = store.get("graphs", [name])[0] if "graphs" in store.collections() else None
    if document is None:
        return None
    facts = document["spec"]
    return {
        "graph": name, "vertices": document["vertices"], "edges": document["edges"], "sha256": document["sha256"],
        "edges_by_kind": facts.get("edges_by_kind", {}), "ready_vertices": facts.get("ready_vertices"),
        "made_by": facts.get("queue_id", ""),
    }  # fmt: skip


def _model(store: Store, step: Step) -> Json | None:
    """The model a training step published, with the metrics of its artifact."""
    name, version = step.extra.get("model"), step.extra.get("version")
    document = store.get("models", [f"{name}.{version}"])[0] if name and "models" in store.collections() else None
    if document is None:
        return None
    return {
        "model": document["model"], "version": document["version"], "artifact": document["path"],
        "metrics": document["metrics"],
    }  # fmt: skip


# --- for a person -----------------------------------------------------------------------------------------------------


def lines(report: Json, page: str = "") -> Iterator[str]:
    """The report as plain text."""
    yield f"Run {report['queue_id']}: {report['state']}" + (
        f" after {report['seconds']:.1f} s" if report["seconds"] else ""
    )
    if report["error"]:
        yield f"  {report['error']}"
    yield ""
    for stream in report["streams"]:
        yield _stream_line(stream)
    for graph in report["graphs"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in graph["edges_by_kind"].items())
        yield f"  graph {graph['graph']}: {graph['vertices']:,} vertices, {graph['edges']:,} edges ({kinds})"
    yield ""
    for step in report["steps"]:
        seconds = f"{step['seconds']:>8.1f} s" if step["seconds"] is not None else " " * 10
        note = step["error"] or step["message"]
        yield f"  {step['target']:<17} {step['type']:<15} {step['state']:<12}{seconds}  {note}".rstrip()
    for model in report["models"]:
        yield ""
        yield f"Model {model['model']}"
        yield from render(msgspec.convert(model["metrics"], Metrics)).rstrip().splitlines()
        yield ""
        yield f"Artifact: {Path(model['artifact'])}"
    if page:
        yield f"Page:     {page}/"


def _stream_line(stream: Json) -> str:
    of = f" of {stream['candles_expected']:,}" if "candles_expected" in stream else ""
    text = f"  {stream['symbol']} {stream['channel']}: {stream['rows']:,}{of} rows in {stream['collection']}"
    text += f", coverage {stream['covered']:.2%}" if not stream["complete"] else ", coverage complete"
    for kind in ("missing", "unrecoverable"):
        if found := stream[kind]:
            text += f"; {kind}: {len(found)} span{'s' if len(found) > 1 else ''}, {spans.length(found) / 1000:g} s"
    return text
