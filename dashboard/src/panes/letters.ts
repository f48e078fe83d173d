// What could not be used, the newest first, with where it came from and why.
import { $, el, put } from "../dom";
import { clockText, countText } from "../model/format";
import { ask } from "../server";

const SHOWN = 20;

interface Letter {
  id: number;
  ts_ms: number;
  topic: string;
  reason: string;
  value: string;
}

export class LettersPane {
  private shown = "";

  async refresh(): Promise<void> {
    const { dead_letters: letters, total } = await ask<{ dead_letters: Letter[]; total: number }>(`/dead-letters?limit=${SHOWN}`);
    put($("letters-total"), total ? countText(total) : "none");
    $("letters-total").dataset.some = String(total > 0);
    const said = letters.map((one) => one.id).join();
    if (said === this.shown) return;
    this.shown = said;
    $("letters-empty").hidden = letters.length > 0;
    $("letter-list").replaceChildren(...letters.reverse().map(letterRow));
  }
}

const letterRow = (letter: Letter): HTMLElement =>
  el("li", {},
    el("p", {}, el("time", {}, clockText(letter.ts_ms)), " ", el("b", {}, letter.topic), ` #${letter.id}`),
    el("p", { class: "reason" }, letter.reason), el("code", {}, letter.value.slice(0, 160)));
