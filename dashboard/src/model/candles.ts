// Candles of one interval, in order of time: the server's settled ones, and the open one made here from trades.
import type { Candle, Trade } from "./words";

export const CANDLES_KEPT = 3_000;
const GAP_MOST = 500; // intervals without a candle: what lies before such a gap is another story

const openTime = (ts: number, intervalMs: number): number => ts - (ts % intervalMs);

/** Candles of a shorter interval as candles of a longer one. */
export function foldCandles(candles: readonly Candle[], intervalMs: number): Candle[] {
  const folded: Candle[] = [];
  for (const candle of candles) {
    const ts = openTime(candle.ts, intervalMs);
    const last = folded[folded.length - 1];
    if (last?.ts !== ts) folded.push({ ...candle, ts, settled: false });
    else {
      last.high = Math.max(last.high, candle.high);
      last.low = Math.min(last.low, candle.low);
      last.close = candle.close;
      last.volume += candle.volume;
      last.trades += candle.trades;
      if (candle.partial) last.partial = true;
    }
  }
  return folded;
}

export class CandleSeries {
  candles: Candle[] = [];
  private foldedUntil = 0; // ms: trades before it are in the candles already

  constructor(readonly intervalMs: number, private readonly kept = CANDLES_KEPT) {}

  get last(): Candle | undefined {
    return this.candles[this.candles.length - 1];
  }

  /** What the store has: settled candles, then one-minute candles for what these do not reach. */
  begin(settled: readonly Candle[], minutes: readonly Candle[]): void {
    const end = settled.length ? settled[settled.length - 1].ts + this.intervalMs : 0;
    const rest = minutes.filter((minute) => minute.ts >= end);
    this.candles = this.withoutOldParts([...settled, ...foldCandles(rest, this.intervalMs)]);
    this.foldedUntil = rest.length ? rest[rest.length - 1].ts + 60_000 : end;
  }

  /** Fold a trade; true when a candle changed. */
  add(trade: Trade): boolean {
    if (trade.ts < this.foldedUntil) return false;
    const ts = openTime(trade.ts, this.intervalMs);
    const last = this.last;
    if (!last || ts > last.ts) {
      const { price, size } = trade;
      this.candles.push({ ts, open: price, high: price, low: price, close: price, volume: size, trades: 1, settled: false });
      this.trim();
      return true;
    }
    const candle = ts === last.ts ? last : this.candles.findLast((one) => one.ts === ts);
    if (!candle || candle.settled) return false;
    candle.high = Math.max(candle.high, trade.price);
    candle.low = Math.min(candle.low, trade.price);
    candle.close = trade.price;
    candle.volume += trade.size;
    candle.trades += 1;
    return true;
  }

  /** Take the server's own candle in place of ours. */
  settle(candle: Candle): void {
    this.foldedUntil = Math.max(this.foldedUntil, candle.ts + this.intervalMs);
    const at = this.candles.findLastIndex((one) => one.ts <= candle.ts);
    if (at >= 0 && this.candles[at].ts === candle.ts) this.candles[at] = candle;
    else this.candles.splice(at + 1, 0, candle);
    this.trim();
  }

  private trim(): void {
    if (this.candles.length > this.kept) this.candles = this.candles.slice(-Math.floor(this.kept * 0.75));
  }

  private withoutOldParts(candles: Candle[]): Candle[] {
    const gap = candles.findLastIndex((one, i) => i > 0 && one.ts - candles[i - 1].ts > GAP_MOST * this.intervalMs);
    return (gap > 0 ? candles.slice(gap) : candles).slice(-this.kept);
  }
}
