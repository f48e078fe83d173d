"""Runs by queue_id; written by manage_queue only."""

from models.control import Workflow
from tables.rows import Rows

workflows: Rows[Workflow] = Rows("workflows", Workflow, partitions=1, help="Runs, their steps and states")
