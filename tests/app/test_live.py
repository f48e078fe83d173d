"""`python -m app live`: what it asks for, and the only folder it removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.demo import DEMO_MARK
from app.errors import SetupRefused
from app.live import empty_folder, history_command
from models.control import plan


def test_history_reaches_to_the_moment_it_is_asked_for() -> None:
    steps = plan(history_command("ETHUSDT", 1_755_648_000.9)).steps
    assert [step.range_ms for step in steps] == [(1_755_640_800_000, 1_755_648_000_000)] * 2


def test_only_a_folder_of_its_own_is_made_anew(tmp_path: Path) -> None:
    folder = empty_folder(tmp_path / "live")
    (folder / "store.db").touch()
    assert [path.name for path in empty_folder(folder).iterdir()] == [DEMO_MARK]
    (folder / DEMO_MARK).rename(folder / "mine")
    with pytest.raises(SetupRefused, match="not ours"):
        empty_folder(folder)
    assert (folder / "mine").exists()
