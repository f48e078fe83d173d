// The newest trades, newest first, those of at least a size. The rows are made once.
import { $, mark, put, rows } from "../dom";
import type { Feed } from "../feed";
import { clockText, decimalsOf, fixed } from "../model/format";
import type { Trade } from "../model/words";

const ROWS = 60;
const LOOKED_AT = 2_000;

export class TapePane {
  private cells = rows($("tape-rows"), ROWS, 3);
  private filter = $<HTMLInputElement>("least");
  private decimals = { price: 2, size: 3 };

  constructor(filterChanged: () => void) {
    this.filter.addEventListener("input", filterChanged);
  }

  draw(feed: Feed): void {
    const shown = this.newest(feed.tape.trades);
    this.decimals.price = Math.max(2, decimalsOf(shown.slice(0, 20).map((one) => one.price)));
    this.decimals.size = Math.min(6, Math.max(3, decimalsOf(shown.slice(0, 20).map((one) => one.size))));
    const largest = Math.max(...shown.map((one) => one.size), 0);
    this.cells.forEach((cells, i) => this.drawRow(cells, shown[i], largest));
    $("tape-empty").hidden = shown.length > 0;
    put($("tape-empty"), feed.tape.trades.length ? "No trade of this size among the newest." : "No trades yet.");
  }

  private newest(trades: readonly Trade[]): Trade[] {
    const least = Number(this.filter.value) || 0;
    const found: Trade[] = [];
    for (let i = trades.length - 1; i >= Math.max(0, trades.length - LOOKED_AT) && found.length < ROWS; i--) {
      if (trades[i].size >= least) found.push(trades[i]);
    }
    return found;
  }

  private drawRow([time, price, size]: HTMLTableCellElement[], trade: Trade | undefined, largest: number): void {
    const row = time.parentElement as HTMLElement;
    row.hidden = !trade;
    if (!trade) return;
    mark(row, "side", trade.sell ? "down" : "up");
    put(time, clockText(trade.ts));
    put(price, fixed(trade.price, this.decimals.price));
    put(size, fixed(trade.size, this.decimals.size));
    row.style.setProperty("--part", `${Math.round(100 * Math.sqrt(trade.size / largest))}%`);
  }
}
