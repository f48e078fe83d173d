"""The application of a role: importing this module declares its topics, tables, agents and views.

`python -m app worker --role ROLE` starts it after checking the ground; `all`, the default, is the whole application
in one process. Imports are explicit: Faust's discovery only warns when one fails, and a worker without agents looks
healthy.
"""

from importlib import import_module

from app import topics
from app.config import settings
from app.core import app

# `run_tasks` runs the work that is imported beside it; `heal` looks after what `queue_manager` has launched.
MODULES_OF_ROLE: dict[str, tuple[str, ...]] = {
    "control": ("queue_manager", "heal", "repair"),
    "ingest": ("run_tasks", "ingest", "stream", "dummy"),
    "process": ("normalize", "candles", "books"),
    "store": ("store", "run_tasks"),
    "train": ("run_tasks", "build_graph", "train"),
    "web": (),
}
MODULES_OF_ROLE["all"] = (*dict.fromkeys(name for modules in MODULES_OF_ROLE.values() for name in modules),)

AGENTS = tuple(import_module(f"agents.{name}") for name in MODULES_OF_ROLE[settings().role])
VIEWS = import_module("app.web.views")

__all__ = ["AGENTS", "MODULES_OF_ROLE", "VIEWS", "app", "topics"]
