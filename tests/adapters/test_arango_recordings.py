"""The double of ArangoDB answers as the recorded server did, wherever it answers at all.

`-s` prints the table. What it supports may grow, not shrink: arango_supported.txt names the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters.arango_double.server import ArangoDouble
from tests.adapters.arango_recordings import Stage, folder, replay_query, rows

_SUPPORTED = Path(__file__).with_name("arango_supported.txt")

pytestmark = pytest.mark.skipif(
    folder() is None,
    reason="no recorded answers: set ARANGO_RECORDINGS to their folder, or RECORDED_DATA to the folder beside it",
)


@pytest.mark.parametrize(
    ("kind", "replay"), [("http", Stage.replay), ("aql", replay_query)], ids=["requests", "queries"]
)
def test_the_double_answers_as_the_recorded_server(
    kind: str, replay: Callable[[Stage, dict[str, Any]], str], tmp_path: Path
) -> None:
    outcomes: dict[str, str] = {}
    with closing(ArangoDouble(tmp_path / "shared")) as shared:
        for number, row in enumerate(rows(kind)):
            if kind == "aql" and not row["options"].get("dataset"):  # reads no collection
                outcomes[row["name"]] = replay(Stage(shared), row)
                continue
            with closing(ArangoDouble(tmp_path / str(number))) as double:
                outcomes[row["name"]] = replay(Stage(double), row)
    table = Counter("passed" if not text else text.split(":")[0] for text in outcomes.values())
    print(kind, dict(table))  # noqa: T201 -- the table that the docstring speaks of
    failed = {name: text for name, text in outcomes.items() if text and not text.startswith("not supported")}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
    wanted = {line.split()[1] for line in _SUPPORTED.read_text().splitlines() if line.startswith(kind)}
    assert not wanted - {name for name, text in outcomes.items() if not text}, "these answers were supported before"
