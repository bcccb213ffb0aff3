// SPDX-License-Identifier: Apache-2.0
// Tabs by the pattern that screen readers know: arrow keys move between them.

/**
 * Make tabs for panels, and show the one that the address names, or the first.
 *
 * @param list the element with role tablist.
 * @param panels of {id, label}.
 */
export function makeTabs(list, panels) {
  const tabs = panels.map(({ id, label }) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `${id}-tab`;
    tab.textContent = label;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", id);
    tab.addEventListener("click", () => select(id));
    return tab;
  });

  function select(id) {
    panels.forEach((panel, index) => {
      const isShown = panel.id === id;
      document.getElementById(panel.id).hidden = !isShown;
      tabs[index].setAttribute("aria-selected", isShown);
      tabs[index].tabIndex = isShown ? 0 : -1;
    });
    history.replaceState(null, "", `#${id}`);
  }

  list.addEventListener("keydown", (event) => {
    const from = tabs.indexOf(document.activeElement);
    const moves = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: tabs.length - 1 };
    if (from < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const to = (moves[event.key] + tabs.length) % tabs.length;
    tabs[to].focus();
    select(panels[to].id);
  });

  list.replaceChildren(...tabs);
  list.hidden = panels.length < 2;
  const named = panels.find(({ id }) => `#${id}` === location.hash);
  if (panels.length) select((named ?? panels[0]).id);
}
