// Elements, numbers as people read them, and requests. Text from data only ever becomes text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`on*`: listeners, `text`: its text) and children. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "text") node.textContent = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const count = (n) => n.toLocaleString("en-US");

/** 12,345,678 as 12.3M. */
export function short(n) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(n) >= size) return `${+(n / size).toPrecision(3)}${unit}`;
  }
  return `${+n.toPrecision(3)}`;
}

export const number = (x, digits = 4) => (x === null || x === undefined ? "–" : `${+x.toPrecision(digits)}`);

export function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  return `${share >= 99.95 || share === 0 ? share.toFixed(0) : share >= 9.95 ? share.toFixed(1) : share.toPrecision(2)} %`;
}

/** Round numbers between two, about so many. */
export function ticks(low, high, most = 6) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((x) => x * size).find((x) => x >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high * (1 + 1e-12) + 1e-12; at += 1) found.push(+(at * step).toPrecision(12));
  return found;
}

const token = () => decodeURIComponent(location.hash.slice(1));

/** The answer of that name; throws an Error whose message is a sentence. */
export async function ask(name, asked = {}) {
  let response;
  try {
    response = await fetch(`/api/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token()}` },
      body: JSON.stringify(asked),
    });
  } catch {
    throw new Error("rhostream view is not there any more: was it ended?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `error ${response.status}`);
  return answer;
}

/** The width that an element has inside, and its later ones. */
export function watchWidth(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(node.clientWidth);
    if (width && width !== last) {
      last = width;
      draw(width);
    }
  }).observe(node);
}
