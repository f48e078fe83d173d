// The order book as the page shows it: newest state wins, sizes add up from the best price outwards.
import type { Book, Level } from "./words";

/** `next`, unless it is older than what is shown. A book that is not live replaces any: its levels are gone. */
export function newerBook(shown: Book | null, next: Book): Book {
  const isOlder = shown !== null && shown.state === "live" && next.state === "live" && next.update_id < shown.update_id
    && next.ts_ms <= shown.ts_ms;
  return isOlder ? shown : next;
}

export interface Rung {
  price: number;
  size: number;
  total: number; // sum of sizes from the best price to here
}

export function cumulate(levels: readonly Level[]): Rung[] {
  let total = 0;
  return levels.map(([price, size]) => ({ price, size, total: (total += size) }));
}

export interface Spread {
  absolute: number;
  bps: number; // of the mid
  mid: number;
}

export function spreadOf(book: Book): Spread | null {
  const bid = book.bids[0]?.[0], ask = book.asks[0]?.[0];
  if (bid === undefined || ask === undefined) return null;
  const mid = (bid + ask) / 2;
  return { absolute: ask - bid, bps: (1e4 * (ask - bid)) / mid, mid };
}

/** (bid size - ask size) / (both) over the best `levels`: -1 all asks, 1 all bids. */
export function imbalanceOf(book: Book, levels: number): number | null {
  const sum = (side: Level[]): number => side.slice(0, levels).reduce((all, [, size]) => all + size, 0);
  const bids = sum(book.bids), asks = sum(book.asks);
  return bids + asks > 0 ? (bids - asks) / (bids + asks) : null;
}
