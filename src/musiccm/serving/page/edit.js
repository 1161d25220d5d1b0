/** Making something else out of a clip: continue it, mend a marked range, vary it. */

import { field, h, numberOf } from "./dom.js";

export const EDITS = { continue: "Continue", inpaint: "Mend", vary: "Vary" };
const MORE_S = 5;

/**
 * The buttons of the three edits, and the panel that each opens.
 * @param {Object} clip
 * @param {() => {source: string, prompt: string, seconds: number, model: string|null}} clip.about what is edited
 * @param {import("./player.js").MusicPlayer|null} clip.player where a range is marked
 * @param {(fields: Object) => Promise<void>} clip.send asks for it
 * @returns {{buttons: HTMLElement[], panel: HTMLElement}}
 */
export function edits({ about, player, send }) {
  const panel = h("div", { class: "panel", role: "group", hidden: true });
  let open = null;

  function close() {
    panel.hidden = true;
    open = null;
    if (player) {
      player.marking = false;
      player.classList.remove("marking");
      player.range = null;
    }
    for (const button of buttons) button.setAttribute("aria-expanded", "false");
  }

  function show(task) {
    const again = open === task;
    close();
    if (again) return;
    open = task;
    buttons.find((button) => button.dataset.task === task).setAttribute("aria-expanded", "true");
    panel.setAttribute("aria-label", EDITS[task]);
    panel.replaceChildren(...contents(task, about(), player, send, () => {
      const button = buttons.find((one) => one.dataset.task === task);
      close();
      button.focus();
    }));
    panel.hidden = false;
    panel.querySelector("textarea").focus();
  }

  const buttons = Object.entries(EDITS).map(([task, name]) =>
    h("button", { type: "button", "data-task": task, "aria-expanded": "false", text: name, onclick: () => show(task) }));
  return { buttons, panel };
}

function contents(task, clip, player, send, close) {
  const prompt = h("textarea", { rows: "2", maxlength: "1000" });
  prompt.value = clip.prompt;
  const { parts, fields } = { continue: longer, inpaint: mended, vary: varied }[task](clip, player);
  const make = h("button", { type: "button", class: "main", text: `${EDITS[task]} it` });
  const wrong = h("p", { class: "trouble", role: "alert", hidden: true });
  make.addEventListener("click", async () => {
    wrong.hidden = true;
    make.disabled = true;
    try {
      await send({ task, prompt: prompt.value.trim(), source: clip.source, ...fields() });
      close();
    } catch (error) {
      wrong.textContent = error.message;
      wrong.hidden = false;
    } finally {
      make.disabled = false;
    }
  });
  return [field("What should the new part be like?", prompt), ...parts, wrong,
    h("div", { class: "actions" }, make, h("button", { type: "button", text: "Close", onclick: close }))];
}

const number = (value, low) => {
  const input = h("input", { type: "number", min: String(low), step: "any" });
  input.value = String(Math.round(100 * value) / 100);
  return input;
};

function longer(clip) {
  const whole = number(clip.seconds + MORE_S, clip.seconds);
  return {
    parts: [h("div", { class: "fields" }, field("Seconds in all", whole))],
    fields: () => ({ seconds: numberOf(whole) }),
  };
}

function mended(clip, player) {
  const from = number(0.3 * clip.seconds, 0);
  const to = number(0.6 * clip.seconds, 0);
  if (player) {
    player.marking = true;
    player.classList.add("marking");
    player.range = [numberOf(from), numberOf(to)];
    player.addEventListener("range", () => {
      if (!player.range || player.range.every((at, n) => Math.abs(at - numberOf([from, to][n])) < 0.005)) return;
      [from.value, to.value] = player.range.map((at) => at.toFixed(2));
    });
    for (const input of [from, to]) {
      input.addEventListener("change", () => {
        const [begin, end] = [numberOf(from) ?? 0, numberOf(to) ?? 0];
        player.range = end > begin ? [begin, end] : null; // the server says what is wrong with another
      });
    }
  }
  return {
    parts: [h("div", { class: "fields" }, field("From second", from), field("To second", to)),
      h("p", { class: "quiet small", text: "Drag over the picture to mark the range, or press [ and ] where it begins and ends." })],
    fields: () => ({ from: numberOf(from), to: numberOf(to) }),
  };
}

function varied() {
  const amount = h("input", { type: "range", min: "0.05", max: "1", step: "0.05", value: "0.4" });
  const said = h("output", { class: "quiet small" });
  const tell = () => {
    said.textContent = `${Math.round(100 * amount.value)} percent`;
    amount.setAttribute("aria-valuetext", said.textContent);
  };
  amount.addEventListener("input", tell);
  tell();
  const box = field("How much it changes", amount);
  box.append(said);
  return { parts: [box], fields: () => ({ strength: Number(amount.value) }) };
}

/** What an edit is called in the history. */
export function editTitle(fields, clip) {
  const of = clip.name ? ` of ${clip.name}` : "";
  if (fields.task === "continue") return `Continued${of}${fields.seconds === undefined ? "" : ` to ${fields.seconds} s`}`;
  if (fields.task === "inpaint") return `Mended${of} from ${fields.from} to ${fields.to} s`;
  return `Varied${of} by ${Math.round(100 * fields.strength)} percent`;
}

