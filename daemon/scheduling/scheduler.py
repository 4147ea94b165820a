"""The scheduler: `tick(now)` reads the sensors once and starts, pauses or queues jobs. A timer calls it."""

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf

from pocketllm.daemon.adapter_files import AdapterFiles, set_aside_problem
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.gate import Blocker, Charge, GateContext, Verdict, decide, hours_edges
from pocketllm.daemon.conditions.readings import Reading, shown
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.folder_scans import FRESH_SECONDS, INTERVAL_SECONDS
from pocketllm.daemon.leftovers import reserve_lent, sweep
from pocketllm.daemon.logs import summary
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling import admission
from pocketllm.daemon.scheduling.admission import GENERATOR, HELD_BACK
from pocketllm.daemon.scheduling.attempts import Attempts
from pocketllm.daemon.scheduling.night import MAX_NIGHTS
from pocketllm.daemon.scheduling.nights import Nights, night_of
from pocketllm.daemon.scheduling.queueing import JobQueue, Planner
from pocketllm.daemon.scheduling.runs import RunRecorder, midnight_of
from pocketllm.daemon.scheduling.worker_process import WorkerProcess
from pocketllm.daemon.settings import Settings
from pocketllm.daemon.uptime import local_time, uptime
from pocketllm.engine.formats.atomic import final_name
from pocketllm.storage.errors import DatabaseFull, DatabaseLocked, StorageTrouble
from pocketllm.storage.store import Store
from pocketllm.storage.tables import OPEN_STATES, Deletion, Job, JobState, Requester

log = logging.getLogger(__name__)

PAUSED_BY_OWNER = "paused by the owner"
#: The first of several deletions waits for the others as long, since to erase them writes the whole database.
_ERASE_AFTER = timedelta(minutes=10)
#: What to do with the job that is next, given why and when.
_Action = Callable[[Job, list[str], datetime], None]


class Scheduler:
    """Decides which job runs. Its lasting state is in the store. Thread-safe."""

    def __init__(
        self,
        store: Store,
        folder: DataFolder,
        sensor_set: SensorSet,
        runner: WorkerProcess,
        settings: Settings,
        *,
        model_problem: Callable[[], str | None],
        planner: Planner,
        wake_lock: WakeLock,
        generator_bytes: Callable[[], int] = lambda: 0,
        scan: Callable[[float], bool] = lambda seconds: False,
        local: Callable[[datetime], datetime] = local_time,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        """model_problem, planner: see JobQueue. generator_bytes: see beside_generator. scan: scans the watched folders
        if the last scan began so long ago, and returns whether one is under way. local: to local time. uptime: seconds.
        """
        self._store, self._folder, self._sensor_set, self._runner = store, folder, sensor_set, runner
        self._settings, self._model_problem = settings, model_problem
        self.adapter_files = AdapterFiles(store, folder)
        self.queue = JobQueue(
            store, settings, model_problem=model_problem, planner=planner, usual_night=lambda: self.usual_night
        )
        self._generator_bytes = generator_bytes
        self._scan, self._local, self._uptime = scan, local, uptime
        self._runs, self.nights = RunRecorder(store.runs, local), Nights(store, local)
        self._attempts = Attempts(store, runner, self._runs, wake_lock, uptime)
        self._lock = threading.RLock()
        self._paused_at: float | None = None  # by uptime
        self._trouble: StorageTrouble | None = None
        self.readings: Sequence[Reading] = ()
        self.verdict, self.has_work, self._charge = Verdict(), False, Charge()
        self._awaited = False  #: whether the owner waits for the next job
        self.due: Sequence[datetime] = ()  #: times at which to tick, besides the interval's

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._runner.pid

    @property
    def running_job(self) -> str | None:
        """The id of the job that the worker trains."""
        return self._runner.job_id

    @property
    def wants_generators_memory(self) -> bool:
        """Whether a job that the owner waits for does not fit beside the generator."""
        return self._awaited and GENERATOR in {blocker.name for blocker in self.verdict.blockers}

    @property
    def summary(self) -> str:
        """Its activity, or what it waits for, in one line."""
        if self._runner.job_id:
            return f"training: {self._runner.job_id}"
        return "; ".join(self.verdict.reasons) or "nothing to train on"

    def use(self, settings: Settings, now: datetime) -> None:
        """Go by settings with another model: the jobs of the former one wait, and its worker is killed. Raises
        StorageError.
        """
        with self._lock:
            self._attempts.pause([f"switched to {settings.model}"])
            self._settle(now)
            self._store.texts.use_model(settings.model)
            self._settings = self.queue.settings = settings

    def recover(self, now: datetime) -> None:
        """At start: pause the jobs that a dead daemon left running, and see to files that are left."""
        with self._lock:
            self._runs.recover(now)
            for job in self._store.jobs.open():
                if job.state is JobState.RUNNING:
                    self._store.jobs.pause(job.id, reasons=["the daemon was restarted"], now=now)
            self._store.texts.use_model(self._settings.model)
            sweep(self._folder, starting=True)
            self._sweep(now)
            if left := set_aside_problem(self._folder):
                log.warning("%s", left)

    def tick(self, now: datetime) -> None:
        """Reap the worker, read the sensors, queue a job if there is enough new text, start or pause a job.

        Nothing runs while the store cannot be used; the next tick tries again.
        """
        with self._lock:
            self._attempts.watch()
            self._read_sensors(now)
            try:
                self._settle(now)
                self._evaluate(now)
                self._trouble = None
            except StorageTrouble as trouble:
                self._wait_for_store(trouble, now)

    def _evaluate(self, now: datetime) -> None:
        """Queue, start, pause and explain jobs by the readings."""
        self._carry_out(self._store.deletions.pending(), now)
        self._scan(INTERVAL_SECONDS)
        self.adapter_files.serving(self._settings.model, now)  # which the next job starts from
        opened, model = self._store.jobs.open(), self._settings.model
        waiting = [job for job in opened if job.model == model]
        failed = None if waiting else admission.came_to_nothing(self._store.jobs.last(), now)
        if not waiting and (job := self.queue.add_if_due(failed, now)):
            waiting = [job]
        queue = [job for job in waiting if not job.paused_by_owner]
        self.has_work, self._awaited = bool(queue), bool(queue) and queue[0].immediate
        action, why = self._choose(waiting, queue, failed, now)
        if action is not None:  # first: a locked database does not keep it from ending the worker
            self._act(action, queue[0], why, now)
        if not self._awaited:  # an immediate job says nothing about the usual idle times
            self._runs.gate({blocker.name for blocker in self.verdict.blockers} <= {HELD_BACK}, now)
        for behind in queue[1:]:
            self._explain(behind, [f"waiting for {queue[0].id}"], now)
        for other in (job for job in opened if job.model != model and not job.paused_by_owner):
            self._explain(
                other, [f"{model} is in use; `pocketllm models use {other.model}` switches to its model"], now
            )
        self._attempts.observe(now)
        blocked = {blocker.name for blocker in self.verdict.blockers} if waiting else set()
        self._runs.hold(blocked, night_of(self._local(now)), now)
        over = (blocker.until for blocker in self.verdict.blockers)
        waits = [*(job.not_before for job in queue), *over]
        edges = hours_edges(self._settings.gate, self._local(now))
        self.due = [at for at in (*waits, *edges) if at is not None and at > now]

    def _wait_for_store(self, trouble: StorageTrouble, now: datetime) -> None:
        """Let the verdict say why, and end the worker, which could not store its steps either; a lock it waits for."""
        if str(trouble) != str(self._trouble):  # once, not at every tick
            log.error("%s", trouble)
        self._trouble, self.due = trouble, ()
        since = {blocker.name: blocker.since for blocker in self.verdict.blockers}.get("storage", now)
        self.verdict = Verdict(blockers=(Blocker(name="storage", message=str(trouble), since=since),))
        if not isinstance(trouble, DatabaseLocked):
            self._attempts.pause([str(trouble)])

    def _settle(self, now: datetime) -> None:
        """Store the end of the last worker, and delete what it has left."""
        if self._attempts.settle(now):
            self._sweep(now)

    def _sweep(self, now: datetime) -> None:
        """Delete the files of jobs that have ended, and the replaced texts that they alone have.

        What no job of the database has left stays, or is set aside.
        """
        states = self._store.jobs.states()
        for place in (self._folder.starts, self._folder.runs, self._folder.added):
            for left in place.iterdir() if place.is_dir() else ():
                if states.get(final_name(left.name), JobState.PAUSED) not in OPEN_STATES:
                    shutil.rmtree(left, ignore_errors=True)
        self.adapter_files.sweep(states, now)
        self._store.folders.drop_replaced(now)

    def _carry_out(self, deletions: Sequence[Deletion], now: datetime) -> None:
        """Do what follows from deletions; what a kill or a reader of the log prevents is done at a later tick."""
        for deletion in deletions:
            if self._runner.job_id in deletion.restarts:
                self._attempts.pause(["one of the job's texts was deleted"])
                self._settle(now)
            for job_id in deletion.restarts:
                shutil.rmtree(self._folder.start(job_id), ignore_errors=True)
                shutil.rmtree(self._folder.run(job_id), ignore_errors=True)
            if deletion.restarts:
                self._store.deletions.update([deletion.id], restarts=[])
            if deletion.replaced and deletion.job is None and self._store.texts.counts().new_words > 0:
                job = self.queue.add(now, request_key=deletion.id)  # found again after a kill in between
                self._store.deletions.update([deletion.id], job=job.id)
        if deletions and sweep(self._folder):
            self._erase(deletions, now)

    def _erase(self, deletions: Sequence[Deletion], now: datetime) -> None:
        """Write the database anew without what was deleted: of several deletions once, and never beside a worker."""
        waiting = (timedelta(0) <= now - deletion.at < _ERASE_AFTER for deletion in deletions)
        if all(waiting) or self._runner.pid is not None:
            return
        with reserve_lent(self._folder), suppress(DatabaseFull):  # tried again at the next tick
            self._store.deletions.erase(deletions)

    def _read_sensors(self, now: datetime) -> None:
        running = self._runner.pid is not None
        self._sensor_set.pace.training = running
        self.readings = [sensor.read(now) for sensor in self._sensor_set.sensors]
        by_name = {reading.name: reading for reading in self.readings}
        self._charge = self._charge.after(by_name, self._settings.gate, running=running)

    @property
    def usual_night(self) -> float:
        """Seconds; the minutes a day that are allowed at most."""
        return min(self._runs.usual_night(), 60 * (self._settings.gate.minutes_per_day or inf))

    def expected_at(self, now: datetime) -> datetime | None:
        """When a job can probably run next, judging by the last days and by what holds it back; None where unknown."""
        expected = self._runs.expected_at(now)
        for blocker in self.verdict.blockers:
            if blocker.until is not None:
                expected = expected and max(expected, blocker.until)
            elif blocker.name == HELD_BACK:
                return None
        return expected

    def screen(self, on: bool, now: datetime) -> None:
        """Record that the screen went on or off, as an app reports it."""
        self._sensor_set.reported_screen.report(on, now)

    def pause(self, job_id: str, now: datetime) -> Job:
        """Pause an open job until `resume`; its worker is killed. Raises NotFound or WrongState."""
        with self._lock:
            if self._runner.job_id == job_id:
                self._attempts.pause([PAUSED_BY_OWNER])
                self._settle(now)
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
                self._attempts.pause(["cancelled by the owner"])
                self._settle(now)
            elif self._runner.job_id is None:  # else its files are deleted when that worker has ended
                self._sweep(now)
            return job

    def forget(self, delete: Callable[[], Deletion], now: datetime) -> Deletion:
        """Delete texts, and stop a worker that has them in memory. Returns the receipt. Raises what `delete` raises."""
        with self._lock, reserve_lent(self._folder):
            self._carry_out([deletion := delete()], now)
            return self._store.deletions.get(deletion.id)

    def close(self, now: datetime) -> None:
        """Pause the running job and end its worker: the daemon stops."""
        with self._lock:
            self._attempts.pause(["the daemon was stopped"])
            with suppress(StorageTrouble):  # `recover` makes up for it
                self._settle(now)

    def _choose(
        self, waiting: Sequence[Job], queue: Sequence[Job], failed: Job | None, now: datetime
    ) -> tuple[_Action | None, list[str]]:
        """What to do with the job that is next, and why; sets the verdict that this follows from.

        waiting: the open jobs of the model in use; queue: those that the owner has not paused; failed: the last one if
        its texts are left alone for now.
        """
        job, running = next(iter(queue), None), self._runner.pid is not None
        hold = None
        if job is not None:
            hold = None if running else admission.between_tries(job, now)
        elif waiting:
            hold = admission.paused_by_owner(waiting[0], now)
        elif failed is not None and self.queue.enough(now):
            hold = admission.given_up(failed, now, self._local)
        problem = self._model_problem()
        missing = Blocker(name="model", message=problem, since=now) if problem else None
        crowded = admission.beside_generator(job, self._generator_bytes(), self._settings.total_memory_bytes, now)
        known = {blocker.name: blocker.since for blocker in self.verdict.blockers}
        own = [blocker for blocker in (hold, missing, crowded) if blocker]
        own = [replace(blocker, since=known.get(blocker.name, blocker.since)) for blocker in own]
        conditions = decide(self.readings, self._settings.gate, self._context(job, now), self.verdict)
        self.verdict = Verdict(blockers=(*own, *conditions.blockers))

        if job is None or hold or (running and self.verdict.allowed):  # the reasons of a job that is held back stay
            return None, []
        if not self.verdict.allowed:
            return self._pause_worker if running else self._explain, self.verdict.reasons
        if job.requested_by is Requester.THRESHOLD and job.started_at is None:
            if job.judges and not self.queue.look_is_due(now):
                return self._withdraw, ["no candidate waits for new text any more"]
            if self._store.texts.counts().new_words == 0 and not self._store.jobs.to_follow(job):
                return self._withdraw, ["another job has trained on its texts meanwhile"]
            if self._scan(FRESH_SECONDS):
                return self._explain, ["scanning the watched folders first"]
        known_readings = [shown(reading) for reading in self.readings if reading.value is not None]
        return self._start, ["requested to run now"] * job.immediate + known_readings

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
            snoozed_until=self._store.preferences.snoozed_until(now),
        )

    def _act(self, action: _Action, job: Job, why: list[str], now: datetime) -> None:
        """Fail the job if that cannot be done, so that the next one runs."""
        try:
            action(job, why, now)
        except StorageTrouble:
            raise
        except Exception as error:
            log.exception("job %s cannot be run", job.id)
            self._store.jobs.fail(job.id, error=f"the job cannot be run ({summary(error)})", now=now)

    def _pause_worker(self, _job: Job, why: list[str], now: datetime) -> None:
        self._attempts.pause(why)
        self._settle(now)
        self._paused_at = self._uptime()  # only here: the minimum pause is for flapping conditions

    def _explain(self, job: Job, why: list[str], _now: datetime) -> None:
        """Store why a job waits, if that changed."""
        if job.reasons != why:
            self._store.jobs.explain(job.id, why)

    def _withdraw(self, job: Job, why: list[str], now: datetime) -> None:
        self._store.jobs.cancel(job.id, message="; ".join(why), now=now)

    def _start(self, job: Job, why: list[str], now: datetime) -> None:
        step = self._store.step_log.last_step(job.id) if job.fits_the_night else 0
        if step and step != job.total_steps and self._runs.nights_of(job.id, now) >= MAX_NIGHTS:
            message = f"ends after step {step}, since {MAX_NIGHTS} nights did not finish it; another job goes on"
            self._store.jobs.cut(job.id, step=step, message=message, now=now)
        left = self._runs.night_left(now, surely=self._store.adapters.serving(job.model) is None)
        seconds = min(left, self.usual_night if self._settings.gate.minutes_per_day else inf)
        self._attempts.start(job, because=", ".join(why), seconds=seconds, now=now)
