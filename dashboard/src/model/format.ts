// Numbers and times as people read them; every number of a column has the same decimals.

const two = (value: number): string => String(value).padStart(2, "0");

/** `14:03:07` UTC. */
export function clockText(ms: number): string {
  const at = new Date(ms);
  return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}`;
}

/** `25 Aug 14:03`. */
const minute = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
export const minuteText = (ms: number): string => minute.format(ms).replace(",", "");

const whole = new Intl.NumberFormat("en");
export const countText = (value: number): string => whole.format(value);

/** Decimals that tell these prices apart, at most 8. */
export function decimalsOf(values: readonly number[]): number {
  let most = 0;
  for (const value of values) {
    const text = value.toFixed(8).replace(/0+$/, "");
    most = Math.max(most, text.length - text.indexOf(".") - 1);
  }
  return most;
}

const formats = new Map<number, Intl.NumberFormat>();

/** With exactly so many decimals: `4,301.20`. */
export function fixed(value: number, decimals: number): string {
  let format = formats.get(decimals);
  if (!format) formats.set(decimals, (format = new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals })));
  return format.format(value);
}

/** `12.3k`, `4.56`: three or four figures. */
export function shortText(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(2)}G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  return size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toFixed(4);
}

export const signed = (value: number, decimals = 2): string => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(decimals)}`;

export function agoText(ms: number): string {
  const s = Math.max(0, ms / 1000);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  return s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}
