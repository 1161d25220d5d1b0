/** Small helpers for the document. Text is always set as text: nothing from outside becomes markup. */

/**
 * Make an element.
 * @param {string} tag its name
 * @param {Object} props attributes; `on...` are listeners, `class`, `text`, and properties that are no strings
 * @param {...(Node|string)} children what stands in it
 */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const $ = (id) => document.getElementById(id);

let count = 0;
/** An id that no other element has. */
export const freshId = (stem) => `${stem}-${++count}`;

/** A labelled field: its label, and the input with the label's id. */
export function field(label, input, props = {}) {
  input.id ||= freshId("field");
  return h("div", props, h("label", { for: input.id, text: label }), input);
}

/** Tell who uses a screen reader. */
export function say(text) {
  $("said").textContent = text;
}

/** Show what went wrong, or take it away. */
export function trouble(text) {
  const box = $("trouble");
  box.textContent = text || "";
  box.hidden = !text;
}

export const seconds = (value) => `${Number(value).toFixed(value < 10 ? 2 : 1)} s`;

export function clock(value) {
  const whole = Math.max(0, value);
  const minutes = Math.floor(whole / 60);
  return minutes ? `${minutes}:${(whole % 60).toFixed(1).padStart(4, "0")}` : whole.toFixed(1);
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** The number in a field; undefined where it is empty. */
export function numberOf(input) {
  const value = input.value.trim();
  return value === "" ? undefined : Number(value);
}

/** Offer a blob as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
