// Candles with volume; the last one lives. Time is linear: an interval without a candle is an empty place.
import {
  CandlestickSeries, ColorType, createChart, HistogramSeries, LineStyle, type CandlestickData, type HistogramData,
  type IChartApi, type ISeriesApi, type Logical, type Time, type UTCTimestamp, type WhitespaceData,
} from "lightweight-charts";
import { $, put } from "../dom";
import type { Feed } from "../feed";
import { decimalsOf, fixed, minuteText, shortText } from "../model/format";
import type { Candle } from "../model/words";
import { color, onTheme } from "../theme";

type Bar = CandlestickData<Time> | WhitespaceData<Time>;
type Volume = HistogramData<Time> | WhitespaceData<Time>;

const timeOf = (ts: number): UTCTimestamp => (ts / 1000) as UTCTimestamp;
const MOVED: (() => void)[] = [];

export class ChartPane {
  private chart: IChartApi;
  private price: ISeriesApi<"Candlestick">;
  private volume: ISeriesApi<"Histogram">;
  private feed: Feed | null = null;
  private firstTs = 0;
  private lastTs = 0;
  private pointed: Candle | null = null;

  constructor() {
    this.chart = createChart($("chart"), {
      autoSize: true,
      layout: { attributionLogo: false, fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 11 },
      timeScale: { timeVisible: true, secondsVisible: false, rightOffset: 3, barSpacing: 7, minBarSpacing: 1 },
      rightPriceScale: { scaleMargins: { top: 0.08, bottom: 0.24 } },
      crosshair: { mode: 0 },
    });
    this.price = this.chart.addSeries(CandlestickSeries, { priceLineStyle: LineStyle.Dotted });
    this.volume = this.chart.addSeries(HistogramSeries, { priceScaleId: "", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false });
    this.volume.priceScale().applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
    this.chart.timeScale().subscribeVisibleLogicalRangeChange(() => MOVED.forEach((moved) => moved()));
    this.chart.subscribeCrosshairMove(({ time }) => {
      this.pointed = time === undefined ? null : this.feed?.candles.candles.find((one) => timeOf(one.ts) === time) ?? null;
      this.tell();
    });
    onTheme(() => this.paint());
    this.paint();
  }

  onMove(moved: () => void): void {
    MOVED.push(moved);
  }

  /** Everything anew. */
  show(feed: Feed): void {
    const another = this.feed !== feed;
    this.feed = feed;
    const { candles, intervalMs } = feed.candles;
    this.firstTs = candles[0]?.ts ?? 0;
    this.lastTs = feed.candles.last?.ts ?? 0;
    if (candles.length) {
      const decimals = Math.max(2, decimalsOf(candles.slice(-50).map((one) => one.close)));
      this.price.applyOptions({ priceFormat: { type: "price", precision: decimals, minMove: 10 ** -decimals } });
    }
    const bars: Bar[] = [], volumes: Volume[] = [];
    let due = this.firstTs;
    for (const candle of candles) {
      for (; due < candle.ts; due += intervalMs) {
        bars.push({ time: timeOf(due) });
        volumes.push({ time: timeOf(due) });
      }
      bars.push(barOf(candle));
      volumes.push(volumeOf(candle));
      due = candle.ts + intervalMs;
    }
    this.price.setData(bars);
    this.volume.setData(volumes);
    if (another) this.chart.timeScale().scrollToRealTime();
    this.tell();
  }

  /** The open candle has changed, or a new one began. */
  update(): void {
    const last = this.feed?.candles.last;
    if (!this.feed || !last) return;
    const next = this.lastTs + this.feed.candles.intervalMs;
    if (last.ts < this.lastTs || last.ts > next || !this.lastTs || this.feed.candles.candles[0].ts !== this.firstTs) this.show(this.feed);
    else {
      if (last.ts === next) this.settlePrevious();
      this.price.update(barOf(last));
      this.volume.update(volumeOf(last));
      this.lastTs = last.ts;
      this.tell();
    }
  }

  /** Time to x in CSS pixels of the strip under the chart; null while there is nothing. */
  scale(): { x: (ts: number) => number; from: number; to: number; width: number } | null {
    const time = this.chart.timeScale();
    const one = time.logicalToCoordinate(0 as Logical), other = time.logicalToCoordinate(1 as Logical);
    if (!this.feed || !this.firstTs || one === null || other === null || other <= one) return null;
    const { intervalMs } = this.feed.candles;
    const spacing = other - one, width = time.width();
    const x = (ts: number): number => one + ((ts - this.firstTs) / intervalMs - 0.5) * spacing;
    const at = (px: number): number => this.firstTs + ((px - one) / spacing + 0.5) * intervalMs;
    return { x, from: at(0), to: Math.min(at(width), this.lastTs + intervalMs), width };
  }

  private settlePrevious(): void {
    const { candles } = (this.feed as Feed).candles;
    const before = candles[candles.length - 2];
    if (before && before.ts === this.lastTs) {
      this.price.update(barOf(before));
      this.volume.update(volumeOf(before));
    }
  }

  private tell(): void {
    const candle = this.pointed ?? this.feed?.candles.last;
    if (!candle) return;
    const decimals = Math.max(2, decimalsOf([candle.open, candle.high, candle.low, candle.close]));
    const parts = { t: minuteText(candle.ts), o: fixed(candle.open, decimals), h: fixed(candle.high, decimals), l: fixed(candle.low, decimals), c: fixed(candle.close, decimals), v: shortText(candle.volume) };
    for (const [name, text] of Object.entries(parts)) put($(`ohlc-${name}`), text);
    $("ohlc").dataset.side = candle.close >= candle.open ? "up" : "down";
  }

  private paint(): void {
    const line = color("line"), up = color("up"), down = color("down");
    this.chart.applyOptions({
      layout: { background: { type: ColorType.Solid, color: color("panel") }, textColor: color("soft") },
      grid: { vertLines: { color: color("grid") }, horzLines: { color: color("grid") } },
      rightPriceScale: { borderColor: line },
      timeScale: { borderColor: line },
      crosshair: { vertLine: { color: color("soft"), labelBackgroundColor: color("soft") }, horzLine: { color: color("soft"), labelBackgroundColor: color("soft") } },
    });
    this.price.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down, borderVisible: false });
    if (this.feed) this.show(this.feed);
  }
}

const barOf = ({ ts, open, high, low, close }: Candle): CandlestickData<Time> => ({ time: timeOf(ts), open, high, low, close });

const shades = { up: "", down: "", of: "" };

function volumeOf({ ts, open, close, volume }: Candle): HistogramData<Time> {
  const theme = document.documentElement.dataset.theme + String(matchMedia("(prefers-color-scheme: dark)").matches);
  if (shades.of !== theme) Object.assign(shades, { up: color("up-soft"), down: color("down-soft"), of: theme });
  return { time: timeOf(ts), value: volume, color: close >= open ? shades.up : shades.down };
}
