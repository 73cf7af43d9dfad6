"use strict";
(() => {
  const root = document.documentElement;
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  // --- light and dark
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("kagglekit-theme", value);
      return localStorage.getItem("kagglekit-theme");
    } catch {
      return null; // a browser that keeps nothing for files
    }
  };
  const dark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const toggle = document.querySelector("#theme");
  const named = () => {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", dark() ? "Switch to light colours" : "Switch to dark colours");
  };
  if (remembered()) root.dataset.theme = remembered();
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = remembered(dark() ? "light" : "dark") ?? (dark() ? "light" : "dark");
    named();
  });
  named();

  // --- tables that sort
  const key = (row, column) => {
    const cell = row.cells[column];
    const data = cell.querySelector("data");
    return data ? Number(data.value) : cell.textContent.trim();
  };
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === "number" ? -1
        : typeof b === "number" ? 1
          : a.localeCompare(b, undefined, { numeric: true });
  for (const button of document.querySelectorAll("th button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.cells) {
        if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      }
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((a, b) => (up ? 1 : -1) * order(key(a, head.cellIndex), key(b, head.cellIndex)));
      body.append(...rows);
    });
  }

  // --- the rows behind a cell of the matrix
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const picture = (card) => {
    if (!card.picture) return null;
    const { uri, frames, width, height } = card.picture;
    const what = `row ${card.id}, truth ${card.truth}, answered ${card.answer}`;
    const box = element("span", {
      class: `${frames > 1 ? "clip" : "still"}${Math.max(width, height) <= 48 ? " sharp" : ""}`,
      style: `--ratio:${width}/${height};--frames:${frames}`,
    }, element("img", { src: uri, alt: what }));
    if (frames > 1) box.tabIndex = 0;
    return box;
  };
  const facts = (card) => {
    if (!card.facts.length) return null;
    return element("dl", { class: "facts" }, ...card.facts.flatMap(([name, value]) => [
      element("dt", {}, name), element("dd", {}, value),
    ]));
  };
  const shown = (card) => element("li", { class: "card" },
    picture(card),
    element("div", { class: card.truth === card.answer ? "says right" : "says" },
      `${card.truth} → `, element("span", { class: "to" }, card.answer)),
    card.sure === null ? null : element("div", { class: "small dim" }, `${percent(card.sure)} sure`),
    facts(card),
    element("div", { class: "id" }, card.id));
  const stored = document.querySelector("#store");
  const panel = document.querySelector("#behind");
  if (stored && panel) {
    const { cards, cells } = JSON.parse(stored.textContent);
    const buttons = [...document.querySelectorAll("button[data-cell]")];
    const show = (button) => {
      const rows = cells[button.dataset.cell] ?? [];
      const total = Number(button.dataset.count);
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(other.dataset.cell === button.dataset.cell));
      }
      const few = rows.length < total ? `${rows.length} of ${total.toLocaleString("en")} rows, the hardest first` : "";
      panel.replaceChildren(
        element("h3", {}, button.getAttribute("aria-label")),
        ...(few ? [element("p", { class: "small dim" }, few)] : []),
        element("ul", { class: "cards" }, ...rows.map((row) => shown(cards[row]))));
    };
    for (const button of buttons) button.addEventListener("click", () => show(button));
    if (buttons.length) show(document.querySelector(".pairs button[data-cell]") ?? buttons[0]);
  }

  // --- copying the command
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
      }
    });
  }
})();
