"""The worker as a child process: start, reap, kill."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field

from pocketllm.daemon.child import child_environment, last_words
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.processes import cpu_seconds

log = logging.getLogger(__name__)

#: The signals by which a process ends itself; any other was sent to it.
_FAULTS = {getattr(signal, f"SIG{name}") for name in ("SEGV", "ABRT", "ILL", "BUS", "FPE", "SYS", "TRAP")}
#: How long a killed process is waited for. One that waits for a device dies when that answers.
_KILL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The end of a worker."""

    job_id: str
    code: int  #: negative: the signal that killed it
    last_words: str  #: the last line of its log
    cpu_seconds: float | None = None
    reasons: list[str] = field(default_factory=list)  #: why the daemon killed it; none where it did not
    hung: bool = False  #: the daemon killed it since it had hung

    @property
    def is_crash(self) -> bool:
        """Whether the worker has failed by itself; else it could not go on for now, or was killed from outside."""
        if self.reasons:
            return self.hung
        return self.code != os.EX_TEMPFAIL if self.code >= 0 else -self.code in _FAULTS

    @property
    def description(self) -> str:
        """A sentence for people."""
        if self.reasons:
            return "; ".join(self.reasons)
        if self.code < 0:
            return f"the worker was killed by signal {-self.code}"
        if self.code == os.EX_TEMPFAIL:
            return self.last_words or "the disk is too full for the worker's log"
        return f"the worker exited with code {self.code}: {self.last_words or 'no output'}"


class WorkerProcess:
    """Runs one worker at a time, a child process. The end of its standard input tells it that the daemon is gone."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.job_id: str | None = None  #: the worker's job while one runs

    @property
    def pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._process.pid if self._process else None

    @property
    def cpu_seconds(self) -> float | None:
        """CPU seconds of the worker; None without one, or if the system does not say."""
        return cpu_seconds(self._process.pid) if self._process else None

    def start(self, job_id: str, start: int, *, seconds: float, immediate: bool = False) -> None:
        """Start a worker on a job. None must be running. start: the number of the job's start. seconds: what is
        probably left of the night. immediate: somebody waits for it, so its priority is low, but not the lowest.
        """
        command = [sys.executable, "-m", "pocketllm.daemon.training.worker"]
        command += ["--data-dir", str(self._folder.root), "--job", job_id, "--start", str(start)]
        command += ["--seconds", str(seconds), *["--immediate"] * immediate]
        with self._folder.worker_log.open("wb") as log:  # of the last worker only, so that it does not grow
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=child_environment(),
                # Its own session, so that Ctrl-C at the daemon's terminal reaches the daemon only.
                start_new_session=True,
            )
        self.job_id = job_id

    def reap(self) -> Exit | None:
        """The end of the worker, once, after it has exited; else None."""
        used = self.cpu_seconds  # the system says it until an ended process is waited for
        if self._process is None or self._process.poll() is None:
            return None
        return self._gone(used)

    def kill(self) -> Exit | None:
        """Kill the worker and wait a while until it is gone; returns its end. Does nothing when none runs."""
        if self._process is None:
            return None
        used = self.cpu_seconds
        self._process.kill()
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:  # the lock that it holds keeps the next worker waiting
            log.warning("worker %s does not end: it is waiting for a device", self._process.pid)
        return self._gone(used)

    def _gone(self, cpu_seconds: float | None) -> Exit:
        assert self._process is not None and self.job_id is not None
        if self._process.stdin:
            self._process.stdin.close()
        ended = Exit(
            job_id=self.job_id,
            code=-signal.SIGKILL if self._process.returncode is None else self._process.returncode,
            last_words=self._last_words(),
            cpu_seconds=cpu_seconds,
        )
        self._process = self.job_id = None
        return ended

    def _last_words(self) -> str:
        with suppress(OSError):
            if output := self._folder.worker_log.read_bytes().strip():
                return last_words(output)
        return ""
