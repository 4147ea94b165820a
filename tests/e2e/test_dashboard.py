"""The dashboard in a real headless Chromium against a real daemon: narrow and wide, by day and in the dark."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Locator, expect

from tests.support.daemon.commands import commands
from tests.support.daemon.real_daemon import Daemon, eventually
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.page_visit import SECONDS, Visit

pytestmark = pytest.mark.slow

UNDO_MS = 10_000
#: The tab of a test that is made for a wide window.
wide = pytest.mark.parametrize("visit", ["wide"], indirect=True)
#: A report that has lost its words does not say how many tokens a word has.
CHOICES = re.compile("choices for your next (piece of a )?word")


@pytest.fixture
def serving(daemon: Daemon) -> None:
    """Serves the adapter, which is withdrawn when one of its texts is deleted."""
    newest = daemon.client.get("/adapters").json()["data"][0]["id"]
    assert daemon.client.post(f"/adapters/{newest}/serve?deleted_text=true").status_code == 200


def text_row(visit: Visit, words: str) -> Locator:
    """The row of a text, which is found by its words."""
    visit.go("Texts")
    visit.page.get_by_label("Search your texts").fill(words)
    visit.page.keyboard.press("Enter")
    row = visit.page.locator("#text-list > li")
    expect(row).to_have_count(1, timeout=SECONDS)
    return row


@pytest.mark.parametrize("visit", [pytest.param("narrow", marks=pytest.mark.smoke), "wide"], indirect=True)
def test_a_visit(visit: Visit, daemon: Daemon) -> None:
    page = visit.page
    assert page.url == f"{daemon.url}/", "nothing of the code is left"
    daemon.client.post("/texts", json=[{"text": f"Rain again, day {i}.", "source": "app 0"} for i in range(20)])
    page.get_by_role("button", name="Learn now").click()
    expect(page.locator("#now-line")).to_contain_text("Learning", timeout=SECONDS)
    expect(page.locator("#bar")).to_be_visible()
    expect(page.get_by_role("button", name="Learn now")).to_be_hidden()
    visit.go("Nights")
    page.get_by_text("Details: jobs").click()
    expect(page.locator("#curve-text")).to_contain_text("at step", timeout=SECONDS)
    line = page.locator("#curve .l-training")
    before = line.get_attribute("points")
    expect(line).not_to_have_attribute("points", before or "", timeout=SECONDS)
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1], "nothing has to be scrolled to the side"
    page.locator("#now").get_by_role("button", name="Pause").click()
    expect(page.locator("#jobs > li").first).to_contain_text("paused by the owner", timeout=SECONDS)
    expect(page.locator("#now-line")).to_have_text("Paused, because you asked.")
    page.get_by_role("button", name="Cancel: ").first.click()
    expect(page.locator("#jobs > li").first).to_contain_text("Cancelling in")
    page.clock.run_for(UNDO_MS)
    expect(page.locator("#jobs > li").first).to_contain_text("cancelled", timeout=SECONDS)


@wide
def test_what_waits_to_be_deleted_is_deleted_when_the_page_is_left(visit: Visit, daemon: Daemon) -> None:
    [identity] = daemon.client.post("/texts", json={"text": "To be gone.", "source": "leaving"}).json()["ids"]
    row = text_row(visit, "gone")
    row.get_by_role("button", name="Delete: ").click()
    expect(row).to_contain_text("Deleting in")
    visit.page.goto("about:blank")
    eventually(lambda: daemon.client.get(f"/texts/{identity}").status_code == 404, "the text is gone")


@pytest.mark.smoke
def test_a_text_is_added_found_and_taken_back(visit: Visit) -> None:
    page = visit.page
    visit.go("Texts")
    page.get_by_label("A text to learn from").fill("The lighthouse keeper plays the oboe.")
    page.locator("#add").get_by_role("button", name="Add").click()
    expect(page.get_by_label("A text to learn from")).to_have_value("")
    expect(page.locator("#toast")).to_contain_text("Added 6 words.")
    row = text_row(visit, "oboe")
    expect(row.locator("mark")).to_have_text("oboe")
    expect(row.locator(".meta")).to_contain_text(re.compile("page.*today.*6 words.*(new|for testing)"))
    expect(page.locator("#found")).to_have_text("1 text found.")
    page.locator("#toast").get_by_role("button", name="Undo").click()
    page.get_by_label("Search your texts").fill("lighthouse")
    page.keyboard.press("Enter")
    expect(page.locator("#text-list")).to_have_text("No text has these words.", timeout=SECONDS)


@wide
def test_a_text_shows_the_file_that_it_is_from(visit: Visit, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "harbour.md"
    file.write_text("The pilot ordered marmalade, and had it brought aboard before the tide turned. " * 3)
    os.utime(file, (0, 0))  # one that was changed just now is left alone for a while
    commands(daemon.folder).said("folders", "add", str(tmp_path))
    found = "/texts?query=marmalade"
    eventually(lambda: daemon.client.get(found).json()["data"], "the folder is scanned")
    row = text_row(visit, "marmalade")
    expect(row.locator(".meta")).to_contain_text("harbour.md")
    expect(visit.page.locator("#folders")).to_contain_text(str(tmp_path))
    commands(daemon.folder).said("folders", "remove", str(tmp_path))


def test_an_empty_installation_leads_by_the_hand(browser: Browser, tmp_path: Path) -> None:
    with tiny_daemon(tmp_path) as daemon:
        visit = Visit(browser, daemon, "narrow")
        page = visit.page
        visit.sign_in()
        expect(page.locator("#step-add")).to_contain_text("pocketllm folders add")
        expect(page.locator("#now-line")).to_have_text("Ready, but it knows none of your words yet.")
        expect(page.get_by_role("button", name="Learn now instead")).to_be_disabled()
        page.get_by_role("button", name="Add your texts").click()
        expect(page.locator("#first-text")).to_be_focused()
        (tmp_path / "a.md").write_text("Dropped words.")
        (tmp_path / "b.md").write_bytes(b"\xff\xfe")
        page.set_input_files("#first-files", tmp_path / "a.md")
        expect(page.locator("#first-say")).to_contain_text("1 text with 2 words stored.", timeout=SECONDS)
        expect(page.locator("#first-draft")).to_be_focused()
        expect(page.locator("#now-line")).to_have_text("Has 2 new words.")
        expect(page.locator("#now-next")).to_contain_text("It learns by itself from")
        expect(page.get_by_role("button", name="Learn now instead")).to_be_enabled()
        visit.go("Texts")
        page.set_input_files("#files", tmp_path / "b.md")
        expect(page.get_by_role("alert")).to_contain_text("b.md is not UTF-8 text. Use pocketllm import.")
        expect(page.get_by_role("alert").locator("code")).to_have_text("pocketllm import")
        visit.end()


@pytest.mark.usefixtures("serving")
def test_a_text_is_deleted_and_the_personal_model_withdrawn(visit: Visit, daemon: Daemon) -> None:
    page = visit.page
    row = text_row(visit, "markup")
    expect(row.locator(".body")).to_have_text("<img src=x onerror=alert(1)> [not] markup")
    row.get_by_role("button", name="Delete: ").click()
    expect(row).to_contain_text("Your personal model has learned from it")
    row.get_by_role("button", name="Undo").click()
    page.clock.run_for(UNDO_MS)
    assert "<b>hostile</b>" in {text["source"] for text in daemon.client.get("/texts?limit=500").json()["data"]}
    row.get_by_role("button", name="Delete: ").click()
    expect(row).to_contain_text("is withdrawn until it has learned the rest anew")
    page.clock.run_for(UNDO_MS)
    expect(page.locator("#toast")).to_contain_text("Your personal model is withdrawn", timeout=SECONDS)
    kept = daemon.client.get("/texts?limit=500").json()["data"]
    assert "<b>hostile</b>" not in {text["source"] for text in kept}
    assert daemon.status()["model"]["withdrawn"] == "deletion"
    visit.go("Learned")
    expect(page.locator("#learned-lead")).to_contain_text("withdrawn until it has learned the rest anew")


@pytest.mark.usefixtures("serving")
@wide
def test_a_version_is_rolled_back_and_used_again(visit: Visit, daemon: Daemon) -> None:
    page = visit.page
    visit.go("Learned")
    expect(page.locator("#learned-lead")).to_contain_text(CHOICES, timeout=SECONDS)
    page.get_by_role("button", name="Go back one").click()
    expect(page.locator("#learned-lead")).not_to_contain_text("choices", timeout=SECONDS)
    assert daemon.status()["model"]["adapter"] is None
    learned = daemon.client.get("/texts?source=app 1&limit=500").json()["data"][-1]["id"]
    daemon.client.delete(f"/texts/{learned}")
    asked: list[str] = []

    def say_yes(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", say_yes)
    page.get_by_role("button", name=re.compile("^Use")).first.click()
    expect(page.locator("#versions .tag.mine")).to_have_text("in use", timeout=SECONDS)
    expect(page.locator("#learned-lead")).to_contain_text(CHOICES, timeout=SECONDS)
    assert "that you deleted since" in asked[0]
    assert "409 (Conflict)" in visit.wrong.pop()  # the browser notes the refusal


@pytest.mark.usefixtures("serving")
@wide
def test_a_sentence_before_and_after(visit: Visit) -> None:
    page = visit.page
    visit.go("Learned")
    page.get_by_label("Begin one of your own").fill("Wind west")
    page.keyboard.press("Enter")
    expect(page.locator("#sentence p")).to_contain_text(["Wind west", "Wind west"], timeout=SECONDS)
    expect(page.locator("#sentence small")).to_have_text(["As it came", "Your model"])


def test_older_jobs_are_a_button_away(visit: Visit, daemon: Daemon) -> None:
    for _ in range(22):  # one after the other: an open one is cancelled before the next
        daemon.client.post(f"/jobs/{daemon.start_job(steps=1)}/cancel")
    visit.go("Nights")
    visit.page.get_by_text("Details: jobs").click()
    jobs, more = visit.page.locator("#jobs > li"), visit.page.get_by_role("button", name="Older jobs")
    expect(jobs).to_have_count(20, timeout=SECONDS)
    more.click()
    expect(jobs).to_have_count(len(daemon.client.get("/jobs?limit=60").json()["data"]), timeout=SECONDS)
    expect(more).to_be_hidden()


def test_what_failed_is_said_where_one_is_and_nothing_goes_on_promising(visit: Visit, daemon: Daemon) -> None:
    [identity] = daemon.client.post("/texts", json={"text": "Vanished before.", "source": "gone"}).json()["ids"]
    page = visit.page
    row = text_row(visit, "vanished")
    row.get_by_role("button", name="Delete: ").click()
    expect(row).to_contain_text("Deleting in")
    page.route("**/texts/text-*", lambda route: route.fulfill(status=500, json={"detail": "The disk is full."}))
    page.clock.run_for(UNDO_MS)
    expect(page.get_by_role("alert")).to_contain_text("The disk is full.", timeout=SECONDS)
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(row).not_to_contain_text("Deleting in")
    assert daemon.client.get(f"/texts/{identity}").status_code == 200
    visit.wrong.clear()  # the 500


@wide
def test_a_source_is_counted_whole_and_deleted_whole(visit: Visit, daemon: Daemon) -> None:
    many = [{"text": f"Note {number} of many.", "source": "many"} for number in range(120)]
    daemon.client.post("/texts", json=many)
    page = visit.page
    visit.go("Texts")
    source, rows = page.locator("#filter label", has_text="many"), page.locator("#text-list > li")
    expect(source).to_have_text("many 120", timeout=SECONDS)
    source.click()
    expect(page.get_by_role("button", name="Delete all from many")).to_be_visible()
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Older texts").click()
    expect(rows).to_have_count(100)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all from many").click()
    expect(page.locator("#toast")).to_contain_text("Deleted 120 texts.", timeout=SECONDS)
    expect(source).to_have_count(0)


def test_a_label_is_given_and_asked_for(visit: Visit) -> None:
    page = visit.page
    visit.go("Labels")
    page.get_by_label("A text", exact=True).fill("qqqq")
    page.get_by_role("button", name="Which label?").click()
    expect(page.get_by_role("alert")).to_contain_text("Each label needs 3 examples", timeout=SECONDS)
    page.get_by_role("button", name="Close").click()
    visit.wrong.clear()  # the 409
    for label, letter in (("queue", "q"), ("zoo", "z")):
        for size in (4, 5, 6):
            page.get_by_label("An example").fill(letter * size)
            page.get_by_label("Its label").fill(label)
            page.locator("#give").get_by_role("button", name="Add").click()
            expect(page.get_by_label("An example")).to_have_value("")
    expect(page.locator("#label-list > li")).to_have_count(2)
    expect(page.locator("#label-list > li").first).to_contain_text("3 examples")
    page.get_by_label("A text", exact=True).fill("qqqqq qq")
    page.get_by_role("button", name="Which label?").click()
    expect(page.locator("#label-answer .bar").first).to_contain_text("queue", timeout=SECONDS)
    expect(page.locator("#label-right")).to_contain_text("of 6.")


@wide
def test_an_app_gets_a_key_and_loses_it(visit: Visit, daemon: Daemon) -> None:
    page = visit.page
    visit.go("Apps")
    page.get_by_label("Its name").fill("keyboard")
    page.get_by_label("add texts").uncheck()
    page.get_by_label("use the model").check()
    page.get_by_role("button", name="Create its key").click()
    token = page.locator("#app-key code").first.inner_text()
    headers = {"authorization": f"Bearer {token}"}
    assert daemon.stranger.get("/models", headers=headers).status_code == 200
    expect(page.locator("#app-list")).to_contain_text("May use the model, which may repeat your texts.")
    page.get_by_role("button", name="Remove: keyboard").click()
    page.clock.run_for(UNDO_MS)
    expect(page.locator("#app-list")).to_have_text("No app has access yet.", timeout=SECONDS)
    assert daemon.stranger.get("/models", headers=headers).status_code == 401


def test_a_chat_answers_as_it_comes(visit: Visit) -> None:
    page = visit.page
    visit.go("Chat")
    with page.expect_response("**/generate") as answered:
        page.get_by_label("Your message").fill("How was the wind?")
        page.keyboard.press("Enter")
    assert answered.value.headers["content-type"].startswith("text/event-stream")
    expect(page.locator("#said p.me")).to_have_text("How was the wind?")
    expect(page.locator("#said p")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=SECONDS)
    expect(page.locator("#said p").last).not_to_have_text("…")


def test_a_snooze_is_begun_and_ended(visit: Visit, daemon: Daemon) -> None:
    page = visit.page
    visit.go("Nights")
    page.get_by_role("button", name="1 hour").click()
    expect(page.locator("#now-line")).to_contain_text("Snoozed until", timeout=SECONDS)
    assert daemon.status()["training"]["snoozed_until"]
    visit.go("Write")
    page.get_by_role("button", name="End the snooze").click()
    expect(page.locator("#now-line")).not_to_contain_text("Snoozed", timeout=SECONDS)
    assert daemon.status()["training"]["snoozed_until"] is None
