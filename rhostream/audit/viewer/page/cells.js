// Loss over il as squares, coloured by the mix of reasons in them; a rectangle drawn there is a range of both.

import { count, el, number, percent, short, svg, ticks, watchWidth } from "./dom.js";
import { brushXY } from "./brush.js";
import { card, tableBehind } from "./histogram.js";

const PAD = { left: 36, right: 6, top: 20, bottom: 32 };
const colourOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

export class Cells {
  /** `changed(il range, loss range)`, both null when the rectangle is taken away. */
  constructor({ looks, changed }) {
    Object.assign(this, { looks, changed, width: 0, data: null, ranges: [null, null], panels: [] });
    const { node, body, says } = card("cell", "Loss and irreducible loss", "nats; drag a rectangle");
    this.node = node;
    this.says = says;
    this.holder = el("div", { class: "panels" });
    this.table = tableBehind("loss and irreducible loss", () => this.rows());
    body.append(this.holder, this.table.node);
    watchWidth(body, (width) => { this.width = width; this.draw(); });
  }

  setRanges(il, loss) {
    this.ranges = [il, loss];
    for (const panel of this.panels) this.drawRange(panel);
  }

  /** `runs`: [{name, rows, cell: {il, loss, reason, n}}], bins from 0 */
  update(axes, runs) {
    this.data = { axes, runs };
    this.draw();
    this.table.draw();
  }

  scale(name) {
    const axis = this.data.axes[name];
    return { low: axis.low, high: axis.low + axis.width * axis.bins, bins: axis.bins, grain: axis.width / 10 };
  }

  draw() {
    if (!this.data || !this.width) return;
    const { runs } = this.data;
    const side = this.width / runs.length < 260 ? 1 : runs.length;
    const width = Math.floor(this.width / side) - (side > 1 ? 6 : 0);
    const height = Math.round(Math.min(Math.max(width * (runs.length > 1 ? 1.35 : 0.78), 220), 440));
    while (this.panels.length < runs.length) this.panels.push(this.made(this.panels.length));
    runs.forEach((run, at) => this.drawPanel(this.panels[at], run, width, height));
    const none = runs.filter((run) => !run.cell.n.length);
    this.says.textContent = none.length === runs.length
      ? "None of the selected rows has both a loss and an irreducible loss."
      : "Each square is coloured by the mix of reasons in it, and the stronger the more rows it holds. On the dashed line the loss is all irreducible.";
  }

  made() {
    const panel = { canvas: el("canvas", { "aria-hidden": "true" }), over: svg("svg", { class: "plot", role: "img", "aria-labelledby": "cell-title cell-says" }) };
    panel.node = el("div", { class: "panel" }, panel.canvas, panel.over);
    this.holder.append(panel.node);
    brushXY(panel.over, {
      box: () => ({ left: PAD.left, right: panel.width - PAD.right, top: PAD.top, bottom: panel.height - PAD.bottom }),
      changed: (pixels) => {
        const ranges = pixels ? this.valuesOf(panel, pixels) : [null, null];
        this.setRanges(...ranges);
        this.changed(...ranges);
      },
    });
    return panel;
  }

  drawPanel(panel, run, width, height) {
    Object.assign(panel, { width, height });
    const [il, loss] = [this.scale("il"), this.scale("loss")];
    const ratio = window.devicePixelRatio || 1;
    panel.canvas.width = width * ratio;
    panel.canvas.height = height * ratio;
    panel.canvas.style.width = `${width}px`;
    panel.canvas.style.height = `${height}px`;
    panel.node.style.width = `${width}px`;
    panel.node.style.height = `${height}px`;
    const context = panel.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.clearRect(0, 0, width, height);
    const inside = [width - PAD.left - PAD.right, height - PAD.top - PAD.bottom];
    for (const [key, mix] of mixed(run.cell, this.looks.reasons, loss.bins)) {
      const [x, y] = [Math.floor(key / loss.bins), key % loss.bins];
      // Whole pixels: edges that are shared would be drawn twice.
      const [left, right] = [x, x + 1].map((bin) => Math.round(PAD.left + (bin / il.bins) * inside[0]));
      const [foot, top] = [y, y + 1].map((bin) => Math.round(PAD.top + (1 - bin / loss.bins) * inside[1]));
      context.fillStyle = mix;
      context.fillRect(left, top, right - left, foot - top);
    }
    this.drawOver(panel, run, il, loss);
  }

  drawOver(panel, run, il, loss) {
    const { width, height } = panel;
    panel.x = (value) => PAD.left + share(value, il) * (width - PAD.left - PAD.right);
    panel.y = (value) => height - PAD.bottom - share(value, loss) * (height - PAD.top - PAD.bottom);
    const foot = height - PAD.bottom;
    const text = (words, attributes) => { const node = svg("text", attributes); node.textContent = words; return node; };
    const parts = [svg("path", { class: "axis", d: `M${PAD.left} ${PAD.top}V${foot}H${width - PAD.right}` })];
    for (const tick of ticks(il.low, il.high, Math.max(Math.floor(width / 60), 2))) {
      parts.push(text(short(tick), { class: "label", x: panel.x(tick), y: foot + 14, "text-anchor": "middle" }));
    }
    for (const tick of ticks(loss.low, loss.high, 6)) {
      parts.push(text(short(tick), { class: "label", x: PAD.left - 5, y: panel.y(tick) + 4, "text-anchor": "end" }));
    }
    const [from, to] = [Math.max(il.low, loss.low), Math.min(il.high, loss.high)];
    if (to > from) parts.push(svg("line", { class: "even", x1: panel.x(from), y1: panel.y(from), x2: panel.x(to), y2: panel.y(to) }));
    parts.push(text("irreducible loss →", { class: "label", x: width - PAD.right, y: foot + 28, "text-anchor": "end" }),
      text("↑ loss", { class: "label", x: 4, y: 12 }));
    if (this.data.runs.length > 1) parts.push(text(run.name, { class: "run-name", x: width - PAD.right, y: 12, "text-anchor": "end" }));
    panel.mark = svg("g", { class: "range" });
    panel.over.setAttribute("viewBox", `0 0 ${width} ${height}`);
    panel.over.setAttribute("width", width);
    panel.over.setAttribute("height", height);
    panel.over.replaceChildren(...parts, panel.mark);
    this.drawRange(panel);
  }

  drawRange(panel) {
    if (!panel.mark) return;
    panel.mark.replaceChildren();
    const [il, loss] = this.ranges;
    if (!il && !loss) return;
    const [left, right] = [panel.x(il?.[0] ?? -Infinity), panel.x(il?.[1] ?? Infinity)];
    const [foot, top] = [panel.y(loss?.[0] ?? -Infinity), panel.y(loss?.[1] ?? Infinity)];
    panel.mark.append(svg("rect", { class: "inside box", x: left, y: top, width: Math.max(right - left, 1), height: Math.max(foot - top, 1) }));
  }

  valuesOf(panel, [left, right, top, foot]) {
    const [il, loss] = [this.scale("il"), this.scale("loss")];
    const back = (part, { low, high, grain }) => +(Math.round((low + part * (high - low)) / grain) * grain).toPrecision(8);
    const inside = [panel.width - PAD.left - PAD.right, panel.height - PAD.top - PAD.bottom];
    const x = (pixel) => (pixel - PAD.left) / inside[0];
    const y = (pixel) => (panel.height - PAD.bottom - pixel) / inside[1];
    return [
      [x(left) <= 0 ? null : back(x(left), il), x(right) >= 1 ? null : back(x(right), il)],
      [y(foot) <= 0 ? null : back(y(foot), loss), y(top) >= 1 ? null : back(y(top), loss)],
    ];
  }

  /** By eighths of the axes: a table of four thousand squares helps nobody. */
  rows() {
    const { runs } = this.data;
    const [il, loss] = [this.scale("il"), this.scale("loss")];
    const eighth = (bin, bins) => Math.min(Math.floor((bin * 8) / bins), 7);
    const edge = (at, { low, high }) => `${number(low + (at * (high - low)) / 8)} to ${number(low + ((at + 1) * (high - low)) / 8)}`;
    const lines = [];
    const all = runs.map(({ cell }) => {
      const found = new Map();
      cell.n.forEach((n, at) => {
        const key = eighth(cell.il[at], il.bins) * 8 + eighth(cell.loss[at], loss.bins);
        const [rows, kept] = found.get(key) || [0, 0];
        found.set(key, [rows + n, kept + (this.looks.names[cell.reason[at]] === "kept" ? n : 0)]);
      });
      return found;
    });
    for (let key = 0; key < 64; key += 1) {
      if (!all.some((found) => found.has(key))) continue;
      lines.push([edge(Math.floor(key / 8), il), edge(key % 8, loss), ...all.flatMap((found) => {
        const [rows, kept] = found.get(key) || [0, 0];
        return [count(rows), percent(kept, rows)];
      })]);
    }
    return [["irreducible loss", "loss", ...runs.flatMap((run) => (runs.length > 1 ? [`rows of ${run.name}`, "kept"] : ["rows", "kept"]))], ...lines];
  }
}

const share = (value, { low, high }) => Math.min(Math.max((value - low) / (high - low), 0), 1);

function* mixed({ il, loss, reason, n }, reasons, bins) {
  const colours = new Map(reasons.map((one) => [one.number, colourOf(one.colour)]));
  const squares = new Map();
  let most = 1;
  n.forEach((rows, at) => {
    const key = il[at] * bins + loss[at];
    const square = squares.get(key) || [0, 0, 0, 0];
    const colour = colours.get(reason[at]);
    for (let part = 0; part < 3; part += 1) square[part] += rows * colour[part];
    square[3] += rows;
    most = Math.max(most, square[3]);
    squares.set(key, square);
  });
  const scale = 0.82 / Math.log1p(most);
  for (const [key, [r, g, b, rows]] of squares) {
    const alpha = 0.18 + scale * Math.log1p(rows);
    yield [key, `rgba(${Math.round(r / rows)},${Math.round(g / rows)},${Math.round(b / rows)},${alpha.toFixed(3)})`];
  }
}
