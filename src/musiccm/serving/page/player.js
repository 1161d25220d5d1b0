/** <music-player>: a spectrogram that plays. It is a slider: click, drag or arrows seek; a range can be marked. */

import { clock, h } from "./dom.js";

const STEP_S = 0.25;
const SHAPES = { play: "M6 4 L20 12 L6 20 Z", pause: "M6 4 H10 V20 H6 Z M14 4 H18 V20 H14 Z" };
let playing = null; // one at a time

function icon(shape) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[shape]);
  svg.append(path);
  return svg;
}

export class MusicPlayer extends HTMLElement {
  #audio = new Audio();
  #urls = [];
  #range = null;
  #dragged = null; // what a drag does: null, "seek", or the second where a range begins
  #frame = 0;
  marking = false;

  /**
   * Show and hold a sound.
   * @param {{sound: Blob, picture: Blob|null, seconds: number, label: string}} what its picture has time to the right
   */
  load({ sound, picture, seconds, label }) {
    this.seconds = seconds;
    this.label = label;
    this.#audio.src = this.#url(sound);
    this.#audio.preload = "auto";
    this.button = h("button", { type: "button", "aria-label": `Play ${label}`, onclick: () => this.toggle() }, icon("play"));
    this.head = h("div", { class: "head" });
    this.mark = h("div", { class: "range", hidden: true });
    this.time = h("div", { class: "clock" });
    this.slider = h("div", {
      class: "spectrum", role: "slider", tabindex: "0", "aria-label": `Position in ${label}`, "aria-valuemin": "0",
      "aria-valuemax": seconds.toFixed(2), "aria-valuenow": "0",
    }, picture ? h("img", { src: this.#url(picture), alt: "" }) : null, this.mark, this.head, this.time);
    this.slider.addEventListener("pointerdown", (event) => this.#down(event));
    this.slider.addEventListener("pointermove", (event) => this.#move(event));
    this.slider.addEventListener("pointerup", () => this.#up());
    this.slider.addEventListener("pointercancel", () => this.#up());
    this.slider.addEventListener("keydown", (event) => this.#key(event));
    for (const kind of ["play", "pause", "ended"]) this.#audio.addEventListener(kind, () => this.#shown());
    this.#audio.addEventListener("seeked", () => this.#draw());
    this.replaceChildren(this.button, this.slider);
    this.#draw();
  }

  /** Seconds into the sound. */
  get position() {
    return Math.min(this.#audio.currentTime, this.seconds);
  }

  set position(value) {
    this.#audio.currentTime = Math.min(this.seconds, Math.max(0, value));
    this.#draw(Math.min(this.seconds, Math.max(0, value)));
  }

  get playing() {
    return !this.#audio.paused && !this.#audio.ended;
  }

  /** The range that is marked, `[from, to]` in seconds, or null. */
  get range() {
    return this.#range;
  }

  set range(value) {
    const [from, to] = value ? [Math.min(...value), Math.max(...value)].map((at) => Math.min(this.seconds, Math.max(0, at))) : [0, 0];
    this.#range = to > from ? [from, to] : null;
    this.mark.hidden = !this.#range;
    if (this.#range) {
      this.mark.style.left = `${(100 * from) / this.seconds}%`;
      this.mark.style.width = `${(100 * (to - from)) / this.seconds}%`;
    }
    this.dispatchEvent(new Event("range"));
  }

  /** Play or pause. */
  async toggle() {
    if (this.playing) {
      this.#audio.pause();
      return;
    }
    if (playing && playing !== this) playing.pause();
    playing = this;
    if (this.position >= this.seconds - 0.05) this.#audio.currentTime = 0;
    try {
      await this.#audio.play();
    } catch {
      this.#shown(); // it was stopped before it began
    }
  }

  pause() {
    this.#audio.pause();
  }

  disconnectedCallback() {
    this.#audio.pause();
    cancelAnimationFrame(this.#frame);
    for (const url of this.#urls) URL.revokeObjectURL(url);
    this.#urls = [];
  }

  #url(blob) {
    const url = URL.createObjectURL(blob);
    this.#urls.push(url);
    return url;
  }

  #shown() {
    this.button.replaceChildren(icon(this.playing ? "pause" : "play"));
    this.button.setAttribute("aria-label", `${this.playing ? "Pause" : "Play"} ${this.label}`);
    cancelAnimationFrame(this.#frame);
    const next = () => {
      this.#draw();
      if (this.playing) this.#frame = requestAnimationFrame(next);
    };
    next();
  }

  #draw(at = this.position) {
    this.head.style.left = `calc(${(100 * at) / this.seconds}% - 1px)`;
    this.time.textContent = `${clock(at)} / ${clock(this.seconds)}`;
    this.slider.setAttribute("aria-valuenow", at.toFixed(2));
    this.slider.setAttribute("aria-valuetext", `${at.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
  }

  #at(event) {
    const box = this.slider.getBoundingClientRect();
    return this.seconds * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }

  #down(event) {
    if (event.button !== 0) return;
    this.slider.setPointerCapture(event.pointerId);
    const at = this.#at(event);
    this.#dragged = this.marking || event.shiftKey ? at : "seek";
    if (this.#dragged === "seek") this.position = at;
  }

  #move(event) {
    if (this.#dragged === null) return;
    const at = this.#at(event);
    if (this.#dragged === "seek") this.position = at;
    else this.range = [this.#dragged, at];
  }

  #up() {
    this.#dragged = null;
  }

  #key(event) {
    const step = event.shiftKey ? 4 * STEP_S : STEP_S;
    const moves = {
      ArrowRight: this.position + step, ArrowUp: this.position + step, ArrowLeft: this.position - step,
      ArrowDown: this.position - step, PageUp: this.position + 1, PageDown: this.position - 1, Home: 0, End: this.seconds,
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) this.position = moves[event.key];
    else if (event.key === " " || event.key === "Enter") this.toggle();
    else if (event.key === "[") this.range = [this.position, this.#range?.[1] ?? this.seconds];
    else if (event.key === "]") this.range = [this.#range?.[0] ?? 0, this.position];
    else if (event.key === "Escape" && this.#range) this.range = null;
    else return;
    event.preventDefault();
  }
}

customElements.define("music-player", MusicPlayer);
