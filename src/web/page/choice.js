// Who runs, who might, and what can be ordered. What may be set is the daemon's to judge: orders go out
// as they were typed, and its answer is shown.

import { Rows, byId, el, ms, percent, say } from "./parts.js";
import { ask } from "./stream.js";

const variant = byId("variant");
const budget = byId("budget");
const pause = byId("pause");
let offered = "";

/** Shows what holds, but for what somebody is typing at the moment. */
export function status(status) {
  say(byId("running"), status.running ?? "None yet");
  say(byId("why"), status.why);
  offer(status);
  holds(status);
  const longest = Math.max(...status.variants.map((candidate) => candidate.expected_ms ?? 0));
  const scale = Math.max(longest, status.budget_ms ?? 0) * 1.06;
  const rows = status.variants.map((candidate) => ({ ...candidate, scale, budget: status.budget_ms }));
  candidates.update(rows, (row) => row.name);
}

function offer({ variants, automatic }) {
  const names = variants.map(({ name }) => name);
  if (offered === [automatic, ...names].join()) return;
  offered = [automatic, ...names].join();
  const auto = el("option", { value: "auto", disabled: automatic ? null : "" }, "auto: most accurate in time");
  if (!automatic) auto.textContent = "auto (the set was not evaluated)";
  variant.replaceChildren(auto, ...names.map((name) => el("option", { value: name }, name)));
}

function holds(now) {
  if (document.activeElement !== variant) variant.value = now.variant;
  if (!budget.dataset.typed) budget.value = now.budget_ms ?? "";
  pause.checked = now.paused;
}

async function order(control, path, options, done) {
  control.setAttribute("aria-busy", "true");
  try {
    const answer = await (await ask(path, options)).json();
    delete budget.dataset.typed;
    if (options.method === "PUT") holds(answer);
    control.removeAttribute("aria-invalid");
    say(byId("refused"), "");
    say(byId("done"), done);
  } catch (error) {
    control.setAttribute("aria-invalid", "true");
    say(byId("refused"), error.message);
    say(byId("done"), "");
  }
  control.removeAttribute("aria-busy");
}

const put = (control, name, body, done) => {
  return order(control, `/api/v1/${name}`, { method: "PUT", body, headers: { "content-type": "text/plain" } }, done);
};

variant.addEventListener("change", () => {
  const who = variant.value === "auto" ? "The variant is chosen for each frame" : `${variant.value} is fixed`;
  put(variant, "variant", variant.value, who);
});
budget.addEventListener("input", () => (budget.dataset.typed = "yes"));
byId("budget-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = budget.value.trim() || "0";
  put(budget, "budget", asked, asked === "0" ? "No budget" : `The budget is ${asked} ms`);
});
byId("no-budget").addEventListener("click", () => put(budget, "budget", "0", "No budget"));
pause.addEventListener("change", () => {
  put(pause, "pause", pause.checked ? "ON" : "OFF", pause.checked ? "Paused: frames wait" : "Going on");
});
byId("snapshot").addEventListener("click", (event) => {
  order(event.target, "/api/v1/snapshot", { method: "POST" }, "The next frame is classified at once");
});

const candidates = new Rows(
  byId("candidates").tBodies[0],
  ({ name, description }) => {
    const mark = el("small.mark");
    const [fill, excess, limit, expected] = [el("i"), el("i.excess"), el("u"), el("span.share")];
    const cell = (label, ...classes) => el(["td", ...classes].join("."), { role: "cell", "data-label": label });
    const row = {
      mark,
      fill,
      excess,
      limit,
      expected,
      inTime: cell("In time", "number"),
      accuracy: cell("Accuracy", "number"),
      loaded: cell("Loaded"),
      reason: cell("", "reason"),
    };
    const timed = cell("", "expected");
    timed.append(el("span.bar", {}, fill, excess, limit), expected);
    const header = el("th", { scope: "row", role: "rowheader", title: description }, name, mark);
    const cells = [header, timed, row.inTime, row.accuracy, row.loaded, row.reason];
    return { ...row, element: el("tr", { role: "row", "data-variant": name }, ...cells) };
  },
  (row, candidate) => {
    const { chosen, expected_ms: expected, scale, budget } = candidate;
    row.element.classList.toggle("chosen", chosen);
    say(row.mark, chosen ? "running" : "");
    const part = (value) => `${(100 * value) / scale}%`;
    const within = Math.min(expected ?? 0, budget ?? Infinity);
    row.fill.style.width = part(within);
    row.excess.style.left = part(within);
    row.excess.style.width = part((expected ?? 0) - within);
    row.limit.style.left = part(budget ?? 0);
    row.limit.hidden = budget == null;
    say(row.expected, ms(expected));
    say(row.inTime, percent(candidate.in_time));
    say(row.accuracy, percent(candidate.accuracy, 1));
    say(row.loaded, candidate.loaded ? "yes" : "no");
    say(row.reason, candidate.reason);
  },
);
