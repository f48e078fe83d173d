import { describe, expect, it } from "vitest";
import { cumulate, imbalanceOf, newerBook, spreadOf } from "../src/model/book";
import { CandleSeries, foldCandles } from "../src/model/candles";
import { describe as inWords, partsOf } from "../src/model/coverage";
import { verdictOf, type Signs } from "../src/model/health";
import { holesIn, mergeTrades, missingIn, Tape } from "../src/model/trades";
import type { Book, Candle, Trade } from "../src/model/words";

const MINUTE = 60_000;
const trade = (id: number, ts = id * 1_000, price = 100 + id, size = 1): Trade => ({ id, ts, price, size, sell: false });
const ids = (trades: readonly Trade[]): number[] => trades.map((one) => one.id);
const candle = (ts: number, close: number, settled = true): Candle =>
  ({ ts, open: close, high: close + 1, low: close - 1, close, volume: 2, trades: 3, settled });

describe("backfill", () => {
  it("puts what the store gave and what came live together, each trade once", () => {
    expect(ids(mergeTrades([1, 2, 3].map((id) => trade(id)), [2, 3, 4, 6].map((id) => trade(id))))).toEqual([1, 2, 3, 4, 6]);
    expect(ids(mergeTrades([], [trade(1), trade(1)], 5))).toEqual([1]);
    expect(ids(mergeTrades([1, 2, 3].map((id) => trade(id)), [], 2))).toEqual([2, 3]);
  });

  it("knows what is missing, and forgets it when it comes", () => {
    const tape = new Tape();
    expect(ids(tape.add([trade(1), trade(2), trade(5)]))).toEqual([1, 2, 5]);
    expect(tape.holes).toEqual([{ after: 2, before: 5, ts: 2_000 }]);
    expect(missingIn(tape.holes)).toBe(2);
    expect(ids(tape.add([trade(5), trade(4), trade(3), trade(6)]))).toEqual([4, 3, 6]);
    expect(ids(tape.trades)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(tape.holes).toEqual([]);
    expect(holesIn(tape.trades)).toEqual([]);
  });

  it("keeps a bounded number of trades however many come", () => {
    const tape = new Tape(100);
    for (let id = 1; id <= 10_000; id += 10) tape.add([trade(id), trade(id + 1)]);
    expect(tape.trades.length).toBeLessThan(200);
    expect(tape.holes.length).toBeLessThan(200);
    expect(tape.last?.id).toBe(9_992);
  });
});

describe("candles", () => {
  it("grow with each trade of theirs and begin anew with the next interval", () => {
    const series = new CandleSeries(MINUTE);
    for (const one of [trade(1, 1_000, 10), trade(2, 2_000, 12, 2), trade(3, 3_000, 9), trade(4, 61_000, 11)]) series.add(one);
    expect(series.candles).toEqual([
      { ts: 0, open: 10, high: 12, low: 9, close: 9, volume: 4, trades: 3, settled: false },
      { ts: MINUTE, open: 11, high: 11, low: 11, close: 11, volume: 1, trades: 1, settled: false },
    ]);
  });

  it("of the server replace ours and take no trade twice", () => {
    const series = new CandleSeries(MINUTE);
    series.begin([candle(0, 50)], []);
    expect(series.add(trade(1, 59_999))).toBe(false);
    series.add(trade(2, 60_500, 51));
    series.settle(candle(MINUTE, 52));
    expect(series.add(trade(3, 61_000, 99))).toBe(false);
    series.settle(candle(0, 49)); // amended later
    expect(series.candles.map((one) => one.close)).toEqual([49, 52]);
  });

  it("of a longer interval go on from the one-minute ones", () => {
    const series = new CandleSeries(5 * MINUTE);
    series.begin([candle(0, 10)], [candle(4 * MINUTE, 1), candle(5 * MINUTE, 20), candle(6 * MINUTE, 30)]);
    expect(series.candles[1]).toEqual({ ts: 5 * MINUTE, open: 20, high: 31, low: 19, close: 30, volume: 4, trades: 6, settled: false });
    expect(series.add(trade(1, 6 * MINUTE + 1, 99))).toBe(false); // in a minute that is folded already
    expect(series.add(trade(2, 7 * MINUTE, 40))).toBe(true);
    expect(foldCandles([], MINUTE)).toEqual([]);
  });

  it("stay few", () => {
    const series = new CandleSeries(MINUTE, 100);
    for (let id = 0; id < 1_000; id++) series.add(trade(id, id * MINUTE));
    expect(series.candles.length).toBeLessThanOrEqual(100);
  });
});

const book = (update_id: number, state: Book["state"] = "live"): Book =>
  ({ state, ts_ms: update_id, update_id, bids: [[100, 3], [99, 1]], asks: [[101, 1], [102, 5]] });

describe("the book", () => {
  it("is the newest that came, and none that is not live keeps its levels", () => {
    expect(newerBook(book(5), book(4)).update_id).toBe(5);
    expect(newerBook(book(5), book(6)).update_id).toBe(6);
    expect(newerBook(book(5), book(5, "stale")).state).toBe("stale");
    expect(newerBook(book(9, "stale"), book(2)).state).toBe("live"); // made anew, its ids may begin anew too
  });

  it("adds sizes up and says how far apart and how unequal its sides are", () => {
    expect(cumulate(book(1).bids).map((rung) => rung.total)).toEqual([3, 4]);
    expect(spreadOf(book(1))).toEqual({ absolute: 1, mid: 100.5, bps: (1e4 * 1) / 100.5 });
    expect(imbalanceOf(book(1), 1)).toBe(0.5);
    expect(imbalanceOf({ ...book(1), bids: [], asks: [] }, 5)).toBeNull();
  });
});

describe("the badge", () => {
  const live: Signs = { connected: true, frameAt: 10_000, dataAt: 10_000, said: "live", repairing: false, missing: 0 };
  const state = (signs: Partial<Signs>, now = 10_000): string => verdictOf({ ...live, ...signs }, now).state;

  it("says within three seconds that nothing comes, whoever is silent", () => {
    expect(state({}, 12_000)).toBe("live");
    expect(state({}, 12_900)).toBe("stale");
    expect(state({ frameAt: 12_900 }, 12_900)).toBe("stale");
    expect(state({ said: "stale" })).toBe("stale");
    expect(state({ connected: false })).toBe("offline");
  });

  it("does not call live what has holes", () => {
    expect(state({ repairing: true })).toBe("repairing");
    expect(verdictOf({ ...live, missing: 3 }, 10_000).text).toBe("live, 3 trades missing");
    expect(state({ said: "waiting" })).toBe("waiting");
  });
});

describe("coverage", () => {
  it("is cut to the time that is shown, in few parts", () => {
    const ledger = { stream: "", venue: "", symbol: "", channel: "", stored: [[0, 40], [41, 80]] as [number, number][], missing: [[80, 90]] as [number, number][], unrecoverable: [] };
    const parts = partsOf(ledger, [{ ...candle(60, 1), trades: 0 }], 10, 20, 100, 2);
    expect(parts).toEqual([
      { kind: "have", span: [20, 80] }, { kind: "synthetic", span: [60, 70] }, { kind: "missing", span: [80, 90] },
    ]);
  });

  it("is told exactly, of the time that the ledger knows", () => {
    const spans = (...all: [number, number][]): [number, number][] => all;
    const ledger = { stream: "", venue: "", symbol: "", channel: "", stored: spans([100, 10_000]), missing: spans(), unrecoverable: spans() };
    const flat = { ...candle(9_000, 1), trades: 0 };
    expect(inWords(ledger, [flat], 1_000, 0, 12_000)).toBe("100 % stored, 0 % missing, 0 % unrecoverable, 10.1 % synthetic");
    const holes = { ...ledger, stored: spans([100, 4_999], [5_000, 9_000]), missing: spans([4_999, 5_000]), unrecoverable: spans([9_000, 10_000]) };
    expect(inWords(holes, [{ ...candle(9_000, 1), partial: true }], 1_000, 0, 12_000))
      .toBe("89.9 % stored, 0.1 % missing, 10.1 % unrecoverable, 0 % synthetic, 1 partial candle");
    expect(inWords(ledger, [candle(20_000, 1)], 1_000, 0, 21_000)).toMatch(/^49.7 % stored/); // it stands still
    expect(inWords({ ...ledger, stored: [] }, [], 1_000, 0, 100)).toBe("nothing is known of this time");
  });
});
