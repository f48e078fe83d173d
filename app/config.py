"""Every setting, read once from the environment (or `.env`). `python -m app config` prints the effective values."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

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
    app_id: str = Field("streamforge", description="consumer group and prefix of changelogs; roles append their name")
    role: Literal["all", "control", "ingest", "process", "store", "train", "web"] = Field(
        "all", description="the part of the application this worker runs; roles other than `all` need brokers"
    )
    kafka_bootstrap_servers: str = Field(
        "", description="HOST:PORT[,HOST:PORT] of Kafka brokers; empty: the embedded log in DATA_DIR"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how the brokers are spoken to"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="how we say who we are, with SASL_SSL"
    )
    kafka_username: str = Field("", description="who we are to the brokers, with SASL_SSL")
    kafka_password: SecretStr | None = Field(None, description="its password; better: KAFKA_PASSWORD_FILE")
    kafka_password_file: Path | None = Field(None, description="file with the password")
    kafka_ca_file: str = Field("", description="who signed the brokers' certificates; empty: the system's authorities")
    kafka_cert_file: str = Field("", description="our own certificate, where the brokers ask for one")
    kafka_key_file: str = Field("", description="its private key")
    kafka_replication: int = Field(
        -1, ge=-1, le=7, description="replicas of the topics that `topics apply` makes; -1: the brokers' default"
    )
    kafka_session_timeout_s: float = Field(
        10.0, ge=6, le=60, description="a worker that says nothing for so long has lost its partitions"
    )
    table_store: Literal["memory", "rocksdb"] = Field(
        "memory", description="where tables live; rocksdb: in DATA_DIR, so that a restart reads only what is new"
    )
    store_url: str = Field(
        "",
        description="sqlite:///PATH, or ArangoDB's http(s)://USER@HOST:PORT/DATABASE[,http(s)://HOST:PORT]; "
        "empty: store.db in DATA_DIR",
    )
    store_password: SecretStr | None = Field(None, description="of ArangoDB's user; better: STORE_PASSWORD_FILE")
    store_password_file: Path | None = Field(None, description="file with the password")
    store_ca_file: str = Field("", description="who signed ArangoDB's certificates; empty: the usual authorities")
    store_timeout_s: float = Field(10.0, ge=1, le=300, description="an answer of ArangoDB that takes longer is lost")
    store_threads: int = Field(4, ge=1, le=64, description="requests to ArangoDB at a time")
    store_batch_rows: int = Field(1_000, ge=1, le=100_000, description="documents a request to ArangoDB")
    store_shards: int = Field(0, ge=0, le=1_000, description="of new collections in a cluster; 0: the database's own")
    store_replicas: int = Field(0, ge=0, le=10, description="of new collections in a cluster; 0: the database's own")
    binance_api_url: str = Field("", description="REST base of Binance spot, or of `python -m app exchange`")
    binance_ws_url: str = Field(
        "", description="WebSocket base of Binance spot; empty: BINANCE_API_URL's, where that is a loopback address"
    )
    binance_um_api_url: str = Field("", description="REST base of Binance USD-M futures; empty: as OKX_API_URL")
    binance_um_ws_url: str = Field("", description="WebSocket base of Binance USD-M futures; empty: as BINANCE_WS_URL")
    okx_api_url: str = Field(
        "", description="REST base of OKX; empty: BINANCE_API_URL, where that is loopback (a simulated exchange)"
    )
    okx_ws_url: str = Field("", description="WebSocket base of OKX; empty: OKX_API_URL's, where that is loopback")
    stream_flush_ms: int = Field(20, ge=1, le=50, description="live frames wait so long for others of their message")
    stream_stale_s: float = Field(3.0, gt=0, description="a live stream silent for so long is called stale")
    stream_silent_s: float = Field(60.0, gt=0, description="a live stream silent for so long is subscribed anew")
    connection_silent_s: float = Field(30.0, gt=0, description="a live connection silent for so long is replaced")
    connection_lifetime_s: float = Field(
        23.5 * 3600, gt=0, description="a live connection is replaced then; exchanges cut it after a day"
    )
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
    heal_after_s: float = Field(20.0, ge=6, description="a task that is not heard of for so long is started again")
    heal_limit: int = Field(3, ge=0, description="restarts of a silent or failed task before its run ends in error")
    repair_after_s: float = Field(30.0, ge=1, description="a hole in the ledger that stays so long is loaded again")
    repair_limit: int = Field(3, ge=0, description="times a hole is loaded again before it stays as it is")
    stop_deadline_s: float = Field(4.0, gt=0, le=30, description="seconds a stopped task has before it is killed")
    web_bind: str = Field("127.0.0.1", description="address of the web server; beyond loopback API_TOKEN is required")
    web_port: int = Field(6066, ge=1, le=65535, description="port of the web server")
    api_token: SecretStr | None = Field(None, description="bearer token for calls that change something")
    train_threads: int = Field(1, ge=1, le=64, description="threads of a training's child process")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged at least")
    log_format: Literal["json", "plain"] = Field("json", description="json: one object a line; plain: text for people")

    @model_validator(mode="after")
    def _token_beyond_loopback(self) -> Settings:
        if self.web_bind not in LOOPBACK and not (self.api_token and self.api_token.get_secret_value()):
            raise ValueError(
                f"WEB_BIND={self.web_bind} is reachable from other machines: set API_TOKEN, or WEB_BIND=127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _sasl_needs_a_name(self) -> Settings:
        if self.kafka_security_protocol == "SASL_SSL" and not (
            self.kafka_username and (self.kafka_password or self.kafka_password_file)
        ):
            raise ValueError("KAFKA_SECURITY_PROTOCOL=SASL_SSL needs KAFKA_USERNAME and KAFKA_PASSWORD_FILE")
        return self

    @field_validator("candle_intervals", mode="before")
    @classmethod
    def _known_intervals(cls, said: str | tuple[str, ...]) -> tuple[str, ...]:
        intervals = tuple(part.strip() for part in said.split(",")) if isinstance(said, str) else said
        if unknown := [interval for interval in intervals if interval not in INTERVALS]:
            raise ValueError(f"{unknown[0]!r} is not an interval; known: {', '.join(INTERVALS)}")
        return intervals

    @field_validator("binance_api_url", "binance_um_api_url", "okx_api_url")
    @classmethod
    def _url_with_scheme(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address: write http://HOST:PORT or https://HOST")
        return url

    @field_validator("binance_ws_url", "binance_um_ws_url", "okx_ws_url")
    @classmethod
    def _ws_url_with_scheme(cls, url: str) -> str:
        if url and not url.startswith(("ws://", "wss://")):
            raise ValueError(f"{url!r} is no address: write ws://HOST:PORT or wss://HOST")
        return url.rstrip("/")

    def api_url(self, venue: str = "binance") -> str:
        """REST base of a venue; empty where it is not known. A simulated exchange is all of them at one address."""
        said: str = getattr(self, f"{venue}_api_url", "")
        return said or (self.binance_api_url if urlsplit(self.binance_api_url).hostname in LOOPBACK else "")

    def ws_url(self, venue: str = "binance") -> str:
        """WebSocket base of a venue; empty where it is not known."""
        said: str = getattr(self, f"{venue}_ws_url", "")
        api = urlsplit(self.api_url(venue))
        if said or api.hostname not in LOOPBACK:
            return said
        return api._replace(scheme="wss" if api.scheme == "https" else "ws").geturl().rstrip("/")

    @property
    def log_path(self) -> Path:
        return self.data_dir.resolve() / "log.db"

    @property
    def store_path(self) -> Path:
        if not self.store_url:
            return self.data_dir.resolve() / "store.db"
        return Path(self.store_url.removeprefix("sqlite:///")).resolve()

    @property
    def on_arango(self) -> bool:
        return self.store_url.startswith(("http://", "https://"))

    def read_store_password(self) -> str:
        """Raises SetupRefused where its file cannot be read."""
        if self.store_password_file is None:
            return self.store_password.get_secret_value() if self.store_password else ""
        try:
            return self.store_password_file.read_text().strip()
        except OSError as error:
            raise SetupRefused(f"STORE_PASSWORD_FILE: {self.store_password_file}: {error.strerror}") from None

    @property
    def models_dir(self) -> Path:
        return self.data_dir.resolve() / "models"

    @property
    def work_dir(self) -> Path:
        return self.data_dir.resolve() / "work"

    @property
    def broker(self) -> str:
        """The address that Faust connects to."""
        if self.on_kafka:
            return ";".join(f"kafka://{server.strip()}" for server in self.kafka_bootstrap_servers.split(","))
        return f"embedded://{self.log_path}"

    @property
    def on_kafka(self) -> bool:
        return bool(self.kafka_bootstrap_servers)

    @property
    def group(self) -> str:
        """Faust's app id: one consumer group per role, because its members must have the same tables."""
        return self.group_of(self.role)

    def group_of(self, role: str) -> str:
        return self.app_id if role == "all" else f"{self.app_id}-{role}"

    @property
    def web_url(self) -> str:
        """Where this machine reaches the web server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.web_bind, self.web_bind)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.web_port}"


def check_store_url(url: str) -> tuple[tuple[str, ...], str, str]:
    """(addresses, user, database) of ArangoDB; the first part names user and database, the others only where.

    Raises SetupRefused. What is wrong with a part is said without the part: it may hold a secret.
    """
    first, *others = (urlsplit(part.strip()) for part in url.split(","))
    database = first.path.strip("/")
    for number, part in enumerate((first, *others), start=1):
        where = f"STORE_URL, part {number}"
        if part.password is not None:
            raise SetupRefused(f"{where} holds a password, which every log would show: put it into STORE_PASSWORD_FILE")
        if part.scheme not in ("http", "https") or not part.hostname:
            raise SetupRefused(f"{where} is no address: write http://HOST:PORT or https://HOST:PORT")
        if number > 1 and part.path.strip("/") not in ("", database):
            raise SetupRefused(f"{where} names another database: they are coordinators of one cluster")
    if not database or "/" in database:
        raise SetupRefused("STORE_URL names no database: write http://USER@HOST:PORT/DATABASE")
    addresses = tuple(f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in (first, *others))
    return addresses, first.username or "root", database


def choose_role(role: str) -> None:
    """`--role` for ROLE, before anything has read the settings."""
    os.environ["ROLE"] = role
    settings.cache_clear()


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
    if loaded.role != "all" and not loaded.on_kafka:
        raise SetupRefused(
            f"ROLE={loaded.role} needs brokers: the embedded log serves one process, which runs everything. "
            "Set KAFKA_BOOTSTRAP_SERVERS, or leave ROLE at `all`"
        )
    if loaded.store_url and not loaded.store_url.startswith(("sqlite:///", "http://", "https://")):
        raise SetupRefused(
            "STORE_URL is neither sqlite:///PATH nor http(s)://USER@HOST:PORT/DATABASE of an ArangoDB server"
        )
    if loaded.on_arango:
        check_store_url(loaded.store_url)
    return loaded
