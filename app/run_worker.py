"""`python -m app worker`: check the ground, make the topics, run the Faust worker until a signal ends it.

What can be refused is refused before Faust is imported, in one sentence: a setting that cannot be used, a log that
another process owns, an address that is taken. Exit code 0 after SIGTERM or SIGINT; what was at work goes on from its
checkpoint after the next start.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from adapters.embedded_log.log import Log
from app.config import settings
from app.errors import SetupRefused

if TYPE_CHECKING:
    import faust


def run() -> None:
    """Run until SIGTERM or SIGINT. Raises SetupRefused, LogInUse, LogDamaged, LogFull, StoreError."""
    config = settings()
    check_address(config.web_bind, config.web_port)
    with closing(Log.open(config.log_path)) as log:
        from app import outside
        from app.main import app  # Faust and every agent: only after the ground is checked

        outside.store()
        ensure_topics(log, app)
        _work()


def check_address(host: str, port: int) -> None:
    """Raises SetupRefused when nothing can listen there; the worker itself would fail late and at length."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SetupRefused(
                    f"WEB_PORT: {host}:{port} is in use by another process; choose another port"
                ) from None
            raise SetupRefused(f"WEB_BIND: nothing can listen on {host}:{port} ({error.strerror})") from None


def ensure_topics(log: Log, app: faust.App) -> None:
    """Every declared topic, the changelog of every table, and Faust's leader topic, as they are declared.

    Raises SetupRefused when one is stored with another number of partitions.
    """
    from app import topics
    from tables.rows import BY_TABLE

    for topic in topics.TOPICS:
        log.ensure_topic(topic.name, topic.partitions, compact=False, retention_ms=topic.retention_ms)
    for name, rows in BY_TABLE.items():
        log.ensure_topic(topics.changelog(name), rows.partitions, compact=True)
    log.ensure_topic(f"{app.conf.id}-__assignor-__leader", 1)


def _work() -> None:
    """The worker on an event loop of its own; errors of its start rise as they are, without a traceback of the loop."""
    import faust
    import uvloop

    from app.main import app

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    config = settings()
    worker = faust.Worker(
        app,
        loop=loop,
        loglevel=config.log_level,
        logging_config=dict(app.conf.logging_config),
        redirect_stdouts=False,
        quiet=True,
    )
    try:
        with suppress(asyncio.CancelledError):  # a signal came while it was starting
            loop.run_until_complete(worker.start())
    finally:
        worker.stop_and_shutdown()
