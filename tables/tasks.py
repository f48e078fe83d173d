"""Tasks by task_id: step, attempt, checkpoint; written by run_tasks only."""

from app.config import settings
from models.control import Task
from tables.rows import Rows

tasks: Rows[Task] = Rows("tasks", Task, partitions=settings().partitions, help="Tasks with their checkpoints")
