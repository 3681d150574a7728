// Latency of the last minutes, the budget, and which variant ran. Time is the daemon's, as its clock
// may differ from the browser's.

import { Axis, onWidth, svg } from "./draw.js";
import { byId, ms, number, say } from "./parts.js";

/** Milliseconds that are shown at the most, and points that are kept. */
const LONGEST = 600_000;
const MOST = 2400;

/** How many times nearer together late frames may be than others before one is left out. */
const LATE = 16;

/** Milliseconds from one drawing to the next, at the least. */
const PACE = 250;

const HEIGHT = 210;
const LANE = 23;
const MARGIN = { left: 54, right: 12, top: 18, bottom: 24 };

let points = [];
let ahead = 0;
let width = 0;
let budgetNow = null;
let drawn = 0;
let waiting = false;
let cursor = null;
let place = () => 0;

/** What the daemon remembers, and its clock; what it has said since stays. */
export function history(remembered, now) {
  const latest = remembered.at(-1)?.at_ms ?? 0;
  ahead = now - Date.now();
  points = [...remembered, ...points.filter((point) => point.at_ms > latest)];
  while (points.length > MOST) thin();
  soon();
}

/** One more frame. */
export function add(point) {
  points.push(point);
  ahead = point.at_ms - Date.now();
  if (points.length > MOST) thin();
  soon();
}

/** Leaves out the point with its neighbours nearest together; another one of its kind stands for its frames. */
function thin() {
  let [least, at] = [Infinity, 1];
  for (let index = 1; index < points.length - 1; index++) {
    const distance = (points[index + 1].at_ms - points[index - 1].at_ms) * (points[index].in_time === false ? LATE : 1);
    if (distance < least) [least, at] = [distance, index];
  }
  const [gone] = points.splice(at, 1);
  const kin = (point) => point.in_time === gone.in_time;
  const heir = points.slice(0, at).findLast(kin) ?? points.slice(at).find(kin) ?? points[at - 1];
  heir.frames += gone.frames;
}

/** The budget that holds now. */
export function status({ budget_ms }) {
  budgetNow = budget_ms;
  soon();
}

function soon() {
  if (waiting || width === 0 || byId("live").hidden) return;
  waiting = true;
  const wait = Math.max(drawn + PACE - performance.now(), 0);
  setTimeout(() => requestAnimationFrame(draw), wait);
}

function draw() {
  waiting = false;
  drawn = performance.now();
  const now = Math.max(Date.now() + ahead, points.at(-1)?.at_ms ?? 0);
  points = points.filter((point) => point.at_ms > now - LONGEST);
  const age = now - (points[0]?.at_ms ?? now);
  const span = [60_000, 120_000, 300_000, LONGEST].find((span) => age <= span) ?? LONGEST;

  const lanes = [...new Set(points.map((point) => point.variant))];
  const height = HEIGHT + LANE * lanes.length + 6;
  const [left, right, bottom] = [MARGIN.left, width - MARGIN.right, HEIGHT - MARGIN.bottom];
  const time = (at) => right - ((now - at) / span) * (right - left);
  place = time;
  const latency = new Axis(0, highest(), bottom, MARGIN.top, 4);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  for (const tick of latency.ticks()) {
    const y = latency.at(tick);
    picture.append(svg("path.grid", { d: `M${left} ${y}H${right}` }));
    picture.append(svg("text.end", { x: left - 6, y: y + 4 }, ms(tick).replace(/\.0(?=\D)/, "")));
  }
  const minutes = span / 60_000;
  const every = [0.5, 1, 2, 5].find((every) => minutes / every <= width / 110) ?? 10;
  for (let ago = 0; ago <= minutes; ago += every) {
    const x = time(now - ago * 60_000);
    const words = ago === 0 ? "now" : `−${ago < 1 ? "30 s" : `${number(ago, ago % 1 ? 1 : 0)} min`}`;
    const anchor = ago === 0 ? "text.end" : ago === minutes ? "text" : "text.middle";
    picture.append(svg("path.grid", { d: `M${x} ${bottom}v4` }));
    picture.append(svg(anchor, { x, y: bottom + 17 }, words));
  }
  drawBudget(picture, latency, time, now, right);
  drawPoints(picture, latency, time);
  drawLanes(picture, lanes, time, left, right);
  if (cursor !== null) drawCursor(picture, latency, time, bottom);
  byId("latency").replaceChildren(picture);
  summarise();
}

/** The top of the scale: above the budget and most points, so that lone ones do not flatten the rest. */
function highest() {
  const sorted = points.map((point) => point.total_ms).sort((a, b) => a - b);
  const most = sorted[Math.floor(0.98 * (sorted.length - 1))] ?? 0;
  const budgets = points.map((point) => point.budget_ms ?? 0);
  const budget = Math.max(budgetNow ?? 0, ...budgets);
  return Math.max(1.15 * most, budget < 4 * most || points.length === 0 ? 1.15 * budget : 0, 1);
}

function drawBudget(picture, latency, time, now, right) {
  const steps = [];
  for (const { at_ms: at, budget_ms: budget } of [...points, { at_ms: now, budget_ms: budgetNow }]) {
    const x = time(at).toFixed(1);
    const y = budget == null ? null : Math.max(latency.at(budget), latency.end - 6).toFixed(1);
    const before = steps.at(-1);
    if (before && before.y !== null) steps.push({ draw: `H${x}`, y });
    if (y !== null && before?.y !== y) steps.push({ draw: before && before.y !== null ? `V${y}` : `M${x} ${y}`, y });
    if (y === null) steps.push({ draw: "", y });
  }
  picture.append(svg("path.budget", { d: steps.map((step) => step.draw).join("") }));
  if (budgetNow == null) return;
  const y = Math.max(latency.at(budgetNow), latency.end) - 6;
  picture.append(svg("text.end.budget", { x: right, y }, `budget ${ms(budgetNow)}`));
}

function drawPoints(picture, latency, time) {
  let [kept, late, above] = ["", "", ""];
  for (const point of points) {
    const x = time(point.at_ms).toFixed(1);
    const y = latency.at(point.total_ms);
    if (y < latency.end - 4) above += `M${x} ${latency.end - 8}l4 7h-8z`;
    else if (point.in_time === false) late += `M${x} ${y.toFixed(1)}m-3-3l6 6m0-6l-6 6`;
    else kept += `M${x} ${y.toFixed(1)}h0`;
  }
  picture.append(svg("path.kept", { d: kept }), svg("path.late", { d: late }), svg("path.above", { d: above }));
}

function drawLanes(picture, lanes, time, left, right) {
  lanes.forEach((name, index) => {
    const y = HEIGHT + LANE * (index + 1);
    picture.append(svg("path.lane", { d: `M${left} ${y}H${right}` }));
    picture.append(svg("text", { x: left, y: y - 6 }, name));
    let runs = "";
    points.forEach((point, at) => {
      if (point.variant !== name) return;
      const next = points[at + 1];
      const end = next && next.at_ms - point.at_ms < 10_000 ? time(next.at_ms) : time(point.at_ms) + 2;
      runs += `M${time(point.at_ms).toFixed(1)} ${y}H${Math.min(end, right).toFixed(1)}`;
    });
    picture.append(svg("path.ran", { d: runs }));
  });
}

function drawCursor(picture, latency, time, bottom) {
  const point = points.find((point) => point.at_ms >= cursor) ?? points.at(-1);
  if (!point) return;
  const [x, y] = [time(point.at_ms), Math.max(latency.at(point.total_ms), latency.end - 4)];
  picture.append(svg("path.cursor", { d: `M${x} ${MARGIN.top}V${bottom}` }), svg("circle.cursor", { cx: x, cy: y, r: 5 }));
  tell(point);
}

function tell(point) {
  const kept = { true: ", in time", false: ", late" }[point.in_time] ?? "";
  const at = new Date(point.at_ms).toLocaleTimeString("en-GB");
  const words = `${at}: ${ms(point.total_ms)}, ${point.variant}${kept}`;
  say(byId("latency-point"), words);
  const slider = byId("latency");
  slider.setAttribute("aria-valuemax", Math.max(points.length - 1, 0));
  slider.setAttribute("aria-valuenow", points.indexOf(point));
  slider.setAttribute("aria-valuetext", words);
}

function summarise() {
  const count = frames(points);
  if (count === 0) return say(byId("latency-summary"), "No frame in the last ten minutes");
  const sorted = points.toSorted((a, b) => a.total_ms - b.total_ms);
  const rank = (share) => {
    let before = 0;
    return ms(sorted.find((point) => (before += point.frames) >= share * count).total_ms);
  };
  const late = frames(points.filter((point) => point.in_time === false));
  const seen = `${number(count)} ${count === 1 ? "frame" : "frames"} in ${minutesOf(points)}`;
  say(byId("latency-summary"), `${seen}: median ${rank(0.5)}, 95 % within ${rank(0.95)}, ${number(late)} late`);
}

const frames = (points) => points.reduce((sum, point) => sum + point.frames, 0);

const minutesOf = (points) => {
  const minutes = Math.ceil((points.at(-1).at_ms - points[0].at_ms) / 60_000);
  return minutes > 1 ? `${minutes} minutes` : "a minute";
};

const plot = byId("latency");
plot.tabIndex = 0;
for (const [name, value] of [["role", "slider"], ["aria-label", "Frame"], ["aria-valuemin", 0], ["aria-valuenow", 0]]) {
  plot.setAttribute(name, value);
}
plot.addEventListener("pointermove", (event) => {
  if (points.length === 0) return;
  const x = event.clientX - plot.getBoundingClientRect().left;
  const distance = (point) => Math.abs(place(point.at_ms) - x);
  cursor = points.reduce((best, point) => (distance(point) < distance(best) ? point : best)).at_ms;
  soon();
});
const away = () => {
  cursor = null;
  say(byId("latency-point"), "");
  soon();
};
plot.addEventListener("pointerleave", away);
plot.addEventListener("blur", away);
plot.addEventListener("keydown", (event) => {
  const last = points.length - 1;
  const here = cursor === null ? last + 1 : points.findIndex((point) => point.at_ms >= cursor);
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - 20, PageDown: here + 20, Home: 0, End: last };
  if (!(event.key in to) || last < 0) return;
  event.preventDefault();
  cursor = points[Math.min(Math.max(to[event.key], 0), last)].at_ms;
  soon();
});
onWidth(plot, (measured) => {
  width = measured;
  draw();
});
setInterval(() => byId("live").hidden || document.body.classList.contains("stale") || soon(), 1000);
