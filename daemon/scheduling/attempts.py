"""A job's attempts: its worker is started, watched and ended, and its end is stored.

An end is first noted in memory, and the wake lock released, which cannot fail. Storing it can, when the disk is full;
then it is tried again at the next tick.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.processes import StallWatch
from pocketllm.daemon.scheduling.runs import RunRecorder
from pocketllm.daemon.scheduling.worker_process import Exit, WorkerProcess
from pocketllm.daemon.uptime import local_time
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState

log = logging.getLogger(__name__)

#: Crashes in a row, without a step between them, after which a job fails.
MAX_ATTEMPTS = 4
#: The wait after a worker that was not paused: at first, and at most. It doubles with each until one makes a step.
RETRY_SECONDS, LONGEST_RETRY = 15, timedelta(minutes=15)
#: A worker that has used no processor for so long is killed.
STALL_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class _End:
    """The end of a worker that the store does not have yet."""

    exit: Exit
    because: str
    reasons: list[str] | None = None  #: its job is paused for these; None: it is tried again
    is_crash: bool = False


class Attempts:
    """Runs one worker at a time."""

    def __init__(
        self, store: Store, runner: WorkerProcess, runs: RunRecorder, wake_lock: WakeLock, uptime: Callable[[], float]
    ) -> None:
        """uptime: monotonic seconds."""
        self._store, self._runner, self._runs, self._wake_lock = store, runner, runs, wake_lock
        self._stall = StallWatch(uptime)
        self._step_at_start = 0
        self._end: _End | None = None
        self._tries = 0  #: in a row, without a step between them

    @property
    def pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._runner.pid

    @property
    def job_id(self) -> str | None:
        """The worker's job while one runs."""
        return self._runner.job_id

    def start(self, job: Job, *, because: str, seconds: float, now: datetime) -> None:
        """Start a worker on a waiting job. None must be running. seconds: what is probably left of the night. Raises
        StorageError.
        """
        started = self._store.jobs.start(job.id, now=now)
        self._step_at_start = self._store.step_log.last_step(job.id)
        try:
            self._runner.start(job.id, started.starts, seconds=seconds, immediate=started.immediate)
        except OSError as error:  # out of processes, memory or disk
            self._try_again(started, f"the worker could not be started: {error}", now)
            return
        self._wake_lock.take()
        self._runs.begin(job.id, because=because, now=now)
        log.info("job %s: worker %s started at step %d", job.id, self._runner.pid, self._step_at_start)

    def watch(self) -> None:
        """Notice that the worker has ended, or kill it when it hangs."""
        if ended := self._runner.reap():
            self._note(_End(exit=ended, because=ended.description, is_crash=ended.is_crash))
            return
        idle = self._stall.idle_seconds(self._runner.cpu_seconds)
        if idle >= STALL_SECONDS and (ended := self._runner.kill()):
            self._note(_End(exit=ended, because=f"the worker hung for {idle:.0f} s", is_crash=True))

    def pause(self, reasons: list[str]) -> None:
        """Kill the worker, if one runs; `settle` stores that its job is paused for these reasons."""
        if ended := self._runner.kill():
            self._note(_End(exit=ended, because="; ".join(reasons), reasons=reasons))

    def settle(self, now: datetime) -> bool:
        """Store the end of the last worker; returns whether there was one. Raises StorageTrouble: call it again.

        A job that is marked as running without a worker is tried again.
        """
        end = self._end
        if end is not None:
            job = self._store.jobs.get(end.exit.job_id)
            running = job.state is JobState.RUNNING
            because = end.because if running else f"the job has ended: {job.state}"
            self._runs.end(because=because, cpu=end.exit.cpu_seconds, now=now)
            if running:
                if end.reasons is None:
                    self._try_again(job, because, now, is_crash=end.is_crash)
                else:
                    attempts = self._attempts_before(job)
                    self._store.jobs.pause(job.id, reasons=end.reasons, attempts=attempts, now=now)
            log.info("job %s: %s", job.id, because)
            self._end = None
        for job in self._store.jobs.open():
            if job.state is JobState.RUNNING and job.id != self._runner.job_id:
                self._try_again(job, "its worker is gone", now)
        return end is not None

    def observe(self, now: datetime) -> None:
        """Store now and then that the worker still runs."""
        self._runs.observe(self._runner.cpu_seconds, now)

    def _note(self, end: _End) -> None:
        self._end = end
        self._wake_lock.release()

    def _try_again(self, job: Job, why: str, now: datetime, *, is_crash: bool = False) -> None:
        """Pause the job until its next try. Too many crashes fail it; a kill from outside says nothing about it."""
        attempts = self._attempts_before(job) + is_crash
        log.warning("job %s: %s (crashes in a row: %d)", job.id, why, attempts)
        if attempts >= MAX_ATTEMPTS:
            error = f"{why}; gave up after {attempts} crashes without a step in between"
            self._store.jobs.fail(job.id, error=error, now=now)
            return
        retry_at = now + min(timedelta(seconds=RETRY_SECONDS * 2 ** min(self._tries, 9)), LONGEST_RETRY)
        self._tries += 1
        reasons = [f"{why}; next try at {local_time(retry_at):%H:%M:%S}"]
        kind = "crashed" if is_crash else "interrupted"
        self._store.jobs.pause(job.id, reasons=reasons, kind=kind, attempts=attempts, not_before=retry_at, now=now)

    def _attempts_before(self, job: Job) -> int:
        """The job's crashes in a row before this end: none if its last step changed since its worker started."""
        if self._store.step_log.last_step(job.id) == self._step_at_start:
            return job.attempts
        self._tries = 0
        return 0
