"""Who may come in: Basic, or a JWT (HS256) that `/_open/auth` gave out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

import orjson

from adapters.arango_double.errors import ArangoError


class Auth:
    """Without a password everybody may. `token_s` is how long a token holds; short, it tests renewal."""

    def __init__(self, password: str | None, *, token_s: float, now: Callable[[], float]) -> None:
        self._password, self._token_s, self._now = password, token_s, now
        self._secret = secrets.token_bytes(32)

    def token(self, asked: dict[str, Any]) -> str:
        """For `{username, password}`. Raises 400, 401."""
        name, password = asked.get("username"), asked.get("password")
        if not isinstance(name, str) or not isinstance(password, str):
            raise ArangoError(400)
        if self._password is not None and not self._is_known(name, password):
            raise ArangoError(401, "Wrong credentials")
        now = int(self._now())
        claims = {"preferred_username": name, "iss": "arangodb", "iat": now, "exp": now + int(self._token_s)}
        signed = f"{_packed({'alg': 'HS256', 'typ': 'JWT'})}.{_packed(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def check(self, header: str | None) -> None:
        """The header Authorization. Raises 401 with errorNum 11, as the server does for a token that is over."""
        if self._password is None:
            return
        kind, _, rest = (header or "").partition(" ")
        if kind.lower() == "basic" and self._is_basic(rest):
            return
        if kind.lower() == "bearer" and self._is_token(rest.strip()):
            return
        raise ArangoError(11, "not authorized to execute this request", status=401)

    def revoke(self) -> None:
        """All tokens given out so far are over."""
        self._secret = secrets.token_bytes(32)

    def _is_known(self, name: str, password: str) -> bool:
        return name == "root" and hmac.compare_digest(password.encode(), (self._password or "").encode())

    def _is_basic(self, told: str) -> bool:
        try:
            name, _, password = base64.b64decode(told, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return self._is_known(name, password)

    def _is_token(self, told: str) -> bool:
        signed, _, signature = told.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            return False
        claims = orjson.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        return bool(claims["exp"] > self._now())

    def _signature(self, signed: str) -> str:
        return _base64(hmac.digest(self._secret, signed.encode(), hashlib.sha256))


def _packed(value: Any) -> str:
    return _base64(orjson.dumps(value))


def _base64(told: bytes) -> str:
    return base64.urlsafe_b64encode(told).rstrip(b"=").decode()
