"""Who may call, what is answered before the tables are recovered, and the one shape of every error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from pydantic import SecretStr, ValidationError

from app import auth
from app.config import Settings
from app.errors import CommandRejected, StoreBusy, UnknownRun
from app.web import guard as guarding
from app.web.guard import guard, stranger

OWN = "127.0.0.1:6066"
Client = TestClient[Any, Any]


def why(method: str = "POST", *, on_loopback: bool = True, **headers: str) -> str:
    return stranger(make_mocked_request(method, "/queues/start", headers), on_loopback=on_loopback)


@pytest.mark.parametrize("host", [OWN, "localhost:6066", "[::1]:6066", "localhost"])
def test_loopback_names_are_answered(host: str) -> None:
    assert why(Host=host) == ""
    assert why(Host=host, Origin=f"http://{host}") == ""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:6066", "", "[", "192.168.0.7:6066"])
def test_another_name_for_loopback_is_refused_even_for_reading(host: str) -> None:
    assert "WEB_BIND" in why("GET", Host=host)
    assert "WEB_BIND" in why(Host=host, Origin=f"http://{host}")  # a name rebound to 127.0.0.1 is its own origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:6066", "http://["]
)
@pytest.mark.parametrize("on_loopback", [True, False])
def test_a_changing_call_from_a_foreign_page_is_refused(origin: str, on_loopback: bool) -> None:
    assert "own page" in why(Host=OWN, Origin=origin, on_loopback=on_loopback)
    assert why("GET", Host=OWN, Origin=origin, on_loopback=on_loopback) == ""


def test_a_websocket_from_a_foreign_page_is_refused() -> None:
    assert "own page" in why("GET", Host=OWN, Origin="https://evil.example", Upgrade="websocket")
    assert why("GET", Host=OWN, Origin=f"http://{OWN}", Upgrade="websocket") == ""


def test_beyond_loopback_every_name_is_answered() -> None:
    assert why(Host="forge.example", Origin="https://forge.example", on_loopback=False) == ""


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "192.168.0.7"])
def test_beyond_loopback_the_settings_are_refused_without_a_token(bind: str) -> None:
    for token in (None, SecretStr("")):
        with pytest.raises(ValidationError, match="API_TOKEN"):
            Settings(_env_file=None, web_bind=bind, api_token=token)
    assert Settings(_env_file=None, web_bind=bind, api_token=SecretStr("t")).web_bind == bind


async def boom(request: web.Request) -> web.Response:
    errors: dict[str, Exception] = {
        "rejected": CommandRejected("symbol", "no"),
        "unknown": UnknownRun("x"),
        "busy": StoreBusy("later", 2.4),
        "large": web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2),
        "fault": KeyError("secret detail"),
    }
    if error := errors.get(request.match_info["what"]):
        raise error
    return web.json_response({"well": True})


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A server with our two middlewares in the worker's order."""
    app = web.Application(middlewares=[auth.require_token, guard])
    app.router.add_route("*", "/health/{what}", boom)
    app.router.add_route("*", "/data/{what}", boom)
    app.router.add_get("/only-get", boom)
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture(autouse=True)
def recovered(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def say(so: bool) -> None:
        monkeypatch.setattr(guarding, "recovered", lambda: so)

    say(True)
    return say


@pytest.mark.parametrize(
    ("what", "status", "body"),
    [
        ("well", 200, {"well": True}),
        ("rejected", 422, {"error": "symbol: no", "field": "symbol"}),
        ("unknown", 404, {"error": str(UnknownRun("x")), "field": "queue_id"}),
        ("busy", 503, {"error": "later"}),
        ("large", 413, {"error": "GET /data/large: Request Entity Too Large"}),
        ("fault", 500, {"error": "this is a fault of StreamForge; the worker's log says more"}),
    ],
)
async def test_every_error_has_one_shape(client: Client, what: str, status: int, body: Any) -> None:
    answer = await client.get(f"/data/{what}")
    assert (answer.status, await answer.json()) == (status, body)
    if what == "busy":
        assert answer.headers["Retry-After"] == "2"


async def test_unknown_addresses_and_methods_have_the_same_shape(client: Client) -> None:
    assert "error" in await (await client.get("/nowhere")).json()
    answer = await client.post("/only-get")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert "error" in await answer.json()


async def test_until_the_tables_are_recovered_only_health_answers(
    client: Client, recovered: Callable[[bool], None]
) -> None:
    recovered(False)
    answer = await client.get("/data/well")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "recovered" in (await answer.json())["error"]
    assert (await client.get("/health/well")).status == 200
    recovered(True)
    assert (await client.get("/data/well")).status == 200


async def test_a_foreign_page_gets_403(client: Client) -> None:
    assert (await client.post("/data/well", headers={"Origin": "https://evil.example"})).status == 403
    assert (await client.get("/data/well", headers={"Host": "evil.example"})).status == 403


async def test_where_a_token_is_set_changing_needs_it_and_reading_does_not(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "settings", lambda: Settings(_env_file=None, api_token=SecretStr("open sesame")))
    assert (await client.post("/data/well")).status == 401
    for said in ("Bearer wrong", "Basic open sesame", "Bearer ", "open sesame"):
        answer = await client.post("/data/well", headers={"Authorization": said})
        assert answer.status == 401
        assert "API_TOKEN" in (await answer.json())["error"]
    assert (await client.post("/data/well", headers={"Authorization": "Bearer open sesame"})).status == 200
    assert (await client.get("/data/well")).status == 200
