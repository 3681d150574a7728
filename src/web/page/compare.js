// One photo through every variant: asking for it, and the cards as they come.

import { Answers, byId, el, megabytes, ms, number, percent, say, short } from "./parts.js";
import { ask } from "./stream.js";

/** The stages that a photo goes through, in their order. */
const STAGES = ["wait", "decode", "preprocess", "inference"];

const ELSEWHERE = "A comparison is under way elsewhere";

const cards = byId("cards");
const photo = byId("photo");
let most = Infinity;
let given = null;
let running = null;
let results = [];
let by = "set";

/** Shows what can be asked for. */
export function status(status) {
  most = status.max_upload_mb;
  say(byId("photo-note"), `JPEG, PNG or WebP, at most ${number(most)} MB`);
  byId("compare-last").disabled = running !== null || status.last === null;
  const told = byId("compare-status").textContent;
  if (told === "" || told === ELSEWHERE) {
    say(byId("compare-status"), status.comparing && running === null ? ELSEWHERE : "");
  }
}

/** Takes a photo, or the last frame if there is none, and starts. */
function take(file) {
  if (running) return refuse("A comparison is under way: stop it first");
  if (file?.type && !file.type.startsWith("image/")) return refuse(`${file.name} is no image: choose a JPEG, PNG or WebP`);
  if (file && file.size > most * 1e6) {
    return refuse(`${file.name} has ${megabytes(file.size)}, more than the ${number(most)} MB that the daemon takes`);
  }
  given = { file };
  preview(file);
  start();
}

async function preview(file) {
  const image = byId("preview-picture");
  URL.revokeObjectURL(image.src);
  say(byId("preview-note"), file ? `${file.name || "Pasted photo"}, ${megabytes(file.size)}` : "The last frame");
  byId("preview").hidden = false;
  try {
    image.src = URL.createObjectURL(file ?? (await (await ask("/api/v1/frame")).blob()));
    await image.decode();
    image.hidden = false;
  } catch {
    image.hidden = true;
  }
}

async function start() {
  const stop = new AbortController();
  const began = performance.now();
  const last = given.file ? "" : "frame=last&";
  running = { stop, began, count: 0, done: 0, name: null };
  results = [];
  cards.replaceChildren();
  refuse("");
  say(byId("compare-status"), "Starting");
  byId("compare-progress").hidden = false;
  byId("sort").hidden = false;
  able();
  const clock = setInterval(tick, 100);
  try {
    const path = `/api/v1/compare?${last}runs=${encodeURIComponent(byId("runs").value || 3)}`;
    const response = await ask(path, { method: "POST", body: given.file, signal: stop.signal });
    let ended = false;
    for await (const line of lines(response.body)) ended = hear(line) || ended;
    if (!ended) throw new Error("The comparison broke off: the daemon sent no end");
    say(byId("compare-status"), summary(performance.now() - began));
  } catch (error) {
    const stopped = error.name === "AbortError";
    const far = running.count > 0 ? ` after ${running.done} of ${running.count}` : "";
    if (!stopped) refuse(error instanceof TypeError ? "The connection broke off" : error.message);
    say(byId("compare-status"), stopped ? `Stopped${far}` : `Failed${far}`);
  }
  stop.abort();
  clearInterval(clock);
  running = null;
  waiting()?.remove();
  byId("compare-progress").hidden = true;
  able();
}

/** The JSON lines of a response, as they arrive. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = done ? "" : parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
    if (done) return;
  }
}

/** Takes one line; whether it is the end. */
function hear(line) {
  if (line.error) throw new Error(line.error);
  if (line.start) running.count = line.start.variants.length;
  if (line.next) {
    running.name = line.next;
    running.since = performance.now();
    const place = `${running.done + 1} of ${running.count}`;
    say(byId("compare-status"), `Running ${line.next}, ${place}`);
    const note = el("p.quiet", {}, place, ", ", el("span.elapsed"));
    cards.append(el("li.card.running", {}, el("header", {}, el("h3", {}, line.next)), note, el("i.pulse")));
  }
  const result = line.card ?? line.left_out;
  if (result) {
    waiting()?.remove();
    running.done += 1;
    results.push({ ...result, order: results.length, left: Boolean(line.left_out) });
    show();
  }
  byId("compare-progress").max = Math.max(running.count, 1);
  byId("compare-progress").value = running.done;
  return Boolean(line.done);
}

const waiting = () => cards.querySelector(".running");

function tick() {
  const elapsed = waiting()?.querySelector(".elapsed");
  if (elapsed) say(elapsed, number((performance.now() - running.since) / 1000, 1, "s"));
}

function summary(took) {
  const ran = results.filter((result) => !result.left);
  if (ran.length === 0) return "No variant could run";
  const words = [`${ran.length} ${ran.length === 1 ? "variant" : "variants"} in ${number(took / 1000, 1, "s")}`];
  const [first] = ran;
  const fastest = ran.toSorted((a, b) => b.speedup - a.speedup)[0];
  if (ran.length > 1) {
    words.push(`${ran.filter((card) => card.agrees).length - 1} of ${ran.length - 1} agree with ${first.variant}`);
    words.push(`${fastest.variant} is the fastest, ${number(fastest.speedup, 2)} times as fast as ${first.variant}`);
  }
  return words.join("; ");
}

/** The card that the others are compared with. */
const reference = () => results.find((result) => !result.left);

/** How much a card speaks for the class that the reference named. */
function support(card) {
  const named = reference().top[0].class;
  return card.top.find((answer) => answer.class === named)?.probability ?? 0;
}

const ORDERS = {
  set: (a, b) => a.order - b.order,
  latency: (a, b) => a.timings_ms.total - b.timings_ms.total,
  size: (a, b) => a.bytes - b.bytes,
  agreement: (a, b) => b.agrees - a.agrees || support(b) - support(a),
};

/** Puts the cards into their order; those that were left out come last. */
function show() {
  const ran = results.filter((result) => !result.left).sort(ORDERS[by]);
  const longest = Math.max(...ran.map((card) => card.timings_ms.total));
  const out = results.filter((result) => result.left);
  const running = waiting();
  for (const result of [...ran, ...out]) {
    result.element ??= result.left ? leftOut(result) : card(result);
    cards.append(result.element);
    if (!result.left) {
      result.element.querySelectorAll(".stages i").forEach((part, index) => {
        part.style.width = `${(100 * result.timings_ms[STAGES[index]]) / longest}%`;
      });
    }
  }
  if (running) cards.append(running);
}

function card(result) {
  const { variant, description, input, timings_ms: timings, agrees, speedup } = result;
  const first = result === reference();
  const verdict = first ? "reference" : agrees ? "✓ agrees" : "≠ differs";
  const title = first ? "The others are compared with this one" : "Whether its first class is the reference's";
  const badge = el(`span.badge${agrees ? "" : ".differs"}`, { title }, verdict);
  const stages = STAGES.filter((stage) => timings[stage] >= 0.05 || stage === "inference");
  const legend = stages.map((stage) => el(`span.key.${stage}`, {}, `${stage} `, el("b", {}, ms(timings[stage]))));
  const answers = el("ol.answers");
  new Answers(answers).show(result.top);
  const fact = (name, value, title) => el("div", { title }, el("dt", {}, name), el("dd", {}, value));
  return el(
    "li.card",
    { "data-variant": variant },
    el("header", {}, el("h3", {}, variant), badge),
    el("p.quiet", {}, description),
    el(
      "p.latency",
      {},
      el("b", { title: `On ${result.threads} threads` }, ms(timings.total)),
      first ? "" : el("span", { title: "Of inference alone" }, `${number(speedup, 2)} × as fast`),
    ),
    el("div.stages", { "aria-hidden": "true" }, ...STAGES.map((stage) => el(`i.${stage}`))),
    el("p.legend", {}, ...legend),
    answers,
    el(
      "dl",
      {},
      fact("Size", megabytes(result.bytes), "Its files on disk"),
      fact("Memory", number(result.rss_mb, 0, "MiB"), "Resident memory of a process that runs it"),
      fact("Load", ms(result.load_ms), "From the first byte read to the first answer"),
      fact("Input", `${input} × ${input}`, "The square that the network looks at, in pixels"),
    ),
  );
}

function leftOut({ variant, reason }) {
  const badge = el("span.badge.differs", {}, "left out");
  const header = el("header", {}, el("h3", {}, variant), badge);
  return el("li.card.left", { "data-variant": variant }, header, el("p.quiet", {}, reason));
}

/** Lets be pressed what makes sense; the keyboard's focus goes on to what does. */
function able() {
  byId("compare-last").disabled = running !== null;
  byId("compare-again").disabled = running !== null || given === null;
  byId("compare-stop").disabled = running === null;
  if (document.activeElement.disabled) byId(running ? "compare-stop" : "compare-again").focus();
}

function refuse(why) {
  say(byId("compare-refused"), why);
}

photo.addEventListener("change", () => {
  if (photo.files.length > 0) take(photo.files[0]);
  photo.value = "";
});
byId("compare-last").addEventListener("click", () => take(null));
byId("compare-again").addEventListener("click", () => take(given.file));
byId("compare-stop").addEventListener("click", () => running?.stop.abort());
byId("sort").addEventListener("click", ({ target }) => {
  if (!target.dataset.by) return;
  by = target.dataset.by;
  for (const button of byId("sort").children) button.setAttribute("aria-pressed", button === target);
  show();
});

const photoIn = (transfer) => [...(transfer?.files ?? [])][0];
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? byId("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  offered(photoIn(event.dataTransfer));
});
addEventListener("paste", (event) => offered(photoIn(event.clipboardData)));

function offered(file) {
  if (!file) return;
  location.hash = "#compare";
  take(file);
}
