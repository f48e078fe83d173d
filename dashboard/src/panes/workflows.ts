// Runs with their progress, a form to start one, a button to stop one.
import { $, el, mark, put } from "../dom";
import { ask, Refused, soon } from "../server";

const SHOWN = 8;

interface Step {
  target: string;
  type: string;
  symbol: string;
  state: string;
  progress: number | null;
  records_written: number;
  message: string;
  error: string;
}

interface Run {
  queue_id: string;
  state: string;
  live: boolean;
  progress: number;
  steps: Step[];
}

type Requests = Record<string, string>[];

const LIVE: Record<string, string[]> = {
  live: ["ws_trades", "ws_orderbook", "ws_candles_1m"], ws_trades: ["ws_trades"], ws_orderbook: ["ws_orderbook"], ws_candles_1m: ["ws_candles_1m"],
};

/** What the form asks for, as a `start` command. */
export function commandOf({ what, symbol, from, to, interval }: Record<string, string>): Record<string, unknown> {
  const command = { command: "start", symbol: symbol.trim().toUpperCase() };
  if (LIVE[what]) return { ...command, requests: LIVE[what].map((type) => ({ target: "loader-ws", type })) };
  const type = what === "trades" ? "api_trades" : `api_candles_${interval}`;
  const requests: Requests = [{ target: "loader-producer", type }, { target: "arango-connector", type }];
  return { ...command, time_range: `${from}:${to}`, requests };
}

export class WorkflowsPane {
  private cards = new Map<string, Card>();
  private form = $<HTMLFormElement>("start");
  readonly refreshSoon = soon(() => this.refresh(), 400);

  constructor(private readonly interval: () => string) {
    const day = (ms: number): string => new Date(ms).toISOString().slice(0, 10);
    this.input("to").value = day(Date.now());
    this.input("from").value = day(Date.now() - 86_400_000);
    this.form.addEventListener("submit", (asked) => {
      asked.preventDefault();
      void this.start();
    });
    this.input("what").addEventListener("change", () => this.showRange());
    this.showRange();
  }

  async refresh(): Promise<void> {
    const { queues } = await ask<{ queues: Run[] }>(`/queues?limit=${SHOWN}`);
    const list = $("run-list"), known = new Set(queues.map((run) => run.queue_id));
    $("runs-empty").hidden = queues.length > 0;
    for (const [id, card] of this.cards) {
      if (!known.has(id)) {
        card.node.remove();
        this.cards.delete(id);
      }
    }
    queues.forEach((run, i) => {
      const card = this.cards.get(run.queue_id) ?? new Card(run.queue_id, (id) => this.stop(id));
      this.cards.set(run.queue_id, card);
      card.show(run);
      if (list.children[i] !== card.node) list.insertBefore(card.node, list.children[i] ?? null);
    });
  }

  wantToken(): void {
    $("token-field").hidden = false;
  }

  proposeSymbol(symbol: string): void {
    this.input("symbol").value = symbol;
  }

  focus(): void {
    $<HTMLDetailsElement>("start-details").open = true;
    this.input("what").focus();
  }

  private input(name: string): HTMLInputElement {
    return this.form.elements.namedItem(name) as HTMLInputElement;
  }

  private showRange(): void {
    $("range-fields").hidden = this.input("what").value in LIVE;
  }

  private async start(): Promise<void> {
    const said = Object.fromEntries([...new FormData(this.form)].map(([name, value]) => [name, String(value)]));
    if (said.token) sessionStorage.setItem("token", said.token);
    const button = $<HTMLButtonElement>("start-button");
    button.disabled = true;
    try {
      const answer = await ask<{ queue_id: string }>("/queues/start", commandOf({ ...said, interval: this.interval() }));
      this.say(`Accepted: ${answer.queue_id}`);
      this.refreshSoon();
    } catch (refused) {
      this.refuse(refused);
    } finally {
      button.disabled = false;
    }
  }

  private async stop(queueId: string): Promise<void> {
    try {
      await ask("/queues/stop", { queue_id: queueId });
      this.refreshSoon();
    } catch (refused) {
      this.refuse(refused);
    }
  }

  private refuse(refused: unknown): void {
    this.say(refused instanceof Refused ? refused.message : "The worker does not answer.", true);
    if (refused instanceof Refused && refused.status === 401) {
      this.wantToken();
      $<HTMLDetailsElement>("start-details").open = true;
      this.input("token").focus();
    }
  }

  private say(text: string, bad = false): void {
    mark($("start-said"), "bad", String(bad));
    put($("start-said"), text);
  }
}

class Card {
  readonly node = el("li", { class: "run" });
  private name = el("span", { class: "name" });
  private state = el("span", { class: "state" });
  private button: HTMLButtonElement;
  private steps = el("ul", { class: "steps" });

  constructor(queueId: string, stop: (queueId: string) => Promise<void>) {
    this.button = el("button", { type: "button", class: "small", "aria-label": `Stop ${queueId}` }, "Stop");
    this.button.addEventListener("click", () => {
      this.button.disabled = true;
      void stop(queueId).finally(() => { this.button.disabled = false; });
    });
    this.node.append(el("header", {}, this.name, this.state, this.button), this.steps);
  }

  show(run: Run): void {
    put(this.name, run.queue_id);
    this.name.title = run.queue_id;
    put(this.state, run.state);
    mark(this.node, "state", run.state);
    this.button.hidden = !run.live;
    while (this.steps.children.length < run.steps.length) this.steps.append(stepRow());
    run.steps.forEach((step, i) => showStep(this.steps.children[i] as HTMLElement, step));
  }
}

const stepRow = (): HTMLElement =>
  el("li", {}, el("span", { class: "what" }), el("span", { class: "bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }, el("i")), el("span", { class: "much" }));

/** How far a step is; whole only when it has finished. */
export const shareOf = ({ state, progress }: Pick<Step, "state" | "progress">): number | null =>
  state === "finished" ? 1 : progress === null ? null : Math.min(0.99, Math.max(0, progress));

function showStep(row: HTMLElement, step: Step): void {
  const [what, bar, much] = row.children as unknown as HTMLElement[];
  const share = shareOf(step);
  const isAtWork = step.state === "loading" || step.state === "launched";
  const name = `${step.symbol} ${step.type.replace(/^(api|ws)_/, "").replace("_", " ")}`.trim();
  mark(row, "state", step.state);
  put(what, `${name} · ${step.target}`);
  put(much, step.error || (isAtWork && step.records_written ? step.records_written.toLocaleString("en") : step.state));
  row.title = step.error || step.message;
  bar.setAttribute("aria-label", `${name}, ${step.target}`);
  mark(bar, "endless", String(isAtWork && share === null));
  bar.style.setProperty("--share", String(share ?? 0));
  if (share === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", String(Math.floor(100 * share)));
}
