"""The pictures of the page in docs/: of the real model, after it has learned the sample notes.

python -m bench.pictures [--models DIR] [--docs docs]

Needs Chromium. The daemon learns the notes of `pocketllm demo` by a default job; then the page is signed in, a text is
begun in its field, both models answer a prompt, and it is shown at 1280 and at 360 pixels, by day and in the dark.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from bench.harness import progress
from bench.shapes import learner, models_folder
from bench.world import daemon_on
from bench.writers import trained
from pocketllm.demo import sample_notes

SIZES = {"wide": {"width": 1280, "height": 1000}, "narrow": {"width": 360, "height": 1400}}
SCHEMES = {"": "light", "-dark": "dark"}
_WRITING, _PROMPT = "Wind in the west and the gla", "Wind south-west this morning,"
_MILLISECONDS = 120_000


def prepare(page: Page, url: str) -> None:
    """Sign in, and let the page show what it can."""
    page.set_default_timeout(_MILLISECONDS)
    page.goto(url)
    page.get_by_label("Type, and take a suggestion").fill(_WRITING)
    expect(page.locator("#suggestions button")).to_have_count(3, timeout=_MILLISECONDS)
    page.get_by_label("A text to go on from").fill(_PROMPT)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#answers h3")).to_have_count(2, timeout=_MILLISECONDS)
    expect(page.locator("#curve polyline.training")).to_have_count(1, timeout=_MILLISECONDS)
    expect(page.locator("#won-words li")).not_to_have_count(0, timeout=_MILLISECONDS)
    expect(page.locator("#now")).to_contain_text("Nothing to learn", timeout=_MILLISECONDS)
    page.evaluate("window.scrollTo(0, 0)")


def main() -> int:
    """Make the pictures."""
    options = _options()
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = learner(models, quick=False).absolute()
        with daemon_on(Path(scratch), model, TRAINING__NEW_WORDS="400") as client, sync_playwright() as playwright:
            progress("learning the sample notes ...")
            trained(client, [{"text": text, "source": "logbook"} for text in sample_notes()])
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for size, viewport in SIZES.items():
                for suffix, scheme in SCHEMES.items():
                    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
                    page = context.new_page()
                    prepare(page, f"{client.target.url}/#code={client.begin_session()['code']}")
                    page.screenshot(path=options.docs / f"dashboard-{size}{suffix}.png")
                    progress(f"dashboard-{size}{suffix}.png")
                    context.close()
            browser.close()
    return 0


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m bench.pictures", description="The pictures of the page in docs/.")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    made.add_argument("--docs", type=Path, default=Path("docs"), help="where the pictures go")
    return made.parse_args()


if __name__ == "__main__":
    sys.exit(main())
