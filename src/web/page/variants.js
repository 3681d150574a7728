// Accuracy against latency: every variant of the set as a point, and in a table.

import { Axis, onWidth, placeLabels, svg } from "./draw.js";
import { Rows, byId, el, large, megabytes, ms, number, percent, say } from "./parts.js";

const HEIGHT = 380;
const MARGIN = { left: 52, right: 18, top: 20, bottom: 44 };

const ruler = document.createElement("canvas").getContext("2d");
let width = 0;
let now = null;
let drawn = "";

/** Shows what holds. */
export function status(status) {
  now = status;
  table.update(status.variants, ({ name }) => name);
  draw();
}

/** Where each variant lies: by time where anything is timed, else by its multiplications. */
function placed({ variants }) {
  const timed = variants.filter((variant) => variant.expected_ms !== null);
  const pace = timed.reduce((sum, variant) => sum + variant.expected_ms / variant.macs, 0) / timed.length;
  const cost = (variant) => {
    if (timed.length === 0) return variant.macs / 1e9;
    return variant.expected_ms ?? variant.macs * pace;
  };
  const known = variants.filter((variant) => variant.accuracy !== null);
  return { byTime: timed.length > 0, points: known.map((variant) => ({ variant, cost: cost(variant) })) };
}

function draw() {
  if (now === null || width === 0 || byId("variants").hidden) return;
  const { byTime, points } = placed(now);
  const budget = byTime ? now.budget_ms : null;
  const key = JSON.stringify([width, byTime, budget, points.map(({ variant, cost }) => [variant.name, variant.accuracy, variant.chosen, variant.expected_ms === null, cost.toPrecision(2)])]);
  if (key === drawn) return;
  drawn = key;
  summarise(points, byTime);
  if (points.length === 0) return byId("scatter").replaceChildren();

  const costs = points.map(({ cost }) => cost);
  const accuracies = points.map(({ variant }) => 100 * variant.accuracy);
  const [least, best] = [Math.min(...accuracies), Math.max(...accuracies)];
  const room = Math.max(0.12 * (best - least), 0.5);
  const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
  const longest = Math.max(...costs);
  const reach = budget !== null && budget < 3 * longest ? Math.max(longest, budget) : longest;
  const x = new Axis(0, 1.08 * reach, MARGIN.left, right, width < 500 ? 4 : 8);
  const y = new Axis(least - room, best + room, bottom, MARGIN.top, 6);
  const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  picture.setAttribute("aria-label", "Accuracy against latency; the table below has the same figures");

  for (const tick of y.ticks()) {
    picture.append(svg("path.grid", { d: `M${MARGIN.left} ${y.at(tick)}H${right}` }));
    picture.append(svg("text.end", { x: MARGIN.left - 8, y: y.at(tick) + 4 }, number(tick, y.step < 1 ? 1 : 0, "%")));
  }
  for (const tick of x.ticks()) {
    picture.append(svg("path.grid", { d: `M${x.at(tick)} ${bottom}v4` }));
    picture.append(svg("text.middle", { x: x.at(tick), y: bottom + 17 }, number(tick, x.step < 1 ? 1 : 0)));
  }
  const title = byTime ? "expected latency, ms" : "work, billions of multiplications";
  picture.append(svg("text.end", { x: right, y: HEIGHT - 6 }, title));

  const obstacles = [];
  if (budget !== null && budget <= x.high) {
    const at = x.at(budget);
    const beyond = { x: at, y: MARGIN.top, width: Math.max(right - at, 0), height: bottom - MARGIN.top };
    const leftwards = at > width / 2;
    const words = { x: at + (leftwards ? -6 : 6), y: MARGIN.top + 2 };
    picture.append(svg("rect.beyond", beyond));
    picture.append(svg("path.budget", { d: `M${at} ${bottom}V${MARGIN.top - 8}` }));
    picture.append(svg(leftwards ? "text.end.budget" : "text.budget", words, `budget ${ms(budget)}`));
    obstacles.push({ x: at - 2, y: MARGIN.top, width: 4, height: bottom - MARGIN.top });
    obstacles.push({ x: leftwards ? at - 110 : at, y: MARGIN.top - 10, width: 110, height: 16 });
  }

  const dots = points.map(({ variant, cost }) => {
    ruler.font = `${variant.chosen ? 600 : 400} 12px system-ui, sans-serif`;
    const size = { width: ruler.measureText(variant.name).width + 4, height: 15 };
    return { variant, x: x.at(cost), y: y.at(100 * variant.accuracy), ...size };
  });
  const frame = { x: MARGIN.left, y: 4, width: width - MARGIN.left - 4, height: bottom - 6 };
  const boxes = placeLabels(dots, frame, obstacles);
  dots.forEach((dot, index) => {
    const box = boxes[index];
    const [toX, toY] = [Math.min(Math.max(dot.x, box.x), box.x + box.width), box.y + box.height / 2];
    if (Math.hypot(toX - dot.x, toY - dot.y) > 16) {
      picture.append(svg("path.leader", { d: `M${dot.x} ${dot.y}L${toX} ${toY}` }));
    }
  });
  dots.forEach(({ variant, x, y }, index) => {
    const kind = variant.chosen ? "dot.chosen" : variant.expected_ms === null ? "dot.untimed" : "dot.timed";
    const box = boxes[index];
    const told = `${variant.name}: ${percent(variant.accuracy, 1)}, ${ms(variant.expected_ms)}`;
    picture.append(svg(`circle.${kind}`, { cx: x, cy: y, r: 5.5 }, svg("title", {}, told)));
    const name = variant.chosen ? "text.name.chosen" : "text.name";
    picture.append(svg(name, { x: box.x + 2, y: box.y + 12 }, variant.name));
  });
  byId("scatter").replaceChildren(picture);
}

function summarise(points, byTime) {
  const { variants } = now;
  const unknown = variants.filter((variant) => variant.accuracy === null);
  const untimed = points.filter(({ variant }) => variant.expected_ms === null);
  const words = [];
  const labelled = points.some(({ variant }) => variant.top1 !== null);
  if (points.length > 0) {
    words.push(labelled ? "Up is more often right" : "Up is more often the baseline's answer", "left is faster");
  }
  if (points.length > 0 && !byTime) words.push("nothing is timed yet, so the work of each stands for its latency");
  else if (untimed.length > 0) words.push("those not timed yet are placed by their work");
  if (unknown.length > 0) {
    const names = unknown.length === variants.length ? "the set" : unknown.map(({ name }) => name).join(", ");
    words.push(`of ${names} no accuracy is known: vggd-models evaluate measures it`);
  }
  const sentence = words.join("; ");
  say(byId("scatter-summary"), sentence[0].toUpperCase() + sentence.slice(1));
  byId("scatter-legend").hidden = points.length === 0;
}

const table = new Rows(
  byId("set").tBodies[0],
  ({ name, description }) => {
    const mark = el("small.mark");
    const note = el("small.description", {}, description);
    const header = el("th", { scope: "row", role: "rowheader" }, name, mark, note);
    const labels = ["Expected", "Top-1", "Top-5", "Agreement", "Input", "Work", "Parameters", "Size"];
    const cells = labels.map((label) => el("td.number", { role: "cell", "data-label": label }));
    return { mark, cells, element: el("tr", { role: "row", "data-variant": name }, header, ...cells) };
  },
  ({ mark, cells, element }, variant) => {
    element.classList.toggle("chosen", variant.chosen);
    say(mark, variant.chosen ? "running" : "");
    const values = [
      variant.expected_ms === null ? "not timed" : ms(variant.expected_ms),
      percent(variant.top1, 1),
      percent(variant.top5, 1),
      percent(variant.agreement, 1),
      `${variant.input} × ${variant.input}`,
      large(variant.macs),
      large(variant.parameters),
      megabytes(variant.bytes),
    ];
    values.forEach((value, index) => say(cells[index], value));
  },
);

onWidth(byId("scatter"), (measured) => {
  width = measured;
  draw();
});
