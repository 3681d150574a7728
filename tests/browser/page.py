"""What the web page promises, seen in a browser. tests/browser/run starts this."""

import argparse
import base64
import os
import re
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from daemon import HOSTILE, PATIENCE, PHOTOS, Daemon, until

VIEWS = ["live", "compare", "variants"]
WIDE, NARROW = (1280, 800), (375, 800)

# What the browser itself says of every answer that is an error.
REFUSED = "Failed to load resource"

# The text on the page that is too faint for its ground: contrast below WCAG's AA.
FAINT = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], ground) => [r, g, b].map((value, i) => value * a + ground[i] * (1 - a));
  const groundOf = (element) => {
    if (!element) return [255, 255, 255];
    const own = numbers(getComputedStyle(element).backgroundColor);
    return own[3] === 0 ? groundOf(element.parentElement) : over(own, groundOf(element.parentElement));
  };
  const light = (colour) => {
    const linear = colour.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode()); ) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility() || element.closest("noscript, :disabled")) continue;
    const style = getComputedStyle(element);
    const ground = groundOf(element);
    const ink = over(numbers(element.closest("svg") ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24;
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${contrast.toFixed(1)}: ${text.data.trim()}`);
  }
  return faint;
}"""

# What has the focus, and whether that can be seen.
FOCUS = """() => {
  const focused = document.activeElement;
  if (focused === document.body) return ["nothing", true];
  const near = [focused, focused.nextElementSibling, focused.parentElement].filter(Boolean);
  const outlined = (element) => {
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  };
  return [focused.id || focused.getAttribute("href") || focused.textContent, near.some(outlined)];
}"""


class Visit:
    """A browser's visit to the page, and all that it asked for and complained of."""

    def __init__(self, browser, daemon, size=WIDE, **options):
        self.daemon = daemon
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.requests, self.complaints, self.weights = [], [], {}
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self.complain)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def complain(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.picture = None
        if kind:
            handle, self.picture = tempfile.mkstemp(prefix="vggd-page-", suffix=".png")
            os.close(handle)
            self.page.screenshot(path=self.picture, full_page=True)
            print(f"     seen at that moment: {self.picture}")
        self.context.close()

    def show(self, view="live"):
        """Goes to a view, and waits until the daemon has told what holds."""
        self.page.goto(f"{self.daemon.url}/#{view}")
        expect(self.page.locator("#connection")).to_have_text("Connected")
        return self.page

    def compare(self, name):
        """Chooses a photo, as soon as no comparison of another visit is under way."""
        self.daemon.done_comparing()
        self.page.get_by_label("Runs").fill("1")
        self.page.set_input_files("#photo", PHOTOS / name)

    def blameless(self, *allowed):
        """Nothing went wrong but what is allowed, and nobody else was asked for anything."""
        unexpected = [text for text in self.complaints if not any(text.startswith(word) for word in allowed)]
        assert not unexpected, unexpected
        own = (self.daemon.url + "/", f"blob:{self.daemon.url}/")
        foreign = [url for url in self.requests if not url.startswith(own)]
        assert self.requests and not foreign, foreign


def names(page, what="#cards > li"):
    return [card.get_attribute("data-variant") for card in page.locator(what).all()]


def all_compared(page):
    expect(page.locator("#compare-status")).to_contain_text("variants in", timeout=2000 * PATIENCE)


def a_photo_gives_a_card_for_every_variant_as_on_the_command_line(browser, daemon):
    said = daemon.compare(PHOTOS / "red-panda.jpg")
    with Visit(browser, daemon) as visit:
        page = visit.show("compare")
        visit.compare("red-panda.jpg")
        expect(page.locator(".card.running")).to_contain_text(f"of {len(said)}")
        all_compared(page)
        assert names(page) == [card["variant"] for card in said]
        for card in said:
            shown = page.locator(f'.card[data-variant="{card["variant"]}"]')
            first = card["top"][0]
            expect(shown.locator(".answers li")).to_have_count(5)
            expect(shown.locator(".answers .name").first).to_have_text(first["label"].split(",")[0])
            expect(shown.locator(".answers .share").first).to_have_text(f"{100 * first['probability']:.1f}\u00a0%")
            expect(shown).to_contain_text(f"{card['bytes'] / 1e6:.1f}\u00a0MB")
            verdict = "agrees" if card["agrees"] else "differs"
            expect(shown.locator(".badge")).to_contain_text("reference" if card is said[0] else verdict)

        sizes = {card["variant"]: card["bytes"] for card in said}
        page.get_by_role("button", name="Size").click()
        assert [sizes[name] for name in names(page)] == sorted(sizes.values())
        latencies = {}
        for card in page.locator(".card").all():
            words = card.locator(".latency b").inner_text().replace(",", "").split()
            latencies[card.get_attribute("data-variant")] = float(words[0]) * (1000 if words[1] == "s" else 1)
        page.get_by_role("button", name="Latency").click()
        assert [latencies[name] for name in names(page)] == sorted(latencies.values())
        agrees = {card["variant"]: card["agrees"] for card in said}
        page.get_by_role("button", name="Agreement").click()
        expect(page.get_by_role("button", name="Agreement")).to_have_attribute("aria-pressed", "true")
        order = [agrees[name] for name in names(page)]
        assert order == sorted(order, reverse=True)
        visit.blameless()


def a_comparison_can_be_stopped_and_done_again_on_the_last_frame(browser, daemon):
    daemon.drop("coffee.jpg")
    until("it is classified", lambda: (daemon.status()["last"] or {}).get("file", "").endswith("coffee.jpg"))
    with Visit(browser, daemon) as visit:
        page = visit.show("compare")
        visit.compare("cat.jpg")
        expect(page.locator(".card.running")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#compare-status")).to_have_text(re.compile(r"Stopped after \d of 8"))
        expect(page.locator(".card.running")).to_have_count(0)
        daemon.done_comparing()
        page.get_by_role("button", name="Last frame").click()
        expect(page.locator(".card .answers .name").first).to_have_text("espresso")
        page.get_by_role("button", name="Stop").click()
        visit.blameless()


def a_photo_can_be_dropped_and_pasted(browser, daemon):
    """As the system's own drag and clipboard hand it over: a DataTransfer with a file in it."""
    carry = """([name, bytes]) => {
      const carried = new DataTransfer();
      carried.items.add(new File([Uint8Array.from(atob(bytes), (char) => char.charCodeAt(0))], name, { type: "image/jpeg" }));
      return carried;
    }"""
    paste = """(carried) => document.body.dispatchEvent(
      new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true }))"""
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        first = page.locator(".card .answers .name").first

        def carried(name):
            return page.evaluate_handle(carry, [name, base64.b64encode((PHOTOS / name).read_bytes()).decode()])

        def shown_and_stopped(name, label):
            expect(page.locator("#compare")).to_be_visible()
            expect(page.locator("#preview-note")).to_contain_text(name)
            expect(page.locator("#preview-picture")).to_be_visible()
            expect(first).to_have_text(label)
            page.get_by_role("button", name="Stop").click()
            expect(page.locator(".card.running")).to_have_count(0)
            daemon.done_comparing()

        # Wherever it is dropped, also on another view.
        dragged = carried("coffee.jpg")
        page.dispatch_event("#live", "dragover", {"dataTransfer": dragged})
        expect(page.locator("#drop")).to_have_class(re.compile("over"))
        page.dispatch_event("#live", "drop", {"dataTransfer": dragged})
        expect(page.locator("#drop")).not_to_have_class(re.compile("over"))
        shown_and_stopped("coffee.jpg", "espresso")
        page.evaluate(paste, carried("lemurs.jpg"))
        shown_and_stopped("lemurs.jpg", "Madagascar cat")
        page.evaluate(paste, page.evaluate_handle("() => new DataTransfer()"))
        expect(page.locator("#preview-note")).to_contain_text("lemurs.jpg")
        visit.blameless()


def the_picture_of_all_variants_marks_the_chosen_one_and_the_budget(browser, daemon):
    variants = daemon.status()["variants"]
    best = max(variants, key=lambda variant: variant["accuracy"])
    fastest = min(variants, key=lambda variant: variant["expected_ms"])
    with Visit(browser, daemon) as visit:
        page = visit.show("variants")
        dots = page.locator("#scatter circle")
        expect(dots).to_have_count(len(variants))
        expect(page.locator("#scatter path.budget")).to_have_count(0)
        chosen = page.locator("#scatter text.chosen")
        with daemon.flow("cat.jpg"):
            expect(chosen).to_have_text(best["name"])
        expect(page.locator("#scatter circle.chosen")).to_have_count(1)

        budget = 0.5 * (fastest["expected_ms"] + best["expected_ms"])
        daemon.put("budget", f"{budget:.1f}")
        expect(page.locator("#scatter path.budget")).to_be_attached()
        expect(page.locator("#scatter text.budget")).to_contain_text("budget")
        # Each point is left of the line if its variant should keep the budget, and right of it otherwise.
        line, dots = page.evaluate(
            """() => [document.querySelector("#scatter path.budget").getAttribute("d"),
                 [...document.querySelectorAll("#scatter circle")].map((dot) => [dot.getAttribute("cx"), dot.textContent])]"""
        )
        at = float(re.match(r"M([\d.]+)", line)[1])
        for x, told in dots:
            value, unit = re.search(r"([\d.,]+)\s*(ms|s)$", told).groups()
            expected = float(value.replace(",", "")) * (1000 if unit == "s" else 1)
            if abs(expected - budget) > 0.1 * budget:
                assert (float(x) < at) == (expected < budget), (told, budget)
        daemon.put("budget", f"{0.5 * fastest['expected_ms']:.1f}")
        with daemon.flow("cat.jpg"):
            expect(chosen).to_have_text(fastest["name"])
        expect(page.locator(f'#set tr.chosen[data-variant="{fastest["name"]}"]')).to_contain_text("running")
        visit.blameless()


def what_is_no_photo_is_refused_in_words(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("compare")
        refused = page.locator("#compare-refused")
        page.set_input_files("#photo", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"koala"})
        expect(refused).to_contain_text("notes.txt is no image")
        visit.blameless()
        page.set_input_files("#photo", {"name": "koala.jpg", "mimeType": "image/jpeg", "buffer": b"koala"})
        expect(refused).not_to_be_empty()
        expect(refused).not_to_contain_text("notes.txt")
        expect(page.locator("#compare-status")).to_have_text("Failed")
        posts = len([url for url in visit.requests if "/api/v1/compare" in url])
        large = Path(daemon.folder) / "large.jpg"
        with large.open("wb") as file:
            file.truncate(daemon.status()["max_upload_mb"] * 1_100_000)
        page.set_input_files("#photo", large)
        expect(refused).to_contain_text("more than the 20 MB")
        assert len([url for url in visit.requests if "/api/v1/compare" in url]) == posts, "it was sent"
        visit.blameless(REFUSED, "Failed to decode")


def live_follows_photos_that_flow_in(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        answer, last = page.locator("#last-top .name").first, page.locator("#last-at")
        for name, label in [("coffee.jpg", "espresso"), ("lemurs.jpg", "Madagascar cat")]:
            for _ in range(3):
                daemon.drop(name)
            expect(answer).to_have_text(label)
            expect(last).to_contain_text(name)
            expect(page.locator("#label")).to_have_text(label)
            expect(page.locator("#frame-picture")).to_be_visible()
        frames = daemon.status()["frames"]
        expect(page.locator('[data-name="Frames"] b')).to_have_text(f"{frames:,}")
        drawn = page.locator("#latency path.kept").get_attribute("d")
        with daemon.flow(pause=0.5):
            expect(page.locator("#latency path.kept")).not_to_have_attribute("d", drawn)
            expect(page.locator("#latency-summary")).to_contain_text("median")
        visit.blameless()


def a_label_is_only_ever_text(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        for _ in range(3):
            daemon.drop("palace.jpg")
        expect(page.locator("#last-top .name").first).to_have_text(f"{HOSTILE} palace")
        expect(page.locator("#label")).to_have_text(f"{HOSTILE} palace")
        page.get_by_role("link", name="Compare").click()
        visit.compare("palace.jpg")
        expect(page.locator(".card .answers .name").first).to_have_text(f"{HOSTILE} palace")
        page.get_by_role("button", name="Stop").click()
        assert "taken over" not in page.title()
        assert page.locator("img[src=x]").count() == 0
        visit.blameless()


def a_budget_set_in_the_page_changes_the_variant(browser, daemon):
    variants = daemon.status()["variants"]
    fastest = min(variants, key=lambda variant: variant["expected_ms"])
    best = max(variants, key=lambda variant: variant["accuracy"])
    assert fastest["name"] != best["name"]
    with Visit(browser, daemon) as visit, daemon.flow():
        page = visit.show("live")
        running = page.locator("#running")
        expect(running).to_have_text(best["name"])
        page.get_by_label("Budget, ms").fill(f"{0.5 * fastest['expected_ms']:.1f}")
        page.get_by_role("button", name="Set").click()
        expect(page.locator("#done")).to_contain_text("The budget is")
        expect(running).to_have_text(fastest["name"])
        expect(page.locator(".chosen th").first).to_contain_text(fastest["name"])
        expect(page.locator("#latency path.late")).to_have_attribute("d", re.compile("M"))
        assert daemon.status()["last"]["variant"] == fastest["name"]
        page.get_by_role("button", name="None").click()
        expect(page.get_by_label("Budget, ms")).to_have_value("")
        expect(running).to_have_text(best["name"])
        page.get_by_label("Chosen by").select_option("scaled")
        expect(running).to_have_text("scaled")
        visit.blameless()


def a_pause_holds_frames_and_a_snapshot_takes_one(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        page.get_by_label("Pause").check(force=True)
        until("it is paused", lambda: daemon.status()["paused"])
        before = daemon.status()["frames"]
        daemon.drop("koala.jpg")
        daemon.drop("cat.jpg")
        time.sleep(1)
        assert daemon.status()["frames"] == before
        page.get_by_role("button", name="Snapshot").click()
        expect(page.locator("#done")).to_have_text("The next frame is classified at once")
        until("one is classified", lambda: daemon.status()["frames"] == before + 1)
        page.get_by_label("Pause").uncheck(force=True)
        until("both are classified", lambda: daemon.status()["frames"] == before + 2)
        daemon.put("pause", "ON")
        expect(page.get_by_label("Pause")).to_be_checked()
        visit.blameless()


def a_wrong_value_shows_what_the_daemon_says(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        for wrong, said in [("soon", "is not a number of milliseconds"), ("-1", "must be from 0 to")]:
            page.get_by_label("Budget, ms").fill(wrong)
            page.get_by_label("Budget, ms").press("Enter")
            expect(page.locator("#refused")).to_contain_text(f"'{wrong}' {said}")
            expect(page.get_by_label("Budget, ms")).to_have_attribute("aria-invalid", "true")
        assert daemon.status()["budget_ms"] is None
        page.get_by_label("Budget, ms").fill("750")
        page.get_by_label("Budget, ms").press("Enter")
        expect(page.locator("#refused")).to_be_empty()
        assert daemon.status()["budget_ms"] == 750
        visit.blameless(REFUSED)


def every_view_fits_a_small_phone(browser, daemon):
    daemon.put("budget", "100")
    daemon.drop("palace.jpg")
    with Visit(browser, daemon, NARROW) as visit:
        for view in VIEWS:
            page = visit.show(view)
            if view == "compare":
                visit.compare("palace.jpg")
                expect(page.locator(".card[data-variant]")).not_to_have_count(0)
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, f"{view} is {over} pixels too wide"
            small = page.evaluate(
                """[...document.querySelectorAll("button, select, input, nav a")]
                     .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 30)
                     .map((element) => element.id || element.textContent)"""
            )
            assert not small, f"too small for a finger in {view}: {small}"
        visit.blameless()


def all_of_it_works_with_the_keyboard_alone(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        page.on("filechooser", lambda chooser: chooser)

        def tab_to(goal):
            seen = []
            while goal not in seen:
                assert len(seen) < 40, f"no way to {goal}: {seen}"
                page.keyboard.press("Tab")
                name, visible = page.evaluate(FOCUS)
                assert visible, f"the focus on {name} cannot be seen"
                seen.append(name)

        tab_to("#main")
        tab_to("variant")
        page.keyboard.type("int8")
        until("int8 is fixed", lambda: daemon.status()["variant"] == "int8")
        tab_to("budget")
        page.keyboard.type("333")
        page.keyboard.press("Enter")
        until("the budget is set", lambda: daemon.status()["budget_ms"] == 333)
        tab_to("pause")
        page.keyboard.press("Space")
        until("it is paused", lambda: daemon.status()["paused"])
        tab_to("snapshot")
        page.keyboard.press("Enter")
        expect(page.locator("#done")).to_contain_text("next frame")
        tab_to("latency")

        page.keyboard.press("Control+Home")
        page.evaluate("document.activeElement.blur()")
        page.reload()
        tab_to("#compare")
        page.keyboard.press("Enter")
        expect(page.locator("#compare")).to_be_visible()
        tab_to("photo")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(PHOTOS / "cat.jpg")
        expect(page.locator(".card.running")).to_be_visible()
        tab_to("compare-stop")
        page.keyboard.press("Enter")
        expect(page.locator("#compare-status")).to_contain_text("Stopped")
        tab_to("Size")
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Size")).to_have_attribute("aria-pressed", "true")
        visit.blameless()


def light_and_dark_are_told_apart_and_readable(browser, daemon):
    daemon.put("budget", "100")
    daemon.drop("cat.jpg")
    grounds = set()
    for scheme in ["light", "dark"]:
        with Visit(browser, daemon, color_scheme=scheme) as visit:
            for view in VIEWS:
                page = visit.show(view)
                if view == "compare":
                    visit.compare("cat.jpg")
                    expect(page.locator(".card[data-variant]")).not_to_have_count(0)
                faint = page.evaluate(FAINT)
                assert not faint, f"{scheme} {view}: {faint}"
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            visit.blameless()
    assert len(grounds) == 2, grounds


def nothing_moves_for_those_who_want_it_so(browser, daemon):
    with Visit(browser, daemon, reduced_motion="reduce") as visit:
        page = visit.show("compare")
        visit.compare("cat.jpg")
        expect(page.locator(".card.running")).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0
        page.get_by_role("button", name="Stop").click()
        visit.blameless()


def a_daemon_that_goes_and_comes_back_is_noticed(browser, daemon):
    with Visit(browser, daemon) as visit:
        page = visit.show("live")
        daemon.stop()
        expect(page.locator("#connection")).to_have_text("No connection")
        expect(page.locator("#trouble")).to_contain_text("does not answer")
        faded = page.evaluate("getComputedStyle(document.querySelector('#live')).opacity")
        assert float(faded) < 1, faded
        daemon.start()
        expect(page.locator("#connection")).to_have_text("Connected")
        expect(page.locator("#trouble")).to_be_hidden()
        daemon.drop("coffee.jpg")
        expect(page.locator("#last-top .name").first).to_have_text("espresso")
        visit.blameless(REFUSED)
    daemon.timed()


def the_page_is_light_and_soon_there(browser, daemon):
    with Visit(browser, daemon) as visit:
        page, answers = visit.page, []
        visit.context.new_cdp_session(page).send("Network.setCacheDisabled", {"cacheDisabled": True})
        page.on("response", lambda answer: answers.append(answer))
        visit.show("live")
        own = {answer.url: len(answer.body()) for answer in answers if is_part(answer.url, daemon)}
        paints = []
        for _ in range(5):
            page.reload()
            expect(page.locator("#connection")).to_have_text("Connected")
            paints += page.evaluate("performance.getEntriesByName('first-paint').map((entry) => entry.startTime)")
        visit.blameless()
    print(f"     {sum(own.values()) / 1000:.1f} kB in {len(own)} files")
    print(f"     first paint after {', '.join(f'{paint:.0f}' for paint in paints)} ms")
    assert sum(own.values()) < 150_000, own
    assert len(paints) == 5 and statistics.median(paints) < 100, paints


def is_part(url, daemon):
    """Whether the page consists of this, and does not only ask for it."""
    return url.startswith(daemon.url) and "/api/" not in url


def a_stream_with_nothing_to_tell_is_quiet(browser, daemon):
    rate = daemon.idle_bytes(12) / 12
    print(f"     {rate:.0f} bytes a second")
    assert rate < 1000


TESTS = [
    live_follows_photos_that_flow_in,
    a_label_is_only_ever_text,
    a_photo_gives_a_card_for_every_variant_as_on_the_command_line,
    a_comparison_can_be_stopped_and_done_again_on_the_last_frame,
    a_photo_can_be_dropped_and_pasted,
    what_is_no_photo_is_refused_in_words,
    a_budget_set_in_the_page_changes_the_variant,
    the_picture_of_all_variants_marks_the_chosen_one_and_the_budget,
    a_pause_holds_frames_and_a_snapshot_takes_one,
    a_wrong_value_shows_what_the_daemon_says,
    every_view_fits_a_small_phone,
    all_of_it_works_with_the_keyboard_alone,
    light_and_dark_are_told_apart_and_readable,
    nothing_moves_for_those_who_want_it_so,
    the_page_is_light_and_soon_there,
    a_stream_with_nothing_to_tell_is_quiet,
    a_daemon_that_goes_and_comes_back_is_noticed,
]


def take_pictures(browser, daemon, folder):
    """Each view in light and dark, wide and narrow, after a minute of photos under several budgets."""
    folder.mkdir(parents=True, exist_ok=True)
    costs = sorted(variant["expected_ms"] for variant in daemon.status()["variants"])
    budgets = ["0", f"{1.2 * costs[-1]:.0f}", f"{1.25 * costs[len(costs) // 2]:.0f}", f"{1.4 * costs[1]:.0f}"]
    with daemon.flow("coffee.jpg", pause=0.3):
        for budget in [*budgets, budgets[2]]:
            daemon.put("budget", budget)
            time.sleep(12)
        for scheme in ["light", "dark"]:
            for size in [WIDE, NARROW]:
                with Visit(browser, daemon, size, color_scheme=scheme, device_scale_factor=2) as visit:
                    for view in VIEWS:
                        page = visit.show(view)
                        if view == "compare":
                            visit.compare("red-panda.jpg")
                            all_compared(page)
                        if view == "live":
                            expect(page.locator("#frame-picture")).to_be_visible()
                        page.wait_for_timeout(500)
                        page.screenshot(path=folder / f"{view}-{scheme}-{size[0]}.png", full_page=True)
    print(f"pictures are in {folder}")


def main():
    parser = argparse.ArgumentParser(prog="tests/browser/run")
    parser.add_argument("binary", help=argparse.SUPPRESS)
    parser.add_argument("name", nargs="?", default="", help="only tests that have this in their name")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="take pictures of the page too")
    asked = parser.parse_args()
    expect.set_options(timeout=1000 * PATIENCE)
    chosen = [test for test in TESTS if asked.name in test.__name__]
    if not chosen:
        parser.error(f"no test has '{asked.name}' in its name")
    began, failed = time.monotonic(), []
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="vggd-page-") as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=sandbox)
        with Daemon(asked.binary, folder) as daemon:
            print(f"the daemon is ready after {time.monotonic() - began:.1f} s", flush=True)
            for test in chosen:
                start = time.monotonic()
                try:
                    daemon.reset()
                    test(browser, daemon)
                    verdict = "ok    "
                except Exception:
                    traceback.print_exc()
                    verdict = "FAILED"
                    failed.append(test)
                print(f"{verdict} {test.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
            if failed:
                print(daemon.log()[-4000:])
            elif asked.screenshots:
                take_pictures(browser, daemon, asked.screenshots)
        browser.close()
    print(f"{len(chosen) - len(failed)} of {len(chosen)} passed in {time.monotonic() - began:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
