"""The coverage ledger by stream, `venue:symbol:channel`; written by store_batches only."""

from app.config import settings
from models.coverage import Coverage
from tables.rows import Rows

coverage_by_stream: Rows[Coverage] = Rows(
    "coverage_by_stream", Coverage, partitions=settings().partitions, help="What is stored, missing, unrecoverable",
    message_key=lambda stream: stream.rpartition(":")[0],  # a ledger lies with its symbol
)  # fmt: skip
