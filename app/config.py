"""Every setting, read once from the environment (or `.env`). `python -m app config` prints the effective values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.errors import SetupRefused

INTERVALS = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    data_dir: Path = Field(
        Path("var"), description="folder of the embedded log, the embedded store, models and work files"
    )
    app_id: str = Field("streamforge", description="Faust's app id: consumer group and prefix of changelogs")
    kafka_bootstrap_servers: str = Field(
        "", description="must be empty in this version: the embedded log in DATA_DIR is the broker"
    )
    store_url: str = Field("", description="sqlite:///PATH; empty: store.db in DATA_DIR")
    binance_api_url: str = Field("", description="REST base of Binance spot, or of `python -m app exchange`")
    partitions: int = Field(
        4,
        ge=1,
        le=256,
        description="partitions of what is kept by symbol or task; fixed for an existing log",
    )
    raw_retention_h: int = Field(24 * 7, ge=1, description="hours that raw pages stay on their topics")
    market_retention_h: int = Field(24 * 7, ge=1, description="hours that market batches stay on their topics")
    candle_intervals: Annotated[tuple[str, ...], NoDecode] = Field(
        ("5m",), description="intervals of the candles made from trades, e.g. 1m,5m"
    )
    loader_backlog: int = Field(400, ge=1, description="batches the store may be behind before loaders pause")
    stop_deadline_s: float = Field(4.0, gt=0, le=30, description="seconds a stopped task has before it is killed")
    web_bind: str = Field("127.0.0.1", description="address of the web server; beyond loopback API_TOKEN is required")
    web_port: int = Field(6066, ge=1, le=65535, description="port of the web server")
    api_token: SecretStr | None = Field(None, description="bearer token for calls that change something")
    train_threads: int = Field(1, ge=1, le=64, description="threads of a training's child process")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged at least")
    log_format: Literal["json", "plain"] = Field("json", description="one JSON object a line, or text for people")

    @model_validator(mode="after")
    def _token_beyond_loopback(self) -> Settings:
        if self.web_bind not in LOOPBACK and not (self.api_token and self.api_token.get_secret_value()):
            raise ValueError(
                f"WEB_BIND={self.web_bind} is reachable from other machines: set API_TOKEN, or WEB_BIND=127.0.0.1"
            )
        return self

    @field_validator("candle_intervals", mode="before")
    @classmethod
    def _known_intervals(cls, said: str | tuple[str, ...]) -> tuple[str, ...]:
        intervals = tuple(part.strip() for part in said.split(",")) if isinstance(said, str) else said
        if unknown := [interval for interval in intervals if interval not in INTERVALS]:
            raise ValueError(f"{unknown[0]!r} is not an interval; known: {', '.join(INTERVALS)}")
        return intervals

    @field_validator("binance_api_url")
    @classmethod
    def _url_with_scheme(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address: write http://HOST:PORT or https://HOST")
        return url

    @property
    def log_path(self) -> Path:
        return self.data_dir.resolve() / "log.db"

    @property
    def store_path(self) -> Path:
        if not self.store_url:
            return self.data_dir.resolve() / "store.db"
        return Path(self.store_url.removeprefix("sqlite:///")).resolve()

    @property
    def models_dir(self) -> Path:
        return self.data_dir.resolve() / "models"

    @property
    def work_dir(self) -> Path:
        return self.data_dir.resolve() / "work"

    @property
    def broker(self) -> str:
        return f"embedded://{self.log_path}"

    @property
    def web_url(self) -> str:
        """Where this machine reaches the web server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.web_bind, self.web_bind)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.web_port}"


@cache
def settings() -> Settings:
    """The one instance. Raises SetupRefused naming each variable that cannot be used."""
    try:
        loaded = Settings()
    except SettingsError as error:
        raise SetupRefused(str(error)) from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SetupRefused("; ".join(lines)) from None
    if loaded.kafka_bootstrap_servers:
        raise SetupRefused("KAFKA_BOOTSTRAP_SERVERS: this version runs on its embedded log only; unset it")
    if loaded.store_url and not loaded.store_url.startswith("sqlite:///"):
        raise SetupRefused(f"STORE_URL: {loaded.store_url!r} is not known; today: sqlite:///PATH")
    return loaded
