"use strict";
// What a listener gets, and what counts as done: no page is needed here, so that it can be tested by itself.

// 32 bits of a text (FNV-1a).
function hashOf(text) {
  let hash = 0x811c9dc5;
  for (let place = 0; place < text.length; place++) {
    hash ^= text.charCodeAt(place);
    hash = Math.imul(hash, 0x01000193);
  }
  return hash >>> 0;
}

// Numbers from 0 to below 1 that a text decides (mulberry32).
function randomOf(text) {
  let state = hashOf(text);
  return function () {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const copy = list.slice();
  for (let last = copy.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [copy[last], copy[other]] = [copy[other], copy[last]];
  }
  return copy;
}

// The pages of one listener, in order: those that all get, and those of the groups that are drawn; sides are drawn too.
function planOf(test, listener) {
  const random = randomOf(test.test + "/" + listener);
  const groups = Array.from(new Set(test.trials.filter((trial) => !trial.always).map((trial) => trial.group)));
  const drawn = new Set(shuffled(groups, random).slice(0, test.per_listener));
  const chosen = test.trials.filter((trial) => trial.always || drawn.has(trial.group));
  return shuffled(chosen, random).map(function (trial) {
    const files = trial.files.length > 1 && random() < 0.5 ? trial.files.slice().reverse() : trial.files.slice();
    return { trial: trial.id, files: files, ask: trial.ask, caption: trial.caption };
  });
}

function newState(test, listener, now) {
  return { test: test.test, listener: listener, started: now, place: -1, answers: {} };
}

// The record of one page; made when it is first shown.
function recordOf(state, page) {
  if (!state.answers[page.trial]) {
    state.answers[page.trial] = {
      trial: page.trial, files: page.files, heard_s: page.files.map(() => 0), plays: page.files.map(() => 0),
      seconds: 0, answers: {},
    };
  }
  return state.answers[page.trial];
}

function heardEnough(test, record) {
  return record.heard_s.every((seconds) => seconds >= test.least_s);
}

function isDone(test, page, record) {
  return Boolean(record) && heardEnough(test, record) && page.ask.every((id) => record.answers[id] !== undefined);
}

// What is downloaded or sent: the pages that are done, in the order in which they were shown.
function resultOf(test, plan, state, now) {
  const done = plan.filter((page) => isDone(test, page, state.answers[page.trial]));
  return {
    format: "musiccm-listening-answers", version: 1, test: test.test, listener: state.listener, started: state.started,
    saved: now, complete: done.length === plan.length, answers: done.map((page) => state.answers[page.trial]),
  };
}

// A state that was kept, if it is one of this test that still fits; null otherwise.
function restored(test, text) {
  try {
    const state = JSON.parse(text);
    if (state.test !== test.test || typeof state.listener !== "string" || typeof state.answers !== "object") return null;
    const pages = planOf(test, state.listener).length;
    state.place = Math.min(Math.max(Math.trunc(Number(state.place) || 0), -1), pages);
    return state;
  } catch (error) {
    return null;
  }
}

if (typeof module !== "undefined") {
  module.exports = { hashOf, randomOf, shuffled, planOf, newState, recordOf, heardEnough, isDone, resultOf, restored };
}
