/* What the dashboard is drawn with: numbers in words, nodes that are made once, lists, small plots.

   After a node is made only what differs is written, so a thousand backends cost little, and focus
   and selection stay. All text goes through textContent: names are whatever somebody has typed. */

// Text and numbers.

export const count = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
export const short = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });
export const number = (value) => (value == null ? "–" : count.format(value));
export const share = (value) => `${count.format(value * 100)} %`;
export const some = (n, one) => `${number(n)} ${one}${n === 1 ? "" : "s"}`;

export function span(seconds) {
  if (seconds < 1) return "less than 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function quick(seconds) {
  if (seconds == null) return "–";
  return seconds < 1 ? `${short.format(seconds * 1000)} ms` : `${short.format(seconds)} s`;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${short.format(bytes)}\u00a0${units[unit]}`;
}

// The document: make it once, then write only what differs.

export function make(tag, kind, ...children) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value == null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, is) {
  if (node.hidden === is) node.hidden = !is;
}

export function keyed(items, key) {
  /* Pairs for a List. Of several with one key, as of a listener that ends beside its heir, each has
     its own. */
  const seen = new Map();
  return items.map((item) => {
    const name = key(item);
    const before = seen.get(name) || 0;
    seen.set(name, before + 1);
    return [before ? `${name} #${before + 1}` : name, item];
  });
}

export class List {
  /* The children of one node, in an order, each known by its key. */
  constructor(node, build) {
    this.node = node;
    this.build = build;
    this.parts = new Map();
  }

  update(items) {
    const focused = document.activeElement;
    const gone = new Set(this.parts.keys());
    for (const [key] of items) gone.delete(key);
    for (const key of gone) {
      this.parts.get(key).node.remove();
      this.parts.delete(key);
    }
    let next = this.node.firstElementChild;
    for (const [key, item] of items) {
      let part = this.parts.get(key);
      if (!part) this.parts.set(key, (part = this.build(item)));
      if (part.node === next) next = next.nextElementSibling;
      else this.node.insertBefore(part.node, next);
      part.update(item);
    }
    // A node that is moved loses the focus.
    if (focused !== document.activeElement && focused.isConnected && this.node.contains(focused))
      focused.focus({ preventScroll: true });
  }
}

export class Some extends List {
  /* A list of which a few are shown, and all when somebody asks. The first are to be the ones that
     matter. */
  constructor(node, build, more, what, few) {
    super(node, build);
    Object.assign(this, { more, what, few, all: [], open: false });
    more.addEventListener("click", () => {
      this.open = !this.open;
      this.update(this.all);
    });
  }

  update(items) {
    this.all = items;
    super.update(this.open ? items : items.slice(0, this.few));
    show(this.more, items.length > this.few);
    say(this.more, this.open ? `Show ${this.few} ${this.what} only` : `Show all ${number(items.length)} ${this.what}`);
    mark(this.more, "aria-expanded", this.open);
  }
}

export class Spark {
  /* A small plot of what was, oldest first. lines: shares of the height at which one is drawn. */
  constructor(lines) {
    this.area = draw("path", { class: "area" });
    this.line = draw("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.node = draw("svg", {
      class: "spark", viewBox: "0 0 149 40", preserveAspectRatio: "none", role: "img",
    });
    for (const at of lines)
      this.node.append(draw("path", {
        class: "limit", d: `M0 ${40 - 40 * at}H149`, "vector-effect": "non-scaling-stroke",
      }));
    this.node.append(this.area, this.line);
  }

  update(values, top, label) {
    const points = values.map((value, at) => {
      const height = Math.min(1, Math.max(0, value / top));
      return `${149 - (values.length - 1 - at)} ${(39 - 38 * height).toFixed(1)}`;
    });
    const path = points.length > 1 ? `M${points.join("L")}` : "";
    mark(this.line, "d", path);
    mark(this.area, "d", path && `${path}L149 40L${150 - points.length} 40Z`);
    mark(this.node, "aria-label", label);
  }
}

export function badge(node, kind, text) {
  const known = { ok: "✓", note: "◐", warn: "▲", bad: "✕", off: "○" };
  mark(node, "data-kind", kind);
  mark(node, "data-sign", known[kind]);
  say(node, text);
}

export function widen(node, part) {
  /* part: of its whole, 0 to 1. By the object model: a style in the document is not allowed here. */
  const width = `${Number((100 * Math.min(1, part || 0)).toFixed(2))}%`; // as it is read back
  if (node.style.width !== width) node.style.width = width;
}

export function cell(tag, role, kind, ...children) {
  // The roles are said again, for a table that is laid out as blocks loses its own.
  const node = make(tag, kind, ...children);
  node.setAttribute("role", role);
  return node;
}

// What is looked for, in lower case.

export const search = { text: "" };
export const has = (...texts) =>
  texts.some((text) => text && String(text).toLowerCase().includes(search.text));
