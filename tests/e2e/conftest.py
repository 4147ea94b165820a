"""What the tests of the page share."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import SMALL_JOB, tiny_daemon
from tests.support.page_visit import Visit


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
    with tiny_daemon(folder, TICK_SECONDS="0.1", TRAINING__STEPS="100000", **SMALL_JOB) as made:
        notes = [{"text": f"Wind west, glass rising. Mug {i}.", "source": f"app {i % 2}"} for i in range(30)]
        notes.append({"text": "<img src=x onerror=alert(1)> [not] markup", "source": "<b>hostile</b>"})
        assert made.client.post("/texts", json=notes).status_code == 201
        done = made.wait_for_job(made.start_job(steps=3, seed=1), "succeeded")
        assert made.client.post(f"/adapters/{done['adapter']}/serve").status_code == 200
        yield made


@pytest.fixture
def visit(browser: Browser, daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A tab that is signed in, and in which nothing has gone wrong in the end. Narrow unless a test says its size."""
    made = Visit(browser, daemon, getattr(request, "param", "narrow"))
    made.sign_in()
    yield made
    made.end()
