// The dashboard: requests the figures every two seconds and shows them.
//
// Names of models, keys and tags are untrusted, so they only become text nodes; the page's content security
// policy enforces that. Elements are created once and then updated in place, so that a selection, the focus
// and an open menu survive an update.

import { dollars, duration } from "./figures.js";

const EVERY = 2000; // milliseconds between two requests
const SLOWEST = 15000; // the most between two requests while the gateway does not respond
const TIMEOUT = 20000; // of one request: the sums of a large ledger take time
const OLD = 7000; // age from which figures are shown as out of date
const KEPT = "fastroute-admin-key";
const FEW = { budgets: 12, endpoints: 20, recent: 15 }; // rows that are shown at first

const find = (selector, within = document) => within.querySelector(selector);
const now = () => performance.now();

let key = sessionStorage.getItem(KEPT);
let figures = null; // the latest
let shownAt = 0; // when they arrived
let paused = false;
let failures = 0; // in a row
let timer = 0;
let running = null; // the current request
const whole = new Set(); // lists that are shown in full

// ---------------------------------------------------------------------------------------------- requests

async function look() {
  clearTimeout(timer);
  if (running || key === null || paused || document.hidden) return;
  const mine = (running = new AbortController());
  const timeout = setTimeout(() => mine.abort(), TIMEOUT);
  try {
    // "omit": otherwise the browser would show its own password dialog on a 401.
    const answer = await fetch("admin/stats.json?hours=" + find("#range").value, {
      headers: { Authorization: "Bearer " + key }, credentials: "omit", cache: "no-store", signal: mine.signal,
    });
    const value = await answer.json().catch(() => null);
    if (running !== mine) return;
    if (answer.ok && value) {
      figures = value;
      shownAt = now();
      failures = 0;
      sessionStorage.setItem(KEPT, key);
      trouble("");
      show();
    } else {
      const why = value?.error?.message ?? "the response is not valid JSON";
      if ([401, 403].includes(answer.status) || (answer.status === 429 && !figures)) return ask(sentence(why));
      failed(`The gateway responded with ${answer.status}: ${why}.`);
    }
  } catch {
    if (running === mine) failed("The gateway cannot be reached.");
  } finally {
    clearTimeout(timeout);
    if (running === mine) running = null;
  }
  plan(failures ? Math.min(EVERY * 2 ** failures, SLOWEST) : EVERY);
}

function plan(wait) {
  clearTimeout(timer);
  if (key !== null && !paused && !document.hidden) timer = setTimeout(look, wait);
  tell();
}

function failed(why) {
  failures += 1;
  trouble(why + (figures ? " The figures shown are the latest received. Retrying." : " Retrying."));
}

function trouble(text) {
  put(find("#trouble"), text);
  find("#trouble").hidden = !text;
}

/** Returns to the form and shows the reason. */
function ask(why) {
  key = figures = null;
  running?.abort();
  running = null;
  clearTimeout(timer);
  sessionStorage.removeItem(KEPT);
  trouble("");
  put(find("#refused"), why);
  show();
  find("#key").focus();
}

find("#login").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = find("#key").value.trim();
  if (!/^[!-~]+$/.test(given)) return put(find("#refused"), "A key contains only printable ASCII characters and no spaces.");
  key = given;
  find("#key").value = "";
  put(find("#refused"), "");
  paused = false;
  show();
  look();
});
find("#forget").addEventListener("click", () => ask(""));
find("#pause").addEventListener("click", () => {
  paused = !paused;
  find("#pause").setAttribute("aria-pressed", paused);
  put(find("#pause"), paused ? "Resume" : "Pause");
  paused ? plan(0) : look();
});
find("#range").addEventListener("change", () => {
  running?.abort();
  running = null;
  chosen.latency = chosen.traffic = null;
  look();
});
document.addEventListener("visibilitychange", () => (document.hidden ? plan(0) : look()));
window.addEventListener("online", look);
setInterval(tell, 1000);

/** Shows how old the figures are. Screen readers announce only changes of the state, not every second. */
function tell() {
  const state = find("#state");
  const age = now() - shownAt;
  const [is, text] =
    key === null ? ["none", ""]
    : failures ? ["lost", figures ? "Out of date" : "Unreachable"]
    : paused ? ["paused", "Paused"]
    : !figures ? ["none", "Loading…"]
    : age > OLD ? ["old", "Out of date"]
    : ["live", "Live"];
  state.dataset.is = is;
  put(find("span", state), text);
  find("#board").classList.toggle("old", is === "lost" || is === "old");
  const at = figures && new Date(figures.time * 1000);
  put(find("#age"), at ? (is === "live" ? `as of ${clock(at, true)}` : `as of ${clock(at, true)}, ${duration(Math.round(age / 1000))} ago`) : "");
  document.title = (is === "lost" || is === "old" ? "(out of date) " : "") + "fastroute";
}

// -------------------------------------------------------------------------------------------- words

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + ".";
const count = (n) => (n < 100000 ? n.toLocaleString("en") : new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(n));
const percent = (part, all) => (all ? `${+((100 * part) / all).toPrecision(part / all < 0.1 ? 2 : 3)} %` : "–");
const hours = (n) => (n === 1 ? "last hour" : n < 48 ? `last ${n} hours` : `last ${n / 24} days`);
const ranged = () => hours(figures.range_s / 3600);
const HOUR = 3600;

/** A point of the charts: with the day, where the range has more than one. */
const moment = (date) => (figures.range_s > 24 * HOUR ? date.toLocaleDateString("en-GB", { weekday: "short" }) + " " : "") + clock(date);
const clock = (date, precise) =>
  date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...(precise && { second: "2-digit" }) });

// ----------------------------------------------------------------------------------------- elements

function make(name, className = "", ...inside) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...inside);
  return element;
}

/** Sets a text if it differs. */
function put(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

function as(element, className) {
  if (element.className !== className) element.className = className;
}

/** Gives a parent one child for each value: `maker` creates missing children, `change` updates each. */
function each(parent, values, maker, change) {
  while (parent.children.length > values.length) parent.lastElementChild.remove();
  while (parent.children.length < values.length) parent.append(maker());
  values.forEach((value, place) => change(parent.children[place], value));
}

/**
 * A table whose rows are cards on narrow screens. The roles are explicit, because a table with another layout
 * loses its implicit ones.
 *
 * A column is a title, a kind ("text" or ""), and a function from a row to a text or {text, tag, share, bad}.
 */
function fill(table, title, note, columns, rows) {
  if (!table.caption) {
    table.setAttribute("role", "table");
    const caption = table.createCaption();
    caption.append(title + " ", make("small"));
    const head = table.createTHead();
    head.setAttribute("role", "rowgroup");
    const line = head.insertRow();
    line.setAttribute("role", "row");
    for (const [name, kind] of columns) {
      const cell = make("th", kind, name);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      line.append(cell);
    }
    table.createTBody().setAttribute("role", "rowgroup");
  }
  put(find("small", table.caption), note);
  const row = () => {
    const line = make("tr");
    line.setAttribute("role", "row");
    columns.forEach(([name, kind], place) => {
      const cell = make(place ? "td" : "th", kind);
      cell.setAttribute("role", place ? "cell" : "rowheader");
      if (place) cell.dataset.label = name;
      else cell.scope = "row";
      cell.append(make("span"));
      line.append(cell);
    });
    return line;
  };
  each(table.tBodies[0], rows, row, (line, value) =>
    columns.forEach(([, kind, of], place) => {
      const cell = line.children[place];
      const found = of(value);
      const { text, tag, share, bad } = typeof found === "object" && found ? found : { text: found ?? "–" };
      put(cell.firstChild, text);
      as(cell.firstChild, tag === undefined ? "" : `tag ${tag}`);
      as(cell, [kind, bad && "bad", share !== undefined && "share"].filter(Boolean).join(" "));
      if (share !== undefined) cell.style.setProperty("--of", `${100 * share}%`);
    }));
}

/** The first entries of a list, or all of them if the user chose so; updates the button. */
function some(name, all) {
  const button = find(`#${name} > .more`);
  const few = FEW[name];
  button.hidden = all.length <= few;
  put(button, whole.has(name) ? `Show ${few} only` : `Show all ${all.length}`);
  return whole.has(name) ? all : all.slice(0, few);
}

for (const name of Object.keys(FEW)) {
  find(`#${name} > .more`).addEventListener("click", () => {
    whole.has(name) ? whole.delete(name) : whole.add(name);
    show();
  });
}
find("#endpoints input").addEventListener("input", () => show());

const none = (name, empty) => find(`#${name}`).classList.toggle("none", empty);

// ------------------------------------------------------------------------------------------ showing

function show() {
  find("#login").hidden = key !== null;
  find("#actions").hidden = key === null;
  find("#board").hidden = !figures;
  if (figures) {
    showTiles(figures);
    showBudgets(figures.budgets, figures.budgets_left_out, figures.crowded);
    showCharts(figures);
    showGroups("models", "Models", "model", figures.models);
    showGroups("classes", "Classes of requests", "class", figures.classes);
    showEndpoints(figures.endpoints);
    showRecent(figures.recent);
    showFoot(figures);
  }
  tell();
}

// Why calls were refused without being sent to a provider.
const REFUSED = {
  key_limit: "a key's limit", budget: "a budget", endpoint_limit: "endpoints at their limits, or a full queue",
  no_endpoint: "no endpoint available", unauthorized: "wrong keys", invalid: "invalid requests",
};

function showTiles({ totals: { range, hour }, endpoints, queued, cache, refused }) {
  const working = endpoints.filter((at) => at.available).length;
  const busy = endpoints.reduce((sum, at) => sum + at.in_flight, 0);
  const failing = range.attempts ? range.failures / range.attempts : 0;
  const span = ranged();
  const longer = figures.range_s > HOUR;
  const reasons = Object.entries(refused).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  const turned = reasons.reduce((sum, [, n]) => sum + n, 0);
  const looked = cache ? cache.hits + cache.misses : 0;
  const tiles = [
    [`Spent, ${span}`, dollars(range.cost_nano), range.unknown_cost ? `and ${count(range.unknown_cost)} requests with an unknown price` : longer ? `last hour ${dollars(hour.cost_nano)}` : `${count(range.prompt_tokens + range.completion_tokens)} tokens`],
    [`Calls, ${span}`, count(range.calls), longer ? `last hour ${count(hour.calls)}` : `${count(range.attempts)} requests to providers`],
    [`Failed, ${span}`, percent(range.failures, range.attempts), `${count(range.failures)} of ${count(range.attempts)} sent`, failing >= 0.2 ? "bad" : failing >= 0.05 ? "warn" : ""],
    [`Refused, ${span}`, count(turned), reasons.map(([reason, n]) => `${REFUSED[reason] ?? reason}: ${count(n)}`).join("; ") || "calls not sent to a provider", turned && turned >= 0.05 * (turned + range.calls) ? "warn" : ""],
    [`Median, ${span}`, duration(range.p50_s), `p95 ${duration(range.p95_s)}`],
    ["In flight", count(busy), queued ? `${count(queued)} waiting for a limit` : "none waiting", queued ? "warn" : ""],
    ["Endpoints", `${working} / ${endpoints.length}`, working === endpoints.length ? "all available" : `${endpoints.length - working} open or blocked`, working ? (working < endpoints.length ? "warn" : "") : "bad"],
    ...(cache ? [["From the cache", percent(cache.hits, looked), `${count(cache.hits)} of ${count(looked)} calls`]] : []),
  ];
  each(find("#tiles"), tiles, () => make("div", "", make("dt"), make("dd"), make("dd")), (tile, [name, figure, more, mark]) => {
    const [dt, dd, rest] = tile.children;
    put(dt, name);
    put(dd, figure);
    put(rest, more);
    as(dd, mark ?? "");
  });
}

function showBudgets(budgets, left, crowded) {
  none("budgets", !budgets.length);
  const shown = some("budgets", budgets);
  const item = () => make("li", "", make("span"), make("span"), make("div", "bar", make("i"), make("i")), make("span", "quiet"));
  each(find("#budgets > ul"), shown, item, (line, at) => {
    const [name, figure, bar, rest] = line.children;
    const known = at.spent_nano !== null;
    const used = known && at.limit_nano ? at.spent_nano / at.limit_nano : 1;
    const held = known && at.limit_nano ? at.reserved_nano / at.limit_nano : 0;
    put(name, at.value === null || at.budget.startsWith("key ") ? at.budget : `${at.budget}: ${at.value || "(untagged)"}`);
    put(figure, `${known ? dollars(at.spent_nano) : "unknown"} of ${dollars(at.limit_nano)}`);
    as(bar, used >= 1 ? "bar bad" : used >= 0.8 ? "bar warn" : "bar");
    bar.children[0].style.width = `${100 * Math.min(used, 1)}%`;
    bar.children[1].style.width = `${100 * Math.max(0, Math.min(held, 1 - used))}%`;
    const span = at.ends === null ? at.window : at.window.length > 7 ? "day" : "month"; // YYYY-MM-DD, YYYY-MM
    const parts = [known ? `${percent(at.spent_nano, at.limit_nano)} used` : "the ledger cannot be read, so calls are refused"];
    if (at.reserved_nano) parts.push(`${dollars(at.reserved_nano)} reserved`);
    parts.push(at.ends === null ? span : `${span} ends in ${duration(Math.max(0, at.ends - figures.time))}`);
    put(rest, parts.join(", "));
  });
  if (crowded) find("#budgets > ul").append(make("li", "problem", crowded));
  if (left) find("#budgets > ul").append(make("li", "quiet", `and ${count(left)} more, less used`));
}

function showGroups(name, title, field, groups) {
  none(name, !groups.length);
  const sorted = [...groups].sort((a, b) => b.cost_nano - a.cost_nano || b.calls - a.calls);
  const calls = sorted.reduce((sum, group) => sum + group.calls, 0);
  const cost = sorted.reduce((sum, group) => sum + group.cost_nano, 0);
  fill(find(`#${name} > table`), title, ranged(), [
    [field === "class" ? "Class" : "Model", "text", (group) => group[field] ?? (field === "class" ? "(not classified)" : "(none)")],
    ["Calls", "", (group) => ({ text: count(group.calls), share: calls ? group.calls / calls : 0 })],
    ["Cost", "", (group) => ({ text: dollars(group.cost_nano) + (group.unknown_cost ? " + ?" : ""), share: cost ? group.cost_nano / cost : 0 })],
    ["Tokens", "", (group) => count(group.prompt_tokens + group.completion_tokens)],
    ["Failed", "", (group) => ({ text: percent(group.failures, group.attempts), bad: group.failures >= 0.2 * group.attempts && group.failures > 0 })],
    ["p50", "", (group) => duration(group.p50_s)],
    ["p95", "", (group) => duration(group.p95_s)],
  ], sorted);
}

const TROUBLE = { open: 3, "half-open": 1, closed: 0 };
const worse = (at) => TROUBLE[at.state] + (at.blocked_s ? 2 : 0);

function standing(at) {
  if (at.state === "open") return { text: `open, ${at.reopens_in_s > 0 ? duration(at.reopens_in_s) : "due"}`, tag: "bad" };
  if (at.state === "half-open") return { text: "half-open", tag: "warn" };
  if (at.blocked_s) return { text: `blocked, ${duration(at.blocked_s)}: ${at.block_reason}`, tag: "warn" };
  return { text: "closed", tag: "good" };
}

/** The permits available now and the rate per minute. The burst may be less than a minute's permits. */
const left = (holds, perMinute) =>
  perMinute === null ? "no limit" : { text: `${count(Math.max(0, holds))} (${count(perMinute)}/min)`, bad: holds <= 0 };

function showEndpoints(endpoints) {
  const wanted = find("#endpoints input").value.trim().toLowerCase();
  const found = endpoints
    .filter((at) => !wanted || [at.name, at.model, at.provider, at.state, at.blocked_s ? "blocked" : ""].some((text) => text.toLowerCase().includes(wanted)))
    .map((at, place) => [worse(at), place, at])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .map(([, , at]) => at);
  none("endpoints", !found.length);
  find("#endpoints > .tools").hidden = endpoints.length <= FEW.endpoints;
  const open = endpoints.filter((at) => at.state === "open").length;
  const half = endpoints.filter((at) => at.state === "half-open").length;
  const blocked = endpoints.filter((at) => at.blocked_s).length;
  const parts = [open && `${open} open`, half && `${half} half-open`, blocked && `${blocked} blocked`].filter(Boolean);
  fill(find("#endpoints > table"), "Endpoints", `${endpoints.length}; ${parts.join(", ") || "all breakers closed"}`, [
    ["Endpoint", "text", (at) => at.name],
    ["Breaker", "text", standing],
    ["In flight", "", (at) => (at.max_in_flight ? `${at.in_flight} of ${at.max_in_flight}` : at.in_flight)],
    ["Requests left", "", (at) => left(at.available_requests, at.rpm)],
    ["Tokens left", "", (at) => left(at.available_tokens, at.tpm)],
    ["Succeeded", "", (at) => count(at.succeeded)],
    ["Failed", "", (at) => ({ text: count(at.failed), bad: at.error_rate >= 0.2 })],
    ["p50", "", (at) => duration(at.p50_s)],
    ["p95", "", (at) => duration(at.p95_s)],
    ["p99", "", (at) => duration(at.p99_s)],
  ], some("endpoints", found));
}

const OUTCOMES = { ok: ["ok", "good"], failed: ["failed", "bad"], client_cancelled: ["cancelled", "warn"], hedge_lost: ["hedge lost", ""] };

function outcome(call) {
  const [text, tag] = OUTCOMES[call.outcome] ?? [call.outcome, ""];
  return { text: call.error ? (call.status ? `${call.status} ` : "") + call.error : text, tag };
}

function showRecent(recent) {
  none("recent", !recent.length);
  fill(find("#recent > table"), "Latest requests", "newest first; prompts are not stored", [
    ["Time", "text", (call) => clock(new Date(call.time * 1000), true)],
    ["Outcome", "text", outcome],
    ["Model", "text", (call) => call.model],
    ["Endpoint", "text", (call) => call.endpoint],
    ["Class", "text", (call) => (typeof call.score !== "number" ? call.class : `${call.class} (${call.score.toFixed(2)})`)],
    ["Key", "text", (call) => call.key],
    ["Tokens in + out", "", (call) => `${count(call.prompt_tokens)} + ${count(call.completion_tokens)}`],
    ["Cost", "", (call) => (call.cost_nano === null ? "unknown" : dollars(call.cost_nano))],
    ["Latency", "", (call) => duration(call.latency_s)],
    ["First token", "", (call) => duration(call.ttft_s)],
  ], some("recent", recent));
}

function showFoot({ ledger, state, version, latency_complete: complete }) {
  const lines = [
    ledger.ok
      ? `Ledger: ok${ledger.waiting ? `, ${count(ledger.waiting)} entries waiting` : ""}.`
      : `Ledger: not ok: ${ledger.reason}; ${count(ledger.waiting)} entries waiting${ledger.lost ? `, ${count(ledger.lost)} lost` : ""}.`,
    "Limits, breakers and calls in flight are those of " + (
      state.reason ? `the process that responded and its forks: ${state.reason}.`
      : state.kind === "memory" ? `the process that responded and its forks (${state.workers} running).`
      : `all processes that share the ${state.kind} (${state.workers} running).`),
    `fastroute ${version}. Times are in this browser's time zone; days and months of budgets are in UTC.`,
    ...(complete ? [] : ["The charts omit the older part of the range, which had too many requests."]),
  ];
  each(find("#foot"), lines, () => make("p"), (line, text) => put(line, text));
  as(find("#foot").firstChild, ledger.ok ? "" : "problem");
}

// ------------------------------------------------------------------------------------------- charts

const SPACE = { left: 52, right: 8, top: 8, bottom: 22 };
const CHARTS = {
  latency: { lines: [["p50_s", "p50"], ["p95_s", "p95"], ["p99_s", "p99"]], say: duration, unit: duration },
  traffic: { bars: [["succeeded", "ok", "succeeded"], ["failed", "failed", "failed"]], say: count, unit: count },
};
const chosen = { latency: null, traffic: null }; // the time of the selected point

function drawn(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The smallest of 1, 2 and 5 times a power of ten that reaches `most` in at most five steps. */
function step(most, whole) {
  const power = 10 ** Math.floor(Math.log10(most / 5));
  const found = [1, 2, 5, 10].map((n) => n * power).find((size) => most / size <= 5.0001);
  return whole ? Math.max(1, found) : found;
}

function showCharts({ latency: points, range_s: span }) {
  for (const small of document.querySelectorAll("small.span"))
    put(small, `per ${span > HOUR ? duration(span / 60) : "minute"}, ${ranged()}`);
  none("latency", points.every((point) => point.p50_s === null));
  none("traffic", points.every((point) => !point.succeeded && !point.failed));
  for (const name of Object.keys(CHARTS)) draw(name, points);
  const busy = points.filter((point) => point.succeeded || point.failed).reverse();
  find("#minutes").hidden = !busy.length;
  fill(find("#minutes table"), "The points of the charts", "newest first", [
    ["Time", "text", (point) => moment(new Date(point.time * 1000))],
    ["Succeeded", "", (point) => count(point.succeeded)],
    ["Failed", "", (point) => count(point.failed)],
    ["p50", "", (point) => duration(point.p50_s)],
    ["p95", "", (point) => duration(point.p95_s)],
    ["p99", "", (point) => duration(point.p99_s)],
  ], busy);
}

function draw(name, points) {
  const plot = find(`#${name} > .plot`);
  const { clientWidth: width, clientHeight: height } = plot;
  if (!width) return;
  const { lines = [], bars = [], say, unit } = CHARTS[name];
  const most = Math.max(1e-6, ...points.map((point) => (bars.length ? point.succeeded + point.failed : Math.max(...lines.map(([field]) => point[field] ?? 0)))));
  const size = step(most, bars.length > 0);
  const top = Math.ceil(most / size - 1e-9) * size;
  const slot = (width - SPACE.left - SPACE.right) / points.length;
  const x = (place) => SPACE.left + (place + 0.5) * slot;
  const y = (value) => height - SPACE.bottom - (value / top) * (height - SPACE.bottom - SPACE.top);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  for (let value = 0; value <= top * 1.0001; value += size) {
    svg.append(drawn("line", { class: "grid", x1: SPACE.left, x2: width - SPACE.right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: SPACE.left - 6, y: y(value) + 4, "text-anchor": "end" }, value ? unit(value) : "0"));
  }
  points.forEach((point, place) => {
    const date = new Date(point.time * 1000);
    const between = figures.range_s > HOUR ? place % 12 !== 6 : date.getMinutes() % 15;
    if (between || x(place) < SPACE.left + 14 || x(place) > width - 22) return;
    svg.append(drawn("text", { x: x(place), y: height - 5, "text-anchor": "middle" }, moment(date)));
  });
  const at = points.findIndex((point) => point.time === chosen[name]);
  if (at >= 0) svg.append(drawn("line", { class: "at", x1: x(at), x2: x(at), y1: SPACE.top, y2: height - SPACE.bottom }));

  points.forEach((point, place) => {
    let below = 0;
    for (const [field, mark] of bars) {
      if (!point[field]) continue;
      const from = below;
      below += point[field];
      svg.append(drawn("rect", { class: mark, x: x(place) - slot * 0.4, width: slot * 0.8, y: y(below), height: Math.max(1, y(from) - y(below)) }));
    }
  });
  for (const [field, mark] of [...lines].reverse()) {
    let path = "";
    points.forEach((point, place) => {
      const value = point[field];
      if (value === null) return;
      const before = points[place - 1]?.[field] ?? null;
      const after = points[place + 1]?.[field] ?? null;
      path += `${before === null ? "M" : "L"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
      if ((before === null && after === null) || place === at)
        svg.append(drawn("circle", { class: mark, cx: x(place), cy: y(value), r: 3 }));
    });
    svg.append(drawn("path", { class: mark, d: path }));
  }
  plot.replaceChildren(svg);

  const marks = lines.length ? lines.map(([field, mark]) => [field, mark, mark]) : bars;
  // Without a selected point, the latest one with requests.
  const last = at >= 0 ? at : points.findLastIndex((point) => point.succeeded || point.failed);
  const said = last < 0 ? [] : [["", at >= 0 ? `at ${moment(new Date(points[last].time * 1000))}` : `latest, ${moment(new Date(points[last].time * 1000))}`]];
  each(find(`#${name} > .legend`), [...marks.map(([field, mark, label]) => [mark, `${label} ${last < 0 ? "" : say(points[last][field])}`]), ...said],
    () => make("span", "", make("i"), make("span")),
    (entry, [mark, text]) => {
      entry.firstChild.hidden = !mark;
      as(entry.firstChild, mark);
      put(entry.lastChild, text);
      as(entry, mark ? "" : "quiet");
    });
}

for (const name of Object.keys(CHARTS)) {
  const plot = find(`#${name} > .plot`);
  const choose = (place) => {
    const points = figures?.latency ?? [];
    chosen[name] = place === null ? null : points[Math.max(0, Math.min(points.length - 1, place))]?.time ?? null;
    if (points.length) draw(name, points);
  };
  const say = (on) => find(`#${name} > .legend`).setAttribute("aria-live", on ? "polite" : "off");
  plot.addEventListener("pointermove", (event) => {
    const room = plot.clientWidth - SPACE.left - SPACE.right;
    choose(Math.floor(((event.offsetX - SPACE.left) / room) * (figures?.latency.length ?? 0)));
  });
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => (say(false), choose(null)));
  plot.addEventListener("keydown", (event) => {
    const points = figures?.latency ?? [];
    const at = points.findIndex((point) => point.time === chosen[name]);
    const to = { ArrowLeft: at < 0 ? points.length - 1 : at - 1, ArrowRight: at < 0 ? 0 : at + 1, Home: 0, End: points.length - 1, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    say(true);
    choose(to);
  });
  new ResizeObserver(() => figures && draw(name, figures.latency)).observe(plot);
}

// ------------------------------------------------------------------------------------------------- start

show();
if (key === null) find("#key").focus();
else look();
