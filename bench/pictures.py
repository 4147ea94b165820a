"""The pictures of the page in docs/: of the real model, before, while and after it learns the sample notes.

python -m bench.pictures [--models DIR] [--docs docs] [--every]

Needs Chromium. At 360 pixels the page is shown on a new daemon (empty), when it is snoozed (stopped), while a job runs
(learning), and when the daemon is gone (error). Once the notes of `pocketllm demo` are learned, in two jobs, with a
text begun in its field, it is shown at 1280 and 360 pixels, by day and in the dark, and what it has learned (learned).
With --every, each state is shown in all four ways.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from bench.common.harness import progress
from bench.common.shapes import learner, models_folder
from bench.common.world import daemon_on, until
from bench.common.writers import ended
from pocketllm.cli.demo import sample_notes

if TYPE_CHECKING:
    from pocketllm.client import Client

#: A viewport and a colour scheme, by the end of a picture's name.
Way = tuple[ViewportSize, Literal["light", "dark"]]
Ways = Mapping[str, Way]
_SCHEMES: dict[str, Literal["light", "dark"]] = {"": "light", "-dark": "dark"}
_SIZES: dict[str, ViewportSize] = {"wide": {"width": 1280, "height": 1000}, "narrow": {"width": 360, "height": 1400}}
WAYS: dict[str, Way] = {
    f"{name}{suffix}": (size, scheme) for name, size in _SIZES.items() for suffix, scheme in _SCHEMES.items()
}
#: As much as a phone shows.
_STATE: Way = ({"width": 360, "height": 740}, "light")
_WRITING = "Wind in the west and the gla"
_MILLISECONDS = 120_000
#: Of the job, when it is shown.
_STEPS = 20


def writing(page: Page) -> None:
    """Let the page show what it can."""
    page.locator("#draft").fill(_WRITING)
    expect(page.locator("#write .ghost")).not_to_be_empty(timeout=_MILLISECONDS)
    expect(page.locator("#g-words .tag")).not_to_have_count(0, timeout=_MILLISECONDS)
    expect(page.locator("#now-line")).to_contain_text("It learned", timeout=_MILLISECONDS)


def versions(page: Page) -> None:
    """Show what it has learned."""
    writing(page)
    page.get_by_role("link", name="Learned", exact=True).click()
    expect(page.locator("#chart circle")).to_have_count(2)


def main() -> int:
    """Make the pictures."""
    options = _options()
    with (
        models_folder(options.models) as models,
        tempfile.TemporaryDirectory() as scratch,
        sync_playwright() as program,
    ):
        model = learner(models, quick=False).absolute()
        browser = program.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def pictures(client: Client, state: str, show: Callable[[Page], None], ways: Ways) -> None:
            if options.every:
                ways = {f"{state}-{name}": way for name, way in WAYS.items()}
            context = browser.new_context(viewport={"width": 1280, "height": 1000})
            page = context.new_page()
            page.set_default_timeout(_MILLISECONDS)
            page.goto(f"{client.target.url}/#code={client.post('sessions')['code']}")
            expect(page.locator("#now-line")).not_to_be_empty()
            expect(page.locator("#home")).to_be_visible()
            show(page)
            for name, (size, scheme) in ways.items():
                page.set_viewport_size(size)
                page.emulate_media(color_scheme=scheme)
                page.evaluate("window.scrollTo(0, 0)")
                page.screenshot(path=options.docs / f"dashboard-{name}.png")
                progress(f"dashboard-{name}.png")
            context.close()

        with daemon_on(Path(scratch), model, TRAINING__NEW_WORDS="400") as client:
            pictures(client, "empty", lambda page: None, {"empty": _STATE})
            notes = [{"text": text, "source": "logbook"} for text in sample_notes()]
            client.post("texts", body=notes[: len(notes) // 2])
            ended(client, str(client.post("jobs", body={})["id"]))
            client.post("texts", body=notes[len(notes) // 2 :])
            client.post("status", "snooze", body={"minutes": 600})
            pictures(client, "stopped", lambda page: None, {"stopped": _STATE})
            client.post("status", "snooze", body={})
            job = str(client.post("jobs", body={})["id"])
            until(lambda: client.get("jobs", job)["step"] >= _STEPS, "some steps")
            pictures(client, "learning", lambda page: None, {"learning": _STATE})
            ended(client, job)
            pictures(client, "learned", versions, {"learned": WAYS["wide"]})
            pictures(client, "writing", writing, WAYS)
            pid = client.get("health")["pid"]

            def gone(page: Page) -> None:
                os.kill(pid, signal.SIGKILL)
                expect(page.locator("#now-line")).to_contain_text("does not answer")

            pictures(client, "error", gone, {"error": _STATE})
        browser.close()
    return 0


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m bench.pictures", description="The pictures of the page in docs/.")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    made.add_argument("--docs", type=Path, default=Path("docs"), help="where the pictures go")
    made.add_argument("--every", action="store_true", help="each state at both widths, by day and in the dark")
    return made.parse_args()


if __name__ == "__main__":
    sys.exit(main())
