// Health of every stream of this worker: live, repairing, quiet or stale, and how long nothing came.
import { $, mark, put, rows } from "../dom";
import { agoText } from "../model/format";
import type { StreamHealth } from "../model/words";
import { ask } from "../server";

const MOST = 24;

export class StreamsPane {
  private cells = rows($("stream-rows"), MOST, 3);
  private streams: StreamHealth[] = [];
  private readAt = 0;

  async refresh(): Promise<void> {
    this.take((await ask<{ streams: StreamHealth[] }>("/streams")).streams);
  }

  /** One symbol's, from its feed: newer than what was asked. */
  merge(news: readonly StreamHealth[]): void {
    if (!news.length) return;
    const known = new Map(this.streams.map((one) => [one.stream, { ...one, age_ms: one.age_ms + performance.now() - this.readAt }]));
    for (const one of news) known.set(one.stream, one);
    this.take([...known.values()].sort((a, b) => a.stream.localeCompare(b.stream)));
  }

  draw(): void {
    const passed = performance.now() - this.readAt;
    $("streams-empty").hidden = this.streams.length > 0;
    const left = this.streams.length - MOST;
    put($("streams-more"), left > 0 ? `and ${left} more` : "");
    this.cells.forEach(([name, state, age], i) => {
      const row = name.parentElement as HTMLElement, stream = this.streams[i];
      row.hidden = !stream;
      if (!stream) return;
      const old = stream.age_ms + passed;
      const shown = stream.state === "live" && !stream.channel.startsWith("candles_") && passed > 2_500 ? "stale" : stream.state;
      mark(row, "state", shown);
      put(name, `${stream.symbol} ${stream.channel.replace("_", " ")}${stream.venue === "binance" ? "" : ` (${stream.venue})`}`);
      put(state, shown);
      put(age, agoText(old));
    });
  }

  private take(streams: StreamHealth[]): void {
    this.streams = streams;
    this.readAt = performance.now();
    this.draw();
  }
}
