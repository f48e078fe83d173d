// What the server says, as it says it. Times are epoch milliseconds UTC; prices in quote currency, sizes in base.

export interface Trade {
  id: number;
  ts: number;
  price: number;
  size: number;
  sell: boolean; // the aggressor sold: the buyer was the maker
}

export interface Candle {
  ts: number; // open time
  open: number;
  high: number;
  low: number;
  close: number;
  volume: number;
  trades: number;
  settled: boolean; // the server's own; else made here from trades so far
  partial?: boolean; // it rests on trades that the exchange cannot serve
}

export type Level = [price: number, size: number];

export interface Book {
  state: "live" | "stale" | "invalid";
  ts_ms: number;
  update_id: number;
  bids: Level[]; // best first
  asks: Level[];
  microprice?: number | null; // null: not known
  ofi?: number | null;
}

export interface StreamHealth {
  stream: string;
  venue: string;
  symbol: string;
  channel: string;
  state: "live" | "repairing" | "quiet" | "stale";
  age_ms: number;
  ts_ms: number;
  source: string;
}

export type FeedState = "waiting" | "live" | "stale";

export interface Hello {
  event: "hello";
  seq: number;
  venue: string;
  symbol: string;
  simulated: boolean;
  server_ms: number;
  state: FeedState;
  last_id: number | null;
  book: Book | null;
  streams: StreamHealth[];
}

export type TradeRow = [id: number, ts: number, price: number, size: number, buyerIsMaker: boolean];

export interface CandleRow {
  interval?: string;
  ts: number;
  open: number;
  high: number;
  low: number;
  close: number;
  volume: number;
  trades: number;
  partial?: boolean; // live
  source?: string; // stored: `partial` says the same
}

export interface News {
  event: "news";
  seq: number;
  server_ms: number;
  state: FeedState;
  trades?: TradeRow[];
  candles?: CandleRow[];
  book?: Book;
  streams?: StreamHealth[];
  left_out?: boolean;
}

export interface Notice {
  event: "cut-off" | "error";
  message: string;
}

export type Frame = Hello | News | Notice;

export const INTERVALS: Record<string, number> = {
  "1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "4h": 14_400_000, "1d": 86_400_000,
};

export const tradeOf = ([id, ts, price, size, sell]: TradeRow): Trade => ({ id, ts, price, size, sell });

export const candleOf = ({ ts, open, high, low, close, volume, trades, partial, source }: CandleRow): Candle =>
  ({ ts, open, high, low, close, volume, trades, settled: true, ...(partial || source === "partial" ? { partial: true } : {}) });
