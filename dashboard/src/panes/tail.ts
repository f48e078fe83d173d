// The records of one topic as they come, the newest at the top. The rows are made once.
import { $, drawn, el, put } from "../dom";
import { clockText } from "../model/format";
import { Line } from "../server";

const ROWS = 40;

export class TailPane {
  private select = $<HTMLSelectElement>("topic");
  private lines = Array.from({ length: ROWS }, () => el("li", {}, el("time"), el("code")));
  private records: { at: number; text: string }[] = [];
  private line: Line | null = null;
  private drawSoon = drawn(() => this.draw());

  constructor() {
    $("tail-rows").append(...this.lines);
    this.select.addEventListener("change", () => this.watch());
    $("tail-details").addEventListener("toggle", () => this.watch());
    this.watch();
  }

  private watch(): void {
    this.line?.close();
    this.line = null;
    this.records = [];
    this.draw();
    if (!$<HTMLDetailsElement>("tail-details").open) return;
    this.line = new Line(`/ws/topic/${this.select.value}`, { said: (frame) => this.take(frame as Record<string, unknown>) });
  }

  private take({ topic: _, ...record }: Record<string, unknown>): void {
    this.records.unshift({ at: Date.now(), text: inWords(record) });
    this.records.length = Math.min(this.records.length, ROWS);
    this.drawSoon();
  }

  private draw(): void {
    $("tail-empty").hidden = this.records.length > 0;
    this.lines.forEach((row, i) => {
      const record = this.records[i];
      row.hidden = !record;
      if (!record) return;
      put(row.children[0], clockText(record.at));
      put(row.children[1], record.text);
    });
  }
}

/** A record in one line: `event=loading queue_id=...`. */
export function inWords(record: Record<string, unknown>): string {
  return Object.entries(record)
    .filter(([, value]) => value !== null && value !== "" && !(typeof value === "object" && Object.keys(value as object).length === 0))
    .map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
    .join(" ");
}
