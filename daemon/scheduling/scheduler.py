"""The scheduler: `tick(now)` reads the sensors once and starts, pauses or queues jobs. A timer calls it."""

import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.gate import Blocker, Charge, GateContext, Verdict, decide
from pocketllm.daemon.conditions.readings import Reading, shown
from pocketllm.daemon.conditions.sensor_history import History
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.errors import NothingToLearn
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.admission import Admission
from pocketllm.daemon.scheduling.planning import JobRequest, Planner, Plans
from pocketllm.daemon.scheduling.runs import RunRecorder, midnight_of
from pocketllm.daemon.scheduling.worker_process import Exit, Runner
from pocketllm.daemon.settings import Settings, TrainingSettings
from pocketllm.daemon.uptime import uptime
from pocketllm.storage.errors import WrongState
from pocketllm.storage.repositories.jobs import Tuning
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Requester

log = logging.getLogger(__name__)

#: Crashes in a row, without a step between them, after which a job fails.
MAX_ATTEMPTS = 4
#: The reason of a job that its owner paused.
PAUSED_BY_OWNER = "paused by the owner"
#: The wait after the first crash in a row; it doubles with each.
RETRY_SECONDS = 30
_LONGEST_RETRY = timedelta(seconds=RETRY_SECONDS * 2 ** (MAX_ATTEMPTS - 2))


class Scheduler:
    """Decides which job runs. Its lasting state is in the store. Thread-safe."""

    def __init__(
        self,
        store: Store,
        folder: DataFolder,
        sensor_set: SensorSet,
        runner: Runner,
        settings: Settings,
        *,
        model_problem: Callable[[], str | None],
        planner: Planner,
        wake_lock: WakeLock,
        generator_bytes: Callable[[], int] = lambda: 0,
        local: Callable[[datetime], datetime] = datetime.astimezone,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        """model_problem, planner: see Plans. generator_bytes: see Admission. local: converts to the owner's local time.
        uptime: monotonic seconds.
        """
        self._store, self._folder, self._sensor_set, self._runner = store, folder, sensor_set, runner
        self._settings, self._model_problem = settings, model_problem
        self.plans = Plans(settings.training, model_problem=model_problem, planner=planner)
        self._admission = Admission(settings.total_memory_bytes, generator_bytes)
        self._wake_lock, self._local, self._uptime = wake_lock, local, uptime
        self._runs = RunRecorder(store.runs)
        self._history = History(store.sensor_history)
        self._lock = threading.RLock()
        self._paused_at: float | None = None  # by uptime
        self._charge = Charge()
        self._step_at_start = 0
        self.readings: Sequence[Reading] = ()
        self.verdict = Verdict()

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._runner.pid

    @property
    def running_job(self) -> str | None:
        """The id of the job that the worker trains."""
        return self._runner.job_id

    @property
    def summary(self) -> str:
        """Its activity, or what it waits for, in one line."""
        if self._runner.job_id:
            return f"learning: {self._runner.job_id}"
        return "; ".join(self.verdict.reasons) or "nothing to learn"

    def recover(self, now: datetime) -> None:
        """At start: pause the jobs that a dead daemon left running, and delete the files of closed jobs."""
        with self._lock:
            self._runs.recover(now)
            for job in self._store.jobs.open():
                if job.state is JobState.RUNNING:
                    self._store.jobs.pause(job.id, reasons=["the daemon was restarted"], now=now)
            open_jobs = {job.id for job in self._store.jobs.open()}
            for place in (self._folder.starts, self._folder.runs, self._folder.exports):
                for left in place.iterdir() if place.is_dir() else ():
                    if left.name not in open_jobs:
                        shutil.rmtree(left, ignore_errors=True)

    def tick(self, now: datetime) -> None:
        """Reap the worker, queue a job if there is enough new text, read the sensors, start or pause a job."""
        with self._lock:
            if ended := self._runner.reap():
                self._ended(ended, now)
            waiting = self._store.jobs.open()
            if not waiting and (job := self._queue_if_enough(now)):
                waiting = [job]
            queue = [job for job in waiting if not job.paused_by_owner]
            self._read_sensors(now)
            self.verdict = self._decide(queue[0] if queue else None, now)
            if not (queue and queue[0].immediate):  # an immediate job says nothing about the usual idle times
                self._runs.gate(self.verdict.allowed, now)
            if queue:
                self._advance(queue[0], now)
            for behind in queue[1:]:
                self._explain(behind, [f"waits for {queue[0].id}"])
            self._runs.observe(self._runner.pid, self.readings, now)
            self._history.add(self.readings, now)

    def _read_sensors(self, now: datetime) -> None:
        running = self._runner.pid is not None
        self._sensor_set.pace.training = running
        self.readings = [sensor.read(now) for sensor in self._sensor_set.sensors]
        by_name = {reading.name: reading for reading in self.readings}
        self._charge = self._charge.after(by_name, self._settings.gate, running=running)

    def request(
        self,
        requested: JobRequest,
        *,
        seed: int | None,
        immediate: bool,
        now: datetime,
        tuning: Tuning | None = None,
        request_key: str | None = None,
    ) -> Job:
        """Queue a job for the owner, once for each key. Raises NothingToLearn, and what `Plans.plan` raises."""
        if (tuning is None or tuning.texts is None) and self._store.texts.counts().texts == 0:
            raise NothingToLearn
        planned = self.plans.plan(requested)
        return self._create(
            Requester.OWNER,
            training=planned.training,
            steps=planned.plan.steps,
            seed=seed,
            immediate=immediate,
            predicted_bytes=planned.prediction.peak_bytes,
            tuning=tuning,
            request_key=request_key,
            now=now,
        )

    def expected_at(self, now: datetime) -> datetime | None:
        """When a job can probably run next, judging by yesterday; None where nothing is known of yesterday."""
        with self._lock:
            return self._runs.expected_at(now)

    def what_if(self, values: Mapping[str, bool | float | str | None], now: datetime) -> Verdict:
        """The gate's verdict on these readings in place of the sensors'; None is unknown."""
        with self._lock:
            if not self.readings:  # asked before the first tick
                self._read_sensors(now)
            given: dict[str, Reading] = {
                name: Reading(name=name, value=value, unit=None, source="given", at=now, reason="given as unknown")
                for name, value in values.items()
            }
            kept = [reading for reading in self.readings if reading.name not in given]
            context = replace(self._context(None, now), running=False, paused_seconds=None)
            return decide([*kept, *given.values()], self._settings.gate, context)

    def screen(self, on: bool, now: datetime) -> None:
        """Record that the screen went on or off, as an app reports it."""
        self._sensor_set.reported_screen.report(on, now)

    def snooze(self, until: datetime | None) -> None:
        """Run no job until then; None ends that."""
        self._store.preferences.snooze(until)

    def pause(self, job_id: str, now: datetime) -> Job:
        """Pause an open job until `resume`; its worker is killed. Raises NotFound or WrongState."""
        with self._lock:
            if self._runner.job_id == job_id:
                self._pause([PAUSED_BY_OWNER], now)
            return self._store.jobs.pause_by_owner(job_id, reason=PAUSED_BY_OWNER, now=now)

    def resume(self, job_id: str, now: datetime) -> Job:
        """Put a job that the owner has paused back into the queue. Raises NotFound or WrongState."""
        with self._lock:
            return self._store.jobs.resume_by_owner(job_id, now=now)

    def cancel(self, job_id: str, now: datetime) -> Job:
        """Cancel an open job; its worker is killed. Raises NotFound or WrongState."""
        with self._lock:
            job = self._store.jobs.cancel(job_id, message="cancelled by the owner", now=now)
            if self._runner.job_id == job_id:
                self._end_worker("cancelled by the owner", now)
            for left in (self._folder.start(job_id), self._folder.run(job_id)):
                shutil.rmtree(left, ignore_errors=True)
            return job

    def close(self, now: datetime) -> None:
        """Pause the running job and end its worker: the daemon stops."""
        with self._lock:
            self._pause(["the daemon has stopped"], now)

    def _ended(self, ended: Exit, now: datetime) -> None:
        """The worker exited: its job is closed, or it crashed."""
        job = self._store.jobs.get(ended.job_id)
        if job.state is not JobState.RUNNING:
            log.info("job %s ended: %s", job.id, job.state)
            self._note_end(f"the job has ended: {job.state}", ended, now)
            return
        self._note_end(ended.description, ended, now)
        self._crashed(job, ended.description, now)

    def _note_end(self, because: str, ended: Exit | None, now: datetime) -> None:
        """The worker is gone: close its run's row, and release the wake lock."""
        self._runs.end(because=because, cpu=ended.cpu_seconds if ended else None, readings=self.readings, now=now)
        self._wake_lock.release()

    def _end_worker(self, because: str, now: datetime) -> None:
        self._note_end(because, self._runner.kill(), now)

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

    def _queue_if_enough(self, now: datetime) -> Job | None:
        """Queue a job if there is enough new text and no job is open."""
        training = self._settings.training
        if self._new_words() < training.new_words or self._model_problem() is not None:
            return None
        job = self._create(
            Requester.THRESHOLD,
            training=training,
            steps=training.steps,
            seed=None,
            immediate=False,
            predicted_bytes=self.plans.predicted_bytes(),
            now=now,
        )
        log.info("job %s queued: there is enough new text", job.id)
        return job

    def _new_words(self) -> int:
        """Words not yet trained on. After a failed or cancelled job only newer ones count: the same text would fail
        again, and a cancelled job would come back at the next tick.
        """
        last = self._store.jobs.page(after=None, limit=1)
        if last and last[0].finished_at is not None and last[0].state is not JobState.SUCCEEDED:
            return self._store.texts.new_words_since(last[0].finished_at)
        return self._store.texts.counts().new_words

    def _decide(self, job: Job | None, now: datetime) -> Verdict:
        verdict = decide(self.readings, self._settings.gate, self._context(job, now), self.verdict)
        own = [blocker for blocker in (self._missing_model(now), self._admission.blocker(job, now)) if blocker]
        known = {blocker.name: blocker.since for blocker in self.verdict.blockers}
        own = [replace(blocker, since=known.get(blocker.name, now)) for blocker in own]
        return Verdict(blockers=(*own, *verdict.blockers)) if own else verdict

    def _missing_model(self, now: datetime) -> Blocker | None:
        problem = self._model_problem()
        return Blocker(name="model", message=problem, since=now) if problem else None

    def _context(self, job: Job | None, now: datetime) -> GateContext:
        local, limited = self._local(now), self._settings.gate.minutes_per_day is not None
        return GateContext(
            now=now,
            local=local,
            running=self._runner.pid is not None,
            immediate=job is not None and job.immediate,
            paused_seconds=None if self._paused_at is None else self._uptime() - self._paused_at,
            charge=self._charge,
            used_today_seconds=self._runs.seconds_since(midnight_of(local), now) if limited else 0.0,
            snoozed_until=self._store.preferences.snoozed_until(),
        )

    def _advance(self, job: Job, now: datetime) -> None:
        """Start, pause, or explain the job that is next."""
        if self._runner.pid is not None:
            if not self.verdict.allowed:
                self._pause(self.verdict.reasons, now)
                self._paused_at = self._uptime()  # only here: the minimum pause is for flapping conditions
        elif job.not_before is not None and timedelta(0) < job.not_before - now <= _LONGEST_RETRY:
            return  # waits for its retry; a longer time means that the clock was set back
        elif self.verdict.allowed:
            self._start(job, now)
        else:
            self._explain(job, self.verdict.reasons)

    def _explain(self, job: Job, reasons: list[str]) -> None:
        """Store why a job waits, if that changed."""
        if job.reasons != reasons:
            self._store.jobs.explain(job.id, reasons)

    def _start(self, job: Job, now: datetime) -> None:
        if job.requested_by is Requester.THRESHOLD and job.started_at is None and not self._has_new_text():
            self._store.jobs.cancel(job.id, message="another job has learned its texts meanwhile", now=now)
            return
        start = self._store.adapters.start_of(job)
        # A full-parameter job cannot start from an adapter, nor the other way round.
        self._store.jobs.start(job.id, parent=start.id if start and start.mode == job.mode else None, now=now)
        self._step_at_start = self._store.step_log.last_step(job.id)
        try:
            self._runner.start(job.id)
        except OSError as error:  # out of processes, memory or disk
            self._crashed(job, f"the worker could not be started: {error}", now)
            return
        self._wake_lock.take()
        self._runs.begin(job.id, because=self._why(job), readings=self.readings, now=now)
        log.info("job %s: worker %s started at step %d", job.id, self._runner.pid, self._step_at_start)

    def _pause(self, reasons: list[str], now: datetime) -> None:
        job_id = self._runner.job_id
        if job_id is None:
            return
        self._end_worker("; ".join(reasons), now)
        try:
            self._store.jobs.pause(job_id, reasons=reasons, now=now, progressed=self._progressed(job_id))
            log.info("job %s paused: %s", job_id, "; ".join(reasons))
        except WrongState:
            log.info("job %s had just ended", job_id)

    def _why(self, job: Job) -> str:
        """The readings with which the worker started, in short."""
        asked = ["asked for now"] if job.immediate else []
        return ", ".join(asked + [shown(reading) for reading in self.readings if reading.value is not None])

    def _has_new_text(self) -> bool:
        return self._store.texts.counts().new_words > 0

    def _create(
        self,
        requested_by: Requester,
        *,
        training: TrainingSettings,
        steps: int,
        seed: int | None,
        immediate: bool,
        predicted_bytes: int | None,
        now: datetime,
        tuning: Tuning | None = None,
        request_key: str | None = None,
    ) -> Job:
        return self._store.jobs.create(
            model=self._settings.model,
            mode=training.mode,
            seed=secrets.randbits(31) if seed is None else seed,
            total_steps=steps,
            settings=training.model_dump(mode="json"),
            requested_by=requested_by,
            immediate=immediate,
            predicted_bytes=predicted_bytes,
            tuning=tuning,
            request_key=request_key,
            now=now,
        )
