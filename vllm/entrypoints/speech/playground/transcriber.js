// SPDX-License-Identifier: Apache-2.0
// The panel that writes what is said.

import { transcription } from "./api.js";
import { AudioInput } from "./audio_input.js";
import { part } from "./dom.js";
import { describe, wasStopped } from "./errors.js";
import { Take } from "./take.js";

export class Transcriber {
  #abort = null;
  #take = null;

  constructor(panel, { sample_rate: sampleRate }) {
    this.panel = panel;
    this.sampleRate = sampleRate;
    this.card = panel.querySelector(".transcript");
    const input = new AudioInput(part(panel, "audio-input"));
    input.addEventListener("change", () => (input.file ? this.#run(input.file) : this.#clear()));
    part(panel, "copy").addEventListener("click", () => this.#copy());
    part(panel, "stop").addEventListener("click", () => this.#abort?.abort());
  }

  #clear() {
    this.#abort?.abort();
    this.#take?.remove();
    this.#take = null;
    this.card.hidden = true;
  }

  async #run(file) {
    this.#clear();
    const abort = new AbortController();
    this.#abort = abort;
    const text = part(this.card, "text");
    text.textContent = "";
    this.card.hidden = false;
    part(this.card, "copy").hidden = true;
    part(this.card, "stop").hidden = false;
    this.#show("making", "Listening…");
    this.#draw(file);
    try {
      for await (const piece of transcription(file, abort.signal)) text.append(piece);
      if (text.textContent.trim()) this.#show("done", "");
      else this.#show("done", "The model heard nothing that it could write.");
    } catch (error) {
      if (this.#abort !== abort) return;
      if (wasStopped(error)) this.#show("stopped", "Stopped");
      else this.#show("failed", describe(error));
      if (!wasStopped(error)) this.onFailure?.(error);
    }
    if (this.#abort !== abort) return;
    part(this.card, "stop").hidden = true;
    part(this.card, "copy").hidden = !text.textContent.trim();
  }

  /** Show the recording, if the browser can read it; the server reads more kinds of files. */
  async #draw(file) {
    let buffer;
    const context = new AudioContext(this.sampleRate ? { sampleRate: this.sampleRate } : {});
    try {
      buffer = await context.decodeAudioData(await file.arrayBuffer());
    } catch {
      return;
    } finally {
      context.close();
    }
    this.#take?.remove();
    this.#take = new Take({ title: "What the model hears", isQuiet: true, name: "recording.wav" });
    part(this.panel, "takes").replaceChildren(this.#take.element);
    this.#take.show(buffer);
  }

  async #copy() {
    const button = part(this.card, "copy");
    try {
      await navigator.clipboard.writeText(part(this.card, "text").textContent);
      button.textContent = "Copied";
    } catch {
      // Pages over plain http may not write there.
      getSelection().selectAllChildren(part(this.card, "text"));
      button.textContent = "Selected: press Ctrl C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  #show(state, text) {
    this.card.dataset.is = state;
    part(this.card, "state").textContent = text;
  }
}
