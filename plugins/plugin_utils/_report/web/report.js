/*
 * SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Sorts, searches and filters the tables. They are whole without it: whoever runs no scripts, or
 * prints, has all rows. That is why this is no library: those that PyPI and Debian have build their
 * tables themselves, page by page, and bring jQuery with them (DataTables), or have not been kept
 * up (tablesorter).
 *
 * Sorting is done as the ARIA Authoring Practices want it: a button in each header, the state in
 * aria-sort. Nothing is ever made of text but text.
 */
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const tables = Array.from(document.querySelectorAll("table"), (table) => new SortedTable(table));

function SortedTable(table) {
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows, (element) => ({
    element,
    text: element.textContent.toLowerCase(),
    excluded: false,
  }));
  const count = document.querySelector(`.count[data-for="${table.id}"]`);

  this.id = table.id;
  this.length = rows.length;

  /** Shows the rows that have all of these words; returns how many there are. */
  this.search = (words) => {
    let visible = 0;
    for (const row of rows) {
      const hit = !row.excluded && words.every((word) => row.text.includes(word));
      row.element.hidden = !hit;
      visible += hit ? 1 : 0;
    }
    if (count) {
      const all = `${rows.length.toLocaleString("en")} row${rows.length === 1 ? "" : "s"}`;
      count.textContent =
        visible === rows.length ? all : `${visible.toLocaleString("en")} of ${all}`;
    }
    return visible;
  };

  /** Leaves out the rows whose cell in this column is none of these words. */
  this.choose = (key, words) => {
    const index = headers.findIndex((header) => header.dataset.key === key);
    for (const row of rows) {
      row.excluded = !words.includes(row.element.cells[index].textContent);
    }
  };

  function sort(header) {
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    // The largest first: who sorts by size looks for the large ones.
    const ascending = before === null ? !numeric : before === "descending";
    for (const other of headers) {
      other.removeAttribute("aria-sort");
    }
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const index = headers.indexOf(header);
    const keys = new Map(rows.map((row) => [row, keyOf(row.element.cells[index])]));
    rows.sort((one, two) => compare(keys.get(one), keys.get(two), ascending ? 1 : -1));
    body.append(...rows.map((row) => row.element));
  }

  for (const header of headers) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header));
    header.append(button);
  }
}

/** A number, a text, or null for what is not known. */
function keyOf(cell) {
  const order = cell.dataset.order;
  if (order === undefined) {
    return cell.textContent;
  }
  return order === "" ? null : Number(order);
}

/** What is not known comes last in both directions. */
function compare(one, two, direction) {
  if (one === null || two === null) {
    return (one === null) - (two === null);
  }
  const difference = typeof one === "number" ? one - two : collator.compare(one, two);
  return direction * difference;
}

const input = document.getElementById("search");
const searched = document.getElementById("searched");

function show() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  let all = 0;
  for (const table of tables) {
    visible += table.search(words);
    all += table.length;
  }
  searched.textContent =
    words.length === 0
      ? ""
      : `${visible.toLocaleString("en")} of ${all.toLocaleString("en")} rows found`;
}

for (const group of document.querySelectorAll(".choices")) {
  const boxes = Array.from(group.querySelectorAll("input"));
  const table = tables.find((candidate) => candidate.id === group.dataset.for);
  const apply = () => {
    const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
    table.choose(group.dataset.column, chosen);
    show();
  };
  group.addEventListener("change", apply);
  group.hidden = false;
  // A browser that comes back to a page remembers its boxes.
  apply();
}

let waiting = 0;
input.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(show, 100);
});
document.querySelector(".search").hidden = false;
show();
