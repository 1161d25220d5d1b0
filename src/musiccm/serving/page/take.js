/** <music-take>: what one click made, a <music-result> a job; teacher and student lie side by side. */

import * as api from "./api.js";
import { download, h, plural, say, seconds } from "./dom.js";
import { edits } from "./edit.js";
import { ended, follow } from "./follow.js";
import "./player.js";

const FORMATS = ["wav", "flac", "ogg", "mp3"];
const ROLES = { student: "Student", teacher: "Teacher" };

/** What a job took: time of the device for it alone where the server says so, else its time from start to end. */
export const tookS = (view) => view.result?.device_s ?? view.finished_s - view.started_s;

/** Network calls as the papers count them: a guided teacher makes two a step, with the text and without it. */
function calls(view, role) {
  const guided = role === "teacher" && ![null, 1].includes(view.request.guidance_scale);
  return { count: view.calls * (guided ? 2 : 1), guided };
}

/** The picture of a sound, or why there is none: a full disk has room for no picture, and the sound can be had. */
async function pictureOf(id) {
  try {
    return { picture: await api.spectrogram(id), lacks: "" };
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    return { picture: null, lacks: error.message };
  }
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.nearby();
}, { rootMargin: "1000px" });

export class MusicTake extends HTMLElement {
  /**
   * @param {Object} take see takes.js
   * @param {{use, forget, keep, edit}} actions of the page
   */
  show(take, actions) {
    this.take = take;
    this.actions = actions;
    this.results = take.jobs.map((entry, place) => {
      const result = document.createElement("music-result");
      result.show(this, entry, place);
      return result;
    });
    const variants = [...new Set(take.jobs.map((entry) => entry.variant))].sort((a, b) => a - b);
    this.scores = h("button", { type: "button", class: "plain", text: "Scores", hidden: true, title: "How well it answers its text, and the training clip that it is nearest to",
      "aria-label": `Scores of ${take.title}`, onclick: () => this.check() });
    const tools = h("div", { class: "take-tools" }, this.scores,
      take.settings ? h("button", { type: "button", class: "plain", text: "Use again", "aria-label": `Use again the settings of ${take.title}`,
        onclick: () => actions.use(take) }) : null,
      h("button", { type: "button", class: "plain", text: "Forget", "aria-label": `Forget ${take.title}`, onclick: () => actions.forget(take) }));
    this.summary = h("p", { class: "summary small", hidden: true });
    this.replaceChildren(h("article", { class: "card" },
      h("header", { class: "take-head" },
        h("div", {}, h("h3", { text: take.title }), h("p", { class: "quiet small", text: this.#says() })), tools),
      ...variants.map((variant) => h("div", { class: "pair" }, ...this.results.filter((result) => result.entry.variant === variant))),
      this.summary));
  }

  /** Another tab has changed it. */
  update(take) {
    this.take = take;
    for (const [n, result] of this.results.entries()) {
      const before = result.entry.job;
      result.entry = take.jobs[n];
      if (result.entry.job !== before) result.sent();
    }
    this.changed();
  }

  /** A job of it has changed. */
  changed() {
    this.scores.hidden = !this.results.some((result) => result.sounds);
    const done = this.results.filter((result) => result.view?.state === "done");
    const of = (role) => done.filter((result) => result.entry.role === role);
    const [students, teachers] = [of("student"), of("teacher")];
    this.summary.hidden = !(students.length && teachers.length);
    if (this.summary.hidden) return;
    const mean = (results, value) => results.reduce((sum, result) => sum + value(result), 0) / results.length;
    const took = (result) => tookS(result.view);
    const [quick, slow] = [mean(students, took), mean(teachers, took)];
    const made = (results) => plural(Math.round(mean(results, ({ view, entry }) => calls(view, entry.role).count)), "network call");
    const times = slow / quick;
    this.summary.textContent = `The student took ${seconds(quick)} for ${made(students)}, the teacher ${seconds(slow)} for ${made(teachers)}` +
      (times > 1.05 ? `: ${times.toFixed(times < 10 ? 1 : 0)} times as long.` : ".");
  }

  async check() {
    for (const result of this.results) await result.check();
  }

  #says() {
    const { created, says } = this.take;
    const when = new Date(created);
    const today = when.toDateString() === new Date().toDateString();
    const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    return [...says, today ? time : `${when.toLocaleDateString()} ${time}`].join(" · ");
  }
}

export class MusicResult extends HTMLElement {
  #fetched = null; // the job whose sound is here, or on its way
  #told = "";

  show(owner, entry, place) {
    this.owner = owner;
    this.entry = entry;
    this.place = place;
    this.name = ROLES[entry.role] || entry.body.model;
    const several = owner.take.jobs.filter((other) => other.role === entry.role).length > 1;
    this.label = `${this.name}${several ? `, variant ${entry.variant + 1}` : ""}`;
    this.facts = h("span", { class: "quiet small" });
    this.content = h("div");
    this.append(h("div", { class: "result-head" }, h("strong", { text: this.label }), this.facts), this.content);
    this.sent();
  }

  /** The job has an id now, or this is a take of before. */
  sent() {
    this.view = null;
    this.#fetched = null;
    this.facts.textContent = "";
    if (!this.entry.job) {
      this.#message("This was not sent.", "Make it", () => this.owner.actions.resend(this.owner.take, this.place));
      return;
    }
    this.#waiting({ state: "asked" });
    near.observe(this);
  }

  /** It is about to be seen. */
  nearby() {
    near.unobserve(this);
    follow(this.entry.job, (view) => this.#changed(view));
  }

  /** It could not be sent. */
  refused(error) {
    this.#message(error.message, "Try again", () => this.owner.actions.resend(this.owner.take, this.place));
  }

  /** It waits for room at the server. */
  delayed(text) {
    this.#waiting({ state: "delayed", text });
  }

  async #changed(view) {
    if (view.id !== this.entry.job) return; // of before it was made again
    if (view.state === "gone") {
      this.#message("The server no longer has this sound.", "Make it again", () => this.owner.actions.resend(this.owner.take, this.place));
      return;
    }
    this.view = view;
    if (view.state === "done") await this.#done();
    else if (view.state === "failed") {
      this.#message(view.error?.message || "It failed.", "Try again", () => this.owner.actions.resend(this.owner.take, this.place));
      this.#announce(`${this.label} failed.`);
    } else if (view.state === "cancelled") {
      this.#message("Cancelled.", "Make it", () => this.owner.actions.resend(this.owner.take, this.place));
    } else this.#waiting(view);
    if (ended(view)) this.owner.changed();
  }

  #announce(text) {
    if (text !== this.#told) say(text);
    this.#told = text;
  }

  #waiting(view) {
    if (!this.bar) {
      this.line = h("p", { class: "small", id: `waiting-${this.entry.job || Math.random()}` });
      this.bar = h("progress", { max: "1", value: "0", "aria-labelledby": this.line.id });
      const stop = h("button", { type: "button", text: "Cancel", "aria-label": `Cancel ${this.label}`, onclick: () => this.#cancel(stop) });
      this.stop = stop;
      this.content.replaceChildren(h("div", { class: "waiting" }, h("div", {}, this.line, this.bar), stop));
    }
    this.stop.hidden = !this.entry.job;
    this.bar.value = view.progress ?? 0;
    const eta = view.eta_s != null ? `, about ${view.eta_s < 1 ? "a second" : plural(Math.ceil(view.eta_s), "second")} left` : "";
    if (view.state === "queued") {
      this.line.textContent = `${view.position ? `${plural(view.position, "job")} before it` : "Next in the queue"}${eta}`;
      this.#announce(`${this.label} waits.`);
    } else if (view.state === "running") {
      this.line.textContent = (view.total_calls ? `Call ${view.calls} of ${view.total_calls}` : `${plural(view.calls, "call")} so far`) + eta;
    } else this.line.textContent = view.text || "Asking the server";
  }

  async #cancel(button) {
    button.disabled = true;
    try {
      await api.cancel(this.entry.job);
    } catch (error) {
      this.line.textContent = error.message;
      button.disabled = false;
    }
  }

  /** Whether its sound is here. */
  get sounds() {
    return Boolean(this.proof?.isConnected);
  }

  #message(text, label, act) {
    this.bar = null;
    this.content.replaceChildren(h("div", { class: "waiting" }, h("div", {}, h("p", { class: "small", text })),
      h("button", { type: "button", text: label, "aria-label": `${label}: ${this.label}`, onclick: act })));
  }

  async #done() {
    const view = this.view;
    if (this.#fetched === view.id) return;
    this.#fetched = view.id;
    const { count, guided } = calls(view, this.entry.role);
    this.facts.textContent = `${plural(count, "network call")}${guided ? ", 2 a step" : ""} · ${seconds(tookS(view))}`;
    this.facts.title = "Time that the device worked for this result alone";
    this.#waiting({ state: "fetched", progress: 1, text: "Fetching the sound" });
    this.stop.hidden = true;
    try {
      const [sound, picture] = await Promise.all([api.audio(view.id, "wav"), pictureOf(view.id)]);
      if (this.entry.job !== view.id) return;
      this.#player(sound, picture);
      this.owner.changed();
      if (Date.now() / 1000 - view.finished_s < 60) this.#announce(`${this.label} is done after ${seconds(tookS(view))}.`);
    } catch (error) {
      if (this.entry.job !== view.id) return;
      this.#fetched = null;
      if (error.status === 404) this.#message("The server no longer has this sound.", "Make it again",
        () => this.owner.actions.resend(this.owner.take, this.place));
      else this.#message(error.message, "Try again", () => this.#done());
    }
  }

  #player(sound, { picture, lacks }) {
    const view = this.view;
    const title = this.owner.take.title;
    const length = view.result.seconds;
    this.bar = null;
    this.player = document.createElement("music-player");
    this.player.load({ sound, picture, seconds: length, label: `${this.label}: ${title}` });
    const { buttons, panel } = edits({
      player: this.player,
      about: () => ({ source: view.id, prompt: view.request.prompts.at(-1)[1], seconds: length }),
      send: (fields) => this.owner.actions.edit(fields, { name: `“${title}”`, model: view.model, seconds: length }),
    });
    for (const button of buttons) button.setAttribute("aria-label", `${button.textContent} ${this.label}`);
    const name = `${title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "music"}-${this.entry.role || view.model}-${view.seed}`;
    const save = h("details", { class: "menu" }, h("summary", { text: "Download", "aria-label": `Download ${this.label}` }), h("div", {},
      ...FORMATS.map((form) => h("button", { type: "button", text: form, "aria-label": `Download ${this.label} as ${form}`,
        onclick: () => this.#save(() => api.audio(view.id, form), `${name}.${form}`) })),
      h("button", { type: "button", text: "Parameters (JSON)", "aria-label": `Download the parameters of ${this.label}`,
        onclick: () => this.#save(() => api.sidecar(view.id), `${name}.json`) })));
    this.proof = h("p", { class: "evidence quiet small", hidden: true });
    this.content.replaceChildren(this.player, this.proof, h("div", { class: "tools" }, ...buttons, save), panel);
    if (lacks) this.content.prepend(h("p", { class: "quiet small", text: `There is no picture: ${lacks}` }));
    if (view.result.says) this.content.prepend(h("p", { class: "quiet small", text: String(view.result.says) }));
  }

  async #save(get, name) {
    try {
      download(await get(), name);
      if (this.failed) this.proof.hidden = true;
      this.failed = false;
    } catch (error) {
      this.#evident(error.message);
      this.failed = true;
    }
  }

  #evident(text) {
    this.failed = false;
    this.proof.hidden = false;
    this.proof.textContent = text;
  }

  /** Show how well it answers its text, and which training clip it is nearest to. */
  async check() {
    if (this.view?.state !== "done" || !this.proof) return;
    this.#evident("Comparing");
    try {
      const found = await api.evidence(this.view.id, (text) => this.#evident(text));
      const parts = [];
      if (found.text_audio !== null) parts.push(`Text score ${found.text_audio.toFixed(2)}`);
      if (found.nearest) {
        parts.push(`nearest of ${found.training_clips.toLocaleString("en")} training clips: ${found.nearest.clip}, ` +
          `cosine ${found.nearest.cosine.toFixed(3)} at ${found.nearest.at_s.toFixed(1)} s`);
      }
      this.#evident([parts.join("; "), ...found.notes].filter(Boolean).join(". "));
      say(`${this.label}: ${this.proof.textContent}`);
    } catch (error) {
      this.#evident(error.message);
    }
  }
}

customElements.define("music-result", MusicResult);
customElements.define("music-take", MusicTake);
