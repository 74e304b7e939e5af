"use strict";
/* Sorting and filtering of the table of layers, and links that open what they lead to. */
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", numeric = head.dataset.numeric === "1";
    const key = row => {
      const text = row.cells[at].textContent.trim();
      return !numeric ? text : text === "" ? null : text === "equal" ? Infinity : Number(text);
    };
    const compare = (a, b) => numeric ? (a > b) - (a < b) : a.localeCompare(b, undefined, {numeric: true});
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : up ? compare(a, b) : compare(b, a));
    body.append(...rows.map(([, row]) => row));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
});

const filter = document.getElementById("filter"), kind = document.getElementById("kind");
function sift() {
  const words = filter.value.toLowerCase().split(/\s+/), rows = [...document.getElementById("table").tBodies[0].rows];
  rows.forEach(row => {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word)) || (kind && kind.value && row.dataset.kind !== kind.value);
  });
  document.getElementById("count").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
}
if (filter) {
  [filter, kind].filter(Boolean).forEach(field => field.addEventListener("input", sift));
  sift();
}

function follow() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", follow);
document.addEventListener("click", event => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.getAttribute("href") === location.hash) follow();
});
follow();

const setAll = open => document.querySelectorAll("details.layer").forEach(one => { one.open = open; });
for (const [id, open] of [["open-all", true], ["close-all", false]]) {
  const button = document.getElementById(id);
  if (button) button.addEventListener("click", () => setAll(open));
}
