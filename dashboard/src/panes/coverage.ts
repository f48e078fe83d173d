// What is stored of the symbol's trades, on the time axis of the chart above.
import { $, fitted, put } from "../dom";
import type { Feed } from "../feed";
import { describe, partsOf, type Kind, type Ledger } from "../model/coverage";
import { ask } from "../server";
import { color } from "../theme";
import type { ChartPane } from "./chart";

const COLORS: Record<Kind, string> = { have: "up", missing: "missing", unrecoverable: "lost", partial: "lost", synthetic: "synthetic" };

export class CoveragePane {
  private ledger: Ledger | null = null;

  constructor(private readonly chart: ChartPane) {}

  async refresh(feed: Feed): Promise<void> {
    const { streams } = await ask<{ streams: Ledger[] }>("/coverage");
    const ours = streams.filter((one) => one.symbol === feed.symbol);
    this.ledger = ours.find((one) => one.channel === "trades") ?? ours.find((one) => one.channel === `candles_${feed.interval}`) ?? ours[0] ?? null;
    this.draw(feed);
  }

  draw(feed: Feed): void {
    const canvas = $<HTMLCanvasElement>("strip");
    const { pen, height } = fitted(canvas);
    const scale = this.chart.scale();
    if (!this.ledger || !scale || this.ledger.symbol !== feed.symbol) {
      put($("strip-said"), "Nothing of this symbol is in the ledger yet.");
      canvas.setAttribute("aria-label", "Coverage: nothing yet");
      return;
    }
    const { from, to, width, x } = scale;
    const parts = partsOf(this.ledger, feed.candles.candles, feed.candles.intervalMs, from, to, (to - from) / width);
    pen.fillStyle = color("open");
    pen.fillRect(0, 0, width, height);
    for (const { kind, span } of parts) {
      pen.fillStyle = color(COLORS[kind]);
      const left = Math.max(0, x(span[0])), right = Math.min(width, x(span[1]));
      const thin = kind === "synthetic" || kind === "partial" ? height / 2 : 0;
      if (kind === "have") pen.fillRect(left, thin, right - left, height);
      else pen.fillRect(left, thin, Math.max(2, right - left), height - thin);
    }
    const said = `${this.ledger.channel}: ${describe(this.ledger, feed.candles.candles, feed.candles.intervalMs, from, to)}`;
    put($("strip-said"), said);
    canvas.setAttribute("aria-label", `Coverage of ${said}`);
  }
}
