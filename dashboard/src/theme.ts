// Day and night: the system's choice, or the reader's. Canvases ask here for colours, which the style sheet names.
import { $ } from "./dom";

const CHOICES = ["auto", "dark", "light"] as const;
const listeners: (() => void)[] = [];
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;

export function color(name: string): string {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

export const onTheme = (listener: () => void): void => { listeners.push(listener); };

const chosen = (): string => localStorage.getItem("theme") ?? "auto";

function show(): void {
  document.documentElement.dataset.theme = chosen();
  $("theme").setAttribute("aria-label", `Theme: ${chosen()}`);
  $("theme").textContent = { auto: "◐", dark: "●", light: "○" }[chosen()] ?? "◐";
  for (const listener of listeners) listener();
}

export function nextTheme(): void {
  localStorage.setItem("theme", CHOICES[(CHOICES.indexOf(chosen() as "auto") + 1) % CHOICES.length]);
  show();
}

export function startTheme(): void {
  $("theme").addEventListener("click", nextTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
