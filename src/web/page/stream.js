// The daemon: what it pushes, and what it is told. Keeps the stream of events open while the page is
// seen, and says in words why there is none. Shows nothing itself.

/** Seconds without a word after which the daemon is asked whether it is still there. */
const SILENCE = 20;

/** Seconds from one try to the next, at the most. */
const PATIENCE = 10;

/** What went wrong with a request, as the daemon or the browser tells it. */
export async function problem(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `The daemon answered ${response.status} ${response.statusText}`.trim();
  }
}

/** Asks for a path: the response, or an error with a sentence. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The daemon does not answer: is it running, and this device in its network?");
  }
  if (!response.ok) throw new Error(await problem(response));
  return response;
}

/**
 * Tells `heard` of what the daemon says, for as long as the page lives: `status(status)`,
 * `prediction(point, prediction)`, `history(points, now)` with the daemon's clock, and `connected(null | "what is wrong")`.
 */
export function listen(heard) {
  let events = null;
  let failures = 0;
  let retry = 0;
  let silence = 0;

  const stop = () => {
    clearTimeout(retry);
    clearTimeout(silence);
    events?.close();
    events = null;
  };

  const lost = async (why) => {
    stop();
    const wait = Math.min(2 ** failures++, PATIENCE);
    const patient = { signal: AbortSignal.timeout(5000) };
    why ??= await ask("/api/v1/status", patient).then(() => "The daemon ended the stream", (error) => error.message);
    if (document.hidden || events) return;
    heard.connected(`${why}. Trying again`);
    clearTimeout(retry);
    retry = setTimeout(start, 1000 * wait);
  };

  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(() => {
      const patient = { signal: AbortSignal.timeout(5000) };
      fetch("/healthz", patient).then(alive, () => lost("The daemon has gone silent"));
    }, 1000 * SILENCE);
  };

  const on = (name, then) => {
    events.addEventListener(name, (event) => {
      alive();
      then(JSON.parse(event.data));
    });
  };

  const start = () => {
    stop();
    events = new EventSource("/api/v1/events");
    const opened = events;
    events.onopen = async () => {
      alive();
      try {
        const response = await ask("/api/v1/history");
        const now = Date.parse(response.headers.get("date")) || Date.now();
        const { points } = await response.json();
        if (opened === events) heard.history(points, now);
      } catch (error) {
        if (opened === events) lost(error.message);
      }
    };
    events.onerror = () => opened === events && lost();
    on("status", (status) => {
      failures = 0;
      heard.connected(null);
      heard.status(status);
    });
    on("prediction", ({ point, prediction }) => heard.prediction(point, prediction));
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => event.persisted && start());
  if (!document.hidden) start();
}
