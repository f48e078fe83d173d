// The order book: a ladder with sizes adding up from the best price, spread and imbalance, and the depth as a picture.
import { $, fitted, mark, put, rows } from "../dom";
import type { Feed } from "../feed";
import { cumulate, imbalanceOf, spreadOf, type Rung } from "../model/book";
import { decimalsOf, fixed, shortText, signed } from "../model/format";
import type { Book } from "../model/words";
import { color } from "../theme";

const RUNGS = 12; // a side
const HEADROOM = 1.15; // over the higher side, for its label
const NOT_LIVE: Record<string, string> = { stale: "The book is not in sync; a snapshot was asked for.", invalid: "The book is crossed and is being made anew." };

export class BookPane {
  private asks = rows($("asks"), RUNGS, 3).reverse(); // the best one is the lowest
  private bids = rows($("bids"), RUNGS, 3);

  draw(feed: Feed): void {
    const { book } = feed;
    const isLive = book?.state === "live" && book.bids.length > 0 && book.asks.length > 0;
    mark($("book"), "state", book ? (isLive ? "live" : "stale") : "empty");
    put($("book-note"), isLive ? "" : book ? NOT_LIVE[book.state] ?? "The book is empty." : "No order book yet.");
    const bids = cumulate(isLive ? book.bids : []), asks = cumulate(isLive ? book.asks : []);
    const priceDecimals = Math.max(2, decimalsOf([...bids, ...asks].map((rung) => rung.price)));
    const sizeDecimals = Math.min(4, Math.max(2, decimalsOf([...bids, ...asks].map((rung) => rung.size))));
    const most = Math.max(bids[Math.min(RUNGS, bids.length) - 1]?.total ?? 0, asks[Math.min(RUNGS, asks.length) - 1]?.total ?? 0);
    for (const [cells, rungs] of [[this.bids, bids], [this.asks, asks]] as const) {
      cells.forEach((row, i) => drawRung(row, rungs[i], most, priceDecimals, sizeDecimals));
    }
    this.drawFacts(isLive ? book : null, priceDecimals);
    this.drawDepth(bids, asks, priceDecimals);
  }

  private drawFacts(book: Book | null, decimals: number): void {
    const spread = book && spreadOf(book);
    put($("mid"), spread ? fixed(spread.mid, decimals + (spread.absolute > 0 ? 1 : 0)) : "–");
    put($("spread"), spread ? `${fixed(spread.absolute, decimals)} · ${spread.bps.toFixed(2)} bp` : "–");
    put($("microprice"), book?.microprice != null ? fixed(book.microprice, decimals + 1) : "–");
    put($("ofi"), book?.ofi != null ? signed(book.ofi, 2) : "–");
    for (const levels of [1, 5, 20]) {
      const value = book && imbalanceOf(book, levels);
      put($(`imbalance-${levels}`), value === null ? "–" : signed(value, 2));
      const bar = $(`imbalance-bar-${levels}`);
      bar.style.setProperty("--share", String(value === null ? 0.5 : (1 + value) / 2));
      mark(bar, "known", String(value !== null));
    }
  }

  private drawDepth(bids: Rung[], asks: Rung[], decimals: number): void {
    const canvas = $<HTMLCanvasElement>("depth");
    const { pen, width, height } = fitted(canvas);
    canvas.setAttribute("aria-label", bids.length && asks.length
      ? `Depth: bids add up to ${shortText(bids[bids.length - 1].total)}, asks to ${shortText(asks[asks.length - 1].total)}`
      : "Depth: no order book");
    if (!bids.length || !asks.length) return;
    const mid = (bids[0].price + asks[0].price) / 2;
    const reach = Math.max(mid - bids[bids.length - 1].price, asks[asks.length - 1].price - mid) * 1.02;
    const most = Math.max(bids[bids.length - 1].total, asks[asks.length - 1].total) * HEADROOM;
    const top = 4, floor = height - 16;
    const x = (price: number): number => width / 2 + ((price - mid) / reach) * (width / 2);
    const y = (total: number): number => floor - (total / most) * (floor - top);
    stairs(pen, bids, x, y, floor, 0, color("up"), color("up-soft"));
    stairs(pen, asks, x, y, floor, width, color("down"), color("down-soft"));
    pen.strokeStyle = color("line");
    pen.beginPath();
    pen.moveTo(0, floor + 0.5);
    pen.lineTo(width, floor + 0.5);
    pen.moveTo(width / 2, top);
    pen.lineTo(width / 2, floor);
    pen.stroke();
    pen.fillStyle = color("soft");
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "alphabetic";
    for (const [text, at, align] of [[fixed(mid - reach, decimals), 2, "left"], [fixed(mid, decimals), width / 2, "center"], [fixed(mid + reach, decimals), width - 2, "right"]] as const) {
      pen.textAlign = align;
      pen.fillText(text, at, height - 3);
    }
    pen.textAlign = "left";
    pen.fillText(shortText(most / HEADROOM), 4, y(most / HEADROOM) - 4);
  }
}

function drawRung([price, size, total]: HTMLTableCellElement[], rung: Rung | undefined, most: number, priceDecimals: number, sizeDecimals: number): void {
  put(price, rung ? fixed(rung.price, priceDecimals) : "\u00a0");
  put(size, rung ? fixed(rung.size, sizeDecimals) : "");
  put(total, rung ? fixed(rung.total, sizeDecimals) : "");
  (price.parentElement as HTMLElement).style.setProperty("--part", rung ? `${Math.round((100 * rung.total) / most)}%` : "0%");
}

function stairs(
  pen: CanvasRenderingContext2D, rungs: Rung[], x: (price: number) => number, y: (total: number) => number, floor: number, edge: number, line: string, fill: string,
): void {
  pen.beginPath();
  pen.moveTo(x(rungs[0].price), floor);
  let level = floor;
  for (const rung of rungs) {
    pen.lineTo(x(rung.price), level);
    pen.lineTo(x(rung.price), (level = y(rung.total)));
  }
  pen.lineTo(edge, level);
  pen.strokeStyle = line;
  pen.lineWidth = 1.5;
  pen.stroke();
  pen.lineTo(edge, floor);
  pen.closePath();
  pen.fillStyle = fill;
  pen.fill();
  pen.lineWidth = 1;
}
