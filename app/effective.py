"""The settings as a person may see them: value, where it comes from, meaning; nothing secret."""

from __future__ import annotations

import re
from typing import Any

from pydantic import SecretStr
from pydantic_settings import EnvSettingsSource

from app.config import Settings, settings

MASK = "********"
_PASSWORD_IN_URL = re.compile(r"(?<=//)[^/@\s]+@")


def effective() -> list[dict[str, Any]]:
    """One entry per setting: `name` of its variable, `value`, `source` (environment, .env, default), `description`."""
    said = EnvSettingsSource(Settings, env_ignore_empty=True)()
    chosen = settings()
    return [
        {
            "name": name.upper(),
            "value": shown(getattr(chosen, name)),
            "source": "environment" if name in said else ".env" if name in chosen.model_fields_set else "default",
            "description": field.description or "",
        }
        for name, field in Settings.model_fields.items()
    ]


def shown(value: Any) -> str | int | float | None:
    """A value as text or number; a secret as a mask, a password in an address left out."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return _PASSWORD_IN_URL.sub(f"{MASK}@", str(value))
