// The page: asks for what is, then follows what happens. One WebSocket feeds it; after every (re)connection it asks
// again, so that nothing it missed stays missing. Text from the server becomes text nodes only, never markup.

const RUNS_SHOWN = 20;
const RATE_OVER_S = 6;
const SEGMENTS_MOST = 400; // of a coverage strip: about its pixels
const TERMINAL = ["finished", "error", "interrupted"];
const VERBS = {
  "loader-producer": "Load", "arango-connector": "Store", "graph-builder": "Build graph", "gnn-trainer": "Train",
  "dummy-service": "Simulate",
};

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const minute = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC",
});

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium", timeZone: "UTC" });

function el(tag, props = {}, ...children) {
  const svg = ["svg", "line", "circle"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null && child !== ""));
  return node;
}

const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function duration(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

// --- the server ---------------------------------------------------------------------------------

class Refused extends Error {
  constructor(answer, status) {
    super(answer.error || `the server answered ${status}`);
    this.field = answer.field || "";
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem("token");
  if (body && token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer, response.status);
  return answer;
}

const connection = { tries: 0 };

function sayConnection(state, text) {
  $("connection").dataset.state = state;
  put($("connection"), text);
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/queues`);
  socket.onopen = async () => {
    try {
      await refreshAll();
      connection.tries = 0;
      sayConnection("live", "live");
    } catch {
      socket.close();
    }
  };
  socket.onmessage = ({ data }) => follow(JSON.parse(data));
  socket.onclose = () => {
    connection.tries += 1;
    if ($("connection").dataset.state !== "lost") sayConnection("lost", `reconnecting; this is from ${clock.format(Date.now())}`);
    setTimeout(connect, Math.min(8000, 400 * 2 ** connection.tries) * (0.5 + Math.random() / 2));
  };
}

async function refreshAll() {
  const [status, { queues }] = await Promise.all([ask("/status"), ask(`/queues?limit=${RUNS_SHOWN}`)]);
  showStatus(status);
  showRuns(queues);
  await refreshCoverage();
  showNewestReportSoon();
}

// A call that many events ask for happens once, soon, and again only when it is over.
function soon(action, wait = 150) {
  let timer = null;
  return () => {
    timer ??= setTimeout(async () => {
      try { await action(); } catch (failed) { console.warn(failed.message); } finally { timer = null; }
    }, wait);
  };
}

// --- events -------------------------------------------------------------------------------------

function follow(event) {
  const card = cards.get(event.queue_id);
  const { task, attempt, ...extra } = event.extra || {};
  const step = card && task && card.run.steps.find((one) => one.task_id === task);
  if (step && attempt >= step.attempt) {
    const ended = TERMINAL.includes(step.state) && attempt === step.attempt; // the first terminal word counts
    if (!ended) {
      step.attempt = attempt;
      step.state = event.status === "started" ? "loading" : event.status;
      step.records_written = Math.max(step.records_written, event.records_written || 0);
      step.progress = event.status === "finished" ? 1 : event.progress ?? step.progress;
      step.message = event.message || "";
      step.error = event.error_message || "";
      step.extra = extra;
      card.notePace(step, event.timestamp);
      card.update();
    }
  }
  if (event.event === "pong") return;
  if (!step || TERMINAL.includes(event.status)) refreshRuns();
  refreshCoverageSoon();
}

const refreshRuns = soon(async () => showRuns((await ask(`/queues?limit=${RUNS_SHOWN}`)).queues));
const refreshCoverageSoon = soon(() => refreshCoverage(), 2000);

// --- runs ---------------------------------------------------------------------------------------

const cards = new Map();

class RunCard {
  constructor(run) {
    this.pace = new Map();
    this.title = el("h3");
    this.range = el("span", { class: "range" });
    this.state = el("span", { class: "state" });
    this.stop = el("button", { type: "button", onclick: () => this.askToStop() }, "Stop");
    this.report = el("button", { type: "button", onclick: () => openReport(this.run.queue_id) }, "Report");
    this.id = el("p", { class: "id" });
    this.steps = el("ol");
    this.details = el("details", { open: run.live }, el("summary"), this.steps);
    this.node = el("article", { class: "run" },
      el("header", {}, this.title, this.range, this.state, el("div", { class: "actions" }, this.report, this.stop)),
      this.id, this.details);
    this.take(run);
  }

  take(run) {
    if (this.run && this.run.state !== run.state && !run.live) {
      put($("announcer"), `${run.queue_id}: ${run.state}`);
      showNewestReportSoon();
    }
    if (run.live && !this.run?.live) this.details.open = true;
    this.run = run;
    this.update();
  }

  update() {
    const { run } = this;
    const symbols = [...new Set(run.steps.map((step) => step.symbol).filter(Boolean))];
    put(this.title, symbols.join(", ") || "Simulated service");
    const spans = run.steps.map((step) => step.range_ms).filter(Boolean);
    put(this.range, spans.length ? rangeText(Math.min(...spans.map((s) => s[0])), Math.max(...spans.map((s) => s[1]))) : "");
    this.range.hidden = !spans.length;
    const done = run.steps.filter((step) => step.state === "finished").length;
    put(this.details.firstChild, `${done} of ${run.steps.length} ${run.steps.length === 1 ? "step" : "steps"} finished`);
    put(this.state, run.state);
    this.state.dataset.state = run.state;
    put(this.id, `${run.queue_id} · ${minute.format(run.created_at * 1000)}`);
    this.stop.hidden = !run.live;
    this.stop.disabled = run.state === "stopping";
    this.stop.setAttribute("aria-label", `Stop ${run.queue_id}`);
    this.report.hidden = run.live || !symbols.length;
    this.report.setAttribute("aria-label", `Report of ${run.queue_id}`);
    run.steps.forEach((step, index) => this.updateStep(step, index));
  }

  updateStep(step, index) {
    let row = this.steps.children[index];
    if (!row) {
      row = el("li", { class: "step" }, el("span", { class: "name" }), el("div", { class: "bar", role: "progressbar" }, el("i")),
        el("span", { class: "state" }), el("p", { class: "note" }));
      this.steps.append(row);
    }
    const [name, bar, state, note] = row.children;
    row.dataset.state = step.state;
    put(name, stepName(step));
    put(state, { launched: "starting", loading: "working" }[step.state] || step.state);
    const active = ["launched", "loading"].includes(step.state);
    const share = step.state === "finished" ? 1 : step.progress;
    bar.classList.toggle("unknown", active && share == null);
    bar.firstChild.style.width = active && share == null ? "" : `${100 * (share || 0)}%`;
    bar.setAttribute("aria-label", stepName(step));
    bar.setAttribute("aria-valuemin", 0);
    bar.setAttribute("aria-valuemax", 100);
    if (share == null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(100 * share));
    note.replaceChildren(...this.noteOf(step, active));
  }

  noteOf(step, active) {
    const parts = [];
    if (step.records_written > 1) parts.push(`${number.format(step.records_written)} records`);
    const pace = this.pace.get(step.task_id);
    if (active && pace?.perSecond > 0) parts.push(`${number.format(Math.round(pace.perSecond))}/s`);
    if (active && step.progress > 0) parts.push(`${Math.floor(100 * step.progress)} %`);
    if (active && pace?.leftS != null) parts.push(`${duration(pace.leftS)} left`);
    if (step.message && step.message !== step.error) parts.push(step.message);
    const texts = parts.length ? [parts.join(" · ")] : [];
    return step.error ? [...texts, texts.length ? " · " : "", el("span", { class: "error" }, step.error)].filter(Boolean) : texts;
  }

  notePace(step, at) {
    const seen = (this.pace.get(step.task_id)?.seen || []).filter((one) => at - one.at <= RATE_OVER_S);
    seen.push({ at, records: step.records_written, progress: step.progress || 0 });
    const first = seen[0];
    const seconds = at - first.at;
    const perSecond = seconds > 0.5 ? (step.records_written - first.records) / seconds : 0;
    const gained = (step.progress || 0) - first.progress;
    const leftS = seconds > 0.5 && gained > 0 ? ((1 - step.progress) * seconds) / gained : null;
    this.pace.set(step.task_id, { seen, perSecond, leftS });
  }

  async askToStop() {
    this.stop.disabled = true;
    try {
      await ask("/queues/stop", { queue_id: this.run.queue_id });
    } catch (refused) {
      this.stop.disabled = false;
      sayStart(refused.message, true);
    }
  }
}

function stepName(step) {
  const verb = VERBS[step.target] || step.target;
  if (step.type.startsWith("api_candles_")) return `${verb} ${step.type.slice(12)} candles`;
  if (step.type === "api_trades") return `${verb} trades`;
  return verb;
}

const rangeText = (start, end) => `${day.format(start)} – ${day.format(end)}`;

function showRuns(runs) {
  const list = $("run-list");
  const wasShown = cards.size > 0;
  $("no-runs").hidden = runs.length > 0;
  const known = new Set(runs.map((run) => run.queue_id));
  for (const [id, card] of cards) {
    if (!known.has(id)) { card.node.remove(); cards.delete(id); }
  }
  runs.forEach((run, index) => {
    if (cards.has(run.queue_id)) cards.get(run.queue_id).take(run);
    else cards.set(run.queue_id, new RunCard(run));
    const { node } = cards.get(run.queue_id);
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] || null);
  });
  if (!wasShown && runs.length) cards.get(runs[0].queue_id).details.open = true; // later it is the reader's choice
}

// --- status, start ------------------------------------------------------------------------------

function showStatus(status) {
  const { simulated } = status;
  $("simulated").hidden = !simulated;
  if (simulated) {
    $("simulated").title = simulated.source === "recorded"
      ? "The data comes from recorded files, served by the simulated exchange"
      : `The data is generated by the simulated exchange (seed ${simulated.seed})`;
    market = simulated;
    $("symbols").replaceChildren(...(simulated.symbols || []).map((symbol) => el("option", { value: symbol })));
  }
  document.querySelector(".token").hidden = !status.token_needed;
  if (!status.exchange) sayStart("This worker knows no exchange; set BINANCE_API_URL to load from one.", true);
  const { symbol, from } = $("start").elements;
  if (from.value) return;
  const symbols = simulated?.symbols || [];
  if (symbols.length && !symbols.includes(symbol.value)) [symbol.value] = symbols;
  proposeRange();
}

let market = null; // what the simulated exchange serves; null where the exchange is a real one
let rangeIsOurs = true; // until somebody types one

function proposeRange() {
  if (!rangeIsOurs) return;
  const { symbol, from, to } = $("start").elements;
  const [first, last] = usualRange(symbol.value.trim().toUpperCase());
  from.value = first.toISOString().slice(0, 10);
  to.value = last.toISOString().slice(0, 10);
}

// The newest month that the simulated exchange has of a symbol; of a real exchange the last whole days.
function usualRange(symbol) {
  const dayMs = 86400000;
  const streams = (market?.streams || []).filter((one) => one.symbol === symbol && one.end_ms > one.start_ms);
  const end = Math.min(Date.now(), ...streams.map((stream) => stream.end_ms));
  const start = Math.max(...streams.map((stream) => stream.start_ms), 0);
  const to = Math.floor(end / dayMs) * dayMs;
  return [new Date(Math.max(Math.ceil(start / dayMs) * dayMs, to - 30 * dayMs)), new Date(to)];
}

function pipeline({ symbol, interval, from, to }) {
  const candles = `api_candles_${interval}`;
  return {
    command: "start", symbol, time_range: `${from}:${to}`,
    requests: [
      { target: "loader-producer", type: candles }, { target: "loader-producer", type: "api_trades" },
      { target: "arango-connector", type: candles }, { target: "arango-connector", type: "api_trades" },
      { target: "graph-builder", type: "gnn_graph", interval }, { target: "gnn-trainer", type: "gnn_train", interval },
    ],
  };
}

function sayStart(text, bad = false) {
  $("start-said").classList.toggle("bad", bad);
  put($("start-said"), text);
}

function markField(field) {
  const form = $("start").elements;
  for (const input of form) input.removeAttribute("aria-invalid");
  const named = { symbol: "symbol", time_range: "from", interval: "interval", type: "interval", API_TOKEN: "token" };
  const input = form[named[field.split(".").pop()]];
  if (input) { input.setAttribute("aria-invalid", "true"); input.focus(); }
}

$("start").elements.symbol.addEventListener("change", proposeRange);
for (const name of ["from", "to"]) $("start").elements[name].addEventListener("input", () => { rangeIsOurs = false; });

$("start").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const form = Object.fromEntries(new FormData(submitted.target));
  const button = submitted.submitter || submitted.target.querySelector("button");
  if (form.token) sessionStorage.setItem("token", form.token);
  button.disabled = true;
  markField("");
  try {
    const answer = await ask("/queues/start", pipeline({ ...form, symbol: form.symbol.trim().toUpperCase() }));
    sayStart(`Accepted: ${answer.queue_id}`);
    refreshRuns();
  } catch (refused) {
    sayStart(refused instanceof Refused ? refused.message : "The worker does not answer.", true);
    markField(refused.status === 401 ? "API_TOKEN" : refused.field || "");
  } finally {
    button.disabled = false;
  }
});

// --- coverage -----------------------------------------------------------------------------------

let coverageShown = "";

async function refreshCoverage() {
  const { streams } = await ask("/coverage");
  const said = JSON.stringify(streams);
  if (said === coverageShown) return; // what somebody points at stays where it is
  coverageShown = said;
  $("no-coverage").hidden = streams.length > 0;
  $("legend").hidden = !streams.length;
  const open = new Set([...document.querySelectorAll(".stream:has(details[open])")].map((one) => one.dataset.stream));
  $("coverage-list").replaceChildren(...streams.map((stream) => streamNode(stream, open.has(stream.stream))));
}

function streamNode(stream, open) {
  const { start_ms: start, end_ms: end } = stream;
  const holes = ["missing", "unrecoverable"].flatMap((kind) => stream[kind].map((span) => ({ kind, span })));
  const stored = stream.stored.map((span) => ({ kind: "stored", span }));
  const summary = `${Math.floor(10000 * stream.stored_share) / 100} % stored`;
  const name = `${stream.symbol} ${stream.channel.replace("candles_", "") + (stream.channel.startsWith("candles_") ? " candles" : "")}`;
  const strip = el("div", { class: "strip", role: "img", "aria-label": `${name}: ${summary}, ${holes.length} holes` },
    ...[...merge(stored, end - start), ...merge(holes, end - start)].map(({ kind, span }) => segment(kind, span, start, end)));
  return el("div", { class: "stream", "data-stream": stream.stream },
    el("p", { class: "title" }, name, el("span", {}, summary)), strip,
    el("p", { class: "ends" }, el("span", {}, day.format(start)), el("span", {}, day.format(end))),
    holes.length ? el("details", { open }, el("summary", {}, `${holes.length} ${holes.length === 1 ? "hole" : "holes"}`),
      el("ul", {}, ...holes.slice(0, 50).map((hole) => el("li", {}, spanText(hole.kind, hole.span))))) : null);
}

function segment(kind, [from, to], start, end) {
  const node = el("i", { "data-kind": kind, title: spanText(kind, [from, to]) });
  node.style.left = `${(100 * (from - start)) / (end - start)}%`;
  node.style.width = `${(100 * (to - from)) / (end - start)}%`;
  return node;
}

const spanText = (kind, [from, to]) =>
  `${kind === "unrecoverable" ? "not at the exchange" : kind}: ${minute.format(from)} – ${minute.format(to)} (${duration((to - from) / 1000)})`;

// Spans closer than a pixel become one, so that a ragged ledger does not become ten thousand nodes.
function merge(parts, length) {
  const gap = length / SEGMENTS_MOST;
  if (parts.length <= SEGMENTS_MOST) return parts;
  const merged = [];
  for (const { kind, span } of parts) {
    const last = merged.at(-1);
    if (last && last.kind === kind && span[0] - last.span[1] < gap) last.span = [last.span[0], span[1]];
    else merged.push({ kind, span: [...span] });
  }
  return merged;
}

// --- report -------------------------------------------------------------------------------------

const METRICS = [["auc", "AUC"], ["accuracy", "Accuracy"], ["log_loss", "Log-loss"], ["mcc", "MCC"]];
let reportShown = "";

async function showNewestReport() {
  const trained = [...cards.values()].map((card) => card.run)
    .find((run) => run.steps.some((step) => step.target === "gnn-trainer" && step.state === "finished"));
  if (trained && reportShown !== trained.queue_id) await showReport(trained.queue_id);
}
const showNewestReportSoon = soon(showNewestReport, 400);

async function openReport(queueId) {
  try {
    await showReport(queueId);
    $("report-title").focus();
    $("report").scrollIntoView({ behavior: "smooth", block: "start" });
  } catch (refused) {
    sayStart(refused.message, true);
  }
}

async function showReport(queueId) {
  const report = await ask(`/queues/${encodeURIComponent(queueId)}/report`);
  reportShown = queueId;
  const parts = [factsOf(report)];
  if (report.error) parts.push(el("p", { class: "said bad" }, report.error));
  for (const model of report.models) {
    parts.push(...model.metrics.labels.map((label) => labelNode(label)));
    parts.push(el("p", {}, "Artifact: ", el("code", {}, model.artifact)));
  }
  if (!report.models.length) parts.push(el("p", { class: "empty" }, "This run has not trained a model."));
  $("report-body").replaceChildren(...parts);
  put($("report-run"), queueId);
  $("report").hidden = false;
}

function factsOf(report) {
  const facts = report.streams.map((stream) => [
    `${stream.symbol} ${stream.channel.replace("candles_", "candles ")}${stream.complete ? "" : ", with holes"}`,
    number.format(stream.rows) + (stream.candles_expected ? ` of ${number.format(stream.candles_expected)}` : ""),
  ]);
  for (const graph of report.graphs) {
    facts.push(["graph vertices", number.format(graph.vertices)], ["graph edges", number.format(graph.edges)]);
  }
  if (report.seconds) facts.push(["from start to end", duration(report.seconds)]);
  return el("dl", { class: "facts" }, ...facts.map(([what, much]) => el("div", {}, el("dt", {}, what), el("dd", {}, much))));
}

function labelNode(label) {
  const { verdict } = label;
  const asked = { dir: "Will the price be higher", vol_regime: "Will it be more volatile than usual" }[label.label] || label.label;
  const fact = { better: "is better than", worse: "is worse than" }[verdict.word] || "cannot be told from";
  const [low, high] = extent(label.models.map((model) => model.metrics.auc));
  return el("div", { class: "label" },
    el("h3", {}, `${asked} in ${label.horizon_bars} bars?`),
    el("p", { class: "verdict" }, `${verdict.model} ${fact} ${verdict.baseline}`),
    el("p", {}, `Verdict: ${verdict.word}. Log-loss difference ${signed(verdict.difference)}; ${verdict.reason}. ` +
      `${number.format(label.samples.test ?? 0)} test samples, standard error of an accuracy ${label.standard_error.toFixed(3)}.`),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Models for ${label.label}` },
      el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"),
          el("th", { scope: "col" }, "AUC, 95 % interval"), ...METRICS.map(([, title]) => el("th", { scope: "col" }, title)))),
        el("tbody", {}, ...label.models.map((model) => modelRow(model, low, high))))),
    label.warnings.length ? el("ul", { class: "warnings" }, ...label.warnings.map((text) => el("li", {}, text))) : null);
}

function modelRow(model, low, high) {
  const cells = METRICS.map(([name]) => {
    const { value, low: from, high: to } = model.metrics[name];
    return el("td", {}, figure(value), el("small", {}, `${figure(from)} to ${figure(to)}`));
  });
  return el("tr", { "data-role": model.role }, el("th", { scope: "row" }, model.name),
    el("td", {}, whisker(model.metrics.auc, low, high)), ...cells);
}

const figure = (value) => (value == null ? "–" : (Math.abs(value) < 0.0005 ? 0 : value).toFixed(3).replace("-", "−"));
const signed = ({ value, low, high }) => `${value > 0 ? "+" : ""}${value?.toFixed(4)} (${low?.toFixed(4)} to ${high?.toFixed(4)})`;

function extent(intervals) {
  const ends = [0.5, ...intervals.flatMap((one) => [one.low, one.high])].filter((end) => end != null);
  const pad = 0.05 * (Math.max(...ends) - Math.min(...ends)) || 0.01;
  return [Math.min(...ends) - pad, Math.max(...ends) + pad];
}

// The interval as a line, the value as a dot, chance (0.5) as a dashed mark; the same scale for all models of a label.
function whisker({ value, low, high }, from, to) {
  if (value == null) return "–";
  const x = (at) => (176 * ((at ?? value) - from)) / (to - from);
  return el("svg", { class: "whisker", viewBox: "0 0 176 18", "aria-hidden": "true" },
    el("line", { class: "zero", x1: x(0.5), x2: x(0.5), y1: 0, y2: 18 }),
    el("line", { x1: x(low), x2: x(high), y1: 9, y2: 9 }), el("circle", { cx: x(value), cy: 9, r: 3.5 }));
}

connect();
