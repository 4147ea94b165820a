"""Signing in to the dashboard, staying signed in, and signing out, in a real headless Chromium."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.daemon.real_daemon import Daemon, running
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.page_visit import LOOK_MS, SECONDS, Visit

pytestmark = pytest.mark.slow


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
    expect(page.locator("#home")).to_be_visible(timeout=SECONDS)
    page.reload()
    expect(page.locator("#home")).to_be_visible(timeout=SECONDS)
    with page.expect_event("load"):  # the page is loaded again, which forgets all that it showed
        page.get_by_role("button", name="Sign out").first.click()
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
    with tiny_daemon(tmp_path) as daemon:
        port = str(urlsplit(daemon.url).port)
        visit = Visit(browser, daemon, "narrow")
        page = visit.page
        visit.sign_in()
        [cookie] = visit.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        for value in stored(page):
            assert value not in (daemon.token, cookie["value"])
            assert daemon.stranger.get("/status", headers={"authorization": f"Bearer {value}"}).status_code == 401
    page.clock.run_for(2 * LOOK_MS)
    expect(page.locator("#now-line")).to_have_text("PocketLLM does not answer.", timeout=SECONDS)
    expect(page.locator("#now-row")).to_contain_text("pocketllm serve")
    with running(tmp_path, arguments=("--port", port), MODEL="tiny") as daemon:
        page.clock.run_for(2 * LOOK_MS)
        expect(page.locator("#now-line")).not_to_contain_text("does not answer", timeout=SECONDS)
        assert all("ERR_" in noted for noted in visit.wrong)
        visit.wrong.clear()
        page.reload()
        expect(page.locator("#home")).to_be_visible(timeout=SECONDS)
        visit.end()


def test_the_page_of_a_token_that_is_revoked_wants_another(browser: Browser, daemon: Daemon) -> None:
    made = daemon.client.post("/tokens", json={"name": "page", "scopes": ["admin"]}).json()
    visit = Visit(browser, daemon, "wide")
    page = visit.page
    page.goto(daemon.url)
    page.get_by_label("Token").fill(made["token"])
    page.keyboard.press("Enter")
    expect(page.locator("#home")).to_be_visible(timeout=SECONDS)
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
        visit.page.get_by_role("button", name="Sign out").first.click()
    assert daemon.stranger.get("/status", headers=session).status_code == 401
    other.page.clock.run_for(2 * LOOK_MS)
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SECONDS)
    visit.end()
    other.wrong.clear()  # the 401
    other.end()
