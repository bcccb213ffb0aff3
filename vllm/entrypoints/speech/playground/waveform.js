// SPDX-License-Identifier: Apache-2.0
// The waveform and spectrogram of a player's samples, drawn by wavesurfer in the page's colours.

import Spectrogram from "./vendor/wavesurfer/spectrogram.esm.js";
import WaveSurfer from "./vendor/wavesurfer/wavesurfer.esm.js";

const WAVE_HEIGHT = 72;
const SPECTROGRAM_HEIGHT = 128;
const QUIETEST = 0.35; // a peak that is drawn at full height; louder ones are, too
const SHOWN_SECONDS = 4; // while audio is made, at first; then twice as much, and so on

const nonce = document.querySelector("link[nonce]").nonce;
const darkness = matchMedia("(prefers-color-scheme: dark)");

function color(name, element) {
  return getComputedStyle(element).getPropertyValue(name).trim();
}

/** 256 colours from the page's paper over its accent to its ink. */
function colorMap(element) {
  const stops = ["--map-0", "--map-1", "--map-2", "--map-3"].map((name) => {
    const hex = color(name, element);
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
  });
  return Array.from({ length: 256 }, (_, index) => {
    const place = (index / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (place - low));
    return [...mixed, 1];
  });
}

export class Waveform {
  #wave;
  #container;
  #spectrogram;
  #player;
  #plugin = null;

  /**
   * @param container, spectrogram: elements to draw in.
   * @param player of the samples; a click moves it.
   */
  constructor(container, spectrogram, player) {
    this.#container = container;
    this.#spectrogram = spectrogram;
    this.#player = player;
    this.#wave = WaveSurfer.create({
      container,
      media: player,
      height: WAVE_HEIGHT,
      barWidth: 2,
      barGap: 1.5,
      barRadius: 2,
      cursorWidth: 1,
      normalize: true,
      cspNonce: nonce,
      hideScrollbar: true,
      ...this.#colors(),
    });
    darkness.addEventListener("change", this.#repaint);
  }

  /** Draw what is there while more of it is being made. */
  async grow() {
    const { sampleRate, channels, seconds } = this.#player;
    let shown = SHOWN_SECONDS;
    while (shown < seconds) shown *= 2;
    // The same for all channels: the rest of the time is silent so far.
    const padded = new Float32Array(Math.round(shown * sampleRate));
    padded.set(channels[0]);
    await this.#load([padded], shown);
  }

  /** Draw all of it, with its spectrogram. */
  async finish() {
    if (!this.#player.seconds) return;
    await this.#load(this.#player.channels, this.#player.seconds);
    this.#addSpectrogram();
  }

  destroy() {
    darkness.removeEventListener("change", this.#repaint);
    this.#wave.destroy();
  }

  async #load(channels, seconds) {
    try {
      const peak = channels[0].reduce((most, sample) => Math.max(most, Math.abs(sample)), QUIETEST);
      this.#wave.options.maxPeak = peak;
      await this.#wave.load("", channels, seconds);
    } catch (error) {
      // A newer call has taken the place of this one.
      if (error.name !== "AbortError") throw error;
    }
  }

  #addSpectrogram() {
    const range = `0 to ${this.#player.sampleRate / 2000} kHz`;
    this.#spectrogram.dataset.range = range;
    this.#spectrogram.setAttribute("aria-label", `Spectrogram, ${range}`);
    if (this.#plugin) this.#wave.unregisterPlugin(this.#plugin);
    this.#plugin = this.#wave.registerPlugin(
      Spectrogram.create({
        container: this.#spectrogram,
        height: SPECTROGRAM_HEIGHT,
        fftSamples: this.#player.sampleRate > 24000 ? 1024 : 512,
        scale: "mel",
        frequencyMax: this.#player.sampleRate / 2,
        autoGain: true,
        rangeDB: 65,
        splitChannels: false,
        colorMap: colorMap(this.#container),
      }),
    );
    this.#plugin.on("click", (place) => {
      this.#player.currentTime = place * this.#player.seconds;
    });
  }

  #colors() {
    return {
      waveColor: color("--wave", this.#container),
      progressColor: color("--wave-played", this.#container),
      cursorColor: color("--ink", this.#container),
    };
  }

  #repaint = () => {
    this.#wave.setOptions(this.#colors());
    if (this.#plugin) this.#addSpectrogram();
  };
}
