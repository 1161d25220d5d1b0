/** An endless stream: a wav that is played while it comes, and whose prompt can be changed. */

import * as api from "./api.js";
import { $, clock, field, h, say, trouble } from "./dom.js";
import { chunks } from "./follow.js";

const HEADER_BYTES = 44;
const AHEAD_S = 6; // what is fetched before it is played; the server waits beyond
const BEHIND_S = 1; // between the first sound that comes and its playing
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class StreamPlayer {
  #stop = null;

  get playing() {
    return this.#stop !== null;
  }

  /**
   * Play until `stop`.
   * @param {Object} body what is asked for
   * @param {number} rateHz of the model
   */
  async start(body, rateHz) {
    this.stop();
    const stop = new AbortController();
    this.#stop = stop;
    this.context = new AudioContext({ sampleRate: rateHz });
    this.played = 0; // seconds that were given to the loudspeaker
    this.gaps = 0;
    this.prompts = [{ from: 0, text: body.input }];
    this.#show(body);
    try {
      const response = await api.openStream(body, stop.signal);
      this.job = response.headers.get("X-Musiccm-Job");
      this.change.disabled = false;
      say("The stream begins.");
      await this.#play(response.body, stop.signal);
      if (!stop.signal.aborted) this.#ended("The stream has ended.");
    } catch (error) {
      if (!stop.signal.aborted) this.#ended(error instanceof TypeError ? "The stream was cut: the server does not answer." : error.message);
    }
  }

  stop() {
    if (!this.#stop) return;
    this.#stop.abort();
    this.#ended("");
    say("The stream was stopped.");
  }

  #ended(text) {
    this.#stop = null;
    clearInterval(this.ticking);
    const left = text && this.next ? Math.max(0, this.next - this.context.currentTime) : 0;
    const context = this.context;
    setTimeout(() => context.close(), 1000 * left + 50); // what has come is played to its end
    $("stream").hidden = true;
    $("stream-start").textContent = "Start the stream";
    if (text) trouble(text);
  }

  async #play(body, signal) {
    let bytes = new Uint8Array();
    let header = true;
    for await (const part of chunks(body)) {
      bytes = joined(bytes, part);
      if (header && bytes.length < HEADER_BYTES) continue;
      if (header) {
        this.rate = new DataView(bytes.buffer, bytes.byteOffset).getUint32(24, true);
        bytes = bytes.slice(HEADER_BYTES);
        header = false;
      }
      const whole = bytes.length - (bytes.length % 2);
      if (whole) this.#schedule(new Int16Array(bytes.slice(0, whole).buffer));
      bytes = bytes.slice(whole);
      while (!signal.aborted && this.next - this.context.currentTime > AHEAD_S) await pause(200);
      if (signal.aborted) return;
    }
  }

  #schedule(samples) {
    const buffer = this.context.createBuffer(1, samples.length, this.rate);
    const channel = buffer.getChannelData(0);
    for (let n = 0; n < samples.length; n++) channel[n] = samples[n] / 32768;
    const now = this.context.currentTime;
    if (this.next === undefined || this.next < now) {
      if (this.next !== undefined) this.gaps += 1;
      this.next = now + BEHIND_S;
    }
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.volume);
    source.start(this.next);
    this.next += buffer.duration;
    this.played += buffer.duration;
  }

  #show(body) {
    this.next = undefined;
    this.volume = this.context.createGain();
    this.analyser = this.context.createAnalyser();
    this.analyser.fftSize = 256;
    this.volume.connect(this.analyser).connect(this.context.destination);
    const loud = h("input", { type: "range", min: "0", max: "1", step: "0.05", value: "1", id: "stream-volume",
      oninput: () => (this.volume.gain.value = Number(loud.value)) });
    this.line = h("p", { class: "small", id: "stream-state", text: "Waiting for the first sound" });
    this.meter = h("canvas", { "aria-hidden": "true", width: "320", height: "40" });
    const text = h("input", { type: "text", maxlength: "1000", id: "stream-prompt" });
    text.value = body.input;
    this.change = h("button", { type: "button", id: "stream-change", text: "Change the prompt", disabled: true, onclick: () => this.#changed(text) });
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.change.click();
      }
    });
    $("stream").replaceChildren(
      h("h2", { text: "Stream" }),
      h("div", { class: "stream-line" }, h("button", { type: "button", id: "stream-stop", text: "Stop", onclick: () => this.stop() }), this.meter,
        h("div", { class: "volume" }, h("label", { for: "stream-volume", text: "Volume" }), loud)),
      h("div", { class: "stream-change" }, field("Prompt of what comes", text), this.change), this.line);
    $("stream").hidden = false;
    $("stream-start").textContent = "Start anew";
    this.ticking = setInterval(() => this.#tell(), 500);
    this.#tell();
    if (!still.matches) this.#draw();
  }

  /** Seconds of the stream that have been played. */
  get position() {
    return this.next === undefined ? 0 : Math.max(0, this.played - Math.max(0, this.next - this.context.currentTime));
  }

  #tell() {
    if (this.next === undefined) return;
    const ahead = Math.max(0, this.next - this.context.currentTime);
    const now = this.prompts.findLast((entry) => entry.from <= this.position) || this.prompts[0];
    const later = this.prompts.find((entry) => entry.from > this.position);
    this.line.textContent = [`${clock(this.position)} played, ${ahead.toFixed(0)} s ahead`, `now: ${now.text}`,
      later ? `from ${clock(later.from)}: ${later.text}` : "",
      this.gaps ? `the server was too slow ${this.gaps === 1 ? "once" : `${this.gaps} times`}` : ""].filter(Boolean).join(" · ");
  }

  async #changed(input) {
    const text = input.value.trim();
    if (!text) return;
    this.change.disabled = true;
    try {
      const { from } = await api.changePrompt(this.job, text);
      this.prompts = [...this.prompts.filter((entry) => entry.from < from), { from, text }];
      this.#tell();
      trouble("");
      say(`The new prompt holds from second ${from.toFixed(0)} on; ${this.position.toFixed(0)} are played.`);
    } catch (error) {
      trouble(error.message);
    } finally {
      this.change.disabled = false;
    }
  }

  #draw() {
    const paint = this.meter.getContext("2d");
    const levels = new Uint8Array(this.analyser.frequencyBinCount);
    const frame = () => {
      if (!this.playing || !this.meter.isConnected) return;
      this.analyser.getByteFrequencyData(levels);
      paint.clearRect(0, 0, 320, 40);
      paint.fillStyle = "#fcaa6b";
      for (let bar = 0; bar < 64; bar++) {
        const high = 38 * (levels[bar + 1] / 255);
        paint.fillRect(5 * bar, 39 - high, 3, high + 1);
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
