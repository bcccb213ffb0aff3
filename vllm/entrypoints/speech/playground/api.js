// SPDX-License-Identifier: Apache-2.0
// The server's routes. Addresses are relative to the page, so that a proxy may serve it anywhere.

import { Failure, failureOf, sentenceOf } from "./errors.js";
import { PcmReader } from "./pcm.js";

const KEY = "unison-key";
const UNREACHABLE = "The server cannot be reached. See whether it is running, then try again.";
const BROKEN_OFF = "The answer broke off: the server ended it early. Try again.";

/** The key that requests are sent with. It lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function send(path, { json, form, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (json) headers["content-type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  const options = { method: body ? "POST" : "GET", headers, body, signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(UNREACHABLE);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** What the model does: see the server's page on capabilities. */
export async function capabilities() {
  return (await send("v1/audio/capabilities")).json();
}

/** The voices that requests may name: {id, name, default}. */
export async function voices() {
  return (await (await send("v1/audio/voices")).json()).data;
}

async function* bytesOf(response, signal) {
  const reader = response.body.getReader();
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Failure(BROKEN_OFF);
    }
    if (piece.done) return;
    yield piece.value;
  }
}

/**
 * Audio as it is made.
 *
 * @param path of the route.
 * @param fields of the request; with a file among them it is sent as a form.
 * @yields {{sampleRate: number, channels: Float32Array[]}} new samples, channel by channel.
 */
export async function* audio(path, fields, signal) {
  const request = { ...fields, response_format: "pcm" };
  const hasFile = Object.values(fields).some((value) => value instanceof Blob);
  const response = await send(path, hasFile ? { form: formOf(request), signal } : { json: request, signal });
  const type = response.headers.get("content-type");
  const reader = new PcmReader(parameter(type, "rate"), parameter(type, "channels"));
  for await (const bytes of bytesOf(response, signal)) {
    const channels = reader.read(bytes);
    if (channels[0].length) yield { sampleRate: reader.sampleRate, channels };
  }
}

function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, value.name ?? "recording");
    else form.append(name, String(value));
  }
  return form;
}

function parameter(contentType, name) {
  return Number(new RegExp(`${name}=(\\d+)`).exec(contentType)[1]);
}

/** Events of a streamed answer, until its last one. */
async function* events(response, signal) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of bytesOf(response, signal)) {
    text += decoder.decode(bytes, { stream: true });
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(sentenceOf(event.error.message, event.error.param));
      yield event;
    }
  }
}

/** The text of a recording, piece by piece. */
export async function* transcription(file, signal) {
  const form = formOf({ file, stream: true });
  for await (const event of events(await send("v1/audio/transcriptions", { form, signal }), signal)) {
    if (event.type === "transcript.text.delta") yield event.delta;
  }
}

/**
 * The answer to the last of some messages.
 *
 * @yields {{text?: string, audio?: Float32Array[], sampleRate?: number}} pieces of it.
 */
export async function* chat(messages, wantsAudio, format, signal) {
  const json = { messages, stream: true };
  if (wantsAudio) Object.assign(json, { modalities: ["text", "audio"], audio: { format: "pcm16" } });
  const reader = new PcmReader(format.sampleRate, format.channels);
  for await (const event of events(await send("v1/chat/completions", { json, signal }), signal)) {
    const delta = event.choices?.[0]?.delta ?? {};
    const text = delta.content || delta.audio?.transcript;
    if (text) yield { text };
    if (delta.audio?.data) {
      const bytes = Uint8Array.from(atob(delta.audio.data), (char) => char.charCodeAt(0));
      yield { audio: reader.read(bytes), sampleRate: reader.sampleRate };
    }
  }
}
