"""The topics as they are declared and as they are on the broker: records, committed positions, dead letters.

Reads beside the workers. On brokers it also makes and compares them (`apply`, `differences`, `describe`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adapters.embedded_log.file import Record
from adapters.kafka.client import Connection
from app.broker import leave, open_reader
from app.config import settings
from app.errors import CommandRejected, SetupRefused
from models.market import instant_text

if TYPE_CHECKING:
    from adapters.kafka.admin import Difference

Json = dict[str, Any]

DEAD_LETTERS = "dead-letters"
NOTES = ("reason", "topic", "partition", "offset")  # headers a dead letter has beside its own
PREVIEW_BYTES = 120


def topics() -> list[Json]:
    """Declarations with, where a log exists, end offsets per partition and committed positions per group."""
    from app.topics import TOPICS  # Faust

    declared = {t.name: t for t in TOPICS}
    ends, committed = _positions()
    found: list[Json] = []
    for name in [*declared, *sorted({topic for topic, _ in ends} - declared.keys())]:
        topic = declared.get(name)
        partitions = topic.partitions if topic else sum(1 for known, _ in ends if known == name)
        found.append({
            "name": name, "declared": topic is not None, "partitions": partitions,
            "key": topic.key if topic else "", "writers": list(topic.writers) if topic else [],
            "readers": list(topic.readers) if topic else [], "retention_ms": topic.retention_ms if topic else None,
            "ends": [ends.get((name, number), 0) for number in range(partitions)],
            "committed": {
                group: [offsets.get((name, number), 0) for number in range(partitions)]
                for group, offsets in committed.items()
                if any(known == name for known, _ in offsets)
            },
        })  # fmt: skip
    return found


def lines(found: list[Json]) -> Iterator[str]:
    """One line per topic."""
    width = max(len(topic["name"]) for topic in found)
    for topic in found:
        keeps = "for ever" if topic["retention_ms"] is None else f"{topic['retention_ms'] / 3_600_000:g} h"
        text = f"{topic['name']:<{width}}  {topic['partitions']} partitions"
        text += f", kept {keeps}, key {topic['key']}" if topic["declared"] else ", made by Faust"
        text += f"; records {_numbers(topic['ends'])}"
        for group, positions in topic["committed"].items():
            text += f"; {group} at {_numbers(positions)}"
        yield text


def apply() -> list[Json]:
    """Make every topic of every role on the brokers as declared; the differences that were there.

    Raises SetupRefused (on the embedded log; another number of partitions), BrokerUnreachable.
    """
    from adapters.kafka import admin
    from app.topics import TABLES_OF_ROLE, specs  # Faust

    done = admin.apply(
        _connection("makes its topics itself when a worker starts"),
        specs(*TABLES_OF_ROLE),
        settings().kafka_replication,
    )
    return [_difference(difference) for difference in done]


def change_line(change: Json) -> str:
    """What `apply` did about a difference."""
    if change["what"] == "missing":
        return f"{change['topic']}: made"
    return f"{change['topic']}: {change['what']}={change['declared']}, was {change['found'] or 'not set'}"


def differences() -> list[Json]:
    """How the brokers' topics differ from the declared ones. Raises SetupRefused, BrokerUnreachable."""
    from adapters.kafka import admin
    from app.topics import TABLES_OF_ROLE, specs  # Faust

    connection = _connection("compares its topics itself when a worker starts")
    return [_difference(difference) for difference in admin.differences(connection, specs(*TABLES_OF_ROLE))]


def describe() -> list[Json]:
    """Replicas, offsets and settings of the topics on the brokers. Raises SetupRefused, BrokerUnreachable."""
    from adapters.kafka import admin
    from app.topics import TABLES_OF_ROLE, specs  # Faust

    return admin.describe(_connection("has neither replicas nor settings"), specs(*TABLES_OF_ROLE))


def described_lines(found: list[Json]) -> Iterator[str]:
    """A line per topic, and one per partition that lacks replicas."""
    if not found:
        yield "no topic is there: `python -m app topics apply` makes them"
    for topic in found:
        parts = topic["partitions"]
        spread = f"{min(p['first'] for p in parts)}..{max(p['end'] for p in parts)}"
        replicas = max(len(part["replicas"]) for part in parts)
        told = ", ".join(f"{name}={value}" for name, value in topic["settings"].items())
        yield f"{topic['name']}: {len(parts)} partitions, {replicas} replicas, offsets {spread}, {told}"
        for part in parts:
            if len(part["isr"]) < len(part["replicas"]):
                yield f"  partition {part['partition']}: only {part['isr']} of {part['replicas']} are in step"


def _connection(why_not: str) -> Connection:
    if not settings().on_kafka:
        raise SetupRefused(f"KAFKA_BOOTSTRAP_SERVERS is not set, and the embedded log {why_not}")
    return Connection.of(settings())


def _difference(difference: Difference) -> Json:
    return {**vars(difference), "sentence": str(difference)}


def dead_letters() -> list[Json]:
    """Every dead letter the log keeps; `id` is its offset. `value` is text where it is text, else base64."""
    with open_reader() as log:
        if DEAD_LETTERS not in log.topics():
            return []
        return [_letter(record) for record in log.records(DEAD_LETTERS)]


def letter_lines(found: list[Json]) -> Iterator[str]:
    if not found:
        yield "no dead letters"
    for letter in found:
        yield f"{letter['id']:>6}  {instant_text(letter['ts_ms'])}  from {letter['topic']}: {letter['reason']}"
        yield f"        {letter['value'][:PREVIEW_BYTES]}"


def send_again(letter: int | None) -> list[int]:
    """Leave one dead letter (None: all) for the topic it came from; the ids that were sent.

    Raises CommandRejected for an unknown id, or one whose topic is not known.
    """
    with open_reader() as log:
        known = log.topics()
        records = (
            [r for r in log.records(DEAD_LETTERS, 0, letter) if letter in (None, r.offset)]
            if DEAD_LETTERS in known
            else []
        )
    if not records and letter is not None:
        raise CommandRejected("letter", f"no dead letter has the id {letter}; `python -m app dead-letters` lists them")
    sent = []
    for record in records:
        topic = _header(record, "topic")
        if topic not in known:
            if letter is None:
                continue  # one that no topic takes stays where it is
            raise CommandRejected("letter", f"dead letter {letter} names the topic {topic!r}, which does not exist")
        headers = [(name, value) for name, value in record.headers if name not in NOTES]
        leave(topic, record.key, record.value, headers)
        sent.append(record.offset)
    return sent


def _positions() -> tuple[dict[tuple[str, int], int], dict[str, dict[tuple[str, int], int]]]:
    """(next offset by (topic, partition), committed offset by group and (topic, partition)); empty without a log."""
    if not settings().on_kafka and not settings().log_path.exists():
        return {}, {}
    with open_reader() as log:
        committed: dict[str, dict[tuple[str, int], int]] = {}
        for (group, topic, partition), offset in log.committed().items():
            committed.setdefault(group, {})[topic, partition] = offset
        return log.ends(), committed


def _letter(record: Record) -> Json:
    value = record.value or b""
    try:
        text, encoding = value.decode(), "text"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(value).decode(), "base64"
    return {
        "id": record.offset, "ts_ms": record.ts_ms, "reason": _header(record, "reason"),
        "topic": _header(record, "topic"), "partition": _header(record, "partition"),
        "offset": _header(record, "offset"),
        "key": (record.key or b"").decode(errors="replace"), "value": text, "encoding": encoding,
    }  # fmt: skip


def _header(record: Record, name: str) -> str:
    """The last header of a name: the notes are added after what a message carried itself."""
    return next((value.decode(errors="replace") for key, value in reversed(record.headers) if key == name), "")


def _numbers(values: list[int]) -> str:
    return "/".join(str(value) for value in values)
