// SPDX-License-Identifier: Apache-2.0
// The panels that make audio from text: speech, and audio from a description.

import { audio } from "./api.js";
import { AudioInput } from "./audio_input.js";
import { followRange, part } from "./dom.js";
import { Failure } from "./errors.js";
import { Take } from "./take.js";

const RECORDING = "\u0000recording"; // the choice of a voice that no name can be
const MAX_SCALE = 5;

/** A panel with a form; its subclasses say what the form asks the server for. */
class Maker {
  #takes = [];
  #abort = null;

  constructor(panel, capabilities, { path, textField, missing }) {
    this.panel = panel;
    this.form = panel.querySelector("form");
    this.form.noValidate = true; // what is wrong is said here, in one place
    this.path = path;
    this.textField = textField;
    this.missing = missing;
    this.guidance = capabilities.guidance?.needs_negative_prompt === false ? capabilities.guidance : null;
    this.#setUpGuidance();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run(false);
    });
    part(this.form, "compare").addEventListener("click", () => this.#run(true));
    part(this.form, "stop").addEventListener("click", () => this.#abort?.abort());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#run(event.shiftKey && this.guidance);
      if (event.key === "Escape") this.#abort?.abort();
    });
  }

  field(name) {
    const field = this.form.querySelector(`[data-field=${name}]`);
    field.hidden = false;
    return field;
  }

  /** The request's fields but for text, seed and guidance. */
  fields() {
    return {};
  }

  /** What a card says of a request. */
  details(seed) {
    return `seed ${seed}`;
  }

  #setUpGuidance() {
    if (!this.guidance) return;
    const input = this.field("guidance").querySelector("input");
    const scale = this.guidance.default_scale;
    input.max = Math.max(MAX_SCALE, 2 * scale);
    input.value = scale;
    followRange(input, (value) => (value > 1 ? value.toFixed(1) : "off"));
    const compare = part(this.form, "compare");
    compare.hidden = false;
    input.addEventListener("input", () => (compare.disabled = input.valueAsNumber <= 1));
    compare.disabled = scale <= 1;
  }

  #request() {
    const text = this.form.elements.text;
    if (!text.value.trim()) {
      text.focus();
      throw new Failure(this.missing);
    }
    const typed = this.form.elements.seed;
    if (!typed.checkValidity()) {
      typed.focus();
      throw new Failure("The seed must be a whole number from 0 to 4294967295, or left empty.");
    }
    const seed = typed.value === "" ? Math.floor(Math.random() * 2 ** 32) : Number(typed.value);
    const request = { [this.textField]: text.value, seed, ...this.fields() };
    if (this.guidance) request.guidance_scale = this.form.elements.guidance.valueAsNumber;
    return request;
  }

  async #run(compares) {
    const error = this.form.querySelector(".error");
    error.textContent = "";
    this.form.elements.text.removeAttribute("aria-invalid");
    let request;
    try {
      request = this.#request();
    } catch (failure) {
      error.textContent = failure.message;
      if (!this.form.elements.text.value.trim()) this.form.elements.text.setAttribute("aria-invalid", "true");
      return;
    }
    this.#abort?.abort();
    const abort = new AbortController();
    this.#abort = abort;
    this.#busy(true);
    try {
      await Promise.allSettled(
        this.#show(request, compares).map(([take, fields]) =>
          take.receive(audio(this.path, fields, abort.signal)).catch((failure) => this.onFailure?.(failure)),
        ),
      );
    } finally {
      if (this.#abort === abort) {
        this.#abort = null;
        this.#busy(false);
      }
    }
  }

  /** Cards for a request, with the fields of each. */
  #show(request, compares) {
    for (const take of this.#takes) take.remove();
    const scale = request.guidance_scale;
    const details = this.details(request.seed);
    const guided = scale > 1 ? `Guided, scale ${scale.toFixed(1)}` : "Unguided";
    const title = this.guidance ? guided : this.title;
    const runs = [[new Take({ title, details, kind: scale > 1 ? "guided" : "", name: this.fileName(request) }), request]];
    if (compares) {
      const unguided = { ...request, guidance_scale: 1 };
      delete unguided.negative_prompt;
      const name = this.fileName(unguided);
      runs.push([new Take({ title: "Unguided", details, isQuiet: true, kind: "unguided", name }), unguided]);
    }
    this.#takes = runs.map(([take]) => take);
    const place = part(this.panel, "takes");
    place.classList.toggle("two", compares);
    place.replaceChildren(...this.#takes.map((take) => take.element));
    return runs;
  }

  fileName(request) {
    const words = request[this.textField].toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["audio"];
    const guidance = request.guidance_scale ? `-x${request.guidance_scale}` : "";
    return `${words.slice(0, 5).join("-").slice(0, 40)}${guidance}-${request.seed}.wav`;
  }

  #busy(isBusy) {
    part(this.form, "stop").hidden = !isBusy;
    this.form.classList.toggle("busy", isBusy);
    this.panel.setAttribute("aria-busy", isBusy);
  }
}

/** Text to speech. */
export class Speaker extends Maker {
  title = "Speech";
  #recording = null;

  constructor(panel, capabilities, voices) {
    super(panel, capabilities, {
      path: "v1/audio/speech",
      textField: "input",
      missing: "Type something to say first.",
    });
    this.speech = capabilities.speech;
    this.#setUpVoices(voices);
  }

  #setUpVoices(voices) {
    const select = this.form.elements.voice;
    const preferred = voices.find((voice) => voice.default);
    const needsVoice = this.speech.recording === "required";
    if (!preferred && !needsVoice) select.append(new Option("The model’s own", ""));
    for (const { id, name } of voices) select.append(new Option(name === id ? id : `${id} (${name})`, id));
    if (this.speech.recording !== "none") select.append(new Option("From a recording…", RECORDING));
    if (select.options.length < 2 && select.value !== RECORDING) return;
    this.field("voice");
    if (preferred) select.value = preferred.id;
    if (this.speech.recording === "none") return;
    const reference = this.form.querySelector("[data-field=reference]");
    this.#recording = new AudioInput(part(reference, "audio-input"));
    if (this.speech.reference_text !== "none") this.field("reference-text");
    const follow = () => (reference.hidden = select.value !== RECORDING);
    select.addEventListener("change", follow);
    follow();
  }

  fields() {
    const voice = this.form.elements.voice.value;
    if (voice !== RECORDING) return voice ? { voice } : {};
    if (!this.#recording.file) throw new Failure("Record or choose the voice to speak with first.");
    const text = this.form.elements["reference-text"].value.trim();
    if (!text && this.speech.reference_text === "required") {
      throw new Failure("Write what is said in the recording; the model needs it.");
    }
    return text ? { ref_audio: this.#recording.file, ref_text: text } : { ref_audio: this.#recording.file };
  }

  details(seed) {
    const { value, selectedOptions } = this.form.elements.voice;
    const voice = value === RECORDING ? "a recording’s voice" : selectedOptions[0]?.textContent;
    return [voice, super.details(seed)].filter(Boolean).join(" · ");
  }
}

/** Audio from a description. */
export class Creator extends Maker {
  title = "Audio";

  constructor(panel, capabilities) {
    super(panel, capabilities, {
      path: "v1/audio/generations",
      textField: "prompt",
      missing: "Describe what you would like to hear first.",
    });
    const { duration } = capabilities.generation;
    const input = this.field("duration").querySelector("input");
    input.min = Math.min(Math.max(duration.minimum, 0.5), duration.maximum);
    input.max = duration.maximum;
    input.step = duration.maximum > 5 ? 0.5 : "any";
    input.value = Math.min(duration.default, 10);
    followRange(input, (value) => `${value.toFixed(1)} s`);
    if (this.guidance) this.field("negative");
  }

  fields() {
    const fields = { duration: Number(this.form.elements.duration.valueAsNumber.toFixed(3)) };
    const negative = this.form.elements.negative.value.trim();
    if (!negative) return fields;
    if (this.guidance && this.form.elements.guidance.valueAsNumber <= 1) {
      throw new Failure("Steering away needs guidance: move the slider up, or leave that field empty.");
    }
    return { ...fields, negative_prompt: negative };
  }

  details(seed) {
    return `${this.form.elements.duration.valueAsNumber.toFixed(1)} s · ${super.details(seed)}`;
  }
}
