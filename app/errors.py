"""Every error StreamForge raises on purpose, with the exit code and the HTTP status it becomes.

    StreamForgeError            1  500
    ├── CommandRejected         2  422   a wish that cannot be granted: names the field and what is allowed
    │   └── UnknownRun          2  404
    ├── SetupRefused            3  500   a setting, topic or file that forbids to start: says what to do
    │   ├── LogInUse            3  500
    │   └── KafkaUnavailable    3  500   no local Kafka can be started here: a tool is missing
    ├── LogDamaged              4  500   the embedded log cannot be read; nothing acknowledged was dropped
    ├── LogFull                 4  507   the disk took no more; nothing acknowledged was dropped
    ├── RunFailed               5  500   a run ended in error, was interrupted, or its coverage has holes
    ├── TaskLost                1  500   a task's process ended without a word: the task is tried again
    ├── VerifyFailed            6  500   source, topic and store do not agree
    ├── WorkerUnreachable       7  503   no worker answers where one is needed
    ├── BrokerUnreachable       7  503   no broker answers at KAFKA_BOOTSTRAP_SERVERS
    ├── ExchangeError           8  502   the exchange's answer cannot be used
    │   ├── ExchangeBusy        8  503   429/418/5xx/connection: try again after `retry_after_s`
    │   └── ExchangeRefused     8  502   4xx that is our fault: trying again changes nothing
    └── StoreError              9  500   the store cannot go on
        └── StoreBusy           9  503   try again after `retry_after_s`

Exit codes are stable: scripts depend on them. Beside these: 70, a worker that could neither do nor put aside its work
and ended without acknowledging it; 130, interrupted.
"""

from __future__ import annotations


class StreamForgeError(Exception):
    """Root of the tree; the message is a sentence a user can act on."""

    exit_code = 1
    http_status = 500


class CommandRejected(StreamForgeError):
    """`field` is at fault; `message` says what it got and what is allowed."""

    exit_code = 2
    http_status = 422

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UnknownRun(CommandRejected):
    http_status = 404

    def __init__(self, queue_id: str) -> None:
        super().__init__("queue_id", f"no run is called {queue_id!r}; `python -m app status` lists the known ones")


class SetupRefused(StreamForgeError):
    exit_code = 3


class LogInUse(SetupRefused):
    """Another process owns the embedded log."""


class KafkaUnavailable(SetupRefused):
    """Java, Maven or what Maven fetches is missing on this machine."""


class LogDamaged(StreamForgeError):
    exit_code = 4


class LogFull(StreamForgeError):
    exit_code = 4
    http_status = 507


class RunFailed(StreamForgeError):
    exit_code = 5


class TaskLost(StreamForgeError):
    """An attempt of a task ended without a word of its own (its process was killed): it is tried again."""


class VerifyFailed(StreamForgeError):
    exit_code = 6


class WorkerUnreachable(StreamForgeError):
    exit_code = 7
    http_status = 503


class BrokerUnreachable(StreamForgeError):
    exit_code = 7
    http_status = 503


class ExchangeError(StreamForgeError):
    exit_code = 8
    http_status = 502


class ExchangeBusy(ExchangeError):
    http_status = 503

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ExchangeRefused(ExchangeError):
    """A 4xx answer that is our fault; `code` is the exchange's own error number."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class StoreError(StreamForgeError):
    exit_code = 9


class StoreBusy(StoreError):
    http_status = 503

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
