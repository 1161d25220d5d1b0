/** A clip of one's own: sent to the server, shown as a player, and edited like a result. */

import * as api from "./api.js";
import { $, h, say, seconds } from "./dom.js";
import { edits } from "./edit.js";
import "./player.js";

/**
 * Let a file be chosen.
 * @param {(fields: Object, clip: Object) => Promise<void>} edit asks for an edit of it
 * @param {() => string} prompt what stands in the prompt
 */
export function fileChooser(edit, prompt) {
  $("file").addEventListener("change", async () => {
    const file = $("file").files[0];
    const box = $("file-result");
    if (!file) return box.replaceChildren();
    const line = h("p", { class: "quiet small", text: `Sending ${file.name}` });
    box.replaceChildren(line);
    try {
      const clip = await api.upload(file);
      line.textContent = `${file.name}, ${seconds(clip.seconds)}. The server keeps it for an hour.`;
      const player = document.createElement("music-player");
      player.load({ sound: file, picture: await picture(file), seconds: clip.seconds, label: file.name });
      const { buttons, panel } = edits({
        player,
        about: () => ({ source: clip.id, prompt: prompt(), seconds: clip.seconds }),
        send: (fields) => edit(fields, { name: file.name, model: null, seconds: clip.seconds }),
      });
      const remove = h("button", { type: "button", text: "Remove", "aria-label": `Remove ${file.name} from the server`,
        onclick: () => removed(clip.id, file.name, line, remove) });
      box.append(player, h("div", { class: "tools" }, ...buttons, remove), panel);
      say(`${file.name} can be edited now.`);
    } catch (error) {
      line.className = "trouble";
      line.setAttribute("role", "alert");
      line.textContent = error.message;
    }
  });
}

/** Take a clip off the server, and out of the page; edits of it that were asked for go on. */
async function removed(id, name, line, button) {
  button.disabled = true;
  try {
    await api.removeUpload(id);
  } catch (error) {
    if (error.status !== 404) {
      line.textContent = error.message;
      button.disabled = false;
      return;
    }
  }
  say(`${name} is no longer on the server.`);
  if (!button.isConnected) return; // another file was chosen meanwhile
  $("file").value = "";
  $("file-result").replaceChildren();
  $("file").focus();
}

/** Loudness over time, drawn here: the server draws what it made itself. Null where the browser cannot decode it. */
async function picture(file) {
  const [width, height] = [1000, 128];
  try {
    const sound = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(await file.arrayBuffer());
    const samples = sound.getChannelData(0);
    const canvas = h("canvas", { width, height });
    const paint = canvas.getContext("2d");
    paint.fillStyle = "#0b0714";
    paint.fillRect(0, 0, width, height);
    paint.fillStyle = "#f1605d";
    for (let x = 0; x < width; x++) {
      let peak = 0;
      const end = Math.floor(((x + 1) * samples.length) / width);
      for (let n = Math.floor((x * samples.length) / width); n < end; n++) peak = Math.max(peak, Math.abs(samples[n]));
      paint.fillRect(x, (height * (1 - peak)) / 2, 1, Math.max(1, height * peak));
    }
    return await new Promise((resolve) => canvas.toBlob(resolve));
  } catch {
    return null;
  }
}
