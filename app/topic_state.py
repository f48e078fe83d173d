"""The topics as they are declared and as they lie in the log: records, committed positions, dead letters.

Reads the embedded log beside its owner.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from adapters.embedded_log.file import Record
from adapters.embedded_log.reader import LogReader, leave_in_inbox
from app.config import settings
from app.errors import CommandRejected

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


def dead_letters() -> list[Json]:
    """Every dead letter the log keeps; `id` is its offset. `value` is text where it is text, else base64."""
    with LogReader(settings().log_path) as log:
        if DEAD_LETTERS not in log.topics():
            return []
        return [_letter(record) for record in log.records(DEAD_LETTERS)]


def letter_lines(found: list[Json]) -> Iterator[str]:
    if not found:
        yield "no dead letters"
    for letter in found:
        yield f"{letter['id']:>6}  {instant(letter['ts_ms'])}  from {letter['topic']}: {letter['reason']}"
        yield f"        {letter['value'][:PREVIEW_BYTES]}"


def send_again(letter: int | None) -> list[int]:
    """Leave one dead letter (None: all) in the inbox for the topic it came from; the ids that were sent.

    Raises CommandRejected for an unknown id, or one whose topic is not known.
    """
    path = settings().log_path
    with LogReader(path) as log:
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
        leave_in_inbox(path, topic, record.key, record.value, headers)
        sent.append(record.offset)
    return sent


def instant(ms: int) -> str:
    """UTC, to the second, or to the millisecond where it matters."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms % 1000:03d}Z" if ms % 1000 else "Z")


def _positions() -> tuple[dict[tuple[str, int], int], dict[str, dict[tuple[str, int], int]]]:
    """(next offset by (topic, partition), committed offset by group and (topic, partition)); empty without a log."""
    if not settings().log_path.exists():
        return {}, {}
    with LogReader(settings().log_path) as log:
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
