"use strict";
// Tables sort by any column and filter by words; without this script all rows are simply there.

const collator = new Intl.Collator("en", { numeric: true });

function compare(first, second) {
  // Empty cells come last, whichever way the order goes.
  const a = Number(first), b = Number(second);
  return Number.isNaN(a) || Number.isNaN(b) ? collator.compare(first, second) : a - b;
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  const sign = order === "ascending" ? 1 : -1;
  rows.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function filter(table, text, count) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase());
    row.hidden = !words.every((word) => cells.some((cell) => cell.includes(word)));
    shown += !row.hidden;
  }
  const total = table.tBodies[0].rows.length;
  count.textContent = words.length ? `${shown} of ${total} rows` : `${total} rows`;
}

for (const table of document.querySelectorAll("table.data")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (heading) sort(table, heading);
  });
}
for (const input of document.querySelectorAll("[data-filter]")) {
  const table = document.getElementById(input.dataset.filter);
  const count = document.querySelector(`[data-count="${input.dataset.filter}"]`);
  input.addEventListener("input", () => filter(table, input.value, count));
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // A page from a file may not write to the clipboard: the text is marked instead.
      getSelection().selectAllChildren(code);
    }
  });
}
// Captions are part of a printed page.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.caption, details.about, #provenance details")) details.open = true;
});
