"""How a client reaches the brokers: one set of settings, spoken to librdkafka and to Faust's aiokafka.

KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, ... -> Connection -> both clients
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import SetupRefused


@dataclass(frozen=True)
class Connection:
    """Where the brokers are and who we are to them. Secrets are never part of its text."""

    bootstrap: str  # host:port[,host:port]
    protocol: str = "PLAINTEXT"  # PLAINTEXT, SSL, SASL_SSL
    mechanism: str = "SCRAM-SHA-512"  # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
    username: str = ""
    password: str = ""
    ca_file: str = ""  # who signed the brokers' certificates; empty: the system's authorities
    cert_file: str = ""  # our own certificate, where the brokers ask for one
    key_file: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Connection:
        """Raises SetupRefused for a file that cannot be read."""
        password = settings.kafka_password.get_secret_value() if settings.kafka_password else ""
        if settings.kafka_password_file:
            password = _read(settings.kafka_password_file, "KAFKA_PASSWORD_FILE")
        return cls(
            bootstrap=settings.kafka_bootstrap_servers,
            protocol=settings.kafka_security_protocol,
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=password,
            ca_file=settings.kafka_ca_file,
            cert_file=settings.kafka_cert_file,
            key_file=settings.kafka_key_file,
        )

    def __repr__(self) -> str:
        return f"Connection({self.bootstrap}, {self.protocol}{f', as {self.username}' if self.username else ''})"

    @property
    def uses_tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.protocol.startswith("SASL")

    def librdkafka(self) -> dict[str, Any]:
        """What confluent-kafka's clients are made with; who makes one adds what is its own."""
        known: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": self.protocol,
            "allow.auto.create.topics": False,
            "log_level": 4,  # warnings
        }
        if self.uses_sasl:
            known |= {"sasl.mechanism": self.mechanism, "sasl.username": self.username, "sasl.password": self.password}
        files = {
            "ssl.ca.location": self.ca_file, "ssl.certificate.location": self.cert_file,
            "ssl.key.location": self.key_file,
        }  # fmt: skip
        return known | ({name: value for name, value in files.items() if value} if self.uses_tls else {})

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """Raises SetupRefused for a certificate that cannot be used."""
        if not self.uses_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise SetupRefused(f"KAFKA_CA_FILE, KAFKA_CERT_FILE, KAFKA_KEY_FILE: cannot be used: {error}") from None
        return context

    def faust_credentials(self) -> Any:
        """Faust's `broker_credentials`; None where none are needed."""
        from faust import SASLCredentials, SSLCredentials
        from faust.types.auth import SASLMechanism

        if self.uses_sasl:
            return SASLCredentials(
                username=self.username, password=self.password, mechanism=SASLMechanism(self.mechanism),
                ssl_context=self.ssl_context,
            )  # fmt: skip
        return SSLCredentials(self.ssl_context) if self.uses_tls else None


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SetupRefused(f"{setting}: {path}: {error.strerror}") from None
