// SPDX-License-Identifier: Apache-2.0
// Finds out what the served model does, and shows the panels for it.

import { capabilities, key, voices } from "./api.js";
import { Chat } from "./chat.js";
import { describe } from "./errors.js";
import { askForKey } from "./key_dialog.js";
import { Creator, Speaker } from "./maker.js";
import { makeTabs } from "./tabs.js";
import { Transcriber } from "./transcriber.js";

const byId = (id) => document.getElementById(id);

/** What the model does; asks for a key where the server does. */
async function learn() {
  try {
    return await capabilities();
  } catch (error) {
    if (error.status !== 401 || !(await askForKey())) throw error;
    return capabilities();
  }
}

function describeModel({ model, sample_rate: rate, channels }) {
  const kind = channels === 2 ? "stereo" : "mono";
  return rate ? `${model} · ${rate / 1000} kHz ${kind}` : model;
}

/** Chat is for models that hold conversations, or answer questions about a recording. */
function chats({ chat }) {
  return chat.conversations || chat.answers.some(({ inputs }) => inputs.length > 1);
}

async function start() {
  byId("notice").hidden = true;
  byId("connecting").hidden = false;
  try {
    const known = await learn();
    const names = known.speech ? await voices() : [];
    byId("model").textContent = describeModel(known);
    byId("key-button").hidden = !key.get();
    show(known, names);
  } catch (error) {
    byId("notice").hidden = false;
    byId("notice").querySelector("p").textContent = describe(error);
  } finally {
    byId("connecting").hidden = true;
  }
}

function show(known, names) {
  const panels = [];
  const add = (id, label, panel) => {
    panels.push({ id, label });
    panel.onFailure = (error) => error.status === 401 && askForKey();
  };
  if (known.speech) add("speak", "Speak", new Speaker(byId("speak"), known, names));
  if (known.generation) add("create", "Create", new Creator(byId("create"), known));
  if (known.transcription) add("transcribe", "Transcribe", new Transcriber(byId("transcribe"), known));
  if (chats(known)) add("chat", "Chat", new Chat(byId("chat"), known));
  makeTabs(byId("tabs"), panels);
}

byId("retry").addEventListener("click", start);
byId("key-button").addEventListener("click", askForKey);
start();
