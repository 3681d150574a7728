// The page: which view is seen, and what the daemon says handed to the views.

import * as chart from "./chart.js";
import * as choice from "./choice.js";
import * as compare from "./compare.js";
import * as live from "./live.js";
import { byId, say } from "./parts.js";
import { listen } from "./stream.js";
import * as variants from "./variants.js";

const VIEWS = ["live", "compare", "variants"];
let device = "";

/** Shows the view that the address names; an address that names none changes nothing. */
function route() {
  const asked = location.hash.slice(1);
  const shown = VIEWS.find((view) => !byId(view).hidden);
  const view = VIEWS.includes(asked) ? asked : shown;
  for (const name of VIEWS) {
    byId(name).hidden = name !== view;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = view[0].toUpperCase() + view.slice(1);
  document.title = device ? `${title} – ${device} – vggd` : `${title} – vggd`;
}

addEventListener("hashchange", route);
route();

listen({
  connected(trouble) {
    document.body.classList.toggle("stale", trouble !== null);
    document.body.classList.add("told");
    say(byId("connection"), trouble === null ? "Connected" : "No connection");
    say(byId("trouble"), trouble ?? "");
    byId("trouble").hidden = trouble === null;
  },
  status(status) {
    device = status.device.replace(/^vggd\//, "");
    say(byId("device"), device);
    say(byId("version"), status.version);
    route();
    live.status(status);
    choice.status(status);
    chart.status(status);
    compare.status(status);
    variants.status(status);
  },
  prediction(point, prediction) {
    live.prediction(prediction);
    chart.add(point);
  },
  history: chart.history,
});
