// Trades by id: what came live and what the store gave become one list, each trade once, in order, with its holes known.
import type { Trade } from "./words";

export const TRADES_KEPT = 2_000;

export interface Hole {
  after: number; // id of the last trade before it
  before: number; // id of the first one behind it
  ts: number; // when it begins
}

/** Both lists as one: by id, each once, the newest `kept`. */
export function mergeTrades(one: readonly Trade[], other: readonly Trade[], kept = TRADES_KEPT): Trade[] {
  const merged: Trade[] = [];
  let i = 0, j = 0;
  while (i < one.length || j < other.length) {
    const next = j >= other.length || (i < one.length && one[i].id <= other[j].id) ? one[i++] : other[j++];
    if (!merged.length || next.id > merged[merged.length - 1].id) merged.push(next);
  }
  return merged.length > kept ? merged.slice(-kept) : merged;
}

/** Where ids are missing in a list in order of id. */
export function holesIn(trades: readonly Trade[]): Hole[] {
  const found: Hole[] = [];
  for (let i = 1; i < trades.length; i++) {
    if (trades[i].id > trades[i - 1].id + 1) found.push({ after: trades[i - 1].id, before: trades[i].id, ts: trades[i - 1].ts });
  }
  return found;
}

export const missingIn = (holes: readonly Hole[]): number =>
  holes.reduce((sum, hole) => sum + hole.before - hole.after - 1, 0);

/** The newest trades in place: never more than twice `kept`, so that adding stays cheap. */
export class Tape {
  private list: Trade[] = [];
  holes: Hole[] = [];

  constructor(private readonly kept = TRADES_KEPT) {}

  get trades(): readonly Trade[] {
    return this.list;
  }

  get last(): Trade | undefined {
    return this.list[this.list.length - 1];
  }

  /** Add live trades; gives those that were not here. One from before the last is a late one and is put in its place. */
  add(news: readonly Trade[]): Trade[] {
    const added: Trade[] = [];
    for (const trade of news) {
      const last = this.last;
      if (last && trade.id <= last.id) {
        if (this.insert(trade)) added.push(trade);
        continue;
      }
      if (last && trade.id > last.id + 1) this.holes.push({ after: last.id, before: trade.id, ts: last.ts });
      this.list.push(trade);
      added.push(trade);
    }
    if (this.list.length >= 2 * this.kept) this.trim();
    return added;
  }

  /** Begin anew with what the store gave, and what came live since. */
  reset(trades: Trade[]): void {
    this.list = trades;
    this.holes = holesIn(trades);
  }

  private insert(trade: Trade): boolean {
    const at = this.list.findIndex((known) => known.id >= trade.id);
    if (at <= 0 || this.list[at].id === trade.id) return false; // older than everything here, or known
    this.list.splice(at, 0, trade);
    this.holes = holesIn(this.list);
    return true;
  }

  private trim(): void {
    this.list = this.list.slice(-this.kept);
    const first = this.list[0].id;
    this.holes = this.holes.filter((hole) => hole.before > first);
  }
}
