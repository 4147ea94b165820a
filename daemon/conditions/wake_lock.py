"""Keeps the machine awake while a job runs: by Android's wake lock, or by an inhibitor of systemd's logind.

Without it, a phone's processor sleeps with the screen, and a laptop when nobody uses it. Termux has one lock for all
programs and does not count its users, so this module does.
"""

import logging
import subprocess
import threading

from pocketllm.daemon.child import run
from pocketllm.daemon.errors import ChildFailed

log = logging.getLogger(__name__)

TAKE, RELEASE, INHIBIT = "termux-wake-lock", "termux-wake-unlock", "systemd-inhibit"
#: Holds the inhibitor while `cat` runs, which ends with its standard input, and so with the daemon.
_INHIBITED = ("--what=sleep", "--mode=block", "--who=PocketLLM", "--why=It learns while nobody uses the device.", "cat")
_TIMEOUT_SECONDS = 10.0


class WakeLock:
    """A counted lock: the first user takes it, the last one releases it."""

    def __init__(self, take: str | None = None, release: str | None = None, inhibit: str | None = None) -> None:
        """take, release, inhibit: the commands; None does nothing."""
        self._take, self._release, self._inhibit = take, release, inhibit
        self._inhibitor: subprocess.Popen[bytes] | None = None
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
                self._start_inhibitor()

    def release(self) -> None:
        """Remove a user."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                self._run(self._release)
                self._end_inhibitor()

    def close(self) -> None:
        """Release it, whoever has taken it, and wait for that."""
        self._users = 0
        self.release()
        self.settle(_TIMEOUT_SECONDS)

    def settle(self, timeout_seconds: float) -> None:
        """Wait until the last command has ended."""
        if self._last is not None:
            self._last.join(timeout_seconds)

    def _start_inhibitor(self) -> None:
        if self._inhibit is None:
            return
        try:
            self._inhibitor = subprocess.Popen(
                [self._inhibit, *_INHIBITED],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # without a terminal that it could ask for a password
            )
        except OSError as error:
            log.warning("%s cannot be run: %s", self._inhibit, error.strerror)

    def _end_inhibitor(self) -> None:
        inhibitor, self._inhibitor = self._inhibitor, None
        if inhibitor is not None:
            if code := inhibitor.poll():
                log.info("%s exited with code %d: the machine could go to sleep", self._inhibit, code)
            inhibitor.kill()  # logind may hang
            inhibitor.communicate()

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
            except ChildFailed as error:
                log.warning("%s", error)

        self._last = threading.Thread(target=work, name="wake lock", daemon=True)
        self._last.start()
