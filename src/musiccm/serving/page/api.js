/** The server, spoken to by its public API alone. */

const KEY = "musiccm.key";

/** The API key of this tab; it is kept until the tab is closed. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is no success, as RFC 9457 has it. */
export class ApiError extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || `the server answered ${status}`);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The server does not answer. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** Tells `there` (with /health in detail), `lost`, `found` and `key`. */
export const server = new EventTarget();
let lost = false;
export const isLost = () => lost;

function reached() {
  if (!lost) return;
  lost = false;
  server.dispatchEvent(new Event("found"));
}

function missed() {
  if (lost) return;
  lost = true;
  server.dispatchEvent(new Event("lost"));
  look();
}

/**
 * Ask the server.
 * @param {string} path of the API
 * @param {{method?: string, json?: any, body?: Blob, signal?: AbortSignal, headers?: Object}} options what to send
 * @returns {Promise<Response>} the answer, which is a success
 * @throws {ApiError|Unreachable}
 */
export async function call(path, { method, json, body, signal, headers: more } = {}) {
  const headers = { ...more };
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (body) headers["Content-Type"] = body.type.startsWith("audio/") ? body.type : "application/octet-stream";
  let response;
  try {
    response = await fetch(path, {
      method: method || (json !== undefined || body ? "POST" : "GET"), headers, signal, cache: "no-store",
      body: json !== undefined ? JSON.stringify(json) : body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    missed();
    throw new Unreachable();
  }
  reached();
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // a proxy between may answer with something else
  }
  if (response.status === 401) server.dispatchEvent(new Event("key"));
  throw new ApiError(response.status, problem, Number(response.headers.get("Retry-After")) || 0);
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const BUSY_TRIES = 20;

/** As `call`, and comes again where the server says that it is full; `told` is called then. */
export async function patientCall(path, options, told = () => {}) {
  for (let tries = 1; ; tries++) {
    try {
      return await call(path, options);
    } catch (error) {
      if (error.status !== 429 || tries === BUSY_TRIES) throw error;
      const pause = Math.min(30, Math.max(1, error.retryAfter));
      told(`The server is full and is asked again in ${Math.round(pause)} s.`);
      await wait(1000 * pause);
    }
  }
}

export const models = async () => (await (await call("/v1/models")).json()).data;
export const job = async (id) => (await call(`/v1/jobs/${id}`)).json();
export const jobs = async () => (await (await call("/v1/jobs?limit=200")).json()).jobs;
/** Ask for a job; the same key gives the same job, however often the answer is lost. */
export const submit = async (body, told, key = freshKey()) =>
  (await patientCall("/v1/jobs", { json: body, headers: { "Idempotency-Key": key } }, told)).json();
export const freshKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
export const cancel = async (id) => (await call(`/v1/jobs/${id}`, { method: "DELETE" })).json();
export const evidence = async (id, told) => (await patientCall(`/v1/jobs/${id}/evidence`, {}, told)).json();
export const audio = async (id, format) => (await call(`/v1/jobs/${id}/audio?format=${format}`)).blob();
export const spectrogram = async (id) => (await call(`/v1/jobs/${id}/spectrogram.png`)).blob();
export const sidecar = async (id) => (await call(`/v1/jobs/${id}/sidecar`)).blob();
export const upload = async (file) => (await call("/v1/uploads", { body: file })).json();
export const removeUpload = (id) => call(`/v1/uploads/${id}`, { method: "DELETE" });
export const changePrompt = async (id, prompt) =>
  (await call(`/v1/jobs/${id}/prompt`, { json: { prompt } })).json();
export const openStream = (body, signal) => call("/v1/audio/generate", { json: { ...body, stream: true }, signal });
export const jobEvents = (id, signal) => call(`/v1/jobs/${id}/events`, { signal });

let looking = 0;
/** Ask now whether the server is there, and go on asking: often while it is lost, else now and then. */
export async function look() {
  clearTimeout(looking);
  if (!document.hidden || lost) {
    try {
      const state = await (await call("/health")).json();
      server.dispatchEvent(new CustomEvent("there", { detail: state }));
    } catch {
      // `call` has told it
    }
  }
  clearTimeout(looking);
  looking = setTimeout(look, lost ? 1500 : 8000);
}
