// Is what is shown true now? One answer, from the page's own clock and from what the server says.
import type { FeedState } from "./words";

export const STALE_AFTER_MS = 2_500;

export interface Signs {
  connected: boolean;
  frameAt: number; // when any frame came last, ms of the page's clock
  dataAt: number; // when market data came last
  said: FeedState;
  repairing: boolean; // a hole is being asked for
  missing: number; // trades that are missing in what is shown
}

export interface Verdict {
  state: "live" | "repairing" | "waiting" | "stale" | "offline";
  text: string;
}

const seconds = (ms: number): string => `${Math.max(0, Math.floor(ms / 1000))} s`;

export function verdictOf(signs: Signs, now: number): Verdict {
  const silent = now - signs.frameAt;
  const old = now - signs.dataAt;
  if (!signs.connected) return { state: "offline", text: "offline, reconnecting" };
  if (silent > STALE_AFTER_MS) return { state: "stale", text: `stale: server silent for ${seconds(silent)}` };
  if (signs.said === "waiting") return { state: "waiting", text: "no live data yet" };
  if (signs.said === "stale" || old > STALE_AFTER_MS) return { state: "stale", text: `stale: no data for ${seconds(old)}` };
  if (signs.repairing) return { state: "repairing", text: "repairing" };
  if (signs.missing) return { state: "repairing", text: `live, ${signs.missing} trades missing` };
  return { state: "live", text: "live" };
}
