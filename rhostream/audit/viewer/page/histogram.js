// The histogram of a value by reason, a panel a run over one axis; a range of it can be drawn or typed.

import { count, el, number, percent, short, svg, ticks, watchWidth } from "./dom.js";
import { brushX } from "./brush.js";

const PAD = { left: 40, right: 14, top: 6, bottom: 20 };

export const sum = (values) => values.reduce((all, one) => all + one, 0);

/** A card with a heading and what a screen reader is told. */
export function card(name, title, note) {
  const says = el("p", { class: "note", id: `${name}-says` });
  const body = el("div", { class: "body" });
  const node = el("section", { class: `card ${name}`, "data-chart": name, "aria-labelledby": `${name}-title` },
    el("header", {}, el("h2", { id: `${name}-title`, text: title }), el("span", { class: "unit", text: note || "" })), body, says);
  return { node, body, says };
}

/** A table behind a chart, made when it is opened. */
export function tableBehind(title, rows) {
  const holder = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `table of ${title}` });
  const node = el("details", { class: "table" }, el("summary", { text: "as a table" }), holder);
  const draw = () => {
    if (!node.open) return;
    const [names, ...lines] = rows();
    holder.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { text: name, scope: "col" })))),
      el("tbody", {}, lines.map((line) => el("tr", {}, line.map((cell) => el("td", { text: cell })))))));
  };
  node.addEventListener("toggle", draw);
  return { node, draw };
}

export class Histogram {
  /** `changed(range or null)`: somebody drew or typed another range, [low, high], null for an open end. */
  constructor({ name, title, note, whole = false, missing, looks, changed }) {
    Object.assign(this, { name, whole, missing, looks, changed, width: 0, data: null, range: null });
    const { node, body, says } = card(name, title, note);
    this.node = node;
    this.says = says;
    this.svg = svg("svg", { class: "plot", role: "img", "aria-labelledby": `${name}-title ${name}-says` });
    this.inputs = ["from", "to"].map((end) => el("input", { type: "number", step: "any", "aria-label": `${title} ${end}`, placeholder: end,
      "data-range": `${name}-${end}`, onchange: () => this.typed() }));
    this.clear = el("button", { type: "button", class: "plain", text: "clear", "aria-label": `clear the range of ${title}`, onclick: () => this.set(null) });
    this.table = tableBehind(title, () => this.rows());
    body.append(this.svg, el("div", { class: "under" }, ...this.inputs, this.clear), this.table.node);
    watchWidth(body, (width) => { this.width = width; this.draw(); });
    brushX(this.svg, {
      left: () => PAD.left,
      right: () => this.width - PAD.right,
      range: () => this.range && this.data && [this.x(this.range[0] ?? -Infinity), this.x(this.range[1] ?? Infinity)],
      changed: (pixels) => this.set(pixels && this.valuesOf(pixels)),
    });
  }

  set(range) {
    this.range = range;
    this.drawRange();
    this.changed(range);
  }

  typed() {
    const [low, high] = this.inputs.map((input) => (input.value === "" || Number.isNaN(+input.value) ? null : +input.value));
    this.set(low === null && high === null ? null : [low, high]);
  }

  /** `runs`: [{name, counts: {reason: by bin, the first of rows without a value}}] */
  update(axis, runs) {
    this.data = { axis, runs };
    this.draw();
    this.table.draw();
  }

  end() {
    const { axis } = this.data;
    return axis.low + axis.width * axis.bins;
  }

  x(value) {
    const { axis } = this.data;
    const share = (value - axis.low) / (this.end() - axis.low);
    return PAD.left + Math.min(Math.max(share, 0), 1) * (this.width - PAD.left - PAD.right);
  }

  /** Pixels as a range: rounded to a tenth of a bin, open where it touches an end, for what lies beyond is drawn there. */
  valuesOf([from, to]) {
    const { axis } = this.data;
    const inside = this.width - PAD.left - PAD.right;
    const grain = this.whole ? 1 : axis.width / 10;
    const value = (pixel) => {
      const exact = axis.low + ((pixel - PAD.left) / inside) * (this.end() - axis.low);
      return +(Math.round(exact / grain) * grain).toPrecision(8);
    };
    return [from <= PAD.left ? null : value(from), to >= this.width - PAD.right ? null : value(to)];
  }

  draw() {
    if (!this.data || !this.width) return;
    const { axis, runs } = this.data;
    const panel = runs.length > 1 ? 92 : 132;
    const height = PAD.top + panel * runs.length + PAD.bottom;
    const parts = [];
    runs.forEach((run, at) => parts.push(...this.panel(run, PAD.top + at * panel, panel - 6)));
    const foot = PAD.top + panel * runs.length - 6;
    for (const tick of ticks(axis.low, this.end(), Math.max(Math.floor(this.width / 60), 2))) {
      if (this.whole && tick % 1) continue;
      const x = this.x(tick);
      parts.push(svg("line", { class: "tick", x1: x, x2: x, y1: foot, y2: foot + 4 }),
        svg("text", { class: "label", x, y: foot + 15, "text-anchor": "middle" }));
      parts.at(-1).textContent = short(tick);
    }
    this.mark = svg("g", { class: "range" });
    this.box = [PAD.top, foot];
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...parts, this.mark);
    this.drawRange();
    this.tell();
  }

  panel(run, top, height) {
    const { axis } = this.data;
    const reasons = this.looks.reasons.filter((reason) => run.counts[reason.name]);
    const totals = Array.from({ length: axis.bins }, (_, bin) => sum(reasons.map((reason) => run.counts[reason.name][bin + 1])));
    const most = Math.max(...totals, 0);
    const foot = top + height;
    const parts = [svg("line", { class: "axis", x1: PAD.left, x2: this.width - PAD.right, y1: foot, y2: foot })];
    if (this.data.runs.length > 1) {
      parts.push(svg("text", { class: "run-name", x: this.width - PAD.right, y: top + 11, "text-anchor": "end" }));
      parts.at(-1).textContent = run.name;
    }
    if (!most) {
      parts.push(svg("text", { class: "none", x: (this.width + PAD.left) / 2, y: top + height / 2 + 4, "text-anchor": "middle" }));
      parts.at(-1).textContent = run.rows ? `none of the selected rows has ${this.missing}` : "no rows yet";
      return parts;
    }
    const y = (n) => foot - (n / most) * (height - (this.data.runs.length > 1 ? 18 : 12));
    const step = (this.width - PAD.left - PAD.right) / axis.bins;
    const gap = step > 4 ? 1 : 0;
    const below = new Array(axis.bins).fill(0);
    for (const reason of reasons) {
      const counts = run.counts[reason.name];
      let path = "";
      for (let bin = 0; bin < axis.bins; bin += 1) {
        const n = counts[bin + 1];
        if (!n) continue;
        const from = (PAD.left + bin * step).toFixed(2);
        path += `M${from} ${y(below[bin]).toFixed(2)}h${(step - gap).toFixed(2)}V${y(below[bin] + n).toFixed(2)}h${(gap - step).toFixed(2)}z`;
        below[bin] += n;
      }
      parts.push(svg("path", { d: path, fill: reason.colour }));
    }
    for (const n of ticks(0, most, 3).slice(1)) {
      parts.push(svg("line", { class: "grid", x1: PAD.left, x2: this.width - PAD.right, y1: y(n), y2: y(n) }),
        svg("text", { class: "label", x: PAD.left - 5, y: y(n) + 4, "text-anchor": "end" }));
      parts.at(-1).textContent = short(n);
    }
    return parts;
  }

  drawRange() {
    const typed = this.range || [null, null];
    this.inputs.forEach((input, at) => { if (document.activeElement !== input) input.value = typed[at] ?? ""; });
    this.clear.hidden = !this.range;
    if (!this.mark) return;
    this.mark.replaceChildren();
    if (!this.range) return;
    const [from, to] = [this.x(typed[0] ?? -Infinity), this.x(typed[1] ?? Infinity)];
    const [top, foot] = this.box;
    this.mark.append(svg("rect", { class: "inside", x: from, y: top, width: Math.max(to - from, 1), height: foot - top }),
      ...[from, to].map((x) => svg("line", { class: "end", x1: x, x2: x, y1: top, y2: foot })));
  }

  tell() {
    const { runs } = this.data;
    this.says.textContent = runs.map((run) => {
      const without = sum(Object.values(run.counts).map((counts) => counts[0]));
      return without ? `${runs.length > 1 ? `${run.name}: ` : ""}${count(without)} rows without ${this.missing}` : "";
    }).filter(Boolean).join(" · ");
  }

  rows() {
    const { axis, runs } = this.data;
    const names = ["from", "to", ...runs.flatMap((run) => (runs.length > 1 ? [`rows of ${run.name}`, `kept of ${run.name}`] : ["rows", "kept"]))];
    const lines = [];
    for (let bin = 0; bin < axis.bins; bin += 1) {
      const cells = runs.flatMap((run) => {
        const all = sum(Object.values(run.counts).map((counts) => counts[bin + 1]));
        return [count(all), percent(run.counts.kept?.[bin + 1] ?? 0, all)];
      });
      lines.push([bin ? number(axis.low + bin * axis.width) : "", bin + 1 < axis.bins ? number(axis.low + (bin + 1) * axis.width) : "", ...cells]);
    }
    return [names, ...lines];
  }
}
