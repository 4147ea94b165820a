"""A job's attempts: its worker is started, watched and ended, and its end is stored.

An end is first noted in memory, and the wake lock released, which cannot fail. Storing it can, when the disk is full;
then it is tried again at the next tick.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
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


class Attempts:
    """Runs one worker at a time."""

    def __init__(
        self, store: Store, runner: WorkerProcess, runs: RunRecorder, wake_lock: WakeLock, uptime: Callable[[], float]
    ) -> None:
        """uptime: monotonic seconds."""
        self._store, self._runner, self._runs, self._wake_lock = store, runner, runs, wake_lock
        self._stall = StallWatch(uptime)
        self._step_at_start = 0
        self._ended: Exit | None = None  #: the end of a worker that the store does not have yet
        self._tries = 0  #: in a row, without a step between them

    def start(self, job: Job, *, because: str, seconds: float, now: datetime) -> None:
        """Start a worker on a waiting job. None must be running. seconds: what is probably left of the night. Raises
        StorageError.
        """
        started = self._store.jobs.start(job.id, now=now)
        self._step_at_start = self._store.step_log.last_step(job.id)
        try:
            self._runner.start(job.id, started.starts, seconds=seconds, immediate=started.immediate)
        except OSError as error:  # out of processes, memory or disk
            self._note(_interrupted(job, f"the worker could not be started: {error}"))
            self.settle(now)
            return
        self._wake_lock.take()
        self._runs.begin(job.id, because=because, now=now)
        log.info("job %s: worker %s started at step %d", job.id, self._runner.pid, self._step_at_start)

    def watch(self) -> None:
        """Notice that the worker has ended, or kill it when it hangs."""
        if ended := self._runner.reap():
            self._note(ended)
            return
        idle = self._stall.idle_seconds(self._runner.cpu_seconds)
        if idle >= STALL_SECONDS and (ended := self._runner.kill()):
            self._note(replace(ended, reasons=[f"the worker hung for {idle:.0f} s"], hung=True))

    def pause(self, reasons: list[str]) -> None:
        """Kill the worker, if one runs; `settle` stores that its job is paused for these reasons."""
        if ended := self._runner.kill():
            self._note(replace(ended, reasons=reasons))

    def settle(self, now: datetime) -> bool:
        """Store the end of the last worker; returns whether there was one. Raises StorageTrouble: call it again.

        A job that is marked as running without a worker is tried again.
        """
        ended = self._ended
        if ended is not None:
            job = self._store.jobs.get(ended.job_id)
            running = job.state is JobState.RUNNING
            because = ended.description if running else f"the job has ended: {job.state}"
            self._runs.end(because=because, cpu=ended.cpu_seconds, now=now)
            if running:
                self._pause_or_fail(job, ended, now)
            log.info("job %s: %s", job.id, because)
            self._ended = None
        for job in self._store.jobs.open():
            if job.state is JobState.RUNNING and job.id != self._runner.job_id:
                self._pause_or_fail(job, _interrupted(job, "its worker is gone"), now)
        return ended is not None

    def observe(self, now: datetime) -> None:
        """Store now and then that the worker still runs."""
        self._runs.observe(self._runner.cpu_seconds, now)

    def _note(self, ended: Exit) -> None:
        self._ended = ended
        self._wake_lock.release()

    def _pause_or_fail(self, job: Job, ended: Exit, now: datetime) -> None:
        """Pause the job, until its next try unless it has other reasons. Too many crashes fail it; a kill from outside
        says nothing about it.
        """
        made_steps = self._store.step_log.last_step(job.id) != self._step_at_start
        attempts = (0 if made_steps else job.attempts) + ended.is_crash
        self._tries = 0 if made_steps else self._tries
        if ended.reasons and not ended.hung:
            self._store.jobs.pause(job.id, reasons=ended.reasons, attempts=attempts, now=now)
            return
        why = ended.description
        log.warning("job %s: %s (crashes in a row: %d)", job.id, why, attempts)
        if attempts >= MAX_ATTEMPTS:
            error = f"{why}; gave up after {attempts} crashes without a step in between"
            self._store.jobs.fail(job.id, error=error, now=now)
            return
        retry_at = now + min(timedelta(seconds=RETRY_SECONDS * 2 ** min(self._tries, 9)), LONGEST_RETRY)
        self._tries += 1
        reasons = [f"{why}; next try at {local_time(retry_at):%H:%M:%S}"]
        kind = "crashed" if ended.is_crash else "interrupted"
        self._store.jobs.pause(job.id, reasons=reasons, kind=kind, attempts=attempts, not_before=retry_at, now=now)


def _interrupted(job: Job, why: str) -> Exit:
    """The end of a worker that did not come to anything, which says nothing about the job."""
    return Exit(job_id=job.id, code=os.EX_TEMPFAIL, last_words=why)
