// Everything by keyboard; `?` lists it. Keys do nothing while somebody types.
import { $, el } from "./dom";

export interface Shortcut {
  key: string;
  means: string;
  act(): void;
}

export function listen(shortcuts: Shortcut[]): void {
  const help = $<HTMLDialogElement>("help");
  $("help-keys").append(...shortcuts.map(({ key, means }) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, means))));
  $("help-button").addEventListener("click", () => help.showModal());
  $("help-close").addEventListener("click", () => help.close());
  document.addEventListener("keydown", (pressed) => {
    const typing = (pressed.target as HTMLElement).closest("input, select, textarea");
    if (pressed.key === "Escape" && typing) (typing as HTMLElement).blur();
    if (typing || pressed.ctrlKey || pressed.metaKey || pressed.altKey || help.open) return;
    const found = shortcuts.find(({ key }) => key === pressed.key);
    if (!found) return;
    pressed.preventDefault();
    found.act();
  });
}
