// SPDX-License-Identifier: Apache-2.0
// What went wrong, as a sentence for the person at the page.

/** A failure whose message is a sentence. */
export class Failure extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

const LABELS = {
  input: "The text",
  prompt: "The description",
  negative_prompt: "What to steer away from",
  voice: "The voice",
  ref_audio: "The recording",
  ref_text: "What is said in the recording",
  file: "The file",
  duration: "The duration",
  guidance_scale: "The guidance",
  seed: "The seed",
};

const BY_STATUS = {
  401: "The server asks for a key, and this one is not right.",
  404: "The server does not know this. It may have been restarted with another model: reload the page.",
  413: "This is larger than the server accepts.",
  501: "The model that is served cannot do this.",
  503: "The server is busy or about to stop. Try again in a moment.",
};

const BY_FIELD = {
  input_tokens: "The text is longer than the model can take at once. Shorten it and try again.",
};

/** The failure that an answer with an error status reports. */
export async function failureOf(response) {
  const { status } = response;
  const error = await response.json().then((body) => body.error, () => null);
  if (status in BY_STATUS) return new Failure(BY_STATUS[status], status);
  if (status >= 500) return new Failure("The server failed while making this. Its log says why.", status);
  return new Failure(sentenceOf(error?.message, error?.param), status);
}

/** A message of the server's as a sentence, with the field as the page calls it. */
export function sentenceOf(message, param) {
  if (!message) return "The server refused this and did not say why.";
  if (param in BY_FIELD) return BY_FIELD[param];
  const label = LABELS[param];
  let text = message.trim();
  if (label && text.startsWith(param)) text = label + text.slice(param.length);
  else text = text[0].toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

/** Whether someone stopped what failed. */
export function wasStopped(error) {
  return error?.name === "AbortError";
}

/** A sentence for any error. */
export function describe(error) {
  if (error instanceof Failure) return error.message;
  console.error(error);
  return "Something went wrong in this page. Reload it and try again.";
}
