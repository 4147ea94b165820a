"""A job's attempts: its worker is started, watched and ended, and its end is stored.

An end is first noted in memory, and the wake lock released, which cannot fail. Storing it can, when the disk is full;
then it is tried again at the next tick.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.scheduling.runs import RunRecorder
from pocketllm.daemon.scheduling.worker_process import Exit, Runner
from pocketllm.daemon.stalls import StallWatch
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState

log = logging.getLogger(__name__)

#: Crashes in a row, without a step between them, after which a job fails.
MAX_ATTEMPTS = 4
#: The wait after the first crash in a row; it doubles with each.
RETRY_SECONDS = 30
LONGEST_RETRY = timedelta(seconds=RETRY_SECONDS * 2 ** (MAX_ATTEMPTS - 2))
#: A worker that has used no processor for so long is killed.
STALL_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class _End:
    """The end of a worker that the store does not have yet."""

    job_id: str
    because: str
    exit: Exit | None = None
    reasons: list[str] | None = None  #: its job is paused for these; None: it ended by itself, or hung


class Attempts:
    """Runs one worker at a time."""

    def __init__(
        self, store: Store, runner: Runner, runs: RunRecorder, wake_lock: WakeLock, uptime: Callable[[], float]
    ) -> None:
        """uptime: monotonic seconds."""
        self._store, self._runner, self._runs, self._wake_lock = store, runner, runs, wake_lock
        self._stall = StallWatch(uptime)
        self._step_at_start = 0
        self._end: _End | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._runner.pid

    @property
    def job_id(self) -> str | None:
        """The worker's job while one runs."""
        return self._runner.job_id

    def start(self, job: Job, *, because: str, readings: Sequence[Reading], now: datetime) -> None:
        """Start a worker on a waiting job. None must be running. Raises StorageError."""
        started = self._store.jobs.start(job.id, now=now)
        self._step_at_start = self._store.step_log.last_step(job.id)
        try:
            self._runner.start(job.id, started.starts)
        except OSError as error:  # out of processes, memory or disk
            self._crashed(started, f"the worker could not be started: {error}", now)
            return
        self._wake_lock.take()
        self._runs.begin(job.id, because=because, readings=readings, now=now)
        log.info("job %s: worker %s started at step %d", job.id, self._runner.pid, self._step_at_start)

    def watch(self) -> None:
        """Notice that the worker has ended, or kill it when it hangs."""
        if ended := self._runner.reap():
            self._note(_End(job_id=ended.job_id, because=ended.description, exit=ended))
            return
        idle = self._stall.idle_seconds(self._runner.cpu_seconds)
        if self._runner.job_id is not None and idle >= STALL_SECONDS:
            job_id = self._runner.job_id
            self._note(_End(job_id=job_id, because=f"the worker hung for {idle:.0f} s", exit=self._runner.kill()))

    def pause(self, reasons: list[str]) -> None:
        """Kill the worker, if one runs; `settle` stores that its job is paused for these reasons."""
        if (job_id := self._runner.job_id) is not None:
            self._note(_End(job_id=job_id, because="; ".join(reasons), exit=self._runner.kill(), reasons=reasons))

    def settle(self, readings: Sequence[Reading], now: datetime) -> bool:
        """Store the end of the last worker; returns whether there was one. Raises StorageTrouble: call it again.

        A job that is marked as running without a worker has crashed.
        """
        end = self._end
        if end is not None:
            job = self._store.jobs.get(end.job_id)
            running = job.state is JobState.RUNNING
            because = end.because if running else f"the job has ended: {job.state}"
            cpu = end.exit.cpu_seconds if end.exit else None
            self._runs.end(because=because, cpu=cpu, readings=readings, now=now)
            if running:
                self._put_back(job, end, now)
            log.info("job %s: %s", job.id, because)
            self._end = None
        for job in self._store.jobs.open():
            if job.state is JobState.RUNNING and job.id != self._runner.job_id:
                self._crashed(job, "its worker is gone", now)
        return end is not None

    def observe(self, readings: Sequence[Reading], now: datetime) -> None:
        """Store now and then that the worker still runs."""
        self._runs.observe(self._runner.cpu_seconds, readings, now)

    def _note(self, end: _End) -> None:
        self._end = end
        self._wake_lock.release()

    def _put_back(self, job: Job, end: _End, now: datetime) -> None:
        """Pause the job, with a time for the next attempt where it did not end by a pause."""
        if end.reasons is not None:
            progressed = self._progressed(job.id)
            self._store.jobs.pause(job.id, reasons=end.reasons, now=now, progressed=progressed)
        elif end.exit is not None and end.exit.code == os.EX_TEMPFAIL:  # no crash: it could not go on for now
            retry_at = now + timedelta(seconds=RETRY_SECONDS)
            reason = f"{end.exit.last_words or end.because}; next try at {retry_at:%H:%M:%S} UTC"
            self._store.jobs.pause(job.id, reasons=[reason], now=now, not_before=retry_at)
        else:
            self._crashed(job, end.because, now)

    def _crashed(self, job: Job, what: str, now: datetime) -> None:
        """Schedule the next attempt, or fail the job."""
        attempts = 1 if self._progressed(job.id) else job.attempts + 1
        log.warning("job %s: %s (in a row: %d)", job.id, what, attempts)
        if attempts >= MAX_ATTEMPTS:
            error = f"{what}; given up after {attempts} times without a step between them"
            self._store.jobs.fail(job.id, error=error, now=now)
            return
        retry_at = now + timedelta(seconds=RETRY_SECONDS * 2 ** (attempts - 1))
        self._store.jobs.crashed(job.id, error=what, attempts=attempts, retry_at=retry_at, now=now)

    def _progressed(self, job_id: str) -> bool:
        """Whether the job's last step changed since its worker started."""
        return self._store.step_log.last_step(job_id) != self._step_at_start
