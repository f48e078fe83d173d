"""The dashboard in a real browser: every pane has data, silence is said in time, holes are filled, memory is bounded.

A real worker serves it; the market is the test's own (`tests/market.py`), so that it can be cut and restored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from adapters.embedded_log.reader import leave_in_inbox
from app.web.page import HEADERS
from tests.browser import CONTRASTS, WITNESS, keep, needs_chromium
from tests.machine import Stopwatch
from tests.market import Market
from tests.processes import ROOT, Worker, wait_for

BUILT = ROOT / "app/web/static/dashboard"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not (BUILT / "index.html").exists(), reason="the dashboard is not built: make dashboard"),
]

SAYS_WITHIN_S = 3.0
NO_EXCHANGE = "http://127.0.0.1:9"  # nothing answers there; a loopback address is a simulated exchange
HEAP_GROWS_MOST = 3 << 20
HOUR_S = 3_600


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("dashboard"), NO_EXCHANGE, CANDLE_INTERVALS="1m")
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def market(worker: Worker) -> Iterator[Market]:
    market = Market(worker.broker)
    market.history()
    market.start()
    yield market
    market.close()


def live(page: Page, worker: Worker, address: str = "") -> None:
    page.goto(f"{worker.url}/dashboard{address}")
    expect(page.locator("#feed-state")).to_have_text("live")


def test_each_pane_shows_data(worker: Worker, market: Market, page: Page) -> None:
    leave_in_inbox(worker.folder / "log.db", "raw.trades", b"binance:ETHUSDT", b"no page", [("page", b"{}")])
    live(page, worker)
    expect(page.locator("#simulated")).to_be_visible()
    expect(page.locator("#price")).to_have_text(re.compile(r"^4,\d{3}\.\d\d$"))
    expect(page.locator("#ohlc-c")).to_have_text(re.compile(r"^4,\d{3}\.\d\d$"))
    expect(page.get_by_role("img", name=re.compile(r"^Coverage of trades: [1-9]"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"^Depth: bids add up to \d"))).to_be_visible()
    for body, count in (("asks", 12), ("bids", 12), ("tape-rows", 60)):
        expect(page.locator(f"#{body} tr:visible")).to_have_count(count)
    for name in ("imbalance-1", "imbalance-5", "imbalance-20", "ofi"):
        expect(page.locator(f"#{name}")).to_have_text(re.compile(r"^[+−]?\d+\.\d\d$"))
    for channel in ("trades", "book"):
        expect(page.locator("#stream-rows tr", has_text=f"ETHUSDT {channel}")).to_contain_text("live")
    expect(page.locator("#letter-list li").first).to_contain_text("raw.trades")
    page.get_by_role("combobox", name="Topic").select_option("market.books")
    expect(page.locator("#tail-rows li").first).to_contain_text("symbol=ETHUSDT state=live")
    keep(page, "dashboard")


def test_the_open_candle_moves_with_the_trades_and_the_filter_hides_the_small(
    worker: Worker, market: Market, page: Page
) -> None:
    live(page, worker)
    seen = {page.locator("#ohlc-v").text_content()}
    expect(page.locator("#ohlc-v")).not_to_have_text(seen.pop() or "")
    page.keyboard.press("f")
    page.keyboard.type("2.5")
    shown = page.locator("#tape-rows tr:visible td:nth-child(3)")
    expect(shown.last).to_have_text(re.compile(r"^([3-9]|2\.[5-9])"))
    sizes: list[str] = []
    wait_for(lambda: sizes.extend(shown.all_text_contents()) or sizes)  # large ones come seldom, and go with the tape
    assert all(float(size) >= 2.5 for size in sizes)


def test_a_cut_feed_is_said_within_three_seconds_and_its_hole_is_filled_when_it_is_back(
    worker: Worker, market: Market, page: Page
) -> None:
    page.add_init_script(WITNESS)
    live(page, worker)
    page.evaluate("said.length = 0")
    watch = Stopwatch()
    market.cut()
    expect(page.locator("#feed-state")).to_have_attribute("data-state", "stale")
    keep(page, "stale")
    traded_at = page.evaluate("tradedAt")
    stale_at = page.evaluate("said.find(([, state]) => state === 'stale')[0]")
    assert stale_at - traded_at < 1000 * watch.allowed_s(SAYS_WITHIN_S)
    lost = market.lose(40)
    market.restore()
    expect(page.locator("#feed-state")).to_have_attribute("data-state", "repairing")
    market.put(lost)
    expect(page.locator("#feed-state")).to_have_text("live")
    newest = worker.get("/trades/ETHUSDT?limit=1000")[1]["rows"]
    assert [row["id"] for row in newest] == list(range(newest[0]["id"], newest[-1]["id"] + 1))


def test_a_page_whose_worker_restarts_says_so_and_goes_on_without_a_hole(
    worker: Worker, market: Market, page: Page
) -> None:
    live(page, worker)
    worker.kill()
    expect(page.locator("#feed-state")).to_have_attribute("data-state", re.compile("offline|stale"))
    worker.start_again()
    expect(page.locator("#feed-state")).to_have_text("live")


def test_symbol_interval_theme_and_help_are_a_key_away(worker: Worker, market: Market, page: Page) -> None:
    live(page, worker)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("filter trades by size")
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    expect(page.get_by_label("5m", exact=True)).to_be_checked()
    expect(page).to_have_url(re.compile("#ETHUSDT/5m$"))
    expect(page.locator("#feed-state")).to_have_text("live")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("/")
    page.keyboard.type("btcusdt")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#BTCUSDT/5m$"))
    expect(page.locator("#feed-state")).to_have_text("no live data yet")
    expect(page.locator("#tape-empty")).to_have_text("No trades yet.")
    assert page.evaluate(NAMELESS) == []


def test_a_workflow_is_started_and_stopped_and_asks_for_the_token_it_needs(
    worker: Worker, market: Market, page: Page
) -> None:
    live(page, worker)
    page.keyboard.press("s")
    page.get_by_label("What").select_option("candles")
    page.get_by_label("From").fill("2025-08-20")
    page.get_by_label("To, exclusive").fill("2025-08-21")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#start-said")).to_contain_text("Accepted: ")
    card = page.locator("#run-list .run").first
    expect(card.get_by_role("progressbar")).to_have_count(2)
    card.get_by_role("button", name=re.compile("^Stop ")).click()
    expect(card.locator(".state").first).to_have_text("interrupted")
    page.route("**/queues/start", lambda route: route.fulfill(status=401, json={"error": "send the token"}))
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#start-said")).to_have_text("send the token")
    expect(page.get_by_label("API token")).to_be_focused()
    page.keyboard.type("open sesame")
    with page.expect_request("**/queues/start") as asked:
        page.keyboard.press("Enter")
    assert asked.value.headers["authorization"] == "Bearer open sesame"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_fits_every_width_and_is_readable_by_day_and_by_night(
    worker: Worker, market: Market, page: Page, scheme: Any
) -> None:
    page.emulate_media(color_scheme=scheme)
    for width in (1440, 820, 400, 320):
        page.set_viewport_size({"width": width, "height": 900 if width > 500 else 720})
        live(page, worker)
        expect(page.locator("#letters-total")).not_to_be_empty()
        keep(page, f"dashboard-{scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRASTS) == [], "text with a contrast under 4.5"


# Controls without an accessible name.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role]")]
  .filter((node) => node.checkVisibility() && !(node.labels?.length || node.getAttribute("aria-label")
    || node.getAttribute("aria-labelledby") || node.textContent.trim()))
  .map((node) => node.outerHTML.slice(0, 100))"""


# --- a page whose calls are answered from here ------------------------------------------------------------------------

# A market in place of the server: `pump(seconds)` is so much of a busy symbol, as fast as the page takes it.
PUMP = """
  const START = 1755648000000, sockets = [];
  window.WebSocket = class { static OPEN = 1; readyState = 1; close() {}
    constructor(url) { sockets.push([url, this]); setTimeout(() => this.onopen?.()); } };
  let second = 0, id = 0, seq = 0, price = 4300;
  const send = (frame) => sockets.filter(([url]) => url.includes("/ws/market"))
    .forEach(([, socket]) => socket.onmessage({data: JSON.stringify(frame)}));
  const side = (sign) => Array.from({length: 20}, (_, i) => [price + sign * (i + 1) / 100, 1 + (i * 7 + second) % 13]);
  const streams = () => [{stream: "binance:ETHUSDT:trades", venue: "binance", symbol: "ETHUSDT", channel: "trades",
    state: "live", age_ms: 0, ts_ms: START + 1000 * second, source: "live"}];
  window.greet = () => send({event: "hello", seq, venue: "binance", symbol: "ETHUSDT", simulated: true, server_ms: 0,
    state: "live", last_id: id, book: null, streams: streams()});
  window.pump = async (seconds) => {
    for (const end = second + seconds; second < end; second++) {
      price = 4300 + 50 * Math.sin(second / 900);
      const ts = START + 1000 * second;
      const trades = Array.from({length: 10}, (_, i) => [++id, ts + 100 * i, price + i / 100, 1 + i, i % 2 === 0]);
      const candles = second % 60 ? undefined : [{interval: "1m", ts: ts - 60000, open: price, high: price + 1,
        low: price - 1, close: price, volume: 3300, trades: 600}];
      send({event: "news", seq: ++seq, server_ms: ts, state: "live", trades, candles, streams: streams(),
        book: {state: "live", ts_ms: ts, update_id: seq, bids: side(-1), asks: side(1), microprice: price, ofi: 1}});
      if (second % 50 === 0) await new Promise(requestAnimationFrame);
    }
    return id;
  };
"""
EMPTY: dict[str, Any] = {
    "/status": {"simulated": None, "token_needed": False}, "/coverage": {"streams": []}, "/streams": {"streams": []},
    "/dead-letters": {"dead_letters": [], "total": 0}, "/queues": {"queues": []},
}  # fmt: skip


@pytest.fixture
def canned(page: Page) -> Page:
    """The page without a server behind it."""
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

    def respond(route: Any) -> None:
        path = route.request.url.removeprefix("http://page.test").partition("?")[0]
        if path.startswith("/dashboard"):
            file = BUILT / (path.removeprefix("/dashboard/") if "assets" in path else "index.html")
            headers = {**HEADERS, "Content-Type": kinds[file.suffix]}
            route.fulfill(body=file.read_bytes(), headers=headers)
        else:
            route.fulfill(json=EMPTY.get(path, {"rows": []}))

    page.add_init_script(PUMP)
    page.route("http://page.test/**", respond)
    page.goto("http://page.test/dashboard")
    return page


@pytest.mark.timeout(300)
def test_r33_six_hours_of_a_busy_symbol_leave_the_heap_and_the_document_as_they_were(canned: Page) -> None:
    devtools = canned.context.new_cdp_session(canned)

    def measure() -> tuple[int, int]:
        devtools.send("HeapProfiler.collectGarbage")
        heap = devtools.send("Runtime.getHeapUsage")["usedSize"]
        return heap, canned.evaluate("document.querySelectorAll('*').length")

    canned.evaluate("greet()")
    canned.evaluate(f"pump({HOUR_S})")
    heap, nodes = measure()
    for _hour in range(5):
        trades = canned.evaluate(f"pump({HOUR_S})")
    assert trades == 6 * HOUR_S * 10
    heap_after, nodes_after = measure()
    assert nodes_after == nodes
    assert heap_after - heap < HEAP_GROWS_MOST
    expect(canned.locator("#feed-state")).to_have_attribute("data-state", re.compile("live|stale"))
    expect(canned.locator("#ohlc-v")).to_have_text("3300.0")


def test_data_of_the_server_is_never_run_as_markup(canned: Page) -> None:
    hostile = '<img src=x onerror="window.hurt=1">'
    letters = {
        "dead_letters": [{"id": 0, "ts_ms": 0, "topic": hostile, "reason": hostile, "value": hostile}],
        "total": 1,
    }
    canned.route("**/dead-letters*", lambda route: route.fulfill(json=letters))
    canned.keyboard.press("r")
    expect(canned.locator("#letter-list .reason")).to_have_text(hostile)
    assert canned.evaluate("window.hurt") is None
