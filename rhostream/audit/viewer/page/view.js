// The page: what is selected, one request for all charts at a time (the newest selection wins), and what comes in live.

import { ask, count, el, number, percent } from "./dom.js";
import { Bars } from "./bars.js";
import { Cells } from "./cells.js";
import { Histogram } from "./histogram.js";
import { Gallery, openHistory } from "./samples.js";
import { Shares } from "./shares.js";
import { Box } from "./sql.js";

const page = (id) => document.getElementById(id);
const looks = { reasons: [], names: [] };
const filters = {}; // as the server takes them
const TITLES = { il: "irreducible loss", loss: "loss", score: "score", step: "step", label: "class", reason: "reason" };
let state = null;
let newest = null; // the newest answer of the charts

// -- the charts ------------------------------------------------------------------------------------------------------

const value = (name, title, note, missing, whole = false) => new Histogram({
  name, title, note, missing, whole, looks, changed: (range) => select(name, range),
});
const histograms = {
  il: value("il", "Irreducible loss", "nats", "an irreducible loss"),
  loss: value("loss", "Loss", "nats, of the model as it was", "a loss"),
  score: value("score", "Score", "what the rule ranks by", "a score"),
  step: value("step", "Steps", "rows of each", "a step (the end of a pass)", true),
};
const cells = new Cells({ looks, changed: (il, loss) => select("il", il, "loss", loss) });
const reasons = new Bars({ name: "reason", title: "Reasons", note: "rows, share", looks, changed: (keys) => select("reason", keys.length ? keys : null) });
const classes = new Bars({
  name: "label", title: "Classes", note: "rows, kept", looks, changed: (keys) => select("label", keys.length ? keys.map(Number) : null),
  sorts: {
    "by rows": (a, b) => b.rows - a.rows,
    "most kept": (a, b) => b.kept / b.rows - a.kept / a.rows,
    "least kept": (a, b) => a.kept / a.rows - b.kept / b.rows,
    "by label": (a, b) => a.key - b.key,
  },
});
const shares = new Shares({ looks });
page("charts").append(...[cells, histograms.il, histograms.loss, histograms.score, histograms.step, reasons, shares, classes].map((chart) => chart.node));

const gallery = new Gallery(page("gallery"), { looks, filters, state: () => state });
new Box(page("sql"), {
  open: (name, row) => openHistory(gallery, Math.max(state.runs.findIndex((run) => run.name === name), 0), row),
});

function draw(answer) {
  newest = answer;
  const { axes, labels, runs } = answer;
  const named = runs.map((run, at) => ({ ...run, name: state.runs[at].name, colour: state.colours[at] }));
  for (const [name, chart] of Object.entries(histograms)) {
    chart.update(axes[name], named.map((run) => ({ name: run.name, rows: run.rows, counts: run[name] })));
  }
  cells.update(axes, named);
  shares.update(axes.step, named.map((run) => ({ name: run.name, colour: run.colour, counts: run.over_steps })));
  drawReasons(named);
  drawClasses(labels, named);
  drawCounts(named);
  countSamples();
  document.body.dataset.rows = runs.reduce((all, run) => all + run.rows, 0);
}

function drawReasons(runs) {
  const all = runs.reduce((rows, run) => rows + Object.values(run.reason).reduce((a, b) => a + b, 0), 0);
  const members = looks.reasons.filter((reason) => runs.some((run) => run.reason[reason.name])).map((reason) => {
    const rows = runs.reduce((sum, run) => sum + (run.reason[reason.name] || 0), 0);
    return { key: reason.name, name: reason.name.replaceAll("_", " "), title: reason.says, share: percent(rows, all),
      runs: runs.map((run) => (run.reason[reason.name] ? { [reason.name]: run.reason[reason.name] } : {})) };
  });
  reasons.update(members, runs, { why: "No rows are selected." });
}

function drawClasses(labels, runs) {
  const names = state.classes;
  const known = labels.shown.some((label) => label >= 0);
  const members = known ? labels.shown.map((label, at) => {
    const name = label < 0 ? "no class" : names[label] === undefined ? `${label}` : `${label} ${names[label]}`;
    const counts = runs.map((run) => Object.fromEntries(Object.entries(run.label).map(([reason, rows]) => [reason, rows[at]]).filter(([, rows]) => rows)));
    return { key: `${label}`, name, runs: counts };
  }) : [];
  const why = state.runs.find((run) => run.no_class)?.no_class;
  classes.update(members, runs, {
    note: labels.of > labels.shown.length ? `The ${count(labels.shown.length)} classes with the most rows, of ${count(labels.of)}.` : "",
    why: why ? `No classes: ${why}.` : "None of the selected rows has a class.",
  });
}

function drawCounts(runs) {
  const before = [...document.querySelectorAll("#counts .samples")].map((node) => node.textContent);
  page("counts").replaceChildren(...runs.map((run, at) => {
    const key = el("i", { class: "key" });
    key.style.background = run.colour;
    const named = runs.length > 1 ? [key, el("b", { class: "of", text: run.name })] : [];
    const figure = (n, what) => el("span", { class: "figure" }, el("b", { text: n }), ` ${what}`);
    return el("p", { "data-run": at }, ...named,
      figure(count(run.selected), run.selected === run.rows ? "rows, all" : `of ${count(run.rows)} rows`),
      el("span", { class: "figure" }, el("b", { class: "samples", text: before[at] ?? "…" }), " samples"),
      figure(percent(run.kept, run.selected), "kept"));
  }));
}

// How many different samples there are takes a look at every row, so it is asked for once the pointer rests.
let resting = null;
function countSamples() {
  clearTimeout(resting);
  resting = setTimeout(async () => {
    try {
      const numbers = await ask("samples", { filters });
      document.querySelectorAll("#counts .samples").forEach((node, at) => { node.textContent = numbers[at] === null ? "–" : count(numbers[at]); });
    } catch (error) {
      lost(error.message);
    }
  }, 400);
}

// -- the selection ---------------------------------------------------------------------------------------------------

/** select("il", [0, 1], "loss", null): changes filters, shows them everywhere and asks for the counts. */
function select(...changes) {
  for (let at = 0; at < changes.length; at += 2) {
    const [name, given] = [changes[at], changes[at + 1]];
    if (given === null || (Array.isArray(given) && given.every((end) => end === null))) delete filters[name];
    else filters[name] = given;
  }
  showFilters();
  refresh();
  gallery.restart();
}

function showFilters() {
  for (const [name, chart] of Object.entries(histograms)) {
    chart.range = filters[name] || null;
    if (chart.data) chart.drawRange();
  }
  cells.setRanges(filters.il || null, filters.loss || null);
  reasons.setChosen(filters.reason || []);
  classes.setChosen((filters.label || []).map(String));
  const chips = Object.entries(filters).map(([name, given]) => el("button", {
    type: "button", class: "chip", title: "take this filter away", onclick: () => select(name, null),
  }, el("b", { text: TITLES[name] }), ` ${said(name, given)} `, el("span", { "aria-hidden": "true", text: "×" })));
  if (chips.length > 1) {
    chips.push(el("button", { type: "button", class: "plain", text: "clear all", onclick: () => select(...Object.keys(filters).flatMap((name) => [name, null])) }));
  }
  page("chips").replaceChildren(...(chips.length ? chips : [el("span", { class: "hint", text: "Drag over a chart, or click a name, to select; every chart shows what the others select." })]));
}

function said(name, given) {
  if (name === "label" || name === "reason") {
    const names = given.map((key) => (name === "label" ? state?.classes[key] ?? (key < 0 ? "none" : key) : key.replaceAll("_", " ")));
    return names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
  }
  const [low, high] = given;
  return low === null ? `up to ${number(high)}` : high === null ? `from ${number(low)}` : `${number(low)} to ${number(high)}`;
}

// -- asking ----------------------------------------------------------------------------------------------------------

const frame = () => new Promise((done) => { requestAnimationFrame(() => done()); });
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });
let wanted = false;
let asking = false;

/** Asks for the charts of the present selection, unless it is being asked: then again once that is answered. */
async function refresh() {
  wanted = true;
  if (asking || !state) return;
  asking = true;
  page("charts").setAttribute("aria-busy", "true");
  while (wanted) {
    wanted = false;
    try {
      const answer = await ask("charts", { filters });
      await frame();
      draw(answer);
      await frame();
      document.body.dataset.painted = +document.body.dataset.painted + 1;
      lost("");
    } catch (error) {
      lost(error.message);
    }
  }
  asking = false;
  page("charts").setAttribute("aria-busy", "false");
}

let trouble = "";
function lost(why) {
  if (why === trouble) return;
  trouble = why;
  showProblems();
}

function showProblems() {
  const lines = [...(trouble ? [trouble] : []), ...(state ? state.runs.flatMap((run) => [
    ...(run.problem ? [`${run.name}: ${run.problem}`] : []), ...run.damaged.map((why) => `${run.name}: ${why}`),
    ...(run.doubt ? [`${run.name}: ${run.doubt}`] : [])]) : [])];
  page("problems").replaceChildren(...lines.map((line) => el("p", { text: line })));
}

function showRuns() {
  document.title = `${state.runs.map((run) => run.name).join(", ")} · rhostream view`;
  page("title").textContent = state.runs.map((run) => run.name).join(" and ");
  page("runs").replaceChildren(...state.runs.map((run, at) => {
    const key = el("i", { class: "key" });
    key.style.background = state.colours[at];
    const steps = `step ${count(run.step)}${run.last_step ? ` of ${count(run.last_step)}` : ""}`;
    const goes = run.complete ? "complete" : run.running ? "going on" : run.step ? "not complete" : "no commit yet";
    const loading = run.rows < run.committed && !run.problem;
    return el("p", { class: "run", "data-run": at, "data-step": run.step, "data-loaded": run.rows, title: run.where },
      ...(state.runs.length > 1 ? [key, el("b", { text: run.name }), " "] : []),
      run.rule ? `rule ${run.rule} · ` : "", `${steps} · `,
      el("span", { class: run.running ? "live" : "", text: goes }),
      ...(loading ? [" · ", el("progress", { max: run.committed, value: run.rows, "aria-label": "rows loaded" }), ` ${percent(run.rows, run.committed)} loaded`] : []));
  }));
}

/** What is new, as soon as it is: the server answers when there is something, or after ten seconds. */
async function follow() {
  let drawn = -1;
  for (;;) {
    try {
      const began = performance.now();
      const answer = await ask("state", { seen: state ? state.version : -1 });
      const fresh = !state || answer.version !== state.version;
      if (!state) {
        looks.names = answer.reasons.map((reason) => reason.name);
        looks.reasons = answer.reasons;
      }
      state = answer;
      showRuns();
      showProblems();
      const rows = state.runs.reduce((all, run) => all + run.rows, 0);
      if (fresh && rows !== drawn) {
        drawn = rows;
        await refresh();
        if (!gallery.section.dataset.filled || gallery.order.value === "newest") gallery.changed();
        // While much is being loaded, not all of the time goes into counting it.
        if (state.runs.some((run) => run.rows < run.committed)) await pause(Math.min(2 * (performance.now() - began), 1500));
      }
      lost("");
    } catch (error) {
      lost(error.message);
      await pause(1000);
    }
  }
}

showFilters();
follow();
