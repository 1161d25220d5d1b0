// The page itself: one screen at a time, kept in the browser after every step.
(function () {
  const test = JSON.parse(document.getElementById("test").textContent);
  const main = document.querySelector("main"), note = document.getElementById("note");
  const asked = new URLSearchParams(location.search).get("listener") || "";
  const named = /^[A-Za-z0-9_-]{1,40}$/.test(asked) ? asked : "";
  const store = "musiccm-listening-" + test.test + (named ? "-" + named : "");
  let state = null, plan = [], players = [], current = 0, shownAt = 0;

  const now = () => new Date().toISOString();

  function load() {
    try {
      return restored(test, localStorage.getItem(store) || "null");
    } catch (error) {
      return null;
    }
  }

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(state));
    } catch (error) {
      note.textContent = "This browser keeps nothing: please finish without closing or reloading the page.";
    }
  }

  function newListener() {
    if (named) return named;
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  function make(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties || {});
    node.append(...children);
    return node;
  }

  function show(heading, ...children) {
    stop();
    players = [];
    const title = make("h1", { tabIndex: -1 }, heading);
    main.replaceChildren(title, ...children);
    title.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  // --- sounds -------------------------------------------------------------------------------------------------------

  function stop() {
    players.forEach((player) => player.audio.pause());
  }

  function toggle(number) {
    const player = players[number];
    if (!player) return;
    current = number;
    if (!player.audio.paused) {
      player.audio.pause();
      return;
    }
    stop();
    player.audio.play().catch(function () {
      note.textContent = "This sound could not be played. Please check that the sound files lie beside the page.";
    });
  }

  // Space goes on with the sound that plays or paused last; where that one has ended, with the other.
  function space() {
    const audio = players[current] && players[current].audio;
    toggle(audio && audio.ended ? (current + 1) % players.length : current);
  }

  function playerOf(file, number, page, record) {
    const count = page.files.length, label = count > 1 ? "sound " + (number + 1) : "the sound";
    const audio = make("audio", { src: "sounds/" + file, preload: "auto" });
    const button = make("button", { type: "button", className: "play" });
    const bar = make("progress", { max: 1, value: 0 });
    bar.setAttribute("aria-label", "position in " + label);
    const heard = make("span", { className: "heard" });
    function draw() {
      button.textContent = (audio.paused ? "▶ Play " : "❚❚ Pause ") + label;
      heard.textContent = record.heard_s[number] >= test.least_s ? "✓ heard" : "not heard yet";
      bar.value = audio.duration ? audio.currentTime / audio.duration : 0;
    }
    let last = 0;
    audio.addEventListener("timeupdate", function () {
      // Seconds that were truly played: jumps count nothing.
      const passed = audio.currentTime - last;
      if (passed > 0 && passed < 1.5) record.heard_s[number] = Math.round((record.heard_s[number] + passed) * 1000) / 1000;
      last = audio.currentTime;
      draw();
      update();
    });
    audio.addEventListener("play", function () {
      last = audio.currentTime;
      record.plays[number] += 1;
      note.textContent = "";
      draw();
    });
    audio.addEventListener("pause", function () { draw(); keep(); });
    audio.addEventListener("ended", function () { draw(); keep(); update(); });
    audio.addEventListener("error", function () {
      note.textContent = "A sound could not be loaded. Please check that the sound files lie beside the page.";
    });
    button.addEventListener("click", () => toggle(number));
    draw();
    players.push({ audio: audio, draw: draw });
    return make("div", { className: "player" }, button, bar, heard, audio);
  }

  // --- questions ----------------------------------------------------------------------------------------------------

  function answer(record, id, value) {
    record.answers[id] = value;
    keep();
    update();
  }

  function choiceOf(id, question, record) {
    const options = [["first", "1", "Sound 1"], ["second", "2", "Sound 2"]];
    if (question.tie) options.splice(1, 0, ["tie", "0", question.tie]);
    const set = make("fieldset", { className: "choice" }, make("legend", {}, question.text));
    options.forEach(function ([value, key, label]) {
      const input = make("input", { type: "radio", name: id, value: value, checked: record.answers[id] === value });
      input.dataset.key = key;
      input.addEventListener("change", () => answer(record, id, value));
      set.append(make("label", {}, input, label, make("kbd", {}, key)));
    });
    return set;
  }

  function ratingOf(id, question, record) {
    const [low, high] = test.scale, value = record.answers[id];
    const set = make("fieldset", { className: "rating" }, make("legend", {}, question.text));
    const range = make("input", { type: "range", min: low, max: high, value: value === undefined ? (low + high) / 2 : value });
    const number = make("input", { type: "number", min: low, max: high, step: 1, value: value === undefined ? "" : value });
    range.setAttribute("aria-label", question.text + " " + low + ": " + question.ends[0] + ", " + high + ": " + question.ends[1]);
    number.setAttribute("aria-label", question.text + " as a number");
    range.classList.toggle("unset", value === undefined);
    function set_to(text) {
      const found = Number(text);
      if (text === "" || !Number.isInteger(found) || found < low || found > high) {
        delete record.answers[id];
        range.classList.add("unset");
        keep();
        update();
        return;
      }
      range.value = number.value = found;
      range.classList.remove("unset");
      answer(record, id, found);
    }
    // A click where the slider stands moves nothing, and is an answer all the same.
    ["input", "change", "click"].forEach((kind) => range.addEventListener(kind, () => set_to(range.value)));
    number.addEventListener("input", () => set_to(number.value));
    set.append(make("div", { className: "slider" }, make("span", {}, low + " " + question.ends[0]), range,
      make("span", {}, high + " " + question.ends[1]), number));
    return set;
  }

  // --- screens ------------------------------------------------------------------------------------------------------

  let update = function () {};

  function showPage() {
    const page = plan[state.place], record = recordOf(state, page);
    current = 0;
    shownAt = Date.now();
    const list = make("div", { className: "players" });
    const form = make("form", { onsubmit: () => false });
    const why = make("p", { className: "why", id: "why" });
    const next = make("button", { type: "button", className: "next" }, state.place + 1 < plan.length ? "Next" : "Finish");
    const back = make("button", { type: "button", disabled: state.place === 0 }, "Back");
    const rest = make("button", { type: "button" }, "Save what I have so far");
    const caption = page.caption ? make("blockquote", {}, make("span", { className: "quiet" }, "The text: "), page.caption) : "";
    next.setAttribute("aria-describedby", "why");
    next.addEventListener("click", () => go(1));
    back.addEventListener("click", () => go(-1));
    rest.addEventListener("click", download);
    show("Page " + (state.place + 1) + " of " + plan.length, caption, list, form, why,
      make("nav", {}, back, next, rest));
    page.files.forEach((file, number) => list.append(playerOf(file, number, page, record)));
    page.ask.forEach(function (id) {
      const question = test.questions[id];
      form.append(question.kind === "choice" ? choiceOf(id, question, record) : ratingOf(id, question, record));
    });
    update = function () {
      const heard = heardEnough(test, record);
      form.querySelectorAll("fieldset").forEach((set) => { set.disabled = !heard; });
      next.disabled = !isDone(test, page, record);
      why.textContent = !heard
        ? "Listen to " + (page.files.length > 1 ? "both sounds" : "the sound") + " for " + test.least_s.toFixed(1) + " s before you answer."
        : next.disabled ? "Answer " + (page.ask.length > 1 ? "all questions" : "the question") + " to go on." : "";
    };
    update();
    keep();
  }

  function go(by) {
    const page = plan[state.place];
    if (page) {
      const record = recordOf(state, page);
      if (by > 0 && !isDone(test, page, record)) return;
      record.seconds = Math.round(record.seconds + (Date.now() - shownAt) / 1000);
    }
    state.place = Math.min(Math.max(state.place + by, 0), plan.length);
    keep();
    if (state.place < plan.length) showPage();
    else showEnd();
  }

  function begin() {
    state = newState(test, newListener(), now());
    plan = planOf(test, state.listener);
    go(1);
  }

  function showStart() {
    const start = make("button", { type: "button", className: "next" }, "Start");
    start.addEventListener("click", begin);
    const pages = planOf(test, "anyone").length;
    show(test.title,
      make("p", {}, "You will hear short pieces of music on " + pages + " pages, and answer a question or two about each. "
        + "There are no right answers but on the pages that say so; say what you hear. Some pages are there to check that "
        + "the sound reaches you."),
      make("p", {}, "Please wear headphones, sit in a quiet place, and set the volume once, on the first page. You can "
        + "stop at any time: this browser keeps your answers, and you go on where you were."),
      make("p", {}, "Keys: ", make("kbd", {}, "space"), " plays and pauses, ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"),
        " choose the sound, ", make("kbd", {}, "1"), " ", make("kbd", {}, "0"), " ", make("kbd", {}, "2"),
        " answer, ", make("kbd", {}, "Enter"), " goes on."),
      make("nav", {}, start));
  }

  function text() {
    return JSON.stringify(resultOf(test, plan, state, now()), null, 1);
  }

  function download() {
    const link = make("a", {
      href: URL.createObjectURL(new Blob([text()], { type: "application/json" })),
      download: "answers-" + state.listener + ".json",
    });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    note.textContent = "Saved as " + link.download + ". Please send this file to whoever asked you.";
  }

  function send(button) {
    button.disabled = true;
    note.textContent = "Sending your answers…";
    fetch(test.collect, { method: "POST", headers: { "Content-Type": "text/plain" }, body: text() }).then(function (found) {
      if (!found.ok) throw new Error(String(found.status));
      note.textContent = "Your answers have arrived. Thank you!";
    }).catch(function () {
      button.disabled = false;
      note.textContent = "Your answers could not be sent. Please try again, or save them as a file.";
    });
  }

  function showEnd() {
    update = function () {};
    const save = make("button", { type: "button", className: "next" }, "Save my answers");
    const back = make("button", { type: "button" }, "Back");
    const again = make("button", { type: "button" }, "Start as another listener");
    const posting = make("button", { type: "button", className: "next" }, "Send my answers");
    save.addEventListener("click", download);
    posting.addEventListener("click", () => send(posting));
    back.addEventListener("click", () => go(-1));
    again.addEventListener("click", function () {
      if (!confirm("Your answers leave this browser. Have you saved or sent them?")) return;
      localStorage.removeItem(store);
      note.textContent = "";
      state = null;
      showStart();
    });
    show("That was all. Thank you!", make("p", {}, "Your answers are not handed in before you "
      + (test.collect ? "send or " : "") + "save them."), make("nav", {}, ...(test.collect ? [posting] : []), save, back, again));
    if (test.collect) send(posting);
  }

  // --- keys ---------------------------------------------------------------------------------------------------------

  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !players.length) return;
    const on = event.target, kind = on.tagName === "INPUT" ? on.type : on.tagName;
    if (event.key === " " && kind !== "BUTTON" && kind !== "number" && !(kind === "radio" && !on.checked)) {
      event.preventDefault();
      space();
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && on.tagName !== "INPUT") {
      event.preventDefault();
      const number = event.key === "ArrowLeft" ? 0 : players.length - 1;
      if (number !== current || players[number].audio.paused) toggle(number);
    } else if (["0", "1", "2"].includes(event.key) && kind !== "number") {
      // The question that has the focus, or else the first without an answer, or else the last.
      const sets = Array.from(main.querySelectorAll("fieldset.choice"));
      const set = on.closest("fieldset.choice") || sets.find((one) => !one.querySelector(":checked")) || sets[sets.length - 1];
      const input = set && !set.disabled && set.querySelector('input[data-key="' + event.key + '"]');
      if (input) input.click();
    } else if (event.key === "Enter" && kind !== "BUTTON") {
      event.preventDefault();
      go(1);
    }
  });
  window.addEventListener("pagehide", function () { if (state) keep(); });

  state = load();
  if (!state || state.place < 0) {
    showStart();
  } else {
    plan = planOf(test, state.listener);
    if (state.place < plan.length) showPage();
    else showEnd();
  }
})();
