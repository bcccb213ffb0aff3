// SPDX-License-Identifier: Apache-2.0
// The panel for messages of text and audio, answered with either.

import { chat } from "./api.js";
import { AudioInput } from "./audio_input.js";
import { element, part } from "./dom.js";
import { describe, Failure, wasStopped } from "./errors.js";
import { Take } from "./take.js";

const NAMES = { text: "Text", audio: "Audio" };

export class Chat {
  #history = [];
  #abort = null;

  constructor(panel, capabilities) {
    this.capabilities = capabilities;
    this.form = panel.querySelector("form");
    this.log = part(panel, "messages");
    this.input = new AudioInput(part(panel, "audio-input"));
    const outputs = new Set(capabilities.chat.answers.map((answer) => answer.output));
    for (const output of outputs) this.form.elements.answer.append(new Option(NAMES[output], output));
    this.form.querySelector("[data-field=answer]").hidden = outputs.size < 2;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.form.elements.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    part(this.form, "stop").addEventListener("click", () => this.#abort?.abort());
    part(this.form, "restart").addEventListener("click", () => this.#restart());
  }

  #restart() {
    this.#abort?.abort();
    this.#history = [];
    this.log.replaceChildren(element("p", "Say something to the model, in writing or aloud.", "empty"));
    part(this.form, "restart").hidden = true;
    this.form.elements.text.focus();
  }

  async #message() {
    const text = this.form.elements.text.value.trim();
    const content = text ? [{ type: "text", text }] : [];
    if (this.input.file) {
      const data = await base64(this.input.file);
      content.push({ type: "input_audio", input_audio: { data } });
    }
    if (!content.length) {
      this.form.elements.text.focus();
      throw new Failure("Write a message or record one first.");
    }
    this.#check(content.map((item) => (item.type === "text" ? "text" : "audio")));
    return { role: "user", content };
  }

  #check(inputs) {
    const output = this.form.elements.answer.value;
    const fits = this.capabilities.chat.answers.some(
      (answer) => answer.output === output && inputs.length === answer.inputs.length
        && inputs.every((input) => answer.inputs.includes(input)),
    );
    if (fits) return;
    const words = { text: "text", audio: "a recording" };
    const given = inputs.map((input) => words[input]).join(" and ");
    throw new Failure(`The model cannot answer ${given} with ${NAMES[output].toLowerCase()}. Change one of them.`);
  }

  async #send() {
    if (this.#abort) return;
    const error = this.form.querySelector(".error");
    error.textContent = "";
    let message;
    try {
      message = await this.#message();
    } catch (failure) {
      error.textContent = describe(failure);
      return;
    }
    this.#show(message);
    const kept = this.capabilities.chat.conversations ? this.#history : [];
    const messages = [...kept, message];
    this.form.elements.text.value = "";
    this.input.clear();
    const abort = new AbortController();
    this.#abort = abort;
    this.#busy(true);
    try {
      const said = await this.#answer(messages, abort.signal);
      this.#history = [...messages, ...(said ? [{ role: "assistant", content: said }] : [])];
    } finally {
      this.#abort = null;
      this.#busy(false);
    }
  }

  /** Show the answer; returns its text. */
  async #answer(messages, signal) {
    const wantsAudio = this.form.elements.answer.value === "audio";
    const { sample_rate: sampleRate, channels } = this.capabilities;
    const bubble = element("article", "", "message assistant");
    bubble.setAttribute("aria-label", "The model");
    const text = element("p", "");
    const state = element("p", "Answering…", "state");
    bubble.append(text, state);
    this.#add(bubble);
    const pieces = chat(messages, wantsAudio, { sampleRate, channels }, signal);
    try {
      if (wantsAudio) {
        const take = new Take({ title: "Answer", name: "answer.wav" });
        bubble.append(take.element);
        state.remove();
        await take.receive(soundOf(pieces, text));
      } else {
        for await (const piece of pieces) text.append(piece.text ?? "");
        state.textContent = text.textContent.trim() ? "" : "The model answered with nothing.";
      }
    } catch (error) {
      bubble.dataset.is = "failed";
      state.textContent = wasStopped(error) ? "Stopped" : describe(error);
      if (!wasStopped(error)) this.onFailure?.(error);
    }
    return text.textContent.trim();
  }

  #show({ content }) {
    const bubble = element("article", "", "message user");
    bubble.setAttribute("aria-label", "You");
    for (const item of content) {
      bubble.append(element("p", item.type === "text" ? item.text : "♪ A recording", item.type));
    }
    this.#add(bubble);
  }

  #add(bubble) {
    this.log.querySelector(".empty")?.remove();
    part(this.form, "restart").hidden = false;
    this.log.append(bubble);
    bubble.scrollIntoView({ block: "nearest" });
  }

  #busy(isBusy) {
    part(this.form, "stop").hidden = !isBusy;
    part(this.form, "make").disabled = isBusy;
  }
}

/** The audio of an answer; its text goes into an element. */
async function* soundOf(pieces, text) {
  for await (const piece of pieces) {
    if (piece.text) text.append(piece.text);
    if (piece.audio?.[0].length) yield { sampleRate: piece.sampleRate, channels: piece.audio };
  }
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}
