/** The page: what is set in the form, what is asked of the server, and the list of what came. */

import * as api from "./api.js";
import { $, h, numberOf, plural, say, trouble } from "./dom.js";
import { editTitle } from "./edit.js";
import { fileChooser } from "./file.js";
import { isStudent, pairOf, roleOf } from "./pairs.js";
import { StreamPlayer } from "./stream.js";
import "./take.js";
import { allTakes, forget, keep, newTake, onOtherTab } from "./takes.js";
import { Timeline } from "./timeline.js";

const EXAMPLES = [
  "a calm piano melody over soft strings",
  "cheerful guitar arpeggios, a shaker, upbeat",
  "a fast synth lead with dance drums",
  "slow organ chords, no drums",
  "a sad clarinet melody, slow tempo",
  "happy marimba melody with a rock beat",
];
const SETTINGS = "musiccm.settings";
const STEPS = [1, 2, 4, 8];
const PAGE = 20;
const TIMELINE_S = 20;

let models = [];
let mode = "clip";
let lengths = { clip: null, timeline: TIMELINE_S };
let shown = PAGE;
const stream = new StreamPlayer();
const timeline = new Timeline(() => saveSettings());

// ---- the form

const chosen = () => models.find((model) => model.id === $("model").value) || models[0];

function drawSteps() {
  const student = isStudent(chosen()) ? chosen() : null;
  const before = Number(document.querySelector("#steps input:checked")?.value);
  const offered = student?.facts.steps?.length ? student.facts.steps.filter((steps) => steps <= 16) : STEPS;
  const value = offered.includes(before) ? before : student?.facts.default_steps ?? 4;
  $("steps").replaceChildren(...offered.map((steps) => {
    const input = h("input", { type: "radio", name: "steps", value: String(steps), "aria-label": plural(steps, "step") });
    input.checked = steps === value;
    return h("label", {}, input, h("span", { text: String(steps), "aria-hidden": "true" }));
  }));
  const pair = pairOf(chosen(), models);
  const teacher = student ? pair?.[1] : chosen();
  $("steps-note").hidden = Boolean(student);
  $("steps-note").textContent = "A teacher takes the steps that are set under More; these are a student's.";
  $("guidance-label").textContent = takesScale(chosen()) ? "Guidance scale" : "Teacher's guidance scale";
  [$("guidance").min, $("guidance").max] = (chosen().facts.guidance_range ?? [0, 100]).map(String);
  $("teacher-steps").placeholder = String(teacher?.facts.default_steps ?? "");
  $("beside").hidden = !pair;
  $("beside").title = pair ? `${pair[1].id} beside ${pair[0].id}` : "";
}

function drawModels() {
  const before = $("model").value || readSettings().model;
  $("model").replaceChildren(...models.map((model) =>
    h("option", { value: model.id, text: model.id.includes(roleOf(model)) ? model.id : `${model.id} (${roleOf(model)})` })));
  $("model").value = models.some((model) => model.id === before) ? before : (models.find((model) => model.default) || models[0]).id;
  lengths.clip ??= chosen().facts.clip_seconds;
  $("seconds").max = String(chosen().facts.max_seconds);
  if (mode in lengths) $("seconds").value = String(lengths[mode]);
  drawSteps();
}

function choose(next, focus = false) {
  mode = next;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const mine = tab.dataset.mode === next;
    tab.setAttribute("aria-selected", String(mine));
    tab.tabIndex = mine ? 0 : -1;
    if (mine) $("panel").setAttribute("aria-labelledby", tab.id);
    if (mine && focus) tab.focus();
  }
  for (const part of document.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(next);
  if (next in lengths && lengths[next]) $("seconds").value = String(lengths[next]);
  timeline.entries = timeline.entries; // its strip follows the length
  saveSettings();
}

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) || {};
  } catch {
    return {};
  }
}

const FIELDS = ["prompt", "variants", "seed", "teacher-steps", "guidance", "level"];

function settings() {
  const values = Object.fromEntries(FIELDS.map((id) => [id, $(id).value]));
  return { ...values, mode, lengths, lock: $("lock").checked, model: $("model").value, entries: timeline.entries,
    steps: Number(document.querySelector("#steps input:checked")?.value) };
}

function saveSettings() {
  if (!models.length) return;
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings()));
  } catch {
    // the history says so when it has no room
  }
}

function useSettings(values) {
  for (const id of FIELDS) if (values[id] !== undefined) $(id).value = values[id];
  $("lock").checked = Boolean(values.lock);
  if (values.lengths) lengths = { ...lengths, ...values.lengths };
  if (values.entries?.length) timeline.entries = values.entries;
  if (models.some((model) => model.id === values.model)) $("model").value = values.model;
  if (models.length) drawSteps();
  for (const input of document.querySelectorAll("#steps input")) input.checked = Number(input.value) === values.steps || input.checked;
  choose(["clip", "timeline", "file", "stream"].includes(values.mode) ? values.mode : "clip");
}

/** The seed of the next take; a new one unless it is locked. */
function nextSeed() {
  const given = numberOf($("seed"));
  if (!$("lock").checked || given === undefined) $("seed").value = String(Math.floor(Math.random() * 2 ** 31));
  if (!$("seed").checkValidity()) throw new Error(`Seed: ${$("seed").validationMessage}`);
  return numberOf($("seed"));
}

const variants = () => Math.min(8, Math.max(1, numberOf($("variants")) || 1));

/** Bound the seeds by what JavaScript holds to the unit: another is rounded before anything can refuse it. */
function boundSeed(count) {
  $("seed").max = String(Number.MAX_SAFE_INTEGER - (count - 1));
}

const takesScale = (model) => !isStudent(model) || model.facts.guidance !== "fixed";

/** What fixes the way a model is used. */
function manner(model) {
  const found = { model: model.id };
  if (isStudent(model)) found.steps = Number(document.querySelector("#steps input:checked")?.value) || undefined;
  else found.steps = numberOf($("teacher-steps"));
  if (takesScale(model)) found.guidance_scale = numberOf($("guidance"));
  return found;
}

// ---- asking

function asked(used) {
  const seed = nextSeed();
  const texts = mode === "timeline" ? { prompts: timeline.entries.filter((entry) => entry.text) } : { prompt: $("prompt").value.trim() };
  const task = mode === "timeline" ? "compose" : "generate";
  if (!(texts.prompt || texts.prompts?.length)) {
    (mode === "timeline" ? $("add-entry") : $("prompt")).focus();
    throw new Error("Say what the music should be like, or choose an example.");
  }
  const jobs = [];
  for (const model of used) {
    for (let variant = 0; variant < variants(); variant++) {
      jobs.push({ job: null, role: roleOf(model), variant, body: {
        task, ...texts, ...manner(model), seconds: numberOf($("seconds")), seed: seed + variant, level: $("level").value } });
    }
  }
  const title = texts.prompt || texts.prompts.map((entry) => `${entry.at} s: ${entry.text}`).join(" → ");
  return newTake({ title, says: says(jobs), settings: { ...settings(), lock: true }, jobs });
}

function says(jobs) {
  const [{ body }] = jobs;
  const student = jobs.find((entry) => entry.role === "student");
  return [body.seconds ? `${body.seconds} s` : "", `seed ${body.seed}`, student?.body.steps ? plural(student.body.steps, "step") : "",
    jobs.length === 1 ? body.model : ""].filter(Boolean);
}

/** Whether all fields that are shown hold what they may; the first that does not says so. */
function fits() {
  boundSeed($("variants").closest("[hidden]") ? 1 : variants());
  const wrong = [...$("composer").elements].find((one) => !one.closest("[hidden]") && !one.checkValidity());
  if (!wrong) return true;
  if ($("more").contains(wrong)) $("more").open = true;
  wrong.reportValidity();
  return false;
}

async function make(used) {
  trouble("");
  if (!fits()) return;
  let take;
  try {
    take = asked(used);
  } catch (error) {
    trouble(error.message);
    return;
  }
  saveSettings();
  await send(take);
}

/** Edits whose answer was lost, by what was asked for: asked for again, each is the same job. */
const unanswered = new Map();

async function edit(fields, clip) {
  boundSeed(1);
  const model = models.find((one) => one.id === clip.model) || chosen();
  const wanted = { ...fields, ...manner(model) };
  const name = JSON.stringify([wanted, $("lock").checked && $("seed").value]);
  if (!unanswered.has(name)) unanswered.set(name, { key: api.freshKey(), body: { ...wanted, seed: nextSeed() } });
  const { key, body } = unanswered.get(name);
  let job;
  try {
    job = await api.submit(body, undefined, key); // a refusal is shown where it was asked for
  } catch (error) {
    if (error.status < 500) unanswered.delete(name);
    throw error;
  }
  unanswered.delete(name);
  trouble("");
  const take = newTake({ title: fields.prompt, settings: null, says: [editTitle(fields, clip), `seed ${body.seed}`],
    jobs: [{ job: job.id, role: roleOf(model), variant: 0, body }] });
  remember(take);
  place(take).scrollIntoView({ block: "nearest" });
}

function remember(take) {
  if (!keep(take)) trouble("This browser has no room for the history: what is made now is not there after a reload.");
}

async function send(take) {
  remember(take);
  const element = place(take);
  say(`${plural(take.jobs.length, "job")} sent.`);
  for (let n = 0; n < take.jobs.length; n++) await sendOne(take, element, n);
}

async function sendOne(take, element, n) {
  const result = element.results[n];
  try {
    const entry = take.jobs[n];
    entry.job = null;
    entry.key ??= api.freshKey(); // kept until there is an answer: who sends it again gets the same job
    remember(take);
    result.delayed("Sending");
    entry.job = (await api.submit(entry.body, (text) => result.delayed(text), entry.key)).id;
    delete entry.key;
    remember(take);
    result.sent();
  } catch (error) {
    result.refused(error);
  }
}

// ---- the list

const actions = {
  edit,
  use(take) {
    useSettings(take.settings);
    saveSettings();
    $("composer").scrollIntoView();
    (mode === "timeline" ? $("add-entry") : $("prompt")).focus();
    say("The settings are in the form again.");
  },
  forget(take) {
    forget(take.id);
    element(take.id)?.remove();
    fewer();
    $("results").focus();
    say("Forgotten here; the server keeps its sound for a while.");
  },
  resend(take, n) {
    return sendOne(take, element(take.id), n);
  },
};

const element = (id) => [...$("takes").children].find((one) => one.take.id === id);

function place(take) {
  const found = document.createElement("music-take");
  found.show(take, actions);
  const older = [...$("takes").children].find((one) => one.take.created < take.created);
  $("takes").insertBefore(found, older || null);
  fewer();
  return found;
}

function fewer() {
  const all = allTakes();
  $("empty").hidden = $("takes").children.length > 0;
  $("older").hidden = all.length <= shown;
}

function drawTakes() {
  for (const take of allTakes().slice(0, shown)) if (!element(take.id)) place(take);
  fewer();
}

// ---- the server

async function meet() {
  try {
    models = await api.models();
    trouble("");
    drawModels();
    for (const id of ["make", "beside", "stream-start"]) $(id).disabled = false;
  } catch (error) {
    if (error.status !== 401) trouble(error.message);
  }
}

api.server.addEventListener("there", ({ detail }) => {
  $("server").dataset.state = "there";
  const busy = [detail.running ? `${detail.running} at work` : "", detail.queued ? `${detail.queued} waiting` : ""].filter(Boolean).join(", ");
  $("server-text").textContent = detail.status === "ok" ? `Connected${busy ? ` · ${busy}` : ""}` : "The server is about to end";
});
api.server.addEventListener("lost", () => {
  $("server").dataset.state = "lost";
  $("server-text").textContent = "Not connected";
  $("lost").textContent = "The server does not answer. What was asked for is taken up again when it is there.";
  $("lost").hidden = false;
});
api.server.addEventListener("found", () => {
  $("lost").hidden = true;
  say("The server is there again.");
  meet();
});
api.server.addEventListener("key", () => {
  $("more").open = true;
  $("key").focus();
  trouble("This server wants a key: write it in the field under More.");
});

// ---- together

function begin() {
  $("examples").replaceChildren(...EXAMPLES.map((text) => h("button", { type: "button", text, onclick: () => {
    $("prompt").value = text;
    $("prompt").focus();
    saveSettings();
  } })));
  for (const id of ["make", "beside", "stream-start"]) $(id).disabled = true;
  $("key").value = api.apiKey.get();
  $("key").addEventListener("change", async () => {
    api.apiKey.set($("key").value.trim());
    trouble("");
    await meet();
    drawTakes();
  });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const [n, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab.dataset.mode));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(tabs[(to + tabs.length) % tabs.length].dataset.mode, true);
    });
  }
  $("seconds").addEventListener("change", () => (lengths[mode] = numberOf($("seconds")) ?? lengths[mode]));
  $("seed").addEventListener("input", () => ($("lock").checked = numberOf($("seed")) !== undefined)); // who types one wants it
  $("model").addEventListener("change", drawSteps);
  $("composer").addEventListener("change", saveSettings);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!models.length) return;
    if (mode === "stream") startStream();
    else if (mode !== "file") make([chosen()]);
  });
  $("beside").addEventListener("click", () => make(pairOf(chosen(), models)));
  $("stream-start").addEventListener("click", startStream);
  $("older").addEventListener("click", () => {
    shown += PAGE;
    drawTakes();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const main = event.target.closest?.(".panel")?.querySelector("button.main");
    if (main) main.click();
    else $("composer").requestSubmit();
  });
  fileChooser(edit, () => $("prompt").value.trim() || EXAMPLES[0]);
  onOtherTab((id, take) => {
    if (!take) element(id)?.remove();
    else if (!element(id)) place(take);
    else element(id).update(take);
    fewer();
  });
  useSettings(readSettings());
  drawTakes();
  meet();
  api.look();
}

function startStream() {
  trouble("");
  if (!fits()) return;
  const input = $("prompt").value.trim();
  if (!input) {
    $("prompt").focus();
    trouble("Say what the music should be like, or choose an example.");
    return;
  }
  const { model, steps, guidance_scale } = manner(chosen());
  stream.start({ input, model, num_inference_steps: steps, guidance_scale, seed: nextSeed() }, chosen().facts.sample_rate_hz);
}

begin();
