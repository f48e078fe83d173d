// The ledger of a stream over the time that the chart shows.
import type { Candle } from "./words";

export type Span = [start: number, end: number];
export type Kind = "have" | "missing" | "unrecoverable" | "synthetic";

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
  const parts: Part[] = [];
  const kinds: [Kind, readonly Span[]][] = [
    ["have", ledger.stored], ["synthetic", synthetic], ["missing", ledger.missing], ["unrecoverable", ledger.unrecoverable],
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

/** In words, for who cannot see the strip. */
export function describe(parts: readonly Part[], from: number, to: number): string {
  const share = (kind: Kind): number => parts.filter((one) => one.kind === kind).reduce((sum, { span: [a, b] }) => sum + b - a, 0) / (to - from);
  const percent = (kind: Kind): string => `${Math.round(1000 * share(kind)) / 10} %`;
  return `${percent("have")} stored, ${percent("missing")} missing, ${percent("unrecoverable")} unrecoverable, ${percent("synthetic")} synthetic`;
}
