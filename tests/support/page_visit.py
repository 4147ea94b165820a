"""A browser's tab on the page."""

import re
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.support.daemon.commands import handed_to_browser
from tests.support.daemon.real_daemon import Daemon

#: How long to wait for something to be seen, in ms.
SECONDS = 60_000
#: Between two looks of the page at the daemon's state.
LOOK_MS = 2_000
SIZES = {
    "narrow": {"width": 360, "height": 740},
    "middle": {"width": 768, "height": 900},
    "wide": {"width": 1280, "height": 900},
}


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
        if parts.scheme not in ("data", "file") and parts.netloc != urlsplit(self.daemon.url).netloc:
            self.wrong.append(f"asked {url}")

    def sign_in(self) -> None:
        """As `pocketllm dashboard` does."""
        self.page.goto(handed_to_browser(self.daemon.folder))
        expect(self.page.get_by_role("heading", name="Now")).to_be_visible(timeout=SECONDS)

    def open(self, name: str) -> None:
        """Unfold a part of the page."""
        self.page.locator("summary", has_text=re.compile(f"^{name}$")).click()

    def end(self) -> None:
        assert self.wrong == []
        self.context.close()
