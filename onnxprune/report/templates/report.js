"use strict";
(() => {
  const key = (cell) => {
    const value = cell.dataset.v ?? cell.textContent.trim();
    return value !== "" && !isNaN(value) ? Number(value) : value;
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1);

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], limit = Number(table.dataset.limit || 0), all = body.rows.length;
    let open = !limit || all <= limit + 3;
    const show = () => [...body.rows].forEach((row, k) => { row.hidden = !open && k >= limit; });
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row, k) => ({ row, k, v: key(row.cells[column]) }));
        rows.sort((a, b) => (down ? -1 : 1) * compare(a.v, b.v) || a.k - b.k);
        body.append(...rows.map((r) => r.row));
        show();
      });
    });
    if (!open) {
      const more = document.createElement("button");
      more.type = "button";
      more.className = "more";
      more.textContent = `Show all ${all} rows`;
      more.addEventListener("click", () => { open = true; more.remove(); show(); });
      table.after(more);
      addEventListener("beforeprint", () => { open = true; more.remove(); show(); });
      show();
    }
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  const graph = document.getElementById("graph");
  if (!graph) return;
  document.querySelector(".zoom").hidden = false;
  const whole = { ...["x", "y", "width", "height"].reduce((o, n) => ({ ...o, [n]: graph.viewBox.baseVal[n] }), {}) };
  let box = { ...whole };
  graph.style.aspectRatio = `${whole.width} / ${whole.height}`;
  const set = () => graph.setAttribute("viewBox", `${box.x} ${box.y} ${box.width} ${box.height}`);
  const point = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(graph.getScreenCTM().inverse());
    return { x: at.x, y: at.y };
  };
  const zoom = (factor, at = { x: box.x + box.width / 2, y: box.y + box.height / 2 }) => {
    const width = Math.min(whole.width * 1.5, Math.max(whole.width / 16, box.width * factor)), f = width / box.width;
    box = { x: at.x - (at.x - box.x) * f, y: at.y - (at.y - box.y) * f, width, height: box.height * f };
    set();
  };
  const act = { in: () => zoom(0.7), out: () => zoom(1 / 0.7), all: () => { box = { ...whole }; set(); } };
  document.querySelectorAll("[data-zoom]").forEach((b) => b.addEventListener("click", act[b.dataset.zoom]));
  graph.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, point(event));
  }, { passive: false });
  graph.addEventListener("keydown", (event) => {
    const step = box.width / 8;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === "+" || event.key === "=") act.in();
    else if (event.key === "-") act.out();
    else if (event.key === "0") act.all();
    else if (moves[event.key]) { box.x += moves[event.key][0]; box.y += moves[event.key][1]; set(); }
    else return;
    event.preventDefault();
  });
  let from = null;
  graph.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button) return;
    from = point(event);
    graph.setPointerCapture(event.pointerId);
    graph.classList.add("moving");
  });
  graph.addEventListener("pointermove", (event) => {
    if (!from) return;
    const at = point(event);
    box.x += from.x - at.x;
    box.y += from.y - at.y;
    set();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    graph.addEventListener(name, () => { from = null; graph.classList.remove("moving"); });
  }
})();
