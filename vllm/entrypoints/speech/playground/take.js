// SPDX-License-Identifier: Apache-2.0
// A card with one piece of audio: heard and seen while it is made, and afterwards.

import { clock, fromTemplate, part } from "./dom.js";
import { describe, wasStopped } from "./errors.js";
import { wavFile } from "./pcm.js";
import { Player } from "./player.js";
import { Waveform } from "./waveform.js";

const REDRAW_MILLISECONDS = 150;
const SEEK_SECONDS = 0.5;

export class Take {
  #card = fromTemplate("take-template");
  #player = null;
  #waveform = null;
  #state = "";
  #drawn = 0;

  /**
   * @param title, details: what the card says of itself.
   * @param name of the file that it is downloaded as.
   * @param isQuiet whether it waits to be played.
   */
  constructor({ title, details = "", name = "unison.wav", isQuiet = false, kind = "" }) {
    this.name = name;
    this.isQuiet = isQuiet;
    part(this.#card, "title").textContent = title;
    part(this.#card, "details").textContent = details;
    this.#card.setAttribute("aria-label", title);
    if (kind) this.#card.classList.add(kind);
    part(this.#card, "play").addEventListener("click", () => this.#toggle());
    part(this.#card, "wave").addEventListener("keydown", (event) => this.#seek(event));
    this.#show("waiting", "Waiting for the first audio…");
  }

  get element() {
    return this.#card;
  }

  /**
   * Take in audio while it is made.
   *
   * @param pieces see `audio` of api.js.
   * @returns whether all of it came.
   */
  async receive(pieces) {
    const began = performance.now();
    let last = began;
    try {
      for await (const { sampleRate, channels } of pieces) {
        last = performance.now();
        if (!this.#player) {
          this.#prepare(sampleRate);
          part(this.#card, "first").textContent = seconds((last - began) / 1000);
          if (!this.isQuiet) this.#player.play();
        }
        this.#player.append(channels);
        this.#grow(last);
      }
      this.#complete();
      if (this.#player) this.#measure((last - began) / 1000);
      else this.#show("failed", "The model made no audio. Try another text or seed.");
      return true;
    } catch (error) {
      this.#complete();
      if (wasStopped(error)) this.#show("stopped", this.#player ? "Stopped" : "Stopped before any audio");
      else this.#show("failed", describe(error));
      if (!wasStopped(error)) throw error;
      return false;
    }
  }

  /** Show audio that is there already: an AudioBuffer. */
  show(buffer) {
    this.#prepare(buffer.sampleRate);
    const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i));
    this.#player.append(channels);
    part(this.#card, "metrics").hidden = true;
    this.#complete();
  }

  remove() {
    this.#player?.pause();
    this.#waveform?.destroy();
    this.#card.remove();
    URL.revokeObjectURL(part(this.#card, "download").href);
  }

  #prepare(sampleRate) {
    const player = new Player(sampleRate);
    this.#player = player;
    this.#waveform = new Waveform(part(this.#card, "wave"), part(this.#card, "spectrogram"), player);
    player.addEventListener("timeupdate", () => this.#follow());
    for (const name of ["play", "pause", "ended"]) {
      player.addEventListener(name, () => this.#follow());
      player.addEventListener(name, () => this.#showPlaying());
    }
    player.addEventListener("underrun", () => this.#showUnderruns());
    part(this.#card, "play").disabled = false;
    if (!this.isQuiet) part(this.#card, "underruns").textContent = "0";
  }

  #grow(now) {
    if (this.#state !== "making") this.#show("making", "Making…");
    if (now - this.#drawn > REDRAW_MILLISECONDS) {
      this.#drawn = now;
      this.#waveform.grow();
    }
    this.#follow();
  }

  #complete() {
    if (!this.#player) return;
    this.#player.complete();
    this.#waveform.finish();
    this.#show("done", "Done");
    this.#follow();
    this.#showPlaying();
    const download = part(this.#card, "download");
    download.href = URL.createObjectURL(wavFile(this.#player.channels, this.#player.sampleRate));
    download.download = this.name;
    download.hidden = false;
  }

  #measure(elapsed) {
    const factor = elapsed / this.#player.seconds;
    part(this.#card, "factor").textContent = factor.toFixed(2);
    part(this.#card, "factor").title =
      factor < 1 ? "Made faster than it plays" : "Made more slowly than it plays";
  }

  #toggle() {
    if (this.#player.paused) this.#player.play();
    else this.#player.pause();
  }

  #seek(event) {
    const steps = { ArrowLeft: -SEEK_SECONDS, ArrowDown: -SEEK_SECONDS, ArrowRight: SEEK_SECONDS, ArrowUp: SEEK_SECONDS };
    const ends = { Home: 0, End: Infinity };
    if (!this.#player) return;
    if (event.key in steps) this.#player.currentTime += steps[event.key];
    else if (event.key in ends) this.#player.currentTime = ends[event.key];
    else if (event.key === " ") this.#toggle();
    else return;
    event.preventDefault();
  }

  #follow() {
    const { currentTime, seconds: total } = this.#player;
    const wave = part(this.#card, "wave");
    wave.setAttribute("aria-valuemax", total.toFixed(1));
    wave.setAttribute("aria-valuenow", currentTime.toFixed(1));
    wave.setAttribute("aria-valuetext", `${currentTime.toFixed(1)} of ${total.toFixed(1)} seconds`);
    part(this.#card, "time").textContent = `${clock(currentTime)} / ${clock(total)}`;
  }

  #showPlaying() {
    const isPlaying = !this.#player.paused;
    const button = part(this.#card, "play");
    button.setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    button.classList.toggle("playing", isPlaying);
    this.#card.classList.toggle("is-playing", isPlaying);
    if (this.#state === "done") part(this.#card, "state").textContent = isPlaying ? "Playing" : "Done";
  }

  #showUnderruns() {
    if (this.#state === "making") part(this.#card, "underruns").textContent = this.#player.underruns;
  }

  #show(state, text) {
    this.#state = state;
    this.#card.dataset.is = state;
    part(this.#card, "state").textContent = text;
  }
}

function seconds(value) {
  return `${value.toFixed(2)} s`;
}
