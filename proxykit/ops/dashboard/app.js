/* The dashboard: shows what /api/events tells, and asks for changes of a backend's state.

   draw.js has what it is drawn with, views.js what a budget, a listener and a cluster look like. */

import { Some, has, keyed, number, quick, say, search, show, some, span } from "./draw.js";
import {
  FEW, LEVELS, byScarcity, forecast, level, makeBudget, makeCluster, makeListener, matching, takes, way,
} from "./views.js";

const SILENCE = 5000; // ms without an event, after which the figures are called old
const GIVE_UP = 15000; // ms ... after which the stream is opened again
const PATIENCE = 10000; // ms for a change of state
const $ = (id) => document.getElementById(id);
/* As it was asked for, less a name and password in it, which a browser lets no script repeat. */
const here = new URL(location.pathname, location.origin);

/* The last event and when it came (ms); what was said before of levels and of bytes. */
let last = null;
let at = 0;
let levels = new Map();
let bytes = new Map();

const lists = Object.fromEntries(
  Object.entries({ budgets: makeBudget, listeners: makeListener, clusters: makeCluster }).map(
    ([name, build]) => {
      const what = name === "budgets" ? "port budgets" : name;
      return [name, new Some($(name), build, $(`${name}-more`), what, FEW[name])];
    },
  ),
);

// The page.

function render() {
  if (!last) return;
  const { budgets, listeners, clusters } = last;
  search.text = $("filter").value.trim().toLowerCase();
  say($("version"), last.version || "");
  say($("uptime"), span(last.uptime));
  say($("lag"), quick(last.loop_lag_seconds));
  say($("clients"), number(listeners.reduce((sum, each) => sum + each.connections, 0)));
  show($("draining"), last.draining);

  const scarce = budgets.filter((each) => has(way(each), ...LEVELS[level(each)] || [])).sort(byScarcity);
  lists.budgets.update(keyed(scarce, (each) => `${each.protocol} ${way(each)}`));
  show($("budgets-none"), !budgets.length);
  const at = (kind) => budgets.filter((each) => level(each) === kind).length;
  const sums = ["empty", "low", "half", "ok"].map((kind) => [at(kind), LEVELS[kind][1]]);
  say($("budgets-sum"), sums.filter(([n]) => n).map(([n, text]) => `${number(n)} ${text}`).join(", "));
  const low = sums[0][0] + sums[1][0];
  const title = low ? `\u25b2 ${number(low)} low: proxykit` : "proxykit";
  if (document.title !== title) document.title = title;

  const heard = listeners.filter((each) => has(each.name, each.address, each.paused));
  lists.listeners.update(keyed(heard, (each) => `${each.name} ${each.address}`));
  say($("listeners-sum"), some(listeners.length, "listener"));

  const found = clusters.filter((each) => has(each.name) || matching(each).length);
  lists.clusters.update(keyed(found, (each) => each.name));
  const backends = (of) => some(of.reduce((n, each) => n + matching(each).length, 0), "backend");
  say($("clusters-sum"), `${some(clusters.length, "cluster")}, ${backends(found)}`);
  say($("filter-found"), !search.text ? "" : [some(scarce.length, "budget"),
    some(heard.length, "listener"), backends(found)].join(", "));
}

function rates(listeners, time) {
  /* Bytes per second, in and out, since the last event. */
  const before = bytes;
  bytes = new Map();
  for (const [key, listener] of keyed(listeners, (each) => `${each.name} ${each.address}`)) {
    const { bytes_up: up = 0, bytes_down: down = 0 } = listener.traffic || {};
    const former = before.get(key);
    bytes.set(key, { time, up, down });
    if (!former || time <= former.time) continue;
    const per = (now, then) => Math.max(0, now - then) / (time - former.time);
    listener.rates = [per(up, former.up), per(down, former.down)];
  }
}

function announce(budgets) {
  /* For who does not see the bars: a level that has changed. The first look is no news. */
  const before = levels;
  levels = new Map(budgets.map((each) => [way(each), level(each)]));
  for (const budget of budgets) {
    const [former, now] = [before.get(way(budget)), level(budget)];
    if (former && former !== now)
      say($("news"), `Ports from ${way(budget)}: ${LEVELS[now]?.[1]}, ${forecast(budget)}`);
  }
}

// The stream.

let stream = null;

function connect() {
  if (stream) stream.close();
  at = performance.now();
  stream = new EventSource(new URL("api/events", here));
  stream.addEventListener("state", (event) => {
    const first = last;
    last = JSON.parse(event.data);
    at = performance.now();
    // After an upgrade this page is the former one's.
    if (first && first.version !== last.version && !$("ask").open) location.reload();
    rates(last.listeners, last.time);
    announce(last.budgets);
    linked();
    render();
  });
  stream.addEventListener("error", linked);
}

function linked() {
  /* Whether what is shown is so now. A browser tries again by itself, unless it was refused. */
  const silent = performance.now() - at;
  const is = stream.readyState === EventSource.OPEN && last !== null && silent < SILENCE;
  const link = $("link");
  const word = is ? "live" : "not connected";
  link.dataset.link = is ? "live" : "away";
  document.body.classList.toggle("old", !is && last !== null);
  say($("link-word"), word);
  const when = last && new Date(last.time * 1000).toLocaleTimeString();
  say($("updated"), last ? when : "");
  say($("away"), is ? "" : last ? `Not connected to proxykit. What you see is from ${when}; trying again.`
    : "Not connected to proxykit yet; trying again.");
  $("away").classList.toggle("shown", !is);
}

setInterval(() => {
  linked();
  const silent = performance.now() - at;
  if (silent > GIVE_UP || (stream.readyState === EventSource.CLOSED && silent > SILENCE)) connect();
}, 1000);

// Changes of a backend's state: asked first, then posted.

const ASKED = {
  drain: ["Drain", "It gets nothing new. What it carries goes on until it ends", "is draining"],
  up: ["Bring up", "It gets its share of what is new", "is up"],
  down: ["Take down", "It gets nothing new, and counts as dead. What it carries goes on until it ends",
    "is taken down"],
};
let asked = null;

document.addEventListener("ask", ({ detail }) => {
  asked = detail;
  const { cluster, backend, to } = detail;
  const [verb, text] = ASKED[to];
  const others = last.clusters.find((each) => each.name === cluster)?.backends.filter(
    (each) => each.address !== backend.address && takes(each)).length;
  say($("ask-title"), `${verb} ${backend.address}?`);
  say($("ask-text"), `Cluster ${cluster}. ${text} (${number(backend.in_flight)} in flight).`);
  say($("ask-warning"), to === "up" || others ? "" : "No other backend of this cluster takes anything: what comes will be refused.");
  say($("ask-yes"), verb);
  // Else what was answered the last time holds, also for Escape.
  $("ask").returnValue = "";
  $("ask").showModal();
});

$("ask").addEventListener("close", () => {
  const what = asked;
  asked = null;
  if (what && $("ask").returnValue === "yes") change(what);
});

async function change({ cluster, backend, to }) {
  const path = `api/clusters/${encodeURIComponent(cluster)}/backends/${encodeURIComponent(backend.address)}`;
  say($("said"), "");
  say($("failed"), "");
  try {
    const answer = await fetch(new URL(path, here), {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Proxykit": "write" },
      body: JSON.stringify({ state: to }),
      signal: AbortSignal.timeout(PATIENCE),
    });
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(body.error || `${answer.status} ${answer.statusText}`);
    say($("said"), `${backend.address} of ${cluster} ${ASKED[to][2]}.`);
    const backends = last.clusters.find((each) => each.name === cluster)?.backends || [];
    Object.assign(backends.find((each) => each.address === backend.address) || {}, body);
    render();
  } catch (error) {
    const why = error.name === "TimeoutError" ? `no answer within ${PATIENCE / 1000} s` : error.message;
    say($("failed"), `${ASKED[to][0]} ${backend.address} of ${cluster}: ${why}`);
  }
}

for (const id of ["said", "failed"]) {
  $(id).addEventListener("click", () => say($(id), ""));
  document.addEventListener("keydown", ({ key }) => key === "Escape" && say($(id), ""));
}
document.querySelector(".filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("input", render);
connect();
