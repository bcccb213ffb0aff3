// SPDX-License-Identifier: Apache-2.0
// A recording from the microphone, or a file.

import { clock, fromTemplate, part } from "./dom.js";

const MAX_SECONDS = 120;

// What a call wants, models do not: their own ears were trained on voices as they are.
const AS_IT_IS = { echoCancellation: false, noiseSuppression: false };

const MICROPHONE = {
  NotAllowedError: "The browser does not let this page use the microphone. Allow it in the address bar, or choose a file.",
  NotFoundError: "There is no microphone. Connect one, or choose a file.",
  NotReadableError: "Another program uses the microphone. Close it, or choose a file.",
};
const INSECURE = "Browsers give the microphone only to pages over https or from this machine. Choose a file instead.";

/** Emits "change" when there is a file, or none any more. */
export class AudioInput extends EventTarget {
  #root = fromTemplate("audio-input-template");
  #recorder = null;
  #meter = null;
  file = null;

  constructor(place) {
    super();
    place.replaceChildren(this.#root);
    part(this.#root, "record").addEventListener("click", () => this.#toggle());
    part(this.#root, "file").addEventListener("change", (event) => {
      if (event.target.files.length) this.#take(event.target.files[0], event.target.files[0].name);
    });
    part(this.#root, "remove").addEventListener("click", () => this.clear());
    const target = place.closest(".reference, .composer");
    target.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.#root.classList.add("dropping");
    });
    target.addEventListener("dragleave", () => this.#root.classList.remove("dropping"));
    target.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#root.classList.remove("dropping");
      const [file] = event.dataTransfer.files;
      if (file) this.#take(file, file.name);
    });
  }

  /** Have no file. */
  clear() {
    this.file = null;
    part(this.#root, "file").value = "";
    part(this.#root, "remove").hidden = true;
    this.#say("");
    this.dispatchEvent(new Event("change"));
  }

  async #toggle() {
    if (this.#recorder) return this.#recorder.stop();
    this.#say("");
    if (!navigator.mediaDevices) return this.#say(INSECURE, true);
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
    } catch (error) {
      return this.#say(MICROPHONE[error.name] ?? "The microphone cannot be used. Choose a file instead.", true);
    }
    const pieces = [];
    const recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
    recorder.addEventListener("stop", () => {
      stream.getTracks().forEach((track) => track.stop());
      this.#recorder = null;
      this.#stopMeter();
      const file = new File(pieces, "recording", { type: recorder.mimeType });
      if (file.size) this.#take(file, "Your recording");
      else this.#say("Nothing was recorded. Try again.", true);
    });
    this.#recorder = recorder;
    recorder.start();
    this.#startMeter(stream);
  }

  #startMeter(stream) {
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const began = performance.now();
    const button = part(this.#root, "record");
    button.classList.add("recording");
    part(this.#root, "record-label").textContent = "Stop recording";
    const frame = () => {
      if (!this.#recorder) return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      button.style.setProperty("--level", Math.min(1, 5 * Math.sqrt(power)).toFixed(2));
      const seconds = (performance.now() - began) / 1000;
      part(this.#root, "chosen").textContent = clock(seconds);
      if (seconds > MAX_SECONDS) this.#recorder.stop();
      else requestAnimationFrame(frame);
    };
    frame();
    this.#meter = () => {
      context.close();
      button.classList.remove("recording");
      part(this.#root, "record-label").textContent = "Record";
    };
  }

  #stopMeter() {
    this.#meter?.();
    this.#meter = null;
  }

  #take(file, name) {
    this.file = file;
    this.#say(name);
    part(this.#root, "remove").hidden = false;
    this.dispatchEvent(new Event("change"));
  }

  #say(text, isError = false) {
    const chosen = part(this.#root, "chosen");
    chosen.textContent = text;
    chosen.classList.toggle("error", isError);
  }
}
