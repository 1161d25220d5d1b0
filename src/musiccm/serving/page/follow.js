/**
 * Follows jobs until they have ended. Browsers open six connections to a server, for all tabs together: so two jobs a
 * visible tab are followed by server-sent events, call by call, and the others by one list of all.
 */

import * as api from "./api.js";

const EVENTS_AT_ONCE = 2;
const TICK_MS = 500;
const LIST_MS = 1500;
const ENDED = new Set(["done", "failed", "cancelled", "gone"]);

const followed = new Map(); // id -> {tell: Set, view}
const open = new Map(); // id -> AbortController
let timer = 0;
let listed = 0;
let listing = false;

export const ended = (view) => ENDED.has(view.state);

/**
 * Follow a job.
 * @param {string} id the job
 * @param {(view: Object) => void} tell told of it now and after every change; `{state: "gone"}` where it is not there
 */
export function follow(id, tell) {
  const known = followed.get(id) || { tell: new Set(), view: null };
  known.tell.add(tell);
  followed.set(id, known);
  if (known.view) tell(known.view);
  tick();
}

function seen(view) {
  const known = followed.get(view.id);
  if (!known) return;
  known.view = view;
  for (const tell of known.tell) tell(view);
  if (ended(view)) {
    followed.delete(view.id);
    open.get(view.id)?.abort();
  }
}

function tick() {
  clearTimeout(timer);
  if (!followed.size) return;
  if (!document.hidden && !api.isLost()) {
    const running = [...followed].sort(([, a], [, b]) => rank(a.view) - rank(b.view)).map(([id]) => id);
    for (const id of running.slice(0, EVENTS_AT_ONCE)) if (!open.has(id) && open.size < EVENTS_AT_ONCE) listen(id);
    if (followed.size > open.size && !listing && Date.now() - listed > LIST_MS) list();
  }
  timer = setTimeout(tick, TICK_MS);
}

const rank = (view) => (view?.state === "running" ? 0 : 1 + (view?.position ?? 1000));

async function listen(id) {
  const stop = new AbortController();
  open.set(id, stop);
  try {
    const response = await api.jobEvents(id, stop.signal);
    for await (const data of events(response.body)) seen(JSON.parse(data));
  } catch (error) {
    if (error.status === 404) seen({ id, state: "gone" });
    else if (error.name !== "AbortError" && !api.isLost()) api.look(); // the connection was cut
  } finally {
    open.delete(id);
  }
}

async function list() {
  listing = true;
  try {
    const found = new Map((await api.jobs()).map((view) => [view.id, view]));
    for (const id of [...followed.keys()]) {
      if (open.has(id)) continue;
      if (found.has(id)) seen(found.get(id));
      else await one(id);
    }
  } catch {
    // told by the api; it is tried again
  } finally {
    listing = false;
    listed = Date.now();
  }
}

async function one(id) {
  try {
    seen(await api.job(id));
  } catch (error) {
    if (error.status !== 404) throw error;
    seen({ id, state: "gone" });
  }
}

/** The data of server-sent events. */
async function* events(body) {
  let text = "";
  for await (const part of chunks(body.pipeThrough(new TextDecoderStream()))) {
    text = (text + part).replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

/** What a stream brings, also in browsers whose streams are no iterators. */
export async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.releaseLock();
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) for (const stop of open.values()) stop.abort();
  else tick();
});
api.server.addEventListener("found", tick);
