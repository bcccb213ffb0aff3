// SPDX-License-Identifier: Apache-2.0
// Small helpers for the elements that index.html has.

/** The first element below `root` with a data attribute, such as `part(card, "play")`. */
export function part(root, name) {
  return root.querySelector(`[data-${name}]`);
}

/** A copy of a template's one element. */
export function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** A new element with text. */
export function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Seconds as a person reads them: 0:04.2. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return `${Math.floor(tenths / 600)}:${rest}`;
}

/** Follow a range input with the text of its output. */
export function followRange(input, describe) {
  const output = input.labels[0].querySelector("output");
  const show = () => {
    output.textContent = describe(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
    const { min, max, valueAsNumber } = input;
    input.style.setProperty("--filled", `${((valueAsNumber - min) / (max - min || 1)) * 100}%`);
  };
  input.addEventListener("input", show);
  show();
}
