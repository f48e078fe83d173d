"""Settings that cannot be used are refused at start, by name, with what to do."""

from collections.abc import Iterator

import pytest

from app.config import check_store_url, settings
from app.errors import SetupRefused


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BINANCE_API_URL", "127.0.0.1:8090"),
        ("BINANCE_WS_URL", "http://127.0.0.1:8090"),
        ("CANDLE_INTERVALS", "5m,7m"),
        ("ROLE", "process"),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("STORE_URL", "http://127.0.0.1:8529"),
        ("STORE_URL", "http://root:secret@127.0.0.1:8529/db"),
        ("STORE_URL", "http://root@127.0.0.1:8529/db,http://127.0.0.1:8530/other"),
        ("STORE_URL", "mongodb://root:secret@h/db"),
        ("WEB_PORT", "none"),
        ("WEB_BIND", "0.0.0.0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupRefused, match=name) as refused:
        settings()
    assert "secret" not in str(refused.value)


def test_coordinators_are_written_with_commas_and_the_first_names_user_and_database() -> None:
    url = "https://me@a.example:8529/market,https://b.example:8529"
    assert check_store_url(url) == (("https://a.example:8529", "https://b.example:8529"), "me", "market")


def test_intervals_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANDLE_INTERVALS", "1m, 5m")
    assert settings().candle_intervals == ("1m", "5m")


@pytest.mark.parametrize(("bind", "url"), [("0.0.0.0", "http://127.0.0.1:6066"), ("::1", "http://[::1]:6066")])
def test_the_address_of_the_page_can_be_opened(monkeypatch: pytest.MonkeyPatch, bind: str, url: str) -> None:
    monkeypatch.setenv("WEB_BIND", bind)
    monkeypatch.setenv("API_TOKEN", "t")
    assert settings().web_url == url


@pytest.mark.parametrize(
    ("api", "said", "url"),
    [
        ("http://127.0.0.1:8090", "", "ws://127.0.0.1:8090"),
        ("https://api.example", "", ""),
        ("https://api.example", "wss://stream.example:9443/", "wss://stream.example:9443"),
    ],
)
def test_only_on_loopback_one_address_serves_both_sides(
    monkeypatch: pytest.MonkeyPatch, api: str, said: str, url: str
) -> None:
    monkeypatch.setenv("BINANCE_API_URL", api)
    monkeypatch.setenv("BINANCE_WS_URL", said)
    assert settings().ws_url() == url
