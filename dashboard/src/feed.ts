// One symbol at one interval: history by REST, then what happens by WebSocket, with its sequence.
// Whatever may have been missed (a reconnect, a skipped sequence number, a missing trade id) is asked for again, until
// the ids have no hole or the store does not fill it.
import { CandleSeries } from "./model/candles";
import { newerBook } from "./model/book";
import { verdictOf, type Verdict } from "./model/health";
import { mergeTrades, missingIn, Tape } from "./model/trades";
import { candleOf, INTERVALS, tradeOf, type Book, type CandleRow, type Frame, type Hello, type News, type StreamHealth, type Trade } from "./model/words";
import { ask, Line } from "./server";

const TRADES_ASKED = 500;
const CANDLES_ASKED = 1_000;
const MOST_ROWS = 10_000;
const REPAIR_TRIES = 12;
const REPAIR_WAIT_MS = [500, 1_000, 2_000, 4_000, 8_000, 15_000];

interface Stored {
  id: number;
  ts_ms: number;
  price: number;
  size: number;
  buyer_is_maker: boolean;
}

const tradeOfStored = (row: Stored): Trade => ({ id: row.id, ts: row.ts_ms, price: row.price, size: row.size, sell: row.buyer_is_maker });

export interface Watcher {
  reset(): void; // everything may be different
  traded(news: readonly Trade[]): void;
  settled(): void; // a candle of the server's came
  booked(): void;
  streamed(): void;
}

export class Feed {
  readonly tape = new Tape();
  candles: CandleSeries;
  book: Book | null = null;
  streams: StreamHealth[] = [];
  simulated = false;
  source = "";
  failed = ""; // why history could not be had
  loaded = false;

  private line: Line;
  private connected = false;
  private frameAt = performance.now();
  private dataAt = performance.now();
  private said: Hello["state"] = "waiting";
  private seq = -1;
  private loading: Promise<void> | null = null;
  private again = false;
  private repairs = 0;
  private repairTimer = 0;
  private over = false;

  constructor(readonly symbol: string, readonly interval: string, private readonly watcher: Watcher) {
    this.candles = new CandleSeries(INTERVALS[interval]);
    this.line = new Line(`/ws/market?symbol=${encodeURIComponent(symbol)}`, {
      said: (frame) => this.take(frame as Frame),
      closed: () => { this.connected = false; },
    });
  }

  close(): void {
    this.over = true;
    clearTimeout(this.repairTimer);
    this.line.close();
  }

  /** After the page was asleep: nothing is taken for granted. */
  wake(): void {
    this.line.retry();
    this.backfill();
  }

  verdict(now: number): Verdict {
    const holes = this.tape.holes;
    return verdictOf({
      connected: this.connected, frameAt: this.frameAt, dataAt: this.dataAt, said: this.said,
      repairing: this.loading !== null || (holes.length > 0 && this.repairs < REPAIR_TRIES), missing: missingIn(holes),
    }, now);
  }

  /** Milliseconds since market data came, by the page's own clock. */
  age(now: number): number {
    return now - this.dataAt;
  }

  private take(frame: Frame): void {
    this.frameAt = performance.now();
    if (frame.event === "hello") this.greet(frame);
    else if (frame.event === "news") this.follow(frame);
    else console.warn(frame.message);
  }

  private greet(hello: Hello): void {
    this.connected = true;
    this.seq = hello.seq;
    this.said = hello.state;
    this.simulated = hello.simulated;
    this.book = hello.book;
    this.noteStreams(hello.streams);
    this.repairs = 0;
    this.watcher.booked();
    this.backfill();
  }

  private follow(news: News): void {
    const isNext = news.seq === this.seq + 1;
    this.seq = news.seq;
    this.said = news.state;
    if (news.trades) this.trade(news.trades.map(tradeOf));
    if (news.book) {
      this.dataAt = performance.now();
      this.book = newerBook(this.book, news.book);
      this.watcher.booked();
    }
    if (news.candles) this.settle(news.candles);
    if (news.streams) this.noteStreams(news.streams);
    if (!isNext || news.left_out) this.backfill();
  }

  private trade(trades: Trade[]): void {
    this.dataAt = performance.now();
    const holes = this.tape.holes.length;
    const added = this.tape.add(trades);
    for (const trade of added) this.candles.add(trade);
    this.watcher.traded(added);
    if (this.tape.holes.length > holes) {
      this.repairs = 0;
      this.repairLater();
    }
  }

  private settle(rows: CandleRow[]): void {
    const ours = rows.filter((row) => row.interval === this.interval);
    for (const row of ours) this.candles.settle(candleOf(row));
    if (ours.length) this.watcher.settled();
  }

  private noteStreams(streams: StreamHealth[]): void {
    this.streams = streams;
    const ages = streams.filter((one) => !one.channel.startsWith("candles_")).map((one) => one.age_ms);
    if (ages.length) this.dataAt = Math.max(this.dataAt, performance.now() - Math.min(...ages));
    this.source = streams.find((one) => one.channel === "trades")?.source ?? "";
    this.watcher.streamed();
  }

  /** Ask the store for all that is shown, and put what came live meanwhile behind it. */
  private backfill(): void {
    if (this.loading) {
      this.again = true;
      return;
    }
    this.loading = this.load()
      .then(() => { this.failed = ""; }, (failed) => { this.failed = failed instanceof Error ? failed.message : String(failed); })
      .finally(() => {
        this.loading = null;
        if (this.over) return;
        if (this.again) {
          this.again = false;
          this.backfill();
        } else if (this.failed || this.tape.holes.length) this.repairLater();
      });
  }

  private async load(): Promise<void> {
    const minute = INTERVALS["1m"], { intervalMs } = this.candles;
    const candles = await this.history(this.interval, `limit=${CANDLES_ASKED}`);
    const end = candles.length ? candles[candles.length - 1].ts + intervalMs : 0;
    const minutes = intervalMs === minute ? [] : await this.history("1m", `start=${end}&limit=${MOST_ROWS}`);
    const from = minutes.length ? minutes[minutes.length - 1].ts + minute : end;
    const [open, newest] = await Promise.all([
      this.trades(`start=${from}&limit=${MOST_ROWS}`), this.trades(`limit=${TRADES_ASKED}`),
    ]);
    if (this.over) return;
    const series = new CandleSeries(intervalMs);
    series.begin(candles.map(candleOf), minutes.map(candleOf));
    const stored = mergeTrades(open, newest, MOST_ROWS);
    const live = stored.length ? this.tape.trades.filter((one) => one.id >= stored[0].id) : this.tape.trades;
    const all = mergeTrades(stored, live, 2 * MOST_ROWS);
    for (const trade of all) series.add(trade);
    this.tape.reset(mergeTrades(all, []));
    this.candles = series;
    this.loaded = true;
    this.watcher.reset();
  }

  private async history(interval: string, query: string): Promise<CandleRow[]> {
    return (await ask<{ rows: CandleRow[] }>(`/candles/${this.symbol}/${interval}?${query}`)).rows;
  }

  private async trades(query: string): Promise<Trade[]> {
    return (await ask<{ rows: Stored[] }>(`/trades/${this.symbol}?${query}`)).rows.map(tradeOfStored);
  }

  private repairLater(): void {
    if (this.repairTimer || this.repairs >= REPAIR_TRIES) return;
    const wait = REPAIR_WAIT_MS[Math.min(this.repairs, REPAIR_WAIT_MS.length - 1)];
    this.repairs += 1;
    this.repairTimer = window.setTimeout(() => {
      this.repairTimer = 0;
      this.backfill();
    }, wait);
  }
}
