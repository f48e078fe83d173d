"""`make live` as a user meets it: exchange, worker and dashboard, and a connection that is cut while they look."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import WITNESS, keep, needs_chromium
from tests.processes import Process, call, free_port, wait_for

pytestmark = needs_chromium
CUT_S = 6


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Process]:
    env = {"DATA_DIR": str(tmp_path), "WEB_PORT": str(free_port()), "COLUMNS": "200"}
    process = Process("live", ["live"], tmp_path, env)
    yield process
    process.kill()


def address(live: Process) -> str:
    [found] = re.findall(r"The page is at (\S+) ;", live.said())
    return str(found)


def exchange(folder: Path) -> str:
    lines = (folder / "live" / "exchange.log").read_text().splitlines()
    return str(next(json.loads(line)["url"] for line in lines if line.startswith('{"') and "url" in line))


def test_eth_moves_a_cut_is_said_and_its_hole_is_filled(live: Process, tmp_path: Path, page: Page) -> None:
    wait_for(lambda: "The page is at" in live.said() or live.popen.poll() is not None, explain=live.said)
    page.add_init_script(WITNESS)
    page.goto(address(live))
    badge = page.locator("#feed-state")
    expect(badge).to_have_text("live")
    expect(page.locator("#simulated")).to_be_visible()
    expect(page.locator("#asks tr:visible")).to_have_count(12)
    volume = page.locator("#ohlc-v").text_content() or ""
    expect(page.locator("#ohlc-v")).not_to_have_text(volume)
    expect(page.locator("#run-list")).to_contain_text("history")
    keep(page, "live")

    page.evaluate("said.length = 0")
    cut = [{"name": "cut", "seconds": CUT_S}]
    assert call("POST", f"{exchange(tmp_path)}/sim/behaviours", cut)[0] == 200
    wait_for(lambda: page.evaluate("said.some(([, state]) => state === 'stale')"), explain=live.said)
    expect(badge).to_have_text("live")
    root = address(live).partition("/dashboard")[0]
    ids = [row["id"] for row in call("GET", f"{root}/trades/ETHUSDT?limit=500")[1]["rows"]]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert live.stop(signal.SIGINT) == 0
