"""`python -m app worker`: check the ground, make the topics, run the Faust worker until a signal ends it.

What can be refused is refused first, in one sentence: a setting that cannot be used, a log that another process owns,
an address that is taken; brokers that do not answer or do not know us, a right that lacks, a topic that is not as it
is declared. Exit code 0 after SIGTERM or SIGINT; what was at work goes on from its checkpoint, here or elsewhere. A
stop that cannot end, because brokers or store are away, is cut short (exit code 7): nothing more is acknowledged.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import threading
import time
from contextlib import closing, suppress
from signal import Signals

from adapters.embedded_log.log import Log
from app.config import settings
from app.errors import BrokerUnreachable, SetupRefused

STOP_WITHIN_S = 25.0  # less than the 30 s that Kubernetes gives
GC_AFTER = 50_000  # new objects: a page of trades has thousands, and none of them in a circle


def run() -> None:
    """Run until SIGTERM or SIGINT.

    Raises SetupRefused, LogInUse, LogDamaged, LogFull, StoreError, BrokerUnreachable.
    """
    config = settings()
    check_address(config.web_bind, config.web_port)
    if config.on_kafka:
        check_brokers()
        _work()
        return
    with closing(Log.open(config.log_path)) as log:
        ensure_topics(log)
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


def check_brokers() -> None:
    """The brokers know us and allow what this role does, and every topic is as it is declared.

    Faust itself would hang, starve or lose in silence. Raises SetupRefused with all that lacks, BrokerUnreachable.
    """
    from adapters.kafka import access, admin
    from adapters.kafka.client import Connection
    from app import topics

    config, connection = settings(), Connection.of(settings())
    reads, writes = topics.rights_of(config.role)
    declared = topics.specs(config.role)
    access.check(connection, reads=reads, writes=writes, looks_at=[s.name for s in declared], group=config.group)
    admin.check(connection, declared)


def ensure_topics(log: Log) -> None:
    """The same topics in the embedded log, created where they lack.

    Raises SetupRefused when one is stored with another number of partitions.
    """
    from app import topics

    for spec in topics.specs("all"):
        log.ensure_topic(spec.name, spec.partitions, compact=spec.compact, retention_ms=spec.retention_ms)


def _work() -> None:
    """The worker on an event loop of its own; errors of its start rise as they are, without a traceback of the loop."""
    import faust
    import uvloop

    from app import outside
    from app.main import app  # Faust and every agent: only after the ground is checked
    from app.web import replicas

    outside.store()
    config = settings()
    config.data_dir.resolve().mkdir(parents=True, exist_ok=True)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    replicas.start(loop)
    gc.collect()
    gc.freeze()  # modules and agents stay: no collection looks through them again
    gc.set_threshold(GC_AFTER)

    class Worker(faust.Worker):
        def _schedule_shutdown(self, signal: Signals) -> None:
            threading.Thread(target=_end_in_time, daemon=True).start()
            super()._schedule_shutdown(signal)

    worker = Worker(
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


def _end_in_time() -> None:
    from app.core import stop_process, waiting_agents

    time.sleep(STOP_WITHIN_S)
    what = ", ".join(waiting_agents()) or "the brokers"
    stop_process(BrokerUnreachable(f"the stop did not end within {STOP_WITHIN_S:g} s, it waits for {what}"))
