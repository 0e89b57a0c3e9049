// A list of names with a bar a run: reasons, classes. A click takes a name into the selection, another one out of it.

import { count, el, percent } from "./dom.js";
import { card, sum } from "./histogram.js";

export class Bars {
  /** `members`: [{key, name, colour?}] of the data; `changed(keys)` when others were chosen, [] for all. */
  constructor({ name, title, note, sorts, looks, changed }) {
    Object.assign(this, { name, looks, changed, chosen: new Set(), lines: new Map(), data: null });
    const { node, body, says } = card(name, title, note);
    this.node = node;
    this.says = says;
    this.list = el("ul", { class: "bars", tabindex: "0", "aria-label": title });
    this.sort = el("select", { "aria-label": `order of ${title}`, onchange: () => this.draw() },
      Object.keys(sorts || {}).map((key) => el("option", { value: key, text: key })));
    this.sorts = sorts;
    if (sorts) node.querySelector("header").append(this.sort);
    body.append(this.list);
  }

  setChosen(keys) {
    this.chosen = new Set(keys);
    for (const [key, line] of this.lines) line.button.setAttribute("aria-pressed", this.chosen.has(key));
    this.list.classList.toggle("some", this.chosen.size > 0);
  }

  /** `members`: [{key, name, runs: [{reason: rows}]}] */
  update(members, runs, none) {
    this.data = { members, runs, none };
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { runs, none } = this.data;
    const members = this.data.members.map((member) => ({
      ...member,
      rows: sum(member.runs.map((counts) => sum(Object.values(counts)))),
      kept: sum(member.runs.map((counts) => counts.kept || 0)),
    }));
    if (this.sorts) members.sort(this.sorts[this.sort.value]);
    const most = Math.max(...members.flatMap((member) => member.runs.map((counts) => sum(Object.values(counts)))), 1);
    this.says.textContent = members.length ? none.note || "" : none.why;
    const nodes = members.map((member) => this.line(member, runs, most));
    for (const key of [...this.lines.keys()]) if (!members.some((member) => member.key === key)) this.lines.delete(key);
    if (nodes.length !== this.list.children.length || nodes.some((node, at) => node !== this.list.children[at])) this.list.replaceChildren(...nodes);
    this.setChosen(this.chosen);
  }

  line(member, runs, most) {
    let line = this.lines.get(member.key);
    if (!line || line.bars.length !== member.runs.length) {
      const text = { name: el("span", { class: "name" }), rows: el("span", { class: "rows" }), kept: el("span", { class: "share" }) };
      const bars = member.runs.map(() => el("span", { class: "bar" }));
      const button = el("button", { type: "button", "data-key": member.key, onclick: () => this.toggle(member.key) }, text.name, el("span", { class: "tracks" }, bars), text.rows, text.kept);
      line = { text, bars, button, node: el("li", {}, button) };
      this.lines.set(member.key, line);
    }
    line.text.name.textContent = member.name;
    line.button.title = member.title || member.name;
    line.text.rows.textContent = count(member.rows);
    line.text.kept.textContent = member.share ?? percent(member.kept, member.rows);
    line.bars.forEach((bar, at) => {
      const counts = member.runs[at];
      const parts = this.looks.reasons.filter((reason) => counts[reason.name]);
      while (bar.children.length < parts.length) bar.append(el("i"));
      while (bar.children.length > parts.length) bar.lastChild.remove();
      parts.forEach((reason, part) => {
        bar.children[part].style.width = `${(100 * counts[reason.name]) / most}%`;
        bar.children[part].style.background = reason.colour;
      });
    });
    return line.node;
  }

  toggle(key) {
    const keys = new Set(this.chosen);
    if (!keys.delete(key)) keys.add(key);
    this.setChosen(keys);
    this.changed([...keys]);
  }
}
