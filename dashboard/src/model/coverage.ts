// The ledger of a stream over the time that the chart shows.
import type { Candle } from "./words";

export type Span = [start: number, end: number];
export type Kind = "have" | "missing" | "unrecoverable" | "partial" | "synthetic";

export interface Ledger {
  stream: string;
  symbol: string;
  venue: string;
  channel: string;
  stored: Span[];
  missing: Span[];
  unrecoverable: Span[];
}

export interface Part {
  kind: Kind;
  span: Span;
}

const cut = (spans: readonly Span[], from: number, to: number): Span[] =>
  spans.filter(([a, b]) => a < to && b > from).map(([a, b]) => [Math.max(a, from), Math.min(b, to)]);

/** What lies in [from, to), the worse painted last; spans closer than `gap` ms become one, so that parts stay few. */
export function partsOf(ledger: Ledger, candles: readonly Candle[], intervalMs: number, from: number, to: number, gap: number): Part[] {
  const synthetic = candles.filter((one) => one.trades === 0).map((one): Span => [one.ts, one.ts + intervalMs]);
  const partial = candles.filter((one) => one.partial).map((one): Span => [one.ts, one.ts + intervalMs]);
  const parts: Part[] = [];
  const kinds: [Kind, readonly Span[]][] = [
    ["have", ledger.stored], ["synthetic", synthetic], ["partial", partial], ["missing", ledger.missing], ["unrecoverable", ledger.unrecoverable],
  ];
  for (const [kind, spans] of kinds) {
    let last: Part | undefined;
    for (const span of cut(spans, from, to)) {
      if (last && span[0] - last.span[1] < gap) last.span = [last.span[0], Math.max(last.span[1], span[1])];
      else parts.push((last = { kind, span: [...span] as Span }));
    }
  }
  return parts;
}

/** A share in percent: 0 and 100 only where nothing, or all, is meant. */
const percent = (share: number): string => (share <= 0 ? "0 %" : share >= 1 ? "100 %" : `${Math.min(99.9, Math.max(0.1, Math.round(1000 * share) / 10))} %`);

/**
 * What is known of [from, to), in words. Shares are of the time from where the ledger begins to where it ends, or to
 * the open of the newest candle, where that is later: what nobody asked for before is not missing, a ledger that stands
 * still is. Exact: spans are not drawn together as they are for painting.
 */
export function describe(ledger: Ledger, candles: readonly Candle[], intervalMs: number, from: number, to: number): string {
  const known = [...ledger.stored, ...ledger.missing, ...ledger.unrecoverable];
  const begins = Math.min(...known.map(([a]) => a)), ends = Math.max(...known.map(([, b]) => b));
  const start = Math.max(from, begins), end = Math.min(to, Math.max(ends, candles[candles.length - 1]?.ts ?? 0));
  if (!known.length || end <= start) return "nothing is known of this time";
  const share = (spans: readonly Span[]): number => cut(spans, start, end).reduce((sum, [a, b]) => sum + b - a, 0) / (end - start);
  const synthetic = candles.filter((one) => one.trades === 0).map((one): Span => [one.ts, one.ts + intervalMs]);
  const partial = candles.filter((one) => one.partial && one.ts < end && one.ts + intervalMs > start).length;
  const said = [
    `${percent(share(ledger.stored))} stored`, `${percent(share(ledger.missing))} missing`,
    `${percent(share(ledger.unrecoverable))} unrecoverable`, `${percent(share(synthetic))} synthetic`,
  ];
  return [...said, ...(partial ? [`${partial} partial ${partial === 1 ? "candle" : "candles"}`] : [])].join(", ");
}
