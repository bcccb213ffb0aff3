// SPDX-License-Identifier: Apache-2.0
// 16-bit samples as the server sends them, as Web Audio wants them, and as a file to keep.

/** Reads 16-bit little-endian samples whose bytes may come in pieces of any size. */
export class PcmReader {
  #rest = new Uint8Array(0);

  constructor(sampleRate, numChannels) {
    this.sampleRate = sampleRate;
    this.numChannels = numChannels;
  }

  /** New samples within ±1, channel by channel. */
  read(bytes) {
    const all = new Uint8Array(this.#rest.length + bytes.length);
    all.set(this.#rest);
    all.set(bytes, this.#rest.length);
    const frameBytes = 2 * this.numChannels;
    const numFrames = Math.floor(all.length / frameBytes);
    this.#rest = all.slice(numFrames * frameBytes);
    const view = new DataView(all.buffer);
    return Array.from({ length: this.numChannels }, (_, channel) =>
      Float32Array.from(
        { length: numFrames },
        (_, frame) => view.getInt16(frame * frameBytes + 2 * channel, true) / 32768,
      ),
    );
  }
}

/** Samples that grow at their end, channel by channel. */
export class SampleBuffer {
  #channels = [];
  length = 0;

  /** Views of all samples; they hold until the next append. */
  get channels() {
    return this.#channels.map((samples) => samples.subarray(0, this.length));
  }

  append(pieces) {
    const length = this.length + pieces[0].length;
    pieces.forEach((piece, index) => {
      let samples = this.#channels[index] ?? new Float32Array(1 << 16);
      if (length > samples.length) {
        const larger = new Float32Array(Math.max(length, 2 * samples.length));
        larger.set(samples);
        samples = larger;
      }
      samples.set(piece, this.length);
      this.#channels[index] = samples;
    });
    this.length = length;
  }
}

/** A WAV file of 16 bits. */
export function wavFile(channels, sampleRate) {
  const frameBytes = 2 * channels.length;
  const numBytes = frameBytes * channels[0].length;
  const view = new DataView(new ArrayBuffer(44 + numBytes));
  const text = (at, word) => [...word].forEach((char, i) => view.setUint8(at + i, char.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + numBytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels.length, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * frameBytes, true);
  view.setUint16(32, frameBytes, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, numBytes, true);
  channels.forEach((samples, channel) =>
    samples.forEach((sample, frame) => {
      const value = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      view.setInt16(44 + frame * frameBytes + 2 * channel, value, true);
    }),
  );
  return new Blob([view], { type: "audio/wav" });
}
