// What views are made of: elements, bars, and numbers with their units. Knows no server and no view.
// Words from outside are only ever text.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element: `el("td.number", { title: "…" }, "text", child)`. Attributes that are null are left out. */
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length > 0) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Changes a text, and touches nothing if it is that already, so that nobody hears it twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A list that is kept in step with `items`: one element a key, made once by `make` and then told by `show`. */
export class Rows {
  #made = new Map();

  constructor(parent, make, show) {
    Object.assign(this, { parent, make, show });
  }

  update(items, keyOf) {
    const keys = items.map(keyOf);
    for (const [key, { element }] of this.#made) {
      if (!keys.includes(key)) {
        element.remove();
        this.#made.delete(key);
      }
    }
    items.forEach((item, index) => {
      let row = this.#made.get(keys[index]);
      if (!row) {
        row = this.make(item);
        this.#made.set(keys[index], row);
      }
      if (this.parent.children[index] !== row.element) {
        this.parent.insertBefore(row.element, this.parent.children[index] ?? null);
      }
      this.show(row, item);
    });
  }
}

/** The likeliest classes in an `ol`, each with its probability as a bar and in figures. */
export class Answers {
  constructor(list) {
    const make = () => {
      const [label, share, fill] = [el("span.name"), el("span.share"), el("i")];
      return { label, share, fill, element: el("li", {}, label, share, el("span.bar", {}, fill)) };
    };
    const show = (row, answer) => {
      say(row.label, short(answer.label));
      row.label.title = answer.label;
      say(row.share, percent(answer.probability, 1));
      row.fill.style.width = `${100 * answer.probability}%`;
    };
    this.rows = new Rows(list, make, show);
  }

  show(top) {
    this.rows.update(top, (answer) => top.indexOf(answer));
  }
}

/** The first of the names that a label consists of. */
export const short = (label) => label.split(",")[0];

const NONE = "–";
const grouped = (digits) => {
  return new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
};
const formats = [0, 1, 2].map(grouped);

/** A number with digits after the point, and its unit. */
export function number(value, digits = 0, unit = "") {
  return value == null ? NONE : formats[digits].format(value) + (unit && `\u00a0${unit}`);
}

/** Milliseconds, with as many digits as mean something. */
export function ms(value) {
  if (value >= 10_000) return number(value / 1000, 1, "s");
  return number(value, value < 100 ? 1 : 0, "ms");
}

/** A share of one; 100 % is all, and 0 % none. */
export function percent(share, digits = 0) {
  if (share == null) return NONE;
  const least = 10 ** -digits;
  const rounded = Math.round((100 * share) / least) * least;
  if (rounded >= 100 && share < 1) return `>\u00a0${number(100 - least, digits, "%")}`;
  if (rounded === 0 && share > 0) return `<\u00a0${number(least, digits, "%")}`;
  return number(rounded, digits, "%");
}

/** Bytes of a file. */
export const megabytes = (bytes) => (bytes == null ? NONE : number(bytes / 1e6, 1, "MB"));

/** A count in millions or billions. */
export function large(count) {
  if (count == null) return NONE;
  return count >= 1e9 ? number(count / 1e9, 1, "billion") : number(count / 1e6, 1, "million");
}

/** A moment as the time of day, with its date unless it is today. */
export function moment(at) {
  const date = new Date(at);
  const time = date.toLocaleTimeString("en-GB");
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}
