"use strict";

// A click on a heading sorts its table: numbers falling first, text rising first.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const isNumber = heading.classList.contains("number");
      const before = heading.getAttribute("aria-sort");
      const first = isNumber ? "descending" : "ascending";
      const other = isNumber ? "ascending" : "descending";
      const order = before === first ? other : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const valueOf = (row) => {
        const cell = row.cells[column];
        return isNumber ? parseFloat(cell.dataset.value) : cell.textContent;
      };
      const compare = (a, b) => {
        const [x, y] = [valueOf(a), valueOf(b)];
        if (!isNumber) return sign * x.localeCompare(y);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      };
      const body = table.tBodies[0];
      [...body.rows].sort(compare).forEach((row) => body.append(row));
    });
  });
}

// A select box shows the elements of one group: all of them if its value is empty.
for (const select of document.querySelectorAll("select[data-filter]")) {
  const group = document.getElementById(select.dataset.filter);
  const apply = () => {
    for (const each of group.children) {
      const keys = each.dataset.keys.split(" ");
      each.hidden = select.value !== "" && !keys.includes(select.value);
    }
  };
  select.addEventListener("change", apply);
  apply();
}
