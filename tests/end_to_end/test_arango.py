"""The whole path on a store that is a server: ArangoDB's stand-in, the embedded log or brokers, real workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters.stores.arango_client import Address
from app.pipelines import Stages
from tests.arango import elsewhere, open_store, settings_of
from tests.end_to_end.test_load import LOAD, begin, verify

Start = Callable[..., Any]


@pytest.mark.timeout(240)  # on a busy machine; alone it takes some 20 s
def test_candles_become_a_graph_and_a_model_on_arangodb(
    arango: Address, start_worker: Start, start_exchange: Start
) -> None:
    own = elsewhere(arango)
    worker = start_worker(start_exchange(), **settings_of(own))
    begin(worker, "model", "2025-08-20:2025-08-25", Stages(trades=False), epochs=1)
    begin(worker, "hours", "2025-08-20T00:00:00:2025-08-20T06:00:00", LOAD)
    assert worker.wait_for_end("model", 200)["status"] == "finished", worker.said()
    assert worker.wait_for_end("hours", 60)["status"] == "finished", worker.said()
    assert not (Path(worker.folder) / "store.db").exists()
    for run in ("model", "hours"):
        code, document = verify(worker, run)
        assert (code, document["differences"]) == (0, 0), document
    with closing(open_store(own, read_only=True)) as store:
        [model] = [row for batch in store.scan("models") for row in batch.to_pylist()]
        assert model["queue_id"] == "model"
