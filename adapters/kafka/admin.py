"""Topics on a broker: what is declared, what is there, and how the one becomes the other.

app/topics.py -> TopicSpec -> differences -> apply (creates, changes settings) | check (refuses to start)

Partition counts are never changed: keys would move, and tables with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
    TopicDescription,
)

from adapters.kafka.client import Connection
from adapters.kafka.session import MAX_RECORD_BYTES, PATIENCE_S, Session, client_settings, sentence
from app.errors import BrokerUnreachable, SetupRefused

SHOWN = (
    "cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes", "min.insync.replicas", "segment.bytes",
    "segment.ms", "min.cleanable.dirty.ratio",
)  # fmt: skip
# A changelog is read whole at every start: small segments, closed and cleaned early, keep it near one record per key.
CHANGELOG = {"segment.bytes": str(16 << 20), "segment.ms": "600000", "min.cleanable.dirty.ratio": "0.1"}
GRAVE = ("missing", "partitions", "cleanup.policy", "max.message.bytes")  # with these a worker hangs or loses records
FOR_EVER = "-1"
VISIBLE_WITHIN_S = 30.0
LOOK_S = 0.1

Json = dict[str, Any]
_Settings = dict[str, dict[str, str]]  # by topic, by name


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it has to be. `retention_ms` None: kept for ever. `compact`: the newest record of each key."""

    name: str
    partitions: int
    compact: bool
    retention_ms: int | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What has to hold on the brokers."""
        kept = (
            {"cleanup.policy": "compact"}
            if self.compact
            else {
                "cleanup.policy": "delete",
                "retention.ms": FOR_EVER if self.retention_ms is None else str(self.retention_ms),
            }
        )
        return {**kept, "max.message.bytes": str(MAX_RECORD_BYTES)}


@dataclass(frozen=True)
class Difference:
    """One thing in which a topic is not as it is declared. `what`: "missing", "partitions", or a setting's name."""

    topic: str
    what: str
    found: str
    declared: str

    def __str__(self) -> str:
        if self.what == "missing":
            return f"{self.topic} is missing"
        if self.what == "partitions":
            return f"{self.topic} has {self.found} partitions, {self.declared} are declared"
        return f"{self.topic} has {self.what}={self.found}, declared is {self.declared}"


def differences(connection: Connection, specs: Sequence[TopicSpec]) -> list[Difference]:
    """Everything in which the brokers' topics are not as declared. Raises BrokerUnreachable, SetupRefused."""
    return _differences(Session(connection), specs)


def check(connection: Connection, specs: Sequence[TopicSpec]) -> None:
    """Raises SetupRefused with every difference that a worker must not run with, BrokerUnreachable."""
    if found := [difference for difference in differences(connection, specs) if difference.what in GRAVE]:
        raise SetupRefused(
            f"the topics on the brokers at {connection.bootstrap} are not as declared: {_listed(found)};"
            " run `python -m app topics apply`"
        )


def apply(connection: Connection, specs: Sequence[TopicSpec], replication: int = -1) -> list[Difference]:
    """Create what is missing, set what is set otherwise; the differences that were there, none the second time.

    Returns when every broker knows the new topics. Raises SetupRefused, before anything is changed, where a topic has
    another number of partitions; BrokerUnreachable.
    """
    session = Session(connection)
    found = _differences(session, specs)
    if moved := [difference for difference in found if difference.what == "partitions"]:
        raise SetupRefused(
            f"{_listed(moved)}: nothing was changed, because keys would move to other partitions and tables would lose"
            " their rows. Set PARTITIONS to the number that is there, or begin anew with another APP_ID on other"
            " brokers, or after deleting these topics"
        )
    by_name = {spec.name: spec for spec in specs}
    missing = {difference.topic for difference in found if difference.what == "missing"}
    _create(session, [by_name[name] for name in sorted(missing)], replication)
    changed: _Settings = {}
    for difference in found:
        if difference.topic not in missing:
            changed.setdefault(difference.topic, {})[difference.what] = difference.declared
    _set(session, changed)
    if missing:
        _wait_until_visible(session, [by_name[name] for name in missing])
    if changed:
        _wait(
            lambda: not _differences(session, [by_name[name] for name in changed]), f"the settings of {list(changed)}"
        )
    return found


def describe(connection: Connection, specs: Sequence[TopicSpec]) -> list[Json]:
    """The declared topics that are there: partitions, replicas, offsets, the settings that matter.

    Raises BrokerUnreachable, SetupRefused.
    """
    session = Session(connection)
    there = {spec.name for spec in specs} & session.topics().keys()
    descriptions, settings = _descriptions(session, there), _settings(session, there)
    places = [(name, number.id) for name in there for number in descriptions[name].partitions]
    ends, first = session.offsets(places), session.offsets(places, first=True)
    return [
        {
            "name": name,
            "partitions": [
                {
                    "partition": part.id,
                    "leader": part.leader.id,
                    "replicas": [node.id for node in part.replicas],
                    "isr": [node.id for node in part.isr],
                    "first": first[name, part.id],
                    "end": ends[name, part.id],
                }
                for part in descriptions[name].partitions
            ],
            "settings": {setting: settings[name][setting] for setting in SHOWN if setting in settings[name]},
        }
        for name in dict.fromkeys(spec.name for spec in specs)
        if name in there
    ]


def _differences(session: Session, specs: Sequence[TopicSpec]) -> list[Difference]:
    known = session.topics()
    settings = _settings(session, {spec.name for spec in specs} & known.keys())
    found: list[Difference] = []
    for spec in {spec.name: spec for spec in specs}.values():
        if spec.name not in known:
            found.append(Difference(spec.name, "missing", "", ""))
            continue
        if known[spec.name] != spec.partitions:
            found.append(Difference(spec.name, "partitions", str(known[spec.name]), str(spec.partitions)))
        for name, declared in spec.settings.items():
            value = settings[spec.name].get(name, "")
            enough = name == "max.message.bytes" and value.isdigit() and int(value) >= int(declared)
            if value != declared and not enough:
                found.append(Difference(spec.name, name, value, declared))
    return found


def _create(session: Session, specs: Sequence[TopicSpec], replication: int) -> None:
    if not specs:
        return
    # Fewer in-sync replicas than this, and a write is refused rather than kept in one place only.
    safe = {} if replication < 1 else {"min.insync.replicas": str(max(1, replication - 1))}
    new = [
        NewTopic(
            spec.name, spec.partitions, replication,
            config={**spec.settings, **(CHANGELOG if spec.compact else {}), **safe},
        )
        for spec in specs
    ]  # fmt: skip
    with session.as_sentence():
        asked = session.client.create_topics(new, operation_timeout=PATIENCE_S, request_timeout=PATIENCE_S)
    for name, future in asked.items():
        try:
            future.result(PATIENCE_S * 2)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another `apply` was quicker
                raise sentence(error, session.connection, f"creating topic {name}") from None


def _set(session: Session, changed: _Settings) -> None:
    if not changed:
        return
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            name,
            incremental_configs=[
                ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
                for setting, value in settings.items()
            ],
        )
        for name, settings in changed.items()
    ]
    session.answers(session.client.incremental_alter_configs(resources, request_timeout=PATIENCE_S))


def _settings(session: Session, names: set[str]) -> _Settings:
    if not names:
        return {}
    asked = session.client.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in names], request_timeout=PATIENCE_S
    )
    return {
        resource.name: {name: entry.value or "" for name, entry in entries.items()}
        for resource, entries in session.answers(asked).items()
    }


def _descriptions(session: Session, names: set[str]) -> dict[str, TopicDescription]:
    if not names:
        return {}
    asked = session.client.describe_topics(TopicCollection(sorted(names)), request_timeout=PATIENCE_S)
    return session.answers(asked)


def _wait_until_visible(session: Session, specs: Sequence[TopicSpec]) -> None:
    """Each broker is asked by a client that knows no other: what one has made, another may not know yet."""
    with session.as_sentence():
        brokers = session.client.list_topics(timeout=PATIENCE_S).brokers.values()
    for broker in brokers:
        settings = {**client_settings(session.connection), "bootstrap.servers": f"{broker.host}:{broker.port}"}
        client = AdminClient(settings)

        def visible(client: AdminClient = client) -> bool:
            with session.as_sentence():
                known = client.list_topics(timeout=PATIENCE_S).topics
            return all(
                spec.name in known
                and len(known[spec.name].partitions) == spec.partitions
                and all(part.leader >= 0 and part.error is None for part in known[spec.name].partitions.values())
                for spec in specs
            )

        _wait(visible, f"broker {broker.id} does not know the new topics")


def _wait(done: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + VISIBLE_WITHIN_S
    while not done():
        if time.monotonic() > until_s:
            raise BrokerUnreachable(f"{what}: not within {VISIBLE_WITHIN_S:g} s; try again when the brokers are well")
        time.sleep(LOOK_S)


def _listed(found: Sequence[Difference]) -> str:
    return "; ".join(str(difference) for difference in found)
