// SPDX-License-Identifier: Apache-2.0
// Plays samples while more of them come. To wavesurfer it looks like a media element.
//
// Buffers are scheduled one behind another rather than handed to an AudioWorklet, which pages have
// only over https or from this very machine.

import { SampleBuffer } from "./pcm.js";

// Played so much later than it came; twice as much after each underrun, up to the second figure.
const LEAD_SECONDS = 0.1;
const MAX_LEAD_SECONDS = 1.6;
const contexts = new Map();
let playing = null;

function contextOf(sampleRate) {
  if (!contexts.has(sampleRate)) contexts.set(sampleRate, new AudioContext({ sampleRate }));
  return contexts.get(sampleRate);
}

export class Player extends EventTarget {
  #samples = new SampleBuffer();
  #context;
  #sources = new Set();
  #isComplete = false;
  #position = 0; // where playing began or paused, in seconds
  #lead = LEAD_SECONDS;
  #origin = null; // time of the context at which second 0 is or was due; null: nothing scheduled
  paused = true;
  /** Times at which samples came too late to be played in time. */
  underruns = 0;

  constructor(sampleRate) {
    super();
    this.sampleRate = sampleRate;
    this.#context = contextOf(sampleRate);
  }

  /** All samples, channel by channel. */
  get channels() {
    return this.#samples.channels;
  }

  /** Seconds of audio so far. */
  get seconds() {
    return this.#samples.length / this.sampleRate;
  }

  append(channels) {
    const start = this.seconds;
    this.#samples.append(channels);
    if (!this.paused) this.#schedule(channels, start);
  }

  /** No more samples come. */
  complete() {
    this.#isComplete = true;
    this.#emit("durationchange");
    this.#endIfDone();
  }

  async play() {
    if (!this.paused) return;
    if (playing !== this) playing?.pause();
    playing = this;
    this.paused = false;
    if (this.#isComplete && this.#position >= this.seconds - 0.01) this.#position = 0;
    this.#context.resume();
    const first = Math.round(this.#position * this.sampleRate);
    const rest = this.channels.map((samples) => samples.subarray(first));
    if (rest.length) this.#schedule(rest, this.#position);
    this.#emit("play");
    this.#tick();
  }

  pause() {
    if (this.paused) return;
    this.#position = this.currentTime;
    this.#silence();
    this.paused = true;
    this.#emit("timeupdate");
    this.#emit("pause");
  }

  get currentTime() {
    if (this.paused || this.#origin === null) return this.#position;
    const time = this.#context.currentTime - this.#origin;
    return Math.min(Math.max(time, this.#position), this.seconds);
  }

  set currentTime(seconds) {
    const wasPlaying = !this.paused;
    if (wasPlaying) this.pause();
    this.#position = Math.min(Math.max(seconds, 0), this.seconds);
    this.#emit("seeking");
    this.#emit("seeked");
    this.#emit("timeupdate");
    if (wasPlaying) this.play();
  }

  /** As of a media element: without end while it is being made. */
  get duration() {
    return this.#isComplete ? this.seconds : Infinity;
  }

  #schedule(channels, start) {
    if (!channels[0].length) return;
    const buffer = this.#context.createBuffer(channels.length, channels[0].length, this.sampleRate);
    channels.forEach((samples, index) => buffer.copyToChannel(samples, index));
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    const now = this.#context.currentTime;
    if (this.#origin === null) this.#origin = now + this.#lead - start;
    if (this.#origin + start < now) {
      this.underruns += 1;
      this.#lead = Math.min(2 * this.#lead, MAX_LEAD_SECONDS);
      this.#origin = now + this.#lead - start;
      this.#emit("underrun");
    }
    source.connect(this.#context.destination);
    source.start(this.#origin + start);
    source.onended = () => {
      this.#sources.delete(source);
      this.#endIfDone();
    };
    this.#sources.add(source);
  }

  #silence() {
    for (const source of this.#sources) {
      source.onended = null;
      source.stop();
    }
    this.#sources.clear();
    this.#origin = null;
  }

  #endIfDone() {
    if (this.paused || !this.#isComplete || this.#sources.size) return;
    this.#silence();
    this.paused = true;
    this.#position = this.seconds;
    this.#emit("timeupdate");
    this.#emit("ended");
  }

  #tick() {
    if (this.paused) return;
    this.#emit("timeupdate");
    requestAnimationFrame(() => this.#tick());
  }

  #emit(name) {
    this.dispatchEvent(new Event(name));
  }

  // What else wavesurfer reads of a media element.
  readyState = 4;
  seeking = false;
  volume = 1;
  muted = false;
  playbackRate = 1;
  src = "";
  currentSrc = "";
  get ended() {
    return this.#isComplete && this.#position >= this.seconds;
  }
  load() {}
  removeAttribute() {}
}
