/**
 * The history: what was asked for, in this browser. Each take has a key of its own, so that two tabs never write over
 * each other; the sound is the server's.
 */

const PREFIX = "musiccm.take.";
const KEPT = 200;

/**
 * A take: `{id, created, title, says, settings, jobs: [{job, body, role, variant, key}]}`; `job` is null until it is
 * sent, and `key` names it to the server from then until that has answered.
 */
export function newTake(values) {
  const created = Date.now();
  return { id: `${created}-${Math.random().toString(36).slice(2, 8)}`, created, ...values };
}

/** All takes, the newest first. */
export function allTakes() {
  const found = [];
  for (let n = 0; n < localStorage.length; n++) {
    const key = localStorage.key(n);
    if (key.startsWith(PREFIX)) {
      const take = parsed(localStorage.getItem(key));
      if (take) found.push(take);
    }
  }
  return found.sort((a, b) => b.created - a.created);
}

function parsed(text) {
  try {
    const take = JSON.parse(text);
    return take && take.id && Array.isArray(take.jobs) ? take : null;
  } catch {
    return null; // somebody else's
  }
}

/**
 * Keep a take; the oldest beyond 200 go.
 * @returns {boolean} whether the browser had room
 */
export function keep(take) {
  try {
    localStorage.setItem(PREFIX + take.id, JSON.stringify(take));
  } catch {
    return false;
  }
  for (const old of allTakes().slice(KEPT)) forget(old.id);
  return true;
}

export function forget(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Be told of what other tabs keep and forget: `(id, take or null)`. */
export function onOtherTab(tell) {
  addEventListener("storage", (event) => {
    if (event.key?.startsWith(PREFIX)) tell(event.key.slice(PREFIX.length), parsed(event.newValue));
  });
}
