"""The graph of the running application, drawn from what is wired: `python -m app flow`, and the README's picture.

The readers that the topics declare (`app/topics.py`) and the agents that consume them (`app.agents`) must be the same;
where they are not, the picture is refused. The writers are shown as declared: a send has no wiring to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.errors import SetupRefused
from app.topics import TOPICS
from models.control import TYPES

CLIENTS = "clients"  # readers and writers outside the application
PARTS = {"agents": "agents", "work": "what run_tasks runs", "tables": "tables"}
README_MARK = ("<!-- flow -->", "<!-- /flow -->")


def wired_readers() -> dict[str, set[str]]:
    """Agents by the topic they consume, as Faust has them."""
    from app.main import app

    readers: dict[str, set[str]] = {}
    for name, agent in app.agents.items():
        for topic in agent.channel.topics:
            readers.setdefault(topic, set()).add(name)
    return readers


def disagreements() -> list[str]:
    """Where the declared readers and the wired ones differ, as sentences."""
    wired = wired_readers()
    declared = {topic.name: {reader for reader in topic.readers if reader != CLIENTS} for topic in TOPICS}
    found = []
    for name in sorted(declared.keys() | wired.keys()):
        said, done = declared.get(name), wired.get(name, set())
        if said is None:
            found.append(f"{name} is read by {', '.join(sorted(done))} but not declared in app/topics.py")
        elif said != done:
            found.append(f"{name} is declared to be read by {_and(said)} and is read by {_and(done)}")
    return found


def document() -> dict[str, Any]:
    """Topics, agents, work and tables as JSON. Raises SetupRefused when declared and wired readers differ."""
    from app.main import app
    from app.work import WORK
    from tables.rows import BY_TABLE

    if found := disagreements():
        raise SetupRefused("app/topics.py and the agents do not agree: " + "; ".join(found))
    place = {topic.name: number for number, topic in enumerate(TOPICS)}
    agents = [
        {"name": name, "topics": list(agent.channel.topics), "help": _first_line(agent.help or agent.fun.__doc__)}
        for name, agent in app.agents.items()
    ]
    return {
        "topics": [
            {"name": t.name, "key": t.key, "writers": list(t.writers), "readers": list(t.readers)} for t in TOPICS
        ],
        "agents": sorted(agents, key=lambda agent: (place[agent["topics"][0]], agent["name"])),
        "work": [{"name": name, "help": _first_line(WORK[name].__doc__)} for name in TYPES if name in WORK],
        "tables": [{"name": name, "help": rows.help} for name, rows in sorted(BY_TABLE.items())],
    }


def lines() -> Iterator[str]:
    """The picture: one line per topic, then who works, then what is remembered."""
    drawn = document()
    left = max(len(", ".join(t["writers"])) for t in drawn["topics"])
    middle = max(len(t["name"]) for t in drawn["topics"])
    for topic in drawn["topics"]:
        yield f"{', '.join(topic['writers']):>{left}} -> {topic['name']:<{middle}} -> {', '.join(topic['readers'])}"
    width = max(len(entry["name"]) for part in PARTS for entry in drawn[part])
    for part, title in PARTS.items():
        yield from ("", title)
        yield from (f"  {entry['name']:<{width}}  {entry['help']}" for entry in drawn[part])


def _and(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
