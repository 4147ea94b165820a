"""Android's wake lock, held while a job runs: without it the phone's processor sleeps with the screen.

Termux has one lock for all programs and does not count its users, so this module does.
"""

import logging
import threading

from pocketllm.daemon.conditions.poller import ProbeFailed, run

log = logging.getLogger(__name__)

TAKE, RELEASE = "termux-wake-lock", "termux-wake-unlock"
_TIMEOUT_SECONDS = 10.0


class WakeLock:
    """A counted lock: the first user takes it, the last one releases it."""

    def __init__(self, take: str | None = None, release: str | None = None) -> None:
        """take, release: the commands; None does nothing."""
        self._take, self._release = take, release
        self._users = 0
        self._lock = threading.Lock()
        self._last: threading.Thread | None = None

    @property
    def in_use(self) -> bool:
        """Whether it has a user."""
        return self._users > 0

    def take(self) -> None:
        """Add a user."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._run(self._take)

    def release(self) -> None:
        """Remove a user."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                self._run(self._release)

    def close(self) -> None:
        """Release it, whoever has taken it, and wait for that."""
        self._users = 0
        self.release()
        self.settle(_TIMEOUT_SECONDS)

    def settle(self, timeout_seconds: float) -> None:
        """Wait until the last command has ended."""
        if self._last is not None:
            self._last.join(timeout_seconds)

    def _run(self, command: str | None) -> None:
        """Run a command in the background, since it may hang; commands run one after the other, in order."""
        if command is None:
            return
        before = self._last

        def work() -> None:
            if before is not None:
                before.join()
            try:
                run([command], timeout_seconds=_TIMEOUT_SECONDS)
            except ProbeFailed as error:
                log.warning("%s", error)

        self._last = threading.Thread(target=work, name="wake lock", daemon=True)
        self._last.start()
