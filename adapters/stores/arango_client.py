"""How the store speaks to ArangoDB: python-arango's sessions, hosts and tokens beneath, our own rules for what fails.

A call is sent once to each coordinator at most; what to do after that is decided here and by who called, because only
they know what may be sent again. Tokens (JWT) are renewed when the server no longer takes one. Neither a password nor
a token appears in a message, a log line or a repr.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jwt
import orjson
import requests
from arango.client import ArangoClient
from arango.connection import JwtConnection
from arango.exceptions import ArangoError, JWTAuthError
from arango.http import DefaultHTTPClient
from arango.request import Request
from arango.response import Response

from adapters.stores.arango_batches import FATAL, Patience
from app.errors import StoreBusy, StoreError

MOST_QUEUED_S = 30.0  # a call that waits longer at the server is refused there (412, 21004) and comes again
SLOW_S = 0.1  # a queue longer than this slows the writer down
CALLERS = 32  # threads that call at a time beside the store's own: as many as asyncio keeps
_UNUSABLE = 2  # tries with a fresh token

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where the database is and who we are. `ca_file`: who signed the servers' certificates."""

    urls: tuple[str, ...]
    database: str
    user: str = "root"
    password: str = field(default="", repr=False)
    ca_file: str = ""
    timeout_s: float = 10.0

    def __str__(self) -> str:
        return f"{','.join(self.urls)}/{self.database}"


class Refused(Exception):
    """The server understood the call and says no: HTTP status, error number, message."""

    def __init__(self, status: int, number: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status}, ArangoDB error {number})")
        self.status, self.number, self.message = status, number, message


class Away(Exception):
    """No coordinator answered, or the answer says to come again later: what was sent may or may not have had effect."""

    def __init__(self, message: str, retry_after_s: float = 0.0, *, slow: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.slow = retry_after_s, slow


class _Http(DefaultHTTPClient):
    """Without what the environment says of proxies and ~/.netrc, which requests reads anew at each call."""

    def create_session(self, host: str) -> requests.Session:
        session = super().create_session(host)
        session.trust_env = False
        return session


class Client:
    """Calls to one database; any thread may use it. Connects at the first call."""

    def __init__(self, address: Address, threads: int) -> None:
        self.address = address
        self.queue_s = 0.0  # how long the last call waited at the server
        self._lock = threading.Lock()
        self._connections: dict[str, JwtConnection] = {}
        self._arango = ArangoClient(
            hosts=list(address.urls),
            http_client=_Http(request_timeout=address.timeout_s, retry_attempts=0, pool_maxsize=threads + CALLERS),
            resolver_max_tries=len(address.urls),
            serializer=lambda value: orjson.dumps(value).decode(),
            deserializer=orjson.loads,
            verify_override=address.ca_file or None,
        )

    def call(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None, database: str = "",
    ) -> Response:  # fmt: skip
        """The answer to a call that was carried out. Raises Refused, Away, StoreError (we are not let in)."""
        data = body if body is None or isinstance(body, str) else orjson.dumps(body).decode()
        try:
            for _ in range(_UNUSABLE):
                connection = self._connection(database or self.address.database)
                request = Request(method, path, params=dict(params or {}), data=data)
                request.headers["x-arango-queue-time-seconds"] = f"{MOST_QUEUED_S:g}"
                answer = connection.send_request(request)
                if answer.status_code != 401:
                    return self._read(answer)
                self._renew(connection)
        except JWTAuthError as error:
            if error.http_code in (401, 403, 404):
                raise self._not_let_in(error.http_code) from None
            raise Away(f"{self.address} gives no token (HTTP {error.http_code})") from None
        except jwt.PyJWTError as error:
            raise StoreError(
                f"{self.address} gives a token that cannot be used here ({error}): set both machines' clocks"
            ) from None
        except (requests.RequestException, ArangoError, OSError) as error:
            raise Away(f"{self.address} does not answer: {_reason(error)}") from None
        raise self._not_let_in(401)

    def persist(self, ask: Callable[[], T], patience: Patience, wait: Callable[[float], Any]) -> T:
        """`ask` until it is answered. Raises StoreBusy when patience ends, StoreError for what trying cannot mend.

        For calls that may be carried out twice without harm.
        """
        tried, waited = 0, 0.0
        while True:
            try:
                return ask()
            except Refused as refused:
                raise self.fatal(refused) from None
            except Away as away:
                tried += 1
                delay = patience.delay(tried, away.retry_after_s)
                if waited + delay > patience.in_all_s:
                    raise StoreBusy(f"{away}; tried {tried} times", retry_after_s=patience.most_s) from None
            wait(delay)
            waited += delay

    def fatal(self, refused: Refused) -> StoreError:
        """What the server refused, in words that say what to do."""
        advice = {
            11: f"grant the user {self.address.user!r} read and write access to the database",
            1203: "it was dropped while we used it: start again, and load what it held",
            1228: "it was dropped while we used it: start again, and load what it held",
        }.get(refused.number, "")
        return StoreError(f"{self.address}: {refused}" + (f"; {advice}" if advice else ""))

    def close(self) -> None:
        self._arango.close()

    def _read(self, answer: Response) -> Response:
        queued = answer.headers.get("x-arango-queue-time-seconds")
        self.queue_s = _number(queued)
        status, body = answer.status_code, answer.body
        if 200 <= status < 300:
            return answer
        number = int(body.get("errorNum") or 0) if isinstance(body, dict) else 0
        message = str(body.get("errorMessage") or "") if isinstance(body, dict) else ""
        if number in FATAL:
            raise Refused(status, number, message)
        slow = status in (429, 503) or number in (21003, 21004)
        if slow or status >= 500 or number in (1004, 1429, 1200):
            said = Refused(status, number, message or answer.status_text)
            raise Away(f"{self.address}: {said}", max(self.queue_s, SLOW_S if slow else 0.0), slow=slow)
        raise Refused(status, number, message or answer.status_text)

    def _connection(self, database: str) -> JwtConnection:
        with self._lock:
            if database not in self._connections:
                address = self.address
                opened = self._arango.db(database, address.user, address.password, auth_method="jwt").conn
                assert isinstance(opened, JwtConnection)
                self._connections[database] = opened
            return self._connections[database]

    def _renew(self, connection: JwtConnection) -> None:
        """A new token: the old one ran out, or the server was started anew with another secret."""
        with self._lock:
            connection.refresh_token()

    def _not_let_in(self, status: int) -> StoreError:
        return StoreError(
            f"{self.address} does not let the user {self.address.user!r} in (HTTP {status}): "
            "check STORE_PASSWORD_FILE, and that the server asks for passwords"
        )


def _reason(error: Exception) -> str:
    """The kind of failure; the text of a request's error may hold more than a log should."""
    return type(error).__name__ if not isinstance(error, ConnectionAbortedError) else "connection failed"


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
