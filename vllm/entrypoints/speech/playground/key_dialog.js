// SPDX-License-Identifier: Apache-2.0
// Asks for the key of a server that has one.

import { capabilities, key } from "./api.js";
import { describe } from "./errors.js";

const dialog = document.getElementById("key-dialog");
const input = document.getElementById("key-input");
const error = document.getElementById("key-error");

/** Ask until the server takes the key, or the person leaves the dialog; returns whether it does. */
export function askForKey() {
  error.textContent = "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let isRight = false;
    const form = dialog.querySelector("form");
    const submit = async (event) => {
      event.preventDefault();
      error.textContent = "";
      const previous = key.get();
      key.set(input.value.trim());
      try {
        await capabilities();
        isRight = true;
        dialog.close();
      } catch (failure) {
        key.set(previous);
        error.textContent = failure.status === 401 ? "The server does not take this key." : describe(failure);
        input.select();
      }
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", submit);
        input.value = "";
        resolve(isRight);
      },
      { once: true },
    );
  });
}
