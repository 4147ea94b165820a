"""A browser's tab on the page."""

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
    "middle": {"width": 640, "height": 450},  # the wide one at twice the size: the narrowest with columns
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
        expect(self.page.locator("#now-line")).not_to_be_empty(timeout=SECONDS)
        expect(self.page.locator("#home")).to_be_visible(timeout=SECONDS)

    def go(self, section: str) -> None:
        """Open a section by its link."""
        link = self.page.get_by_role("navigation").get_by_role("link", name=section)
        link.click()
        expect(link).to_have_attribute("aria-current", "page")

    def look(self) -> None:
        """Let the page look at the daemon's state again."""
        self.page.clock.run_for(LOOK_MS)

    def end(self) -> None:
        assert not self.wrong, self.wrong
        self.context.close()
