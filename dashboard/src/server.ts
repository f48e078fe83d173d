// How the page speaks with the worker: calls over HTTP, and sockets that come back by themselves.

export class Refused extends Error {
  constructor(message: string, readonly status: number, readonly field: string) {
    super(message);
  }
}

export async function ask<T>(path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  const token = sessionStorage.getItem("token");
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    if (token) headers.Authorization = `Bearer ${token}`;
  }
  const response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer.error || `the server answered ${response.status}`, response.status, answer.field || "");
  return answer as T;
}

export interface Listener {
  opened?(): void;
  said(frame: unknown): void;
  closed?(): void;
}

/** A WebSocket that connects again, later and later up to 5 s, until `close` is called. */
export class Line {
  private socket: WebSocket | null = null;
  private tries = 0;
  private timer = 0;
  private over = false;

  constructor(private readonly path: string, private readonly listener: Listener) {
    this.connect();
  }

  close(): void {
    this.over = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  /** Try now: whoever waits has seen that the network is back. */
  retry(): void {
    if (this.over || (this.socket && this.socket.readyState <= WebSocket.OPEN)) return;
    clearTimeout(this.timer);
    this.connect();
  }

  private connect(): void {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = (this.socket = new WebSocket(`${scheme}://${location.host}${this.path}`));
    socket.onopen = () => {
      if (!this.over) this.listener.opened?.();
    };
    socket.onmessage = ({ data }) => {
      if (this.over) return;
      this.tries = 0;
      this.listener.said(JSON.parse(data));
    };
    socket.onclose = () => {
      if (this.over) return;
      this.listener.closed?.();
      this.tries += 1;
      this.timer = window.setTimeout(() => this.connect(), Math.min(5_000, 250 * 2 ** this.tries) * (0.5 + Math.random() / 2));
    };
  }
}

/** `action` once, soon, however often it is asked for; again only when it is over. */
export function soon(action: () => Promise<void>, waitMs: number): () => void {
  let timer = 0;
  return () => {
    timer ||= window.setTimeout(async () => {
      try {
        await action();
      } catch (failed) {
        console.warn(String(failed));
      } finally {
        timer = 0;
      }
    }, waitMs);
  };
}
