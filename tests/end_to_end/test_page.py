"""The page in a real browser: progress moves, buttons work, holes and intervals are seen, and data is never run.

Two kinds of tests: on a real worker, and on a page whose calls are answered from here, for what takes long to come by.
`PAGE_SCREENSHOTS=FOLDER` keeps a picture of each for a person to look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser import CONTRASTS, keep, needs_chromium
from tests.processes import Broker, Process, wait_for

pytestmark = needs_chromium
Start = Callable[..., Any]
DUMMY = {"target": "dummy-service", "type": "simulate"}
HOSTILE = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
DAY_MS = 86_400_000
NOON_MS = 1_755_648_000_000  # 2025-08-20


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    """The page asks the worker only: one broker is enough here."""
    return Broker(tmp_path)


# Every value that the first bar of the page has shown.
BAR = """
  window.seen = [];
  new MutationObserver(() => {
    const shown = document.querySelector("[role=progressbar]")?.getAttribute("aria-valuenow");
    if (shown != null) seen.push(Number(shown));
  }).observe(document, {subtree: true, childList: true, attributes: true});
"""


def live(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_text("live")


def run(page: Page, queue_id: str) -> Locator:
    return page.locator("article.run", has=page.locator(".id", has_text=re.compile(rf"^{queue_id} ")))


def test_progress_moves_while_a_run_works_and_ends_as_finished(start_worker: Start, page: Page) -> None:
    worker = start_worker()
    page.add_init_script(BAR)
    live(page, worker.url)
    expect(page.get_by_text("Nothing has run yet")).to_be_visible()
    command = {"queue_id": "watched", "requests": [DUMMY | {"payload": {"seconds": 4, "records": 5000}}]}
    assert worker.post("/queues/start", command)[0] == 202
    card = run(page, "watched")
    wait_for(lambda: page.evaluate("seen.length > 0"))
    keep(page, "working")
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    seen = page.evaluate("seen")
    told = {round(100 * event["progress"]) for event in worker.events("watched") if event.get("progress")}
    assert len(set(seen)) >= min(4, len(told)), f"the bar does not move: {seen}"
    assert seen == sorted(seen)
    expect(card.locator(".state").first).to_have_text("finished")
    expect(card).to_contain_text("5,000 records")
    expect(page.locator("#announcer")).to_have_text("watched: finished")
    expect(page.locator("#simulated")).to_be_hidden()
    keep(page, "finished")


def test_stop_interrupts_a_run(start_worker: Start, page: Page) -> None:
    worker = start_worker()
    assert worker.post("/queues/start", {"queue_id": "endless", "requests": [DUMMY]})[0] == 202
    live(page, worker.url)
    page.get_by_role("button", name="Stop endless").click()
    expect(run(page, "endless").locator(".state").first).to_have_text("interrupted")
    expect(page.get_by_role("button", name="Stop endless")).to_be_hidden()


def test_a_page_that_is_cut_off_says_so_and_catches_up_later(start_worker: Start, page: Page) -> None:
    worker = start_worker()
    live(page, worker.url)
    worker.kill()
    expect(page.locator("#connection")).to_contain_text("reconnecting; this is from")
    keep(page, "reconnecting")
    Process.__init__(worker, "worker", ["worker"], worker.folder, worker.env)
    worker.wait_until_ready()
    worker.post("/queues/start", {"queue_id": "meanwhile", "requests": [DUMMY | {"payload": {"seconds": 0.1}}]})
    expect(page.locator("#connection")).to_have_text("live")
    expect(run(page, "meanwhile").locator(".state").first).to_have_text("finished")


def test_the_form_starts_the_usual_pipeline_and_shows_what_is_refused(
    start_worker: Start, start_exchange: Start, page: Page
) -> None:
    worker = start_worker(start_exchange())
    live(page, worker.url)
    expect(page.locator("#simulated")).to_be_visible()
    expect(page.get_by_label("From")).to_have_value(re.compile(r"^20\d\d-\d\d-\d\d$"))
    symbol = page.get_by_label("Symbol")
    symbol.fill("nosuchusdt")
    symbol.press("Enter")
    expect(page.locator("#start-said")).to_contain_text("NOSUCHUSDT")
    expect(symbol).to_have_attribute("aria-invalid", "true")
    expect(symbol).to_be_focused()
    assert worker.get("/queues")[1]["queues"] == []

    symbol.fill("ethusdt")
    page.get_by_label("From").fill("2025-08-20")
    page.get_by_label("To, exclusive").fill("2025-08-21")
    page.get_by_role("button", name="Load, build the graph, train").click()
    expect(page.locator("#start-said")).to_contain_text("Accepted: ")
    card = page.locator("article.run")
    expect(card.get_by_role("heading")).to_have_text("ETHUSDT")
    expect(card.get_by_role("progressbar")).to_have_count(6)
    [started] = worker.get("/queues")[1]["queues"]
    assert [step["type"] for step in started["steps"]] == [
        "api_candles_5m", "api_trades", "api_candles_5m", "api_trades", "gnn_graph", "gnn_train",
    ]  # fmt: skip
    expect(page.locator(".stream")).to_have_count(2)
    expect(page.locator(".stream .strip > [data-kind=stored]").first).to_be_visible()


# --- a page whose calls are answered from here ------------------------------------------------------------------------


def step(index: int, target: str, kind: str, state: str, **facts: Any) -> dict[str, Any]:
    return {
        "task_id": f"month.{index}", "target": target, "type": kind, "symbol": "BTCUSDT", "attempt": 1, "state": state,
        "range_ms": [NOON_MS, NOON_MS + 30 * DAY_MS], "records_written": 0, "progress": None, "message": "",
        "error": "",
    } | facts  # fmt: skip


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def model(name: str, role: str, auc: float) -> dict[str, Any]:
    scores = {"accuracy": interval(0.51, 0.49, 0.53), "auc": interval(auc, auc - 0.03, auc + 0.03),
              "log_loss": interval(0.69, 0.68, 0.70), "mcc": interval(0.02, -0.02, 0.05)}  # fmt: skip
    return {"name": name, "role": role, "metrics": scores}


RUN = {
    "queue_id": "month", "state": "error", "live": False, "created_at": 1_795_249_951.0, "progress": 1.0,
    "steps": [
        step(0, "loader-producer", "api_trades", "finished", records_written=1_100_000, progress=1.0),
        step(1, "arango-connector", "api_trades", "error", error=HOSTILE, message=HOSTILE),
        step(2, "gnn-trainer", "gnn_train", "finished", progress=1.0),
    ],
}  # fmt: skip
COVERAGE = {
    "stream": "binance:BTCUSDT:trades", "venue": "binance", "symbol": "BTCUSDT", "channel": "trades",
    "start_ms": NOON_MS, "end_ms": NOON_MS + 30 * DAY_MS, "stored_share": 0.8333,
    "stored": [[NOON_MS, NOON_MS + 10 * DAY_MS], [NOON_MS + 15 * DAY_MS, NOON_MS + 30 * DAY_MS]],
    "missing": [[NOON_MS + 10 * DAY_MS, NOON_MS + 13 * DAY_MS]],
    "unrecoverable": [[NOON_MS + 13 * DAY_MS, NOON_MS + 15 * DAY_MS]],
}  # fmt: skip
REPORT = {
    "queue_id": "month", "state": "finished", "seconds": 171.0, "error": "", "complete": False,
    "streams": [
        {"symbol": "BTCUSDT", "channel": "candles_5m", "rows": 8_640, "candles_expected": 8_640, "complete": True},
    ],
    "graphs": [{"graph": "g", "vertices": 8_640, "edges": 91_000}],
    "models": [{"model": "gnn", "version": "month", "artifact": HOSTILE, "metrics": {"labels": [{
        "label": "dir", "horizon_bars": 12, "folds": 1, "samples": {"test": 1_700}, "standard_error": 0.042,
        "models": [model("majority", "baseline", 0.5), model("SAGE", "gnn", 0.52), model(HOSTILE, "control", 0.48)],
        "verdict": {"word": "indistinguishable", "model": "SAGE", "baseline": "majority",
                    "difference": interval(0.001, -0.004, 0.006), "reason": "one fold: indicative only"},
        "warnings": ["one fold: indicative only", HOSTILE],
    }]}}],
}  # fmt: skip
STATUS = {"missing": [], "token_needed": True, "exchange": True,
          "simulated": {"source": "generated", "seed": 1, "symbols": ["BTCUSDT", HOSTILE], "streams": []}}  # fmt: skip


@pytest.fixture
def canned(page: Page) -> list[dict[str, Any]]:
    """The page with answers from here; gives the headers and bodies of what it posted."""
    static = Path(__file__).parents[2] / "app/web/static"
    posted: list[dict[str, Any]] = []
    answers = {"/status": STATUS, "/queues": {"queues": [RUN]}, "/coverage": {"streams": [COVERAGE]},
               "/queues/month/report": REPORT}  # fmt: skip
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}

    def respond(route: Route) -> None:
        path = route.request.url.removeprefix("http://page.test").partition("?")[0]
        if route.request.method == "POST":
            posted.append({"headers": route.request.headers, "body": json.loads(route.request.post_data or "")})
            route.fulfill(status=401, json={"error": "this call changes something"})
        elif path in answers:
            route.fulfill(json=answers[path])
        else:
            file = static / (path.rpartition("/")[2] or "index.html")
            route.fulfill(body=file.read_bytes(), content_type=kinds[file.suffix[1:]])

    page.route("http://page.test/**", respond)
    page.route_web_socket("**/ws/queues", lambda socket: socket.on_message(lambda _: None))
    return posted


@pytest.mark.usefixtures("canned")
def test_text_from_the_server_is_shown_as_text_and_never_run(page: Page) -> None:
    live(page, "http://page.test/")
    expect(page.locator(".warnings li")).to_have_text(["one fold: indicative only", HOSTILE])
    expect(page.locator(".step .error")).to_have_text(HOSTILE)
    expect(page.locator("code")).to_have_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hurt") is None


@pytest.mark.usefixtures("canned")
def test_holes_and_intervals_are_seen(page: Page) -> None:
    live(page, "http://page.test/")
    strip = page.get_by_role("img", name="BTCUSDT trades: 83.33 % stored, 2 holes")
    width = (strip.bounding_box() or {})["width"]
    shares = {"stored": [10 / 30, 15 / 30], "missing": [3 / 30], "unrecoverable": [2 / 30]}
    for kind, wanted in shares.items():
        parts = strip.locator(f"[data-kind={kind}]").all()
        got = [(part.bounding_box() or {})["width"] / width for part in parts]
        assert got == pytest.approx(wanted, abs=0.01)
    titles = [part.get_attribute("title") for part in strip.locator("[data-kind=missing]").all()]
    assert titles == ["missing: 30 Aug, 00:00 – 2 Sept, 00:00 (3.0 days)"]
    row = page.get_by_role("row", name="SAGE")
    expect(row).to_contain_text("0.490 to 0.550")
    expect(row.locator("svg circle")).to_have_count(1)
    expect(page.locator(".verdict")).to_have_text("SAGE cannot be told from majority")
    expect(page.locator("#report")).to_contain_text("8,640 of 8,640")


def test_where_a_token_is_needed_the_page_asks_for_it_and_sends_it(page: Page, canned: list[dict[str, Any]]) -> None:
    live(page, "http://page.test/")
    page.get_by_label("API token").fill("open sesame")
    page.get_by_role("button", name="Load, build the graph, train").click()
    expect(page.locator("#start-said")).to_have_text("this call changes something")
    expect(page.get_by_label("API token")).to_be_focused()
    [call] = canned
    assert call["headers"]["authorization"] == "Bearer open sesame"
    assert call["body"]["symbol"] == "BTCUSDT"


@pytest.mark.usefixtures("canned")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_it_fits_every_width_and_is_readable_by_day_and_by_night(page: Page, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    live(page, "http://page.test/")
    expect(page.locator(".verdict")).to_be_visible()
    keep(page, f"{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    low = page.evaluate(CONTRASTS)
    assert low == [], "text with a contrast under 4.5"


@pytest.mark.usefixtures("canned")
def test_everything_can_be_reached_and_used_by_keyboard(page: Page) -> None:
    live(page, "http://page.test/")
    expect(page.locator(".verdict")).to_be_visible()
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(({name, textContent}) => name || textContent.trim())(document.activeElement)"))
    for wanted in ("Skip to the runs", "Report", "symbol", "interval", "from", "to", "token", "2 holes"):
        assert wanted in reached, reached
    page.get_by_role("button", name="Report of month").press("Enter")
    expect(page.locator("#report-title")).to_be_focused()
