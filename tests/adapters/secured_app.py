"""A small Faust app with a table: source -> count -> sink. Run as a process; what it may do is what the test granted.

python -m tests.adapters.secured_app APP-ID SOURCE SINK worker    (KAFKA_... says where)
"""

from __future__ import annotations

import sys
from typing import Any

import faust

from adapters import faust_repair
from adapters.kafka.client import Connection
from app.config import Settings

app_id, source_name, sink_name = sys.argv[1:4]
settings = Settings()
faust_repair.register()
app = faust.App(
    app_id, broker=settings.broker, broker_credentials=Connection.of(settings).faust_credentials(), store="memory://",
    TableManager=faust_repair.TableManager, topic_partitions=1, topic_allow_declare=False, web_enabled=False,
)  # fmt: skip
source = app.topic(source_name, value_type=bytes, value_serializer="raw", key_serializer="raw", partitions=1)
sink = app.topic(sink_name, value_type=bytes, value_serializer="raw", partitions=1)
counts: Any = app.Table("counts", default=int, partitions=1)


@app.agent(source)
async def count(stream: Any) -> None:
    async for _ in stream:
        counts["all"] += 1
        await sink.send(value=str(counts["all"]).encode())


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
