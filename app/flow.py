"""The graph of the running application, drawn from what is wired: `python -m app flow`, and the README's picture.

What the topics declare (`app/topics.py`) and what the agents do (`app.agents`) must be the same; where they are not,
the picture is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.errors import SetupRefused
from app.topics import TOPICS

CLIENTS = "clients"  # readers and writers outside the application
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
    """Where the declarations and the wiring differ, as sentences."""
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
    """Topics, agents and tables as JSON. Raises SetupRefused when declarations and wiring differ."""
    from app.main import app
    from tables.rows import BY_TABLE

    if found := disagreements():
        raise SetupRefused("app/topics.py and the agents do not agree: " + "; ".join(found))
    return {
        "topics": [
            {"name": t.name, "key": t.key, "writers": list(t.writers), "readers": list(t.readers)} for t in TOPICS
        ],
        "agents": [
            {"name": name, "topics": list(a.channel.topics), "help": _help(a)} for name, a in app.agents.items()
        ],
        "tables": [{"name": name, "help": rows.help} for name, rows in BY_TABLE.items()],
    }


def lines() -> Iterator[str]:
    """The picture: one line per topic, then the agents, then the tables."""
    drawn = document()
    left = max(len(", ".join(t["writers"])) for t in drawn["topics"])
    middle = max(len(t["name"]) for t in drawn["topics"])
    for topic in drawn["topics"]:
        yield f"{', '.join(topic['writers']):>{left}} -> {topic['name']:<{middle}} -> {', '.join(topic['readers'])}"
    width = max(len(entry["name"]) for entry in drawn["agents"] + drawn["tables"])
    for title in ("agents", "tables"):
        yield ""
        yield title
        yield from (f"  {entry['name']:<{width}}  {entry['help']}" for entry in drawn[title])


def _and(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"


def _help(agent: Any) -> str:
    return str(agent.help or agent.fun.__doc__ or "").strip().splitlines()[0]
