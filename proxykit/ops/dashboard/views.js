/* The three kinds of things that the dashboard shows: port budgets, listeners, clusters. */

import {
  Some, Spark, badge, cell, has, keyed, make, mark, number, quick, say, search, share, short, show, size, some,
  span, widen,
} from "./draw.js";

/* How many are shown before somebody asks for all. */
export const FEW = { budgets: 12, listeners: 24, clusters: 24, backends: 20 };

// Port budgets.

export const USES = [
  ["active", "active"], ["idle", "idle"], ["reserved", "connecting"], ["time_wait", "TIME_WAIT"],
  ["foreign", "other processes"], ["denied", "denied"], ["free", "free"], ["headroom", "headroom"],
];
export const LEVELS = {
  ok: ["ok", "ok"], half: ["note", "half used"], low: ["warn", "low"], empty: ["bad", "none left"],
};
const scarcity = (budget) => ["ok", "half", "low", "empty"].indexOf(level(budget));
export const way = (budget) => `${budget.source} → ${budget.destination || "anywhere"}`;

export function level(budget) {
  return budget.free <= 0 ? "empty" : budget.level;
}

export function forecast(budget) {
  if (budget.free <= 0 || budget.forecast_seconds === 0) return "no port is left";
  if (budget.forecast_seconds == null) return "no shortage in sight";
  return `runs out in ${span(budget.forecast_seconds)}`;
}

export function byScarcity(a, b) {
  const used = (each) => Math.floor((10 * (each.size - each.free)) / each.size);
  return (
    scarcity(b) - scarcity(a) ||
    (a.forecast_seconds ?? Infinity) - (b.forecast_seconds ?? Infinity) || // both may be Infinity
    used(b) - used(a) ||
    way(a).localeCompare(way(b), "en", { numeric: true })
  );
}

export function makeBudget() {
  const title = make("h3");
  const word = make("span", "badge");
  const free = make("b");
  const of = make("span");
  const ahead = make("span", "when");
  const bar = make("div", "bar");
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-valuemin", "0");
  const figures = make("dl", "figures");
  const parts = USES.map(([key, name]) => {
    const segment = make("span", `use ${key}`);
    const value = make("dd");
    const figure = make("div", null, make("dt", null, make("i", `use ${key}`), name), value);
    bar.append(segment);
    figures.append(figure);
    return { key, segment, value, figure };
  });
  const spark = new Spark([0.5, 0.9]);
  const trend = make("p", "trend");
  const node = make("li", "card budget", make("div", "head", title, word),
    make("p", "ahead", make("span", null, free, of), ahead), bar, figures,
    make("div", "history", spark.node, trend));

  function update(budget) {
    const kind = level(budget);
    const [style, text] = LEVELS[kind] || ["warn", kind];
    mark(node, "data-kind", style);
    say(title, way(budget));
    badge(word, style, text);
    say(free, number(budget.free));
    say(of, ` of ${number(budget.size)} free`);
    say(ahead, forecast(budget));
    mark(node, "data-soon", budget.forecast_seconds == null ? null : "");
    // A port that rests and can be had again is counted twice; a bar has no room for that.
    const sizes = { ...budget };
    const others = USES.reduce((sum, [key]) => sum + (key === "time_wait" ? 0 : budget[key] || 0), 0);
    sizes.time_wait = Math.max(0, Math.min(budget.time_wait, budget.size - others));
    const whole = Math.max(budget.size, others + sizes.time_wait);
    const said = [];
    for (const { key, segment, value, figure } of parts) {
      const ports = budget[key] || 0;
      widen(segment, sizes[key] / whole);
      show(segment, sizes[key] > 0);
      show(figure, ports > 0 || key === "free" || key === "active");
      say(value, number(ports));
      if (ports) said.push(`${number(ports)} ${figure.firstChild.textContent}`);
    }
    mark(bar, "aria-label", `Ports from ${way(budget)} that are taken`);
    mark(bar, "aria-valuemax", budget.size);
    mark(bar, "aria-valuenow", budget.size - budget.free);
    mark(bar, "aria-valuetext", `of ${number(budget.size)} ports: ${said.join(", ")}`);
    const history = budget.history || [];
    const now = share(history.length ? history[history.length - 1] : 0);
    say(trend, history.length > 1 ? `${now} used` : "");
    spark.update(history, 1, `Share used in the last ${span(2 * history.length)}: now ${now}, at most ${
      share(Math.max(0, ...history))}`);
  }
  return { node, update };
}

// Listeners.

export function makeListener() {
  const title = make("h3");
  const word = make("span", "badge");
  const where = make("p", "address");
  const bar = make("div", "bar thin");
  const used = make("span", "use active");
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-valuemin", "0");
  bar.append(used);
  const held = make("p");
  const traffic = make("p", "small");
  const trouble = make("p", "small why");
  const spark = new Spark([]);
  const rate = make("p", "trend");
  const node = make("li", "card", make("div", "head", title, word), where, held, bar,
    make("div", "history", spark.node, rate), traffic, trouble);

  function update(listener) {
    const { connections, draining, max_connections: limit, paused, traffic: done = {} } = listener;
    say(title, listener.name);
    say(where, listener.address || (draining ? "closed" : "takes over from other listeners"));
    if (draining) badge(word, "note", "draining");
    else badge(word, paused ? "warn" : "ok", paused ? "paused" : "accepting");
    say(held, `${number(connections)}${limit ? ` of ${number(limit)}` : ""} connections`);
    widen(used, limit ? connections / limit : 0);
    mark(bar, "aria-label", `Connections of ${listener.name}`);
    mark(bar, "aria-valuemax", limit || connections);
    mark(bar, "aria-valuenow", connections);
    const history = listener.history || [];
    const most = Math.max(1, ...history);
    const what = done.requests == null ? "new" : "requests";
    const now = history.length ? history[history.length - 1] : 0;
    say(rate, `${short.format(now)} ${what}/s`);
    spark.update(history, most, `${what} per second in the last ${span(2 * history.length)}: now ${
      short.format(now)}, at most ${short.format(most)}`);
    const [up, down] = listener.rates || [0, 0];
    say(traffic, done.bytes_up == null ? "" : `in ${size(up)}/s, out ${size(down)}/s (so far ${
      size(done.bytes_up)} and ${size(done.bytes_down)})`);
    say(trouble, [paused, ...troubles(done)].filter(Boolean).join("; "));
  }
  return { node, update };
}

function troubles(done) {
  const sum = (each) => Object.values(each || {}).reduce((a, b) => a + b, 0);
  const refused = typeof done.refused === "number" ? done.refused : sum(done.refused);
  const errors = (done.statuses || {})["5xx"] || 0;
  return [
    refused ? `${number(refused)} refused` : "",
    errors ? `${number(errors)} answered with 5xx` : "",
    sum(done.failed) ? `${number(sum(done.failed))} failed` : "",
  ];
}

// Clusters and their backends.

function condition(backend) {
  /* Its badge: the kind and the word. What an operator said comes before what was found out. */
  if (backend.state === "removed") return ["off", "removed"];
  if (backend.state === "down") return ["off", "taken down"];
  if (backend.state === "drain") return ["note", "draining"];
  if (backend.ejected_seconds != null) return ["bad", `ejected, ${span(backend.ejected_seconds)} left`];
  if (backend.health === "down") return ["bad", "unhealthy"];
  if (backend.full) return ["warn", "full"];
  if (backend.share != null && backend.share < 1) return ["note", `starting, ${share(backend.share)}`];
  return ["ok", backend.health === "up" ? "up, healthy" : "up"];
}

export const takes = (backend) =>
  backend.state === "up" && backend.health !== "down" && backend.ejected_seconds == null;
const isBad = (backend) => backend.state === "up" && !takes(backend);

const COLUMNS = [
  ["Latency", (b) => quick(b.latency_seconds)], ["In flight", (b) => number(b.in_flight)],
  ["Connections", (b) => number(b.connections)],
  ["Weight", (b) => (b.share < 1 ? `${share(b.share)} of ${b.weight}` : number(b.weight))],
  ["Served", (b) => number(b.served)], ["Failures", (b) => number(b.failures)],
];

function makeBackend(cluster) {
  const name = make("span", "name");
  const extra = make("span", "small");
  const word = make("span", "badge");
  const why = make("span", "small why");
  const figures = COLUMNS.map(([title, text]) => {
    const node = cell("td", "cell", "figure");
    node.dataset.title = title;
    return { node, text };
  });
  const first = make("button"), second = make("button");
  const node = cell("tr", "row", null, cell("th", "rowheader", "who", name, extra),
    cell("td", "cell", "how", word, why), ...figures.map((each) => each.node),
    cell("td", "cell", "buttons", first, second));
  node.firstChild.setAttribute("scope", "row");
  let shown;
  for (const button of [first, second]) {
    button.type = "button";
    button.addEventListener("click", () => {
      const detail = { cluster, backend: shown, to: button.dataset.to };
      button.dispatchEvent(new CustomEvent("ask", { bubbles: true, detail }));
    });
  }

  function update(backend) {
    shown = backend;
    const [kind, text] = condition(backend);
    say(name, backend.address);
    say(extra, [backend.name, backend.backup ? "backup" : ""].filter(Boolean).join(", "));
    mark(node, "data-kind", kind);
    badge(word, kind, text);
    const reasons = [backend.why, backend.full];
    if (kind === "note" && backend.health === "down") reasons.unshift("unhealthy");
    if (backend.ejections) reasons.push(`ejected ${backend.ejections === 1 ? "once" :
      `${backend.ejections} times`} so far`);
    say(why, reasons.filter(Boolean).join("; "));
    for (const each of figures) say(each.node, each.text(backend));
    label(first, backend, backend.state === "up" ? "drain" : "up");
    label(second, backend, backend.state === "down" ? "drain" : "down");
  }

  function label(button, backend, to) {
    const verb = { drain: "Drain", up: "Bring up", down: "Take down" }[to];
    say(button, verb);
    mark(button, "data-to", to);
    mark(button, "aria-label", `${verb} ${backend.address} of ${cluster}`);
    show(button, backend.state !== "removed");
  }
  return { node, update };
}

export function makeCluster(first) {
  const title = make("h3", null, first.name);
  const word = make("span", "badge");
  const summary = make("p", "sum");
  const body = cell("tbody", "rowgroup");
  const head = cell("tr", "row", null, ...["Backend", "State", ...COLUMNS.map(([name]) => name),
    "Change"].map((name) => cell("th", "columnheader", null, name)));
  const table = cell("table", "table", "backends", cell("thead", "rowgroup", null, head), body);
  table.setAttribute("aria-label", `Backends of ${first.name}`);
  const more = make("button", "more");
  more.type = "button";
  const node = make("section", "card cluster", make("div", "head", title, word), summary, table, more);
  const list = new Some(body, () => makeBackend(first.name), more, `backends of ${first.name}`,
    FEW.backends);

  function update(cluster) {
    const { backends, pool = {}, queue = {}, retries = {} } = cluster;
    const well = backends.filter(takes).length;
    const kind = cluster.panic || !well ? "bad" : backends.some(isBad) ? "warn" : "ok";
    badge(word, kind, cluster.panic ? "panic: all are used" : `${number(well)} of ${
      some(backends.length, "backend")} in use`);
    const asked = (pool.reused || 0) + (pool.opened || 0);
    say(summary, [
      cluster.balance,
      `${number(backends.reduce((sum, each) => sum + each.in_flight, 0))} in flight`,
      queue.waiting || queue.timed_out || queue.refused ? `queue ${number(queue.waiting)} of ${
        number(queue.limit)} (${number(queue.timed_out)} timed out, ${number(queue.refused)} refused)` : "queue empty",
      asked ? `pool: ${share(pool.reused / asked)} reused, ${number(pool.idle)} idle` : "",
      retries.retried || retries.refused ? `${number(retries.retried)} sent again, ${
        number(retries.refused)} retries refused` : "",
    ].filter(Boolean).join(" · "));
    const found = matching(cluster);
    // What is wrong comes first; else as configured.
    const sorted = [...found.filter(isBad), ...found.filter((each) => !isBad(each))];
    list.update(keyed(sorted, (each) => each.address));
  }
  return { node, update };
}

export function matching(cluster) {
  /* Those of its backends that are looked for; all of them if it is the cluster. */
  if (!search.text || has(cluster.name)) return cluster.backends;
  return cluster.backends.filter((each) => has(each.address, each.name, each.why, ...condition(each)));
}
