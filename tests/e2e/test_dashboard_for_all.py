"""The dashboard for everybody: axe finds nothing, the keyboard is enough, nothing moves or has to be scrolled."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.page_visit import LOOK_MS, SECONDS, Visit

pytestmark = pytest.mark.slow

SECTIONS = ("Write", "Learned", "Nights", "Texts", "Labels", "Chat", "Apps")
#: What Chromium counts as moved since this was run, without what followed an input.
SHIFTS = """window.moved = 0;
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.moved += one.value;
}).observe({ type: "layout-shift" });"""


def check(page: Page, where: str) -> None:
    """Assert that axe finds nothing, and that nothing is wider than the window."""
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run()")
    told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
    assert not told, f"{where}: {json.dumps(told, indent=1)}"
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], f"{where}: something has to be scrolled to the side"


@pytest.mark.parametrize(
    ("size", "scheme"),
    [pytest.param("narrow", "light", marks=pytest.mark.smoke), ("middle", "light"), ("wide", "dark")],
)
def test_it_is_accessible(browser: Browser, daemon: Daemon, size: str, scheme: str) -> None:
    visit = Visit(browser, daemon, size, scheme)
    visit.page.goto(daemon.url)
    expect(visit.page.get_by_role("heading", name="Sign in")).to_be_visible()
    check(visit.page, "signing in")
    visit.sign_in()
    for section in SECTIONS:
        visit.go(section)
        for unfolded in visit.page.locator("summary:visible").all():
            unfolded.click()
        visit.look()
        check(visit.page, section)
    visit.page.emulate_media(reduced_motion="reduce")
    assert visit.page.evaluate("document.getAnimations().length") == 0
    visit.end()


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Route], None]:
    """Answer GET /status with the daemon's answer, changed."""

    def answer(route: Route) -> None:
        response = route.fetch()
        document = response.json()
        change(document)
        route.fulfill(response=response, json=document)

    return answer


def _waits(status: dict[str, Any]) -> None:
    since = "2026-11-29T07:30:10Z"
    idle = {"name": "idle", "value": 3.0, "threshold": 10.0, "unit": "min", "message": "idle", "since": since}
    power = {"name": "power", "value": False, "threshold": None, "unit": None, "message": "not on power"}
    status["training"]["blockers"] = [power | {"since": since, "until": None}, idle | {"until": None}]
    status["texts"] |= {"new_words": 1630, "threshold_words": 400}
    status["model"]["candidate"] = "learned last night; judged again tonight"


def _modelless(status: dict[str, Any]) -> None:
    status["model"] |= {"ready": False, "message": "There is no model. Run `pocketllm models import`."}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(_waits, "Learns 1,630 new words,", id="waiting"),
        pytest.param(_modelless, "There is no model to work with yet.", id="no model"),
    ],
)
def test_each_state_is_one_sentence(
    browser: Browser, daemon: Daemon, change: Callable[[dict[str, Any]], None], line: str
) -> None:
    visit = Visit(browser, daemon, "narrow")
    visit.page.route("**/status", changed(change))
    visit.sign_in()
    expect(visit.page.locator("#now-line")).to_contain_text(line)
    if change is _waits:
        said = visit.page.locator("#now-next")
        expect(said).to_contain_text("It waits for the charger and 10 minutes without you.")
        expect(said).to_contain_text("learned last night; judged again tonight")
    check(visit.page, line)
    visit.end()


def test_a_new_installation_and_a_daemon_that_is_gone_are_accessible(browser: Browser, tmp_path: Path) -> None:
    with tiny_daemon(tmp_path) as daemon:
        visit = Visit(browser, daemon, "narrow")
        visit.sign_in()
        for section in SECTIONS:
            visit.go(section)
            check(visit.page, f"new: {section}")
        visit.go("Write")
    visit.look()
    expect(visit.page.locator("#now-line")).to_have_text("PocketLLM does not answer.", timeout=SECONDS)
    check(visit.page, "no daemon")
    visit.wrong.clear()
    visit.end()


@pytest.mark.parametrize("visit", ["wide"], indirect=True)
def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "draft":
            break
    draft, ghost = page.get_by_label("Your text", exact=True), page.locator("#write .ghost")
    expect(draft).to_be_focused()
    page.keyboard.type("Wind w")
    expect(ghost).not_to_be_empty(timeout=SECONDS)
    first, *_ = page.locator("#write .chip span").all_inner_texts()
    page.keyboard.press("Tab")
    expect(draft).to_have_value(f"Wind {first} ")
    expect(ghost).not_to_be_empty(timeout=SECONDS)
    page.keyboard.press("Escape")
    expect(ghost).to_be_empty()
    page.keyboard.press("Tab")
    expect(draft).not_to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(draft).to_be_focused()


def test_a_suggestion_is_for_the_text_that_it_was_asked_about(visit: Visit) -> None:
    page = visit.page
    draft, chips = page.get_by_label("Your text", exact=True), page.locator("#write .chip")
    draft.press_sequentially("Wind w")
    expect(chips.first).to_be_enabled(timeout=SECONDS)
    page.route("**/suggest", lambda route: None)  # no answer comes
    draft.press_sequentially("e")
    expect(page.locator("#write .chips")).to_have_class("chips old")
    expect(chips.first).to_be_disabled()
    page.keyboard.press("Alt+1")
    page.keyboard.press("Tab")
    expect(draft).to_be_focused()
    expect(draft).to_have_value("Wind we")
    page.unroute("**/suggest")  # which lets go of what it holds
    expect(page.locator("#write .chips")).to_have_class("chips", timeout=SECONDS)


@pytest.mark.parametrize("visit", ["narrow", "wide"], indirect=True)
def test_nothing_moves_while_it_looks(visit: Visit) -> None:
    for section in SECTIONS:
        visit.go(section)
        visit.look()
        visit.page.wait_for_load_state("networkidle")
        visit.page.evaluate(SHIFTS)
        for _ in range(3):
            with visit.page.expect_response("**/status"):
                visit.page.clock.run_for(LOOK_MS)
            visit.page.wait_for_load_state("networkidle")
        visit.page.evaluate("new Promise((done) => requestAnimationFrame(done))")
        assert visit.page.evaluate("window.moved") == 0, section
