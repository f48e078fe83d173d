"""The whole application: importing this module declares every topic, table, agent and view.

`python -m faust -A app.main worker` starts it; `python -m app worker` does so after checking the ground it stands on.
Imports are explicit: Faust's discovery only warns when one fails, and a worker without agents looks healthy.
"""

from agents import build_graph, candles, dummy, ingest, normalize, queue_manager, run_tasks, store, train
from app import topics
from app.core import app
from app.web import views

AGENTS = (ingest, normalize, candles, store, queue_manager, run_tasks, build_graph, train, dummy)

__all__ = ["AGENTS", "app", "topics", "views"]
