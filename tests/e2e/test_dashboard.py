"""The dashboard in a real headless Chromium against a real daemon: narrow and wide, by day and in the dark."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.support.commands import commands
from tests.support.real_daemon import Daemon, eventually, running
from tests.support.tiny_models import tiny_model_folder

pytestmark = pytest.mark.slow

JOB = {"TRAINING__METHOD": "mezo", "TRAINING__BATCH": "2", "TRAINING__BLOCK_TOKENS": "16", "TRAINING__RANK": "2"}
#: Where to put pictures of it, for the README.
PICTURES = os.environ.get("DASHBOARD_PICTURES")
SECONDS = 60_000
UNDO_MS, LOOK_MS = 10_000, 2_000
SIZES = {"narrow": {"width": 360, "height": 740}, "wide": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has learned once."""
    folder = tmp_path_factory.mktemp("dashboard") / "data"
    folder.mkdir()
    tiny_model_folder(folder / "models")
    with running(
        folder, MODEL="tiny", TRAINING__NEW_WORDS="100000", TICK_SECONDS="0.1", TRAINING__STEPS="100000", **JOB
    ) as made:
        notes = [{"text": f"Wind west, glass rising. Mug {i}.", "source": f"app {i % 2}"} for i in range(30)]
        notes.append({"text": "<img src=x onerror=alert(1)> [not] markup", "source": "<b>hostile</b>"})
        assert made.client.post("/texts", json=notes).status_code == 201
        done = made.wait_for_job(made.start_job(steps=3, seed=1), "succeeded")
        assert made.client.post(f"/adapters/{done['adapter']}/serve").status_code == 200
        yield made


def serve_newest(daemon: Daemon) -> None:
    """Serve the adapter, which is withdrawn when one of its texts is deleted."""
    newest = daemon.client.get("/adapters").json()["data"][0]["id"]
    assert daemon.client.post(f"/adapters/{newest}/serve?deleted_text=true").status_code == 200


def _told(said: ConsoleMessage) -> str:
    return f"{said.text} {said.location['url']}"


class Visit:
    """A browser's tab on the page; notes what must not be."""

    def __init__(self, browser: Browser, daemon: Daemon, size: str, scheme: str = "light") -> None:
        self.daemon = daemon
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.page.clock.install()
        self.wrong: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(_told(said)) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._elsewhere(request.url))

    def _elsewhere(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "data" and parts.netloc != urlsplit(self.daemon.url).netloc:
            self.wrong.append(f"asked {url}")

    def sign_in(self) -> None:
        """As `pocketllm dashboard` does."""
        said = commands(self.daemon.folder)("dashboard", "--no-browser").stdout
        self.page.goto(said.strip())
        expect(self.page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)

    def end(self) -> None:
        assert self.wrong == []
        self.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_a_visit(browser: Browser, daemon: Daemon, size: str) -> None:
    visit = Visit(browser, daemon, size)
    page = visit.page
    visit.sign_in()
    assert page.url == f"{daemon.url}/", "nothing of the code is left"
    daemon.client.post("/texts", json=[{"text": f"Rain again, day {i}.", "source": "app 0"} for i in range(20)])
    page.get_by_role("button", name="Learn now").click()
    expect(page.locator("#now")).to_contain_text("Learning", timeout=SECONDS)
    expect(page.locator("#curve-text")).to_contain_text("at step", timeout=SECONDS)
    line = page.locator("#curve polyline.training")
    before = line.get_attribute("points")
    expect(line).not_to_have_attribute("points", before or "", timeout=SECONDS)
    if PICTURES:  # with something to see
        expect(page.locator("#curve-text")).to_have_text(re.compile(r"at step [1-9]\d\d"), timeout=SECONDS)
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], "nothing has to be scrolled to the side"
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"dashboard-{size}.png")
    page.get_by_role("button", name="Pause").first.click()
    expect(page.locator("#jobs li").first).to_contain_text("paused by the owner", timeout=SECONDS)
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.locator("#jobs li").first).to_contain_text("Is cancelled in ten seconds")
    page.clock.run_for(UNDO_MS)
    expect(page.locator("#jobs li").first).to_contain_text("cancelled", timeout=SECONDS)
    visit.end()


def test_what_waits_to_be_deleted_is_deleted_when_the_page_is_left(browser: Browser, daemon: Daemon) -> None:
    [identity] = daemon.client.post("/texts", json={"text": "To be gone.", "source": "leaving"}).json()["ids"]
    visit = Visit(browser, daemon, "wide")
    visit.sign_in()
    group = visit.page.locator("details", has_text="leaving")
    group.locator("> summary").click()
    group.locator("li > details > summary").click()
    group.get_by_role("button", name="Delete").click()
    visit.page.goto("about:blank")
    eventually(lambda: daemon.client.get(f"/texts/{identity}").status_code == 404, "the text is gone")
    visit.end()


def test_a_text_is_added_found_and_suggested_from(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    page.get_by_label("A text to learn from").fill("The lighthouse keeper plays the oboe.")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_label("A text to learn from")).to_have_value("")
    page.get_by_label("Search").fill("oboe")
    page.keyboard.press("Enter")
    expect(page.locator("#texts summary")).to_have_text(["Found: 1 text", "The lighthouse keeper plays the oboe."])
    page.get_by_label("Search").fill("xylophone")
    page.keyboard.press("Enter")
    expect(page.locator("#texts")).to_have_text("No text has these words.")
    writing = page.get_by_label("Type, and take a suggestion")
    writing.fill("Wind w")
    first = page.locator("#suggestions button").first
    expect(first).to_be_visible(timeout=SECONDS)
    word = first.inner_text()
    page.keyboard.press("Alt+1")
    expect(writing).to_have_value(f"Wind {word} ")
    visit.end()


def test_an_empty_installation_says_how_to_bring_text(browser: Browser, tmp_path: Path) -> None:
    tiny_model_folder(tmp_path / "models")
    with running(tmp_path, MODEL="tiny") as daemon:
        visit = Visit(browser, daemon, "narrow")
        visit.sign_in()
        expect(visit.page.locator("#empty")).to_contain_text("pocketllm import")
        visit.end()


def test_a_text_is_deleted(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    group = page.locator("details", has_text="<b>hostile</b>")
    group.locator("> summary").click()
    folded = group.locator("li > details")
    expect(folded.locator("summary")).to_have_text("<img src=x onerror=alert(1)> [not] markup")
    folded.locator("summary").click()
    folded.get_by_role("button", name="Delete").click()
    folded.get_by_role("button", name="Undo").click()
    page.clock.run_for(UNDO_MS)
    assert "<b>hostile</b>" in {text["source"] for text in daemon.client.get("/texts?limit=500").json()["data"]}
    folded.get_by_role("button", name="Delete").click()
    expect(folded).to_contain_text("learned from that. Until what is left is learned again")
    page.clock.run_for(UNDO_MS)
    expect(group).to_have_count(0, timeout=SECONDS)
    expect(page.locator("#problem")).to_contain_text("Served is now the base model.")
    kept = daemon.client.get("/texts?limit=500").json()["data"]
    assert "<b>hostile</b>" not in {text["source"] for text in kept}
    visit.end()


def test_an_adapter_is_rolled_back_and_served_again(browser: Browser, daemon: Daemon) -> None:
    serve_newest(daemon)
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    expect(page.locator("#model")).to_have_text("tiny, personal")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#model")).to_have_text("tiny, as it came", timeout=SECONDS)
    assert daemon.status()["model"]["adapter"] is None
    asked: list[str] = []

    def say_yes(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", say_yes)
    page.get_by_role("button", name="Serve").first.click()
    expect(page.locator("#model")).to_have_text("tiny, personal", timeout=SECONDS)
    assert "has learned text that was deleted since" in asked[0]
    assert "409 (Conflict)" in visit.wrong.pop()  # the browser notes the refusal
    visit.end()


def test_base_and_personal_side_by_side(browser: Browser, daemon: Daemon) -> None:
    serve_newest(daemon)
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    page.get_by_label("A text to go on from").fill("Wind west")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#answers h3")).to_have_text(["Base", "Personal"], timeout=SECONDS)
    expect(page.locator("#answers")).to_contain_text("times as likely")
    visit.end()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible(browser: Browser, daemon: Daemon, size: str, scheme: str) -> None:
    visit = Visit(browser, daemon, size, scheme)
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

    def check(where: str) -> None:
        visit.page.evaluate(axe)
        found: dict[str, Any] = visit.page.evaluate("axe.run()")
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious]
        assert not serious, f"{where}: {json.dumps(told, indent=1)}"

    visit.page.goto(daemon.url)
    expect(visit.page.get_by_role("heading", name="Sign in")).to_be_visible()
    check("signing in")
    visit.sign_in()
    visit.page.locator("summary").first.click()
    check("home")
    visit.end()


def test_a_token_typed_in_signs_in_and_a_wrong_one_does_not(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    page.goto(daemon.url)
    page.get_by_label("Token").fill("wrong")
    with page.expect_console_message():  # Chromium itself notes the 401, before the page shows it or after
        page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("pocketllm token", timeout=SECONDS)
    page.get_by_label("Token").fill(daemon.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)
    page.reload()
    expect(page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)
    with page.expect_event("load"):  # the page is loaded again, which forgets all that it showed
        page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SECONDS)
    assert page.evaluate("localStorage.length") == 0 and visit.context.cookies() == []
    assert visit.wrong and all("401" in noted for noted in visit.wrong)
    visit.wrong.clear()
    visit.end()


def stored(page: Page) -> list[str]:
    """What a script of the page, or of another server's at its address, can read."""
    found: list[str] = page.evaluate(
        "[...Object.values(localStorage), ...Object.values(sessionStorage), document.cookie]"
    )
    return [value for value in found if value]


def test_the_page_goes_on_after_a_restart_of_the_daemon(browser: Browser, tmp_path: Path) -> None:
    tiny_model_folder(tmp_path / "models")
    with running(tmp_path, MODEL="tiny") as daemon:
        port = str(urlsplit(daemon.url).port)
        visit = Visit(browser, daemon, "narrow")
        page = visit.page
        visit.sign_in()
        [cookie] = visit.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        for value in stored(page):
            assert value not in (daemon.token, cookie["value"])
            assert daemon.stranger.get("/status", headers={"authorization": f"Bearer {value}"}).status_code == 401
        streamed = page.evaluate(
            """async () => {
              const headers = { Accept: "text/event-stream", "X-Page-Key": localStorage.getItem("pocketllm-page-key") };
              const answer = await fetch("/events", { headers });
              await answer.body.cancel();
              return [answer.status, answer.headers.get("content-type")];
            }"""
        )
        assert streamed[0] == 200 and streamed[1].startswith("text/event-stream")
    page.clock.run_for(2 * LOOK_MS)
    expect(page.get_by_role("alert")).to_contain_text("does not answer", timeout=SECONDS)
    with running(tmp_path, arguments=("--port", port), MODEL="tiny") as daemon:
        page.clock.run_for(2 * LOOK_MS)
        expect(page.get_by_role("alert")).to_be_hidden(timeout=SECONDS)
        assert all("ERR_" in noted for noted in visit.wrong)
        visit.wrong.clear()
        page.reload()
        expect(page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)
        visit.end()


def test_the_page_of_a_token_that_is_revoked_wants_another(browser: Browser, daemon: Daemon) -> None:
    made = daemon.client.post("/tokens", json={"name": "page", "scopes": ["admin"]}).json()
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    page.goto(daemon.url)
    page.get_by_label("Token").fill(made["token"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)
    daemon.client.delete("/tokens/page")
    page.clock.run_for(2 * LOOK_MS)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SECONDS)
    expect(page.get_by_role("alert")).to_contain_text("pocketllm dashboard")
    assert stored(page) == []
    assert visit.wrong and all("401" in noted for noted in visit.wrong)
    visit.wrong.clear()
    visit.end()


def test_signing_out_revokes_the_session(browser: Browser, daemon: Daemon) -> None:
    visit, other = Visit(browser, daemon, "wide"), Visit(browser, daemon, "narrow")
    for one in (visit, other):
        one.sign_in()
    [cookie], [page_key] = visit.context.cookies(), stored(visit.page)
    session = {"cookie": f"{cookie['name']}={cookie['value']}", "x-page-key": page_key}
    assert daemon.stranger.get("/status", headers=session).status_code == 200
    with visit.page.expect_event("load"):
        visit.page.get_by_role("button", name="Sign out").click()
    assert daemon.stranger.get("/status", headers=session).status_code == 401
    other.page.clock.run_for(2 * LOOK_MS)
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SECONDS)
    visit.end()
    other.wrong.clear()  # the 401
    other.end()


def test_older_jobs_are_a_button_away(browser: Browser, daemon: Daemon) -> None:
    for _ in range(22):  # one after the other: an open one is cancelled before the next
        daemon.client.post(f"/jobs/{daemon.start_job(steps=1)}/cancel")
    visit = Visit(browser, daemon, "narrow")
    visit.sign_in()
    jobs, more = visit.page.locator("#jobs > li"), visit.page.get_by_role("button", name="Older jobs")
    expect(jobs).to_have_count(20, timeout=SECONDS)
    more.click()
    expect(jobs).to_have_count(len(daemon.client.get("/jobs?limit=60").json()["data"]), timeout=SECONDS)
    expect(more).to_be_hidden()
    visit.end()
