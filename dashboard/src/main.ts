// The page: one feed (symbol and interval, kept in the address), panes that draw it at most once a frame, and a clock.
import "./style.css";
import { $, drawn, el, mark, put } from "./dom";
import { Feed } from "./feed";
import { listen } from "./keys";
import { agoText, decimalsOf, fixed, signed } from "./model/format";
import { INTERVALS } from "./model/words";
import { BookPane } from "./panes/book";
import { ChartPane } from "./panes/chart";
import { CoveragePane } from "./panes/coverage";
import { LettersPane } from "./panes/letters";
import { StreamsPane } from "./panes/streams";
import { TailPane } from "./panes/tail";
import { TapePane } from "./panes/tape";
import { WorkflowsPane } from "./panes/workflows";
import { ask, Line } from "./server";
import { nextTheme, onTheme, startTheme } from "./theme";

const CLOCK_MS = 250;
const LOOK_AGAIN_MS = 5_000;
const ASLEEP_MS = 5_000; // a clock that stood still so long: the page slept
const SYMBOL = /^[A-Z0-9][A-Z0-9_-]{1,19}$/;

interface Status {
  simulated: { symbols?: string[] } | null;
  token_needed: boolean;
}

startTheme();
const chart = new ChartPane();
const coverage = new CoveragePane(chart);
const book = new BookPane();
const streams = new StreamsPane();
const letters = new LettersPane();
const tape = new TapePane(() => drawTape());
const workflows = new WorkflowsPane(() => feed.interval);
new TailPane();

const drawTape = drawn(() => tape.draw(feed));
const drawBook = drawn(() => book.draw(feed));
const drawStrip = drawn(() => coverage.draw(feed));
const drawLast = drawn(() => {
  chart.update();
  drawPrice();
  drawStrip();
});
const drawAll = drawn(() => {
  chart.show(feed);
  drawPrice();
  tape.draw(feed);
  book.draw(feed);
  coverage.draw(feed);
  tick();
});

const watcher = {
  reset: drawAll,
  traded: () => { drawTape(); drawLast(); },
  settled: drawAll, // it may have amended an older one
  booked: drawBook,
  streamed: () => streams.merge(feed.streams),
};

let feed = watch(...fromAddress());

function fromAddress(): [symbol: string, interval: string] {
  const [symbol, interval] = location.hash.slice(1).split("/");
  return [SYMBOL.test(symbol ?? "") ? symbol : "ETHUSDT", interval in INTERVALS ? interval : "1m"];
}

function watch(symbol: string, interval: string): Feed {
  $<HTMLInputElement>("symbol").value = symbol;
  $<HTMLInputElement>(`interval-${interval}`).checked = true;
  workflows.proposeSymbol(symbol);
  document.title = `${symbol} · StreamForge`;
  return new Feed(symbol, interval, watcher);
}

function switchTo(symbol: string, interval: string): void {
  if (symbol === feed.symbol && interval === feed.interval) return;
  feed.close();
  feed = watch(symbol, interval);
  history.replaceState(null, "", `#${symbol}/${interval}`);
  drawAll();
  void refresh();
}

function drawPrice(): void {
  const { candles } = feed.candles, last = candles[candles.length - 1];
  const price = feed.tape.last?.price ?? last?.close;
  const dayAgo = last && candles.find((one) => one.ts > last.ts - 86_400_000);
  put($("price"), price === undefined ? "–" : fixed(price, Math.max(2, decimalsOf([price]))));
  const change = price !== undefined && dayAgo ? 100 * (price / dayAgo.open - 1) : null;
  put($("change"), change === null ? "" : `${signed(change)} %`);
  mark($("change"), "side", (change ?? 0) >= 0 ? "up" : "down");
}

let tickedAt = performance.now();

function tick(): void {
  const now = performance.now();
  if (now - tickedAt > ASLEEP_MS) feed.wake();
  tickedAt = now;
  const { state, text } = feed.verdict(now);
  mark($("feed-state"), "state", state);
  put($("feed-state"), text);
  mark(document.documentElement, "feed", state);
  put($("age"), state === "live" || state === "repairing" ? `last data ${agoText(feed.age(now))} ago` : "");
  $("simulated").hidden = !feed.simulated;
  put($("source"), feed.source === "replay" ? "replay" : "");
  put($("failed"), feed.failed ? `History: ${feed.failed}` : "");
  if (state !== announced) put($("announcer"), `${feed.symbol}: ${text}`);
  announced = state;
  streams.draw();
}

let announced = "";

async function refresh(): Promise<void> {
  const asked = [coverage.refresh(feed), streams.refresh(), letters.refresh(), workflows.refresh(), refreshStatus()];
  for (const one of await Promise.allSettled(asked)) if (one.status === "rejected") console.warn(String(one.reason));
}

async function refreshStatus(): Promise<void> {
  const status = await ask<Status>("/status");
  if (status.token_needed) workflows.wantToken();
  const known = (status.simulated?.symbols ?? []).join();
  if (known && $("symbols").dataset.known !== known) {
    $("symbols").dataset.known = known;
    $("symbols").replaceChildren(...known.split(",").map((symbol) => el("option", { value: symbol })));
  }
}

$("symbol-form").addEventListener("submit", (asked) => {
  asked.preventDefault();
  const input = $<HTMLInputElement>("symbol");
  const symbol = input.value.trim().toUpperCase();
  const known = SYMBOL.test(symbol);
  input.toggleAttribute("aria-invalid", !known);
  if (known) {
    switchTo(symbol, feed.interval);
    input.blur();
  }
});
$("symbol").addEventListener("change", () => $<HTMLFormElement>("symbol-form").requestSubmit());
$("intervals").addEventListener("change", (changed) => switchTo(feed.symbol, (changed.target as HTMLInputElement).value));
addEventListener("hashchange", () => switchTo(...fromAddress()));
document.addEventListener("visibilitychange", () => { if (!document.hidden) feed.wake(); });
addEventListener("online", () => feed.wake());
new ResizeObserver(() => { drawBook(); drawStrip(); }).observe($("main"));
chart.onMove(drawStrip);
onTheme(() => { drawBook(); drawStrip(); });

new Line("/ws/queues", { opened: workflows.refreshSoon, said: workflows.refreshSoon });
listen([
  { key: "/", means: "choose a symbol", act: () => { $("symbol").focus(); $<HTMLInputElement>("symbol").select(); } },
  ...Object.keys(INTERVALS).map((interval, i) => ({ key: String(i + 1), means: `interval ${interval}`, act: () => { $<HTMLInputElement>(`interval-${interval}`).checked = true; switchTo(feed.symbol, interval); } })),
  { key: "f", means: "filter trades by size", act: () => $("least").focus() },
  { key: "s", means: "start a workflow", act: () => workflows.focus() },
  { key: "r", means: "ask for everything again", act: () => { feed.wake(); void refresh(); } },
  { key: "t", means: "theme: auto, dark, light", act: nextTheme },
  { key: "?", means: "this list", act: () => $<HTMLDialogElement>("help").showModal() },
]);
setInterval(tick, CLOCK_MS);
setInterval(() => { if (!document.hidden) void refresh(); }, LOOK_AGAIN_MS);
void refresh();
