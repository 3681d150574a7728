// What pictures are drawn with: SVG elements, round axes, and labels that keep clear of each other.

const SVG = "http://www.w3.org/2000/svg";

/** A new SVG element; attributes are numbers or words, children elements or text. */
export function svg(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length > 0) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** An axis with round steps from `low` to at least `high`, as coordinates from `start` to `end`. */
export class Axis {
  constructor(low, high, start, end, steps = 5) {
    const span = Math.max(high - low, 1e-9);
    const power = 10 ** Math.floor(Math.log10(span / steps));
    this.step = [1, 2, 5, 10].map((factor) => factor * power).find((step) => span / step <= steps);
    this.low = Math.floor(low / this.step + 1e-9) * this.step;
    this.high = Math.ceil(high / this.step - 1e-9) * this.step;
    Object.assign(this, { start, end });
  }

  ticks() {
    const count = Math.round((this.high - this.low) / this.step);
    return Array.from({ length: count + 1 }, (_, index) => this.low + index * this.step);
  }

  at(value) {
    return this.start + ((value - this.low) / (this.high - this.low)) * (this.end - this.start);
  }
}

/** Calls `draw` with the width of `element` whenever that changes. */
export function onWidth(element, draw) {
  new ResizeObserver(([entry]) => entry.contentRect.width > 0 && draw(entry.contentRect.width)).observe(element);
}

const overlap = (a, b) => {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return Math.max(width, 0) * Math.max(height, 0);
};

const shiftedBy = (distance) => {
  const [near, far] = [8 + distance, 14 + 2 * distance];
  return [
    [near, 0, 0],
    [-near, 0, -1],
    [0, -near - 3, -0.5],
    [0, near + 3, -0.5],
    [near, -near, 0],
    [near, near, 0],
    [-near, -near, -1],
    [-near, near, -1],
    [0, -far, -0.5],
    [0, far, -0.5],
  ];
};

/**
 * Where labels of these sizes go beside their points, inside the width and height of `frame`: boxes in
 * the points' order, that cover each other, the points and the `obstacles` as little as was found.
 */
export function placeLabels(points, frame, obstacles = []) {
  const dots = points.map(({ x, y }) => ({ x: x - 6, y: y - 6, width: 12, height: 12 }));
  const shifts = [0, 12, 26].flatMap(shiftedBy);
  const boxes = points.map(() => null);
  for (let round = 0; round < 3; round++) {
    points.forEach((point, index) => {
      const others = boxes.filter((box, other) => box && other !== index);
      let best = Infinity;
      for (const [dx, dy, anchor] of shifts) {
        const { width, height } = point;
        const box = { x: point.x + dx + anchor * width, y: point.y + dy - height / 2, width, height };
        const inside = overlap(box, { x: frame.x, y: frame.y, width: frame.width, height: frame.height });
        const outside = width * height - inside;
        const covered = [...others, ...dots].reduce((sum, other) => sum + overlap(box, other), 0);
        const crossed = obstacles.reduce((sum, other) => sum + overlap(box, other), 0);
        const cost = 20 * outside + 5 * covered + crossed + Math.hypot(dx, dy);
        if (cost < best) {
          best = cost;
          boxes[index] = box;
        }
      }
    });
  }
  return boxes;
}
