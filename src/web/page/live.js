// What is seen now: the last frame, its answers, and how the daemon has fared since its start.

import { Answers, Rows, byId, el, moment, ms, number, percent, say, short } from "./parts.js";
import { ask } from "./stream.js";

/** Milliseconds from one picture of the last frame to the next, at the least. */
const PACE = 1000;

const UNSTEADY = ["Nothing steady", "The last predictions do not agree, or are not sure enough"];

const answers = new Answers(byId("last-top"));
let allowed = false;
let shown = "";
let asked = 0;
let waiting = 0;

/** Shows what holds. */
export function status(status) {
  const { state, source, last } = status;
  const nothing = last === null ? ["Nothing yet", "No frame was classified since the start"] : UNSTEADY;
  const seen = [short(state.label ?? ""), `${percent(state.probability)} sure, seen since ${moment(state.since)}`];
  const [label, sure] = state.label === null ? nothing : seen;
  say(byId("label"), label);
  say(byId("sure"), sure);
  byId("label").title = state.label ?? "";
  allowed = status.frame;
  if (!allowed) {
    byId("frame-picture").hidden = true;
    say(byId("frame-note"), "Frames are not shown here; web.frame = true in the configuration shows them");
    byId("frame-note").hidden = false;
  }
  if (last && last.id !== shown) prediction(last);
  counters.update(count(status, source), ([name]) => name);
}

/** Shows a prediction, and soon its frame. */
export function prediction(prediction) {
  shown = prediction.id;
  answers.show(prediction.top);
  const late = prediction.in_time === false ? ", late" : "";
  const from = prediction.file ?? moment(prediction.captured_at);
  const { total, wait } = prediction.timings_ms;
  const took = prediction.file === null ? total : total - wait;
  say(byId("last-at"), `${from}, ${prediction.variant}, ${ms(took)}${late}`);
  if (allowed && !waiting) waiting = setTimeout(picture, Math.max(asked + PACE - Date.now(), 0));
}

async function picture() {
  asked = Date.now();
  waiting = 0;
  if (document.hidden || byId("live").hidden) return;
  const image = byId("frame-picture");
  let why = "";
  try {
    const before = image.src;
    image.src = URL.createObjectURL(await (await ask("/api/v1/frame")).blob());
    if (before) URL.revokeObjectURL(before);
    await image.decode();
  } catch (error) {
    why = error.message;
  }
  image.hidden = why !== "";
  say(byId("frame-note"), why);
  byId("frame-note").hidden = why === "";
}

/** Name, value, whether it is a warning, and what it means. */
function count(status, source) {
  const { frames, late, outbox, broker, slowdown, throttled } = status;
  const held = Object.entries(throttled ?? {}).filter(([, yes]) => yes);
  const share = frames > 0 && late > 0 ? ` (${percent(late / frames, 1)})` : "";
  const [computing, memory] = slowdown ?? [];
  return [
    ["Frames", number(frames), false, `Classified since ${moment(status.started_at)}`],
    ["Late", number(late) + share, frames > 0 && late / frames > status.miss_rate, "Took longer than the budget"],
    ["Dropped", number(status.dropped), false, "Frames that came while another one was classified"],
    ["Passed over", number(status.skipped), false, "Frames that hardly differed from the last one"],
    ["Refused", number(status.rejected), status.rejected > 0, "Photos and frames that could not be classified"],
    ["Switches", number(status.switches), false, "How often another variant took over"],
    [
      "Source",
      source.working ? source.kind : `${source.kind} does not work`,
      !source.working,
      "Where frames come from",
      source.detail,
    ],
    [
      "Broker",
      broker.connected ? "connected" : "not connected",
      !broker.connected,
      "Where predictions are published, over MQTT",
      `${broker.address}${broker.reconnects > 0 ? `, ${number(broker.reconnects)} reconnects` : ""}`,
    ],
    [
      "Outbox",
      number(outbox.pending),
      outbox.dropped > 0,
      "Predictions kept on disk until the broker acknowledges them",
      outbox.dropped > 0 ? `waiting, ${number(outbox.dropped)} were dropped` : "waiting",
    ],
    ["Temperature", number(status.temperature_c, 1, "°C"), false, "The hottest sensor of the board"],
    [
      "Throttled",
      throttled == null ? "–" : held.length > 0 ? "yes" : "no",
      held.length > 0,
      "Whether the board's firmware holds it back",
      held.map(([name]) => name.replaceAll("_", " ")).join(", "),
    ],
    [
      "Slowdown",
      slowdown == null ? "–" : `${number(computing, 2)} ×`,
      false,
      "How many times slower than undisturbed computing is now, and reading memory",
      slowdown == null ? "" : `memory ${number(memory, 2)}\u00a0×`,
    ],
    ["Memory", number(status.rss_mb, 0, "MiB"), false, "What the daemon takes of it"],
  ];
}

const counters = new Rows(
  byId("counters"),
  ([name, , , title]) => {
    const [value, note] = [el("b"), el("small")];
    return { value, note, element: el("div", { title }, el("dt", {}, name), el("dd", {}, value, note)) };
  },
  (row, [name, value, warns, title, note = ""]) => {
    say(row.value, value);
    say(row.note, note);
    row.element.classList.toggle("warns", warns);
    row.element.title = note ? `${title}: ${note}` : title;
    row.element.dataset.name = name;
  },
);
