// The share of selected rows that was kept, over steps: a line a run.

import { count, el, percent, short, svg, ticks, watchWidth } from "./dom.js";
import { card, sum, tableBehind } from "./histogram.js";

const PAD = { left: 46, right: 14, top: 8, bottom: 20 };

const DASHES = [null, "6 3", "2 2.5", "8 3 2 3"]; // so that lines which coincide are all seen

export class Shares {
  constructor({ looks }) {
    Object.assign(this, { looks, width: 0, data: null });
    const { node, body, says } = card("kept_rate", "Kept over time", "share of the selected rows of those steps");
    this.node = node;
    this.says = says;
    this.svg = svg("svg", { class: "plot still", role: "img", "aria-labelledby": "kept_rate-title kept_rate-says" });
    this.legend = el("p", { class: "legend" });
    this.table = tableBehind("kept over time", () => this.rows());
    body.append(this.svg, this.legend, this.table.node);
    watchWidth(body, (width) => { this.width = width; this.draw(); });
  }

  /** `runs`: [{name, colour, counts: {reason: by bin of steps, the first without a step}}] */
  update(axis, runs) {
    this.data = { axis, runs: runs.map((run) => ({ ...run, points: points(axis, run.counts) })) };
    this.draw();
    this.table.draw();
  }

  draw() {
    if (!this.data || !this.width) return;
    const { axis, runs } = this.data;
    const height = 150;
    const end = axis.low + axis.width * axis.bins;
    const every = runs.flatMap((run) => run.points.map((point) => point.share));
    const top = Math.min(Math.max(...every, 0) * 1.1, 1) || 1;
    const x = (step) => PAD.left + ((step - axis.low) / (end - axis.low)) * (this.width - PAD.left - PAD.right);
    const y = (share) => height - PAD.bottom - (share / top) * (height - PAD.top - PAD.bottom);
    const text = (words, attributes) => { const node = svg("text", attributes); node.textContent = words; return node; };
    const foot = height - PAD.bottom;
    const parts = [svg("line", { class: "axis", x1: PAD.left, x2: this.width - PAD.right, y1: foot, y2: foot })];
    for (const tick of ticks(0, top, 4)) {
      parts.push(svg("line", { class: "grid", x1: PAD.left, x2: this.width - PAD.right, y1: y(tick), y2: y(tick) }),
        text(`${+(100 * tick).toPrecision(3)} %`, { class: "label", x: PAD.left - 5, y: y(tick) + 4, "text-anchor": "end" }));
    }
    for (const tick of ticks(axis.low, end, Math.max(Math.floor(this.width / 70), 2))) {
      if (tick % 1 === 0) parts.push(text(short(tick), { class: "label", x: x(tick), y: foot + 15, "text-anchor": "middle" }));
    }
    for (const [number, run] of runs.entries()) {
      let last = -2;
      const path = run.points.map((point) => {
        const word = point.bin === last + 1 ? "L" : "M";
        last = point.bin;
        return `${word}${x(axis.low + (point.bin + 0.5) * axis.width).toFixed(1)} ${y(point.share).toFixed(1)}`;
      }).join("");
      parts.push(svg("path", { class: "line", d: path, stroke: run.colour, "stroke-dasharray": DASHES[number] }));
      if (run.points.length < 40) {
        for (const point of run.points) parts.push(svg("circle", { cx: x(axis.low + (point.bin + 0.5) * axis.width), cy: y(point.share), r: 2.2, fill: run.colour }));
      }
    }
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...parts);
    this.legend.replaceChildren(...(runs.length > 1 ? runs.map((run) => {
      const key = el("i", { class: "key" });
      key.style.background = run.colour;
      return el("span", {}, key, run.name);
    }) : []));
    this.says.textContent = every.length ? "" : "None of the selected rows belongs to a step.";
  }

  rows() {
    const { axis, runs } = this.data;
    const names = ["steps", ...runs.flatMap((run) => (runs.length > 1 ? [`rows of ${run.name}`, "kept"] : ["rows", "kept"]))];
    const lines = [];
    for (let bin = 0; bin < axis.bins; bin += 1) {
      const cells = runs.map((run) => run.points.find((point) => point.bin === bin));
      if (!cells.some(Boolean)) continue;
      const first = axis.low + bin * axis.width;
      lines.push([axis.width > 1 ? `${first} to ${first + axis.width - 1}` : `${first}`,
        ...cells.flatMap((point) => (point ? [count(point.rows), percent(point.kept, point.rows)] : ["0", "–"]))]);
    }
    return [names, ...lines];
  }
}

function points(axis, counts) {
  const found = [];
  for (let bin = 0; bin < axis.bins; bin += 1) {
    const rows = sum(Object.values(counts).map((each) => each[bin + 1]));
    const kept = counts.kept?.[bin + 1] ?? 0;
    if (rows) found.push({ bin, rows, kept, share: kept / rows });
  }
  return found;
}
