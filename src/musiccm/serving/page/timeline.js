/** Prompts along a timeline: rows of a second and a text, and a strip that shows how long each holds. */

import { $, freshId, h, numberOf } from "./dom.js";

const FIRST = [{ at: 0, text: "slow organ chords, no drums" }, { at: 10, text: "a fast synth lead with dance drums" }];

export class Timeline {
  constructor(changed) {
    this.changed = changed;
    $("add-entry").addEventListener("click", () => {
      const rows = this.entries;
      this.#add({ at: (rows.at(-1)?.at ?? -5) + 5, text: "" }).focus();
      this.#told();
    });
    $("seconds").addEventListener("input", () => this.#strip());
    this.entries = FIRST;
  }

  /** `[{at, text}]` as they stand in the rows. */
  get entries() {
    return [...$("entries").children].map((row) => ({ at: numberOf(row.at) ?? 0, text: row.text.value.trim() }));
  }

  set entries(entries) {
    $("entries").replaceChildren();
    for (const entry of entries) this.#add(entry);
    this.#strip();
  }

  #add({ at, text }) {
    const when = h("input", { type: "number", min: "0", step: "any", id: freshId("at") });
    const what = h("input", { type: "text", maxlength: "1000", id: freshId("text") });
    [when.value, what.value] = [String(at), text];
    const row = h("li", {},
      h("div", {}, h("label", { for: when.id, text: "Second" }), when),
      h("div", {}, h("label", { for: what.id, text: "Prompt" }), what),
      h("button", { type: "button", text: "Remove", onclick: () => {
        const beside = row.previousElementSibling || row.nextElementSibling;
        row.remove();
        (beside?.text || $("add-entry")).focus();
        this.#told();
      } }));
    [row.at, row.text] = [when, what];
    row.addEventListener("input", () => this.#told());
    $("entries").append(row);
    return what;
  }

  #told() {
    this.#strip();
    this.changed();
  }

  #strip() {
    const rows = this.entries.sort((a, b) => a.at - b.at);
    const end = Math.max(numberOf($("seconds")) ?? 0, (rows.at(-1)?.at ?? 0) + 0.5);
    $("strip").replaceChildren(...rows.map((row, n) => {
      const part = h("span", { text: row.text || "…" });
      part.style.flex = `${Math.max(0.01, (rows[n + 1]?.at ?? end) - row.at)} 1 0`;
      return part;
    }));
  }
}
