"""The running worker as a command line sees it: HTTP in, records out, one error class per kind of answer.

Imports nothing heavy: a command that only asks must answer at once.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

from app.errors import CommandRejected, StreamForgeError, UnknownRun, WorkerUnreachable

Json = dict[str, Any]

TIMEOUT_S = 10.0
EVENTS_PER_CALL = 500
TERMINAL = ("finished", "error", "interrupted")


class Worker:
    """A worker's HTTP calls. Every call raises WorkerUnreachable when none answers."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def ready(self) -> bool:
        """False while the worker recovers its tables."""
        try:
            self._call("GET", "/health/ready")
        except WorkerUnreachable as error:
            if isinstance(error.__cause__, urllib.error.HTTPError):
                return False
            raise
        return True

    def start(self, command: Json) -> Json:
        """Raises CommandRejected naming the field at fault; nothing was started then."""
        return self._call("POST", "/queues/start", command)

    def stop(self, queue_id: str) -> Json:
        return self._call("POST", "/queues/stop", {"queue_id": queue_id}, run=queue_id)

    def command(self, command: Json) -> Json:
        """Any other command, as it would be written to `queue-control`."""
        return self._call("POST", "/commands", command, run=str(command.get("queue_id", "")))

    def runs(self) -> list[Json]:
        found: list[Json] = []
        page: Json = {"more": True}
        while page["more"]:
            page = self._call("GET", f"/queues?{urlencode({'after': found[-1]['queue_id']})}" if found else "/queues")
            found += page["queues"]
        return found

    def run(self, queue_id: str) -> Json:
        """Raises UnknownRun."""
        return self._call("GET", f"/queues/{quote(queue_id)}", run=queue_id)

    def events(self, queue_id: str, after: int = -1, limit: int = EVENTS_PER_CALL) -> list[Json]:
        """Events behind offset `after`, oldest first, each with its `offset`. Raises UnknownRun."""
        query = urlencode({"after": after, "limit": limit})
        found: list[Json] = self._call("GET", f"/queues/{quote(queue_id)}/events?{query}", run=queue_id)["events"]
        return found

    def last_offset(self, queue_id: str) -> int:
        """Offset of the run's newest event, so that an older answer is not taken for a new one; -1: none yet."""
        last = -1
        with suppress(UnknownRun):
            while page := self.events(queue_id, after=last):
                last = page[-1]["offset"]
        return last

    def report(self, queue_id: str) -> Json:
        return self._call("GET", f"/queues/{quote(queue_id)}/report", run=queue_id)

    def coverage(self) -> list[Json]:
        """Every stream's ledger."""
        found: list[Json] = self._call("GET", "/coverage")["streams"]
        return found

    def _call(self, method: str, path: str, body: Json | None = None, run: str = "") -> Json:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                found: Json = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise _refusal(error, self.url + path, run) from error
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or error
            raise WorkerUnreachable(
                f"no worker answers at {self.url} ({reason}): start one with `python -m app worker`, or set WEB_PORT"
            ) from error


def _refusal(error: urllib.error.HTTPError, url: str, run: str) -> StreamForgeError:
    """An HTTP status as the error class it was made from."""
    try:
        said = json.load(error)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    text = str(said.get("error") or said.get("detail") or error.reason)
    if error.code == 404 and run:
        return UnknownRun(run)
    if error.code in (404, 422):
        field = str(said.get("field") or "request")
        return CommandRejected(field, text.removeprefix(f"{field}: "))
    if error.code == 401:
        return CommandRejected("API_TOKEN", f"{text} (set API_TOKEN to the worker's)")
    if error.code == 503:
        return WorkerUnreachable(f"the worker is not ready yet: {text}")
    return StreamForgeError(f"{url} answered {error.code}: {text}")
