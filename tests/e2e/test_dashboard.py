"""The dashboard in a real headless Chromium against a real daemon: narrow and wide, by day and in the dark."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, expect

from tests.support.daemon.real_daemon import Daemon, eventually, running
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.page_visit import SECONDS, Visit

pytestmark = pytest.mark.slow

UNDO_MS = 10_000


def serve_newest(daemon: Daemon) -> None:
    """Serve the adapter, which is withdrawn when one of its texts is deleted."""
    newest = daemon.client.get("/adapters").json()["data"][0]["id"]
    assert daemon.client.post(f"/adapters/{newest}/serve?deleted_text=true").status_code == 200


@pytest.mark.parametrize("size", [pytest.param("narrow", marks=pytest.mark.smoke), "wide"])
def test_a_visit(browser: Browser, daemon: Daemon, size: str) -> None:
    visit = Visit(browser, daemon, size)
    page = visit.page
    visit.sign_in()
    assert page.url == f"{daemon.url}/", "nothing of the code is left"
    daemon.client.post("/texts", json=[{"text": f"Rain again, day {i}.", "source": "app 0"} for i in range(20)])
    page.get_by_role("button", name="Learn now").click()
    expect(page.locator("#now")).to_contain_text("Learning", timeout=SECONDS)
    expect(page.get_by_role("button", name="Learn now")).to_be_hidden()
    visit.open("Loss")
    visit.open("Jobs")
    expect(page.locator("#curve-text")).to_contain_text("at step", timeout=SECONDS)
    line = page.locator("#curve polyline.training")
    before = line.get_attribute("points")
    expect(line).not_to_have_attribute("points", before or "", timeout=SECONDS)
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], "nothing has to be scrolled to the side"
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator("#jobs li").first).to_contain_text("paused by the owner", timeout=SECONDS)
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.locator("#jobs li").first).to_contain_text("Cancelling in ten seconds")
    page.clock.run_for(UNDO_MS)
    expect(page.locator("#jobs li").first).to_contain_text("cancelled", timeout=SECONDS)
    visit.end()


def test_what_waits_to_be_deleted_is_deleted_when_the_page_is_left(browser: Browser, daemon: Daemon) -> None:
    [identity] = daemon.client.post("/texts", json={"text": "To be gone.", "source": "leaving"}).json()["ids"]
    visit = Visit(browser, daemon, "wide")
    visit.sign_in()
    group = visit.page.locator("#texts > details", has_text="leaving")
    group.locator("> summary").click()
    group.locator("li > details > summary").click()
    group.get_by_role("button", name="Delete: ").click()
    expect(group).to_contain_text("Deleting in ten seconds")
    visit.page.goto("about:blank")
    eventually(lambda: daemon.client.get(f"/texts/{identity}").status_code == 404, "the text is gone")
    visit.end()


@pytest.mark.smoke
def test_a_text_is_added_found_and_suggested_from(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    page.get_by_label("A text to learn from").fill("The lighthouse keeper plays the oboe.")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_label("A text to learn from")).to_have_value("")
    page.get_by_label("Search").fill("oboe")
    page.keyboard.press("Enter")
    expect(page.locator("#texts summary")).to_have_text(["The lighthouse keeper plays the oboe."])
    expect(page.locator("#texts")).to_contain_text("1 text found:")
    page.get_by_label("Search").fill("xylophone")
    page.keyboard.press("Enter")
    expect(page.locator("#texts")).to_have_text("No text contains these words.")
    writing = page.get_by_label("Type, and accept a suggestion")
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
        expect(visit.page.locator("#empty")).to_contain_text("pocketllm folders add")
        expect(visit.page.locator("#now")).to_have_text("There are no texts yet.")
        expect(visit.page.get_by_role("button", name="Learn now")).to_be_hidden()
        (tmp_path / "a.md").write_text("Dropped words.")
        (tmp_path / "b.md").write_bytes(b"\xff\xfe")
        visit.page.set_input_files("#files", tmp_path / "a.md")
        expect(visit.page.locator("#texts summary").first).to_have_text("a.md: 1 text, 2 words", timeout=SECONDS)
        expect(visit.page.locator("#now")).to_contain_text(
            "2 new words from a.md. Learning starts by itself once there are"
        )
        visit.page.set_input_files("#files", tmp_path / "b.md")
        expect(visit.page.get_by_role("alert")).to_contain_text("b.md is not UTF-8 text. Use pocketllm import.")
        expect(visit.page.get_by_role("alert").locator("code")).to_have_text("pocketllm import")
        visit.end()


def test_a_text_is_deleted(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    group = page.locator("#texts > details", has_text="<b>hostile</b>")
    group.locator("> summary").click()
    folded = group.locator("li > details")
    expect(folded.locator("summary")).to_have_text("<img src=x onerror=alert(1)> [not] markup")
    folded.locator("summary").click()
    folded.get_by_role("button", name="Delete: ").click()
    folded.get_by_role("button", name="Undo").click()
    page.clock.run_for(UNDO_MS)
    assert "<b>hostile</b>" in {text["source"] for text in daemon.client.get("/texts?limit=500").json()["data"]}
    folded.get_by_role("button", name="Delete: ").click()
    expect(folded).to_contain_text("learned from it. The base model is served until")
    page.clock.run_for(UNDO_MS)
    expect(group).to_have_count(0, timeout=SECONDS)
    expect(page.locator("#problem")).to_contain_text("The base model is now served.")
    kept = daemon.client.get("/texts?limit=500").json()["data"]
    assert "<b>hostile</b>" not in {text["source"] for text in kept}
    visit.end()


def test_an_adapter_is_rolled_back_and_served_again(browser: Browser, daemon: Daemon) -> None:
    serve_newest(daemon)
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    expect(page.locator("#model")).to_have_text("tiny, personal")
    visit.open("Adapters")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#model")).to_have_text("tiny, base model", timeout=SECONDS)
    assert daemon.status()["model"]["adapter"] is None
    asked: list[str] = []

    def say_yes(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", say_yes)
    page.get_by_role("button", name="Serve").first.click()
    expect(page.locator("#model")).to_have_text("tiny, personal", timeout=SECONDS)
    assert "was trained on text that was deleted since" in asked[0]
    assert "409 (Conflict)" in visit.wrong.pop()  # the browser notes the refusal
    visit.end()


def test_base_and_personal_side_by_side(browser: Browser, daemon: Daemon) -> None:
    serve_newest(daemon)
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    visit.open("Compare base and personal model")
    page.get_by_label("A text to continue").fill("Wind west")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#answers h3")).to_have_text(["Base", "Personal"], timeout=SECONDS)
    expect(page.locator("#answers pre").first).to_contain_text("Wind west")
    visit.end()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [pytest.param("narrow", "light", marks=pytest.mark.smoke), ("middle", "light"), ("wide", "dark")],
)
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
    for unfolded in visit.page.locator("summary").all():
        if unfolded.is_visible():
            unfolded.click()
    check("home")
    wide = visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], "nothing has to be scrolled to the side"
    visit.end()


def test_older_jobs_are_a_button_away(browser: Browser, daemon: Daemon) -> None:
    for _ in range(22):  # one after the other: an open one is cancelled before the next
        daemon.client.post(f"/jobs/{daemon.start_job(steps=1)}/cancel")
    visit = Visit(browser, daemon, "narrow")
    visit.sign_in()
    visit.open("Jobs")
    jobs, more = visit.page.locator("#jobs > li"), visit.page.get_by_role("button", name="Older jobs")
    expect(jobs).to_have_count(20, timeout=SECONDS)
    more.click()
    expect(jobs).to_have_count(len(daemon.client.get("/jobs?limit=60").json()["data"]), timeout=SECONDS)
    expect(more).to_be_hidden()
    visit.end()


def test_what_failed_is_said_where_one_is_and_nothing_goes_on_promising(browser: Browser, daemon: Daemon) -> None:
    [identity] = daemon.client.post("/texts", json={"text": "Gone before.", "source": "gone"}).json()["ids"]
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    group = page.locator("#texts > details", has_text="gone")
    group.locator("> summary").click()
    group.locator("li > details > summary").click()
    group.get_by_role("button", name="Delete: ").click()
    expect(group).to_contain_text("Deleting in ten seconds")
    page.route("**/texts/text-*", lambda route: route.fulfill(status=500, json={"detail": "The disk is full."}))
    page.clock.run_for(UNDO_MS)
    expect(page.get_by_role("alert")).to_have_text("The disk is full.", timeout=SECONDS)
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(group).not_to_contain_text("Deleting in ten seconds")
    assert daemon.client.get(f"/texts/{identity}").status_code == 200
    visit.wrong.clear()  # the 500
    visit.end()


def test_a_source_is_counted_whole_and_deleted_whole(browser: Browser, daemon: Daemon) -> None:
    many = [{"text": f"Note {number} of many.", "source": "many"} for number in range(120)]
    daemon.client.post("/texts", json=many)
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    group = page.locator("#texts > details", has_text="many")
    expect(group.locator("> summary")).to_have_text("many: 120 texts, 480 words")
    group.locator("> summary").click()
    expect(group.locator("li")).to_have_count(50)
    group.get_by_role("button", name="Older texts").click()
    expect(group.locator("li")).to_have_count(100)
    page.on("dialog", lambda dialog: dialog.accept())
    group.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("alert")).to_contain_text("Deleted 120 texts.", timeout=SECONDS)
    expect(group).to_have_count(0)
    visit.end()


def test_a_label_is_given_and_asked_for(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    page.get_by_label("A text", exact=True).fill("qqqq")
    page.get_by_role("button", name="Which label?").click()
    expect(page.get_by_role("alert")).to_contain_text("Each label needs 3 examples", timeout=SECONDS)
    visit.wrong.clear()  # the 409
    for label, letter in (("queue", "q"), ("zoo", "z")):
        for size in (4, 5, 6):
            page.get_by_label("A text", exact=True).fill(letter * size)
            page.get_by_label("Its label").fill(label)
            page.get_by_role("button", name="Add as an example").click()
            expect(page.get_by_label("A text", exact=True)).to_have_value("")
    page.get_by_label("A text", exact=True).fill("qqqqq qq")
    page.get_by_role("button", name="Which label?").click()
    expect(page.locator("#label-answer li").first).to_contain_text("queue:", timeout=SECONDS)
    expect(page.locator("#labels-about")).to_contain_text("Based on 6 examples")
    visit.end()


def test_an_app_gets_a_token_and_loses_it(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    visit.sign_in()
    page.get_by_label("An app's name").fill("keyboard")
    page.get_by_label("It may").select_option("generate")
    page.get_by_role("button", name="Create its token").click()
    token = page.locator("#app-token code").inner_text()
    headers = {"authorization": f"Bearer {token}"}
    assert daemon.stranger.get("/models", headers=headers).status_code == 200
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Revoke: keyboard").click()
    expect(page.locator("#apps")).not_to_contain_text("keyboard", timeout=SECONDS)
    assert daemon.stranger.get("/models", headers=headers).status_code == 401
    visit.end()


def test_a_chat_answers(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    visit.open("Chat")
    page.get_by_label("Your message").fill("How was the wind?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#said p")).to_have_count(2)
    expect(page.locator("#said p.mine")).to_have_text("How was the wind?")
    visit.end()


def test_a_snooze_is_begun_and_ended(browser: Browser, daemon: Daemon) -> None:
    visit = Visit(browser, daemon, "narrow")
    page = visit.page
    visit.sign_in()
    page.get_by_role("button", name="Snooze for 8 hours").click()
    expect(page.get_by_role("button", name="End the snooze")).to_be_visible(timeout=SECONDS)
    assert daemon.status()["training"]["snoozed_until"]
    page.get_by_role("button", name="End the snooze").click()
    expect(page.get_by_role("button", name="Snooze for 8 hours")).to_be_visible(timeout=SECONDS)
    visit.end()
