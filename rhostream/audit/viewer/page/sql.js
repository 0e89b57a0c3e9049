// The SQL box: one SELECT over the ledger of these runs, or a named question.

import { ask, el } from "./dom.js";

const FIRST = "SELECT run, reason, count(*) AS rows, avg(loss::DOUBLE) AS loss\nFROM selections GROUP BY ALL ORDER BY rows DESC";

export class Box {
  /** `open(run, row)`: a row of the answer that names a sample was clicked. */
  constructor(section, { open }) {
    this.open = open;
    this.text = el("textarea", { id: "sql-text", rows: 4, spellcheck: "false", autocapitalize: "off", "aria-label": "a question in SQL",
      onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run(); } });
    this.text.value = FIRST;
    this.named = el("select", { "aria-label": "named questions", onchange: () => { if (this.named.value) { this.text.value = this.named.value; this.run(); } } },
      el("option", { value: "", text: "named questions…" }));
    this.button = el("button", { type: "button", class: "ask", text: "Ask", onclick: () => this.run() });
    this.says = el("p", { class: "note", role: "status" });
    this.answer = el("div", { class: "scroll answer", tabindex: "0", role: "region", "aria-label": "the answer", hidden: true });
    section.append(el("header", {}, el("h2", { id: "sql-title", text: "Ask in SQL" }),
      el("span", { class: "unit", text: "Views: selections, steps, runs, il, samples, quarantine, shadow, classes, sources. One SELECT; Ctrl+Enter asks." })),
    this.text, el("div", { class: "under" }, this.button, this.named), this.says, this.answer);
    this.list();
  }

  async list() {
    try {
      const questions = await ask("questions");
      this.named.append(...questions.map(({ name, says }) => el("option", { value: name, text: `${name}: ${says}` })));
    } catch {
      this.named.hidden = true;
    }
  }

  async run() {
    this.button.disabled = true;
    this.says.textContent = "Asking…";
    try {
      const answer = await ask("sql", { text: this.text.value });
      this.says.textContent = `${answer.more ? `the first ${answer.rows.length.toLocaleString("en-US")} rows` : `${answer.rows.length.toLocaleString("en-US")} row${answer.rows.length === 1 ? "" : "s"}`}, in ${answer.seconds} s`;
      this.show(answer);
    } catch (error) {
      this.says.textContent = error.message;
      this.answer.hidden = true;
    }
    this.button.disabled = false;
  }

  show({ columns, numeric, rows }) {
    const [shard, ordinal, run] = ["shard", "ordinal", "run"].map((name) => columns.indexOf(name));
    const samples = shard >= 0 && ordinal >= 0;
    const cell = (text, at, row) => el("td", { class: numeric[at] ? "" : "l" }, samples && at === ordinal
      ? el("button", { type: "button", class: "plain", text, "aria-label": `sample ${text} of ${row[shard]}`, onclick: () => this.open(run < 0 ? null : row[run], { shard: row[shard], ordinal: +text }) })
      : text);
    this.answer.hidden = false;
    this.answer.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, columns.map((name, at) => el("th", { scope: "col", class: numeric[at] ? "" : "l", text: name })))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((text, at) => cell(text, at, row)))))));
  }
}
