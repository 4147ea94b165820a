"""What the tests of the page share."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.daemon.real_daemon import Daemon, running
from tests.support.models.tiny_models import tiny_model_folder

JOB = {"TRAINING__METHOD": "mezo", "TRAINING__BATCH": "2", "TRAINING__BLOCK_TOKENS": "16", "TRAINING__RANK": "2"}


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
