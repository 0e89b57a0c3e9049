// The samples behind the selection, a page at a time, and one sample's whole history.

import { ask, count, el, number, svg, ticks, short } from "./dom.js";

const ORDERS = {
  mixed: "mixed", loss_high: "highest loss", loss_low: "lowest loss", il_high: "highest irreducible loss",
  il_low: "lowest irreducible loss", score_high: "highest score", score_low: "lowest score", newest: "newest", oldest: "oldest",
};
const AT_ONCE = 4; // samples that are read at a time
const known = new Map(); // what was read of a sample: a page that comes again is there at once
const KNOWN = 400;

/** What can be seen of a sample: {key, image, seen, text, facts, why}. */
async function look(run, shard, ordinal) {
  const name = `${run} ${ordinal} ${shard}`;
  if (!known.has(name)) {
    const answer = await ask("sample", { run, shard, ordinal });
    if (answer.why) return answer; // it may be there the next time
    known.set(name, answer);
    if (known.size > KNOWN) known.delete(known.keys().next().value);
  }
  return known.get(name);
}

function shown(sample, alt) {
  const parts = [];
  if (sample.image) parts.push(el("img", { src: sample.image, alt }));
  if (sample.text !== null && sample.text !== undefined) parts.push(el("blockquote", { text: sample.text }));
  if (!parts.length) parts.push(el("span", { class: "none", text: "not shown" }));
  return parts;
}

const badge = (reason, looks) => {
  const key = el("i", { class: "key" });
  key.style.background = looks.reasons.find((one) => one.name === reason)?.colour ?? "";
  return el("span", { class: "reason" }, key, reason.replaceAll("_", " "));
};

export class Gallery {
  constructor(section, { looks, state, filters }) {
    Object.assign(this, { section, looks, state, filters, start: 0, run: 0, turn: 0, stale: true, visible: false });
    const select = (label, options, changed) => el("select", { "aria-label": label, onchange: changed }, options);
    this.order = select("order of samples", Object.entries(ORDERS).map(([value, text]) => el("option", { value, text })), () => this.restart());
    this.size = select("samples of a page", [12, 24, 48].map((n) => el("option", { value: n, text: `${n} a page`, selected: n === 24 })), () => this.restart());
    this.runs = select("run of the samples", [], () => { this.run = +this.runs.value; this.restart(); });
    this.before = el("button", { type: "button", text: "‹ back", onclick: () => this.turnTo(this.start - this.count()) });
    this.after = el("button", { type: "button", text: "more ›", onclick: () => this.turnTo(this.start + this.count()) });
    this.place = el("span", { class: "soft", "aria-live": "polite" });
    this.why = el("p", { class: "note why" });
    this.tiles = el("ul", { class: "tiles" });
    section.append(
      el("header", {}, el("h2", { id: "gallery-title", text: "Samples of the selection" }), this.runs, this.order, this.size, this.before, this.place, this.after),
      this.why, this.tiles);
    // Read once they are looked at: a brush above needs the time more.
    new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible) this.refresh();
    }, { rootMargin: "200px" }).observe(section);
  }

  count() { return +this.size.value; }

  restart() {
    this.start = 0;
    this.changed();
  }

  turnTo(start) {
    this.start = Math.max(start, 0);
    this.changed();
  }

  /** Another selection, or other rows. */
  changed() {
    this.stale = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), 250);
  }

  showRuns() {
    const names = this.state().runs.map((run) => run.name);
    this.runs.hidden = names.length < 2;
    if (this.runs.options.length !== names.length) this.runs.replaceChildren(...names.map((text, value) => el("option", { value, text })));
  }

  async refresh() {
    if (!this.stale || !this.visible || !this.state()) return;
    this.stale = false;
    this.turn += 1;
    const turn = this.turn;
    this.showRuns();
    let answer;
    try {
      answer = await ask("rows", { run: this.run, filters: this.filters, order: this.order.value, start: this.start, count: this.count() });
    } catch (error) {
      this.why.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    const { rows, more } = answer;
    this.before.disabled = this.start === 0;
    this.after.disabled = !more;
    this.place.textContent = rows.length ? `${count(this.start + 1)} to ${count(this.start + rows.length)}` : "";
    this.why.textContent = rows.length ? "" : ["mixed", "newest", "oldest"].includes(this.order.value) ? "No samples are selected." : "None of the selected samples has that value.";
    const tiles = rows.map((row) => this.tile(row));
    this.tiles.replaceChildren(...tiles.map((tile) => tile.node));
    this.section.dataset.shown = `${turn}`;
    const waiting = [...tiles];
    const reasons = new Set();
    const read = async () => {
      while (waiting.length && turn === this.turn) {
        const tile = waiting.shift();
        try {
          const sample = await look(this.run, tile.row.shard, tile.row.ordinal);
          tile.fill(sample);
          if (sample.why) reasons.add(sample.why);
        } catch (error) {
          reasons.add(error.message);
        }
        if (turn === this.turn) this.why.textContent = [...reasons].join("; ") || this.why.textContent;
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, read));
    if (turn === this.turn) this.section.dataset.filled = `${turn}`;
  }

  className(label) {
    if (label === null) return "";
    return this.state().classes[label] ?? `class ${label}`;
  }

  tile(row) {
    const name = this.className(row.label);
    const view = el("span", { class: "view" }, el("span", { class: "none", text: "…" }));
    const key = el("span", { class: "sample-key", text: `${row.shard} · ${row.ordinal}` });
    const button = el("button", { type: "button", class: "tile", onclick: () => openHistory(this, this.run, row) },
      view,
      el("span", { class: "said" }, badge(row.reason, this.looks), name ? el("b", { text: name }) : null),
      el("span", { class: "values", text: [`loss ${number(row.loss, 3)}`, `il ${number(row.il, 3)}`, `score ${number(row.score, 3)}`].join(" · ") }),
      el("span", { class: "values", text: row.step === null ? `pass ${row.pass}, its end` : `step ${count(row.step)}` }),
      key);
    return {
      row,
      node: el("li", {}, button),
      fill: (sample) => {
        view.replaceChildren(...shown(sample, `${sample.key ?? ""} ${name}`.trim()));
        if (sample.key !== null) key.textContent = sample.key;
        key.title = `${row.shard} · ${row.ordinal}`;
      },
    };
  }
}

// -- one sample ------------------------------------------------------------------------------------------------------

/** A dialog with all that is known of a sample: what it is, and every time that it was looked at. */
export async function openHistory(gallery, run, { shard, ordinal, label }) {
  const body = el("div", { class: "history" }, el("p", { text: "…" }));
  const dialog = el("dialog", { "aria-labelledby": "history-title", onclose: () => dialog.remove(), onclick: (event) => { if (event.target === dialog) dialog.close(); } },
    el("button", { type: "button", class: "close", "aria-label": "close", text: "×", onclick: () => dialog.close() }), body);
  document.body.append(dialog);
  dialog.showModal();
  try {
    const [sample, history] = await Promise.all([look(run, shard, ordinal), ask("history", { shard, ordinal })]);
    const names = gallery.state().runs.map((one) => one.name);
    const every = history.runs.flatMap((rows, at) => rows.map((row) => ({ ...row, run: names[at], colour: gallery.state().colours[at] })));
    body.replaceChildren(...said(gallery, sample, { shard, ordinal, label: label ?? every[0]?.label ?? null }, every));
  } catch (error) {
    body.replaceChildren(el("p", { id: "history-title", text: error.message }));
  }
}

function said(gallery, sample, { shard, ordinal, label }, rows) {
  const several = gallery.state().runs.length > 1;
  const facts = [["shard", shard], ["ordinal", `${ordinal}`], ["class", label === null ? "none" : `${label} ${gallery.state().classes[label] ?? ""}`],
    ...Object.entries(sample.facts).filter(([, value]) => value !== null).map(([name, value]) => [
      { predicted: "the IL model's guess", true_label: "true label", is_noisy: "label wrong" }[name] ?? name,
      typeof value === "boolean" ? (value ? "yes" : "no") : name === "is_noisy" ? `${value}` : `${value} ${gallery.state().classes[value] ?? ""}`])];
  const kept = rows.filter((row) => row.reason === "kept").length;
  const names = [...(several ? ["run"] : []), "pass", "step", "loss", "il", "score", "reason"];
  const cells = (row) => [...(several ? [row.run] : []), `${row.pass}`, row.step === null ? "–" : count(row.step), number(row.loss), number(row.il), number(row.score)];
  return [
    el("div", { class: "seen" }, ...shown(sample, sample.key ?? "the sample"), sample.seen ? el("figure", {}, el("img", { src: sample.seen, alt: "" }), el("figcaption", { text: "what the model sees of it" })) : null,
      sample.why ? el("p", { class: "note", text: sample.why }) : null),
    el("div", { class: "told" },
      el("h2", { id: "history-title", text: sample.key ?? `${shard} · ${ordinal}` }),
      el("p", { class: "soft", text: rows.length ? `Looked at ${rows.length === 1 ? "once" : `${count(rows.length)} times`}, kept ${kept === 1 ? "once" : `${count(kept)} times`}.` : "No loaded row is of this sample." }),
      el("dl", {}, facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
      lines(rows.filter((row) => row.step !== null && row.loss !== null), gallery.looks),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "every look" }, el("table", {},
        el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col", text: name })))),
        el("tbody", {}, rows.map((row) => el("tr", {}, cells(row).map((text) => el("td", { text })), el("td", {}, badge(row.reason, gallery.looks)))))))),
  ];
}

/** Loss over steps, the il as a dashed line; a full point was kept. */
function lines(rows, looks) {
  if (rows.length < 2) return null;
  const [width, height, pad] = [420, 150, { left: 38, right: 10, top: 8, bottom: 20 }];
  const last = Math.max(...rows.map((row) => row.step), 1);
  const values = rows.flatMap((row) => [row.loss, row.il ?? 0]);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 0.1)];
  const x = (step) => pad.left + (step / last) * (width - pad.left - pad.right);
  const y = (value) => height - pad.bottom - ((value - low) / (high - low)) * (height - pad.top - pad.bottom);
  const text = (words, attributes) => { const node = svg("text", attributes); node.textContent = words; return node; };
  const parts = [svg("path", { class: "axis", d: `M${pad.left} ${pad.top}V${height - pad.bottom}H${width - pad.right}` })];
  for (const tick of ticks(low, high, 4)) parts.push(text(short(tick), { class: "label", x: pad.left - 5, y: y(tick) + 4, "text-anchor": "end" }));
  for (const tick of ticks(0, last, 5)) if (tick % 1 === 0) parts.push(text(short(tick), { class: "label", x: x(tick), y: height - 5, "text-anchor": "middle" }));
  const il = rows.find((row) => row.il !== null)?.il;
  if (il !== undefined) parts.push(svg("line", { class: "even", x1: pad.left, x2: width - pad.right, y1: y(il), y2: y(il) }), text("il", { class: "label", x: width - pad.right, y: y(il) - 4, "text-anchor": "end" }));
  for (const name of new Set(rows.map((row) => row.run))) {
    const mine = rows.filter((row) => row.run === name).sort((a, b) => a.step - b.step);
    parts.push(svg("path", { class: "line thin", stroke: mine[0].colour, d: mine.map((row, at) => `${at ? "L" : "M"}${x(row.step).toFixed(1)} ${y(row.loss).toFixed(1)}`).join("") }));
    for (const row of mine) parts.push(svg("circle", { cx: x(row.step), cy: y(row.loss), r: 3.4, stroke: mine[0].colour, fill: row.reason === "kept" ? mine[0].colour : "#fff" }));
  }
  return el("figure", {}, svg("svg", { class: "plot still", role: "img", "aria-label": "loss over steps", viewBox: `0 0 ${width} ${height}` }, parts),
    el("figcaption", { text: "Loss at each step that looked at it; full points were kept. Dashed: its irreducible loss." }));
}
