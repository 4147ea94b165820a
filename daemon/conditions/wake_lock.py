"""Android's wake lock, held while a job runs: without it the phone's processor sleeps with the screen.

Termux has one for all its programs, and does not count who wants it. So it is taken and given back in one place.
"""

import logging
import shutil
import threading
from typing import Self

from pocketllm.daemon.conditions.poller import ProbeFailed, run

log = logging.getLogger(__name__)

TAKE, GIVE_BACK = "termux-wake-lock", "termux-wake-unlock"
_TIMEOUT_SECONDS = 10.0


class WakeLock:
    """Counts who wants it; the first takes it, the last gives it back."""

    def __init__(self, take: str | None = None, give_back: str | None = None) -> None:
        """take, give_back: the commands; where there are none, nothing is done."""
        self._take, self._give_back = take, give_back
        self._wanted = 0
        self._lock = threading.Lock()
        self._last: threading.Thread | None = None

    @classmethod
    def of_this_machine(cls) -> Self:
        """By Termux's commands, where they are on the PATH."""
        return cls(shutil.which(TAKE), shutil.which(GIVE_BACK))

    @property
    def held(self) -> bool:
        """Whether somebody wants it."""
        return self._wanted > 0

    def take(self) -> None:
        """Want it. Give it back as often as you take it."""
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._run(self._take)

    def give_back(self) -> None:
        """Want it no more."""
        with self._lock:
            self._wanted = max(0, self._wanted - 1)
            if self._wanted == 0:
                self._run(self._give_back)

    def settle(self, timeout_seconds: float) -> None:
        """Wait until what was asked for last has been done."""
        if self._last is not None:
            self._last.join(timeout_seconds)

    def _run(self, command: str | None) -> None:
        """In the background: it may hang, as all of Termux:API. One after the other, in order."""
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
