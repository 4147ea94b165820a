"""Texts, jobs, adapters and deletions in any order, with a charger that comes and goes, and a daemon that is killed.

Hypothesis makes up the order. What must hold at all times is in the invariants.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from pocketllm.daemon.errors import NothingToLearn
from pocketllm.daemon.scheduling.planning import JobRequest
from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.tables import Deletion, JobState
from tests.support.daemon.scheduler_world import SchedulerWorld, scheduler_world

_LONG_ENOUGH = 3600.0
#: Stands for a text that was learned and deleted; it is never known.
_DELETED = "deleted"


class Daemon(RuleBasedStateMachine):
    """A scheduler, its store and a double of the worker, beside what is known of them."""

    texts = Bundle("texts")
    adapters = Bundle("adapters")

    @initialize()
    def begin(self) -> None:
        self.scratch, self.exit = Path(tempfile.mkdtemp()), ExitStack()
        self.world: SchedulerWorld = self.exit.enter_context(scheduler_world(self.scratch))
        self.known: set[str] = set()  #: texts that are acknowledged and not deleted
        self.learned: dict[str, set[str]] = {}  #: by adapter, with what its ancestors have learned

    def teardown(self) -> None:
        """In the end the charger is in, and all jobs must come to their end."""
        if not hasattr(self, "world"):
            return
        self.world.power.value = True
        for _turn in range(200):
            for job in self.world.store.jobs.open():
                if job.paused_by_owner:
                    self.world.scheduler.resume(job.id, self.world.clock.now)
            if self.world.runner.job_id and self.is_running():
                self.worker_succeeds()
            elif not self.world.store.jobs.open():
                break
            self.world.tick(_LONG_ENOUGH)
        assert self.world.store.jobs.open() == []
        self.exit.close()
        shutil.rmtree(self.scratch)

    @rule(target=texts, number=st.integers(0, 8), source=st.sampled_from(["notes", "chat"]))
    def add(self, number: int, source: str) -> str:
        [text] = self.world.store.texts.add(
            [NewText(text=f"number {number} " * 8, source=source)], now=self.world.clock.now
        ).ids
        self.known.add(text)
        return text

    @rule(immediate=st.booleans())
    def ask_for_job(self, immediate: bool) -> None:
        now = self.world.clock.advance(1)  # of jobs made at one time, their random ids would choose the first
        self.suppressing(
            lambda: self.world.scheduler.queue.request(JobRequest(), seed=1, immediate=immediate, now=now),
            NothingToLearn,
        )

    @rule(seconds=st.sampled_from([2.0, 2.0, 90.0, _LONG_ENOUGH]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(plugged=st.booleans())
    def charger(self, plugged: bool) -> None:
        self.world.power.value = plugged
        self.world.tick()

    @precondition(lambda self: self.world.runner.job_id)
    @rule()
    def worker_makes_a_step(self) -> None:
        job = self.running()
        self.suppressing(lambda: self.world.step(job), WrongState)

    @precondition(lambda self: self.world.runner.job_id and self.is_running())
    @rule(target=adapters)
    def worker_succeeds(self) -> str:
        job = self.world.job(self.running())
        inherited = self.learned.get(job.parent or "", set())
        texts = {text.id for text in self.world.store.texts.of_job(job.id)}
        self.world.succeed(job.id)
        self.learned[f"of-{job.id}"] = texts | inherited
        self.world.tick()
        return f"of-{job.id}"

    @precondition(lambda self: self.world.runner.job_id)
    @rule(code=st.sampled_from([1, -9, 75]))
    def worker_dies(self, code: int) -> None:
        self.world.worker_ends(code)

    @rule(what=st.sampled_from(["pause", "resume", "cancel"]))
    def owner_changes_a_job(self, what: str) -> None:
        for job in self.world.store.jobs.open()[:1]:
            change = partial(getattr(self.world.scheduler, what), job.id, self.world.clock.now)
            self.suppressing(change, WrongState)

    @rule(adapter=adapters)
    def owner_has_one_served(self, adapter: str) -> None:
        if self.learned[adapter] <= self.known:
            self.suppressing(
                lambda: self.world.store.adapters.serve(adapter, usable=lambda _: True, now=self.world.clock.now),
                NotFound,
            )

    @rule()
    def owner_rolls_back(self) -> None:
        self.suppressing(
            lambda: self.world.store.adapters.roll_back(
                "tiny", usable=lambda one: self.learned[one.id] <= self.known, now=self.world.clock.now
            ),
            WrongState,
        )

    @rule(text=texts)
    def owner_deletes_a_text(self, text: str) -> None:
        self.delete(lambda: self.world.store.deletions.texts([text], now=self.world.clock.now), {text})

    @rule(source=st.sampled_from(["notes", "chat"]))
    def owner_deletes_a_source(self, source: str) -> None:
        gone = {text for text in self.known if self.world.store.texts.get(text).source == source}
        self.delete(lambda: self.world.store.deletions.source(source, now=self.world.clock.now), gone)

    @rule()
    def daemon_is_killed(self) -> None:
        self.world.restart()
        self.world.tick()

    @invariant()
    def nothing_is_lost_and_nothing_deleted_is_there(self) -> None:
        assert {text.id for text in self.world.store.texts.page(after=None, limit=100)} == self.known

    @invariant()
    def one_job_runs_where_a_worker_runs(self) -> None:
        running = [job.id for job in self.world.store.jobs.open() if job.state is JobState.RUNNING]
        assert running in ([], [self.world.runner.job_id])

    @invariant()
    def every_job_that_waits_says_why(self) -> None:
        assert all(job.reasons for job in self.world.store.jobs.open() if job.state is JobState.PAUSED)

    @invariant()
    def what_is_served_has_learned_nothing_that_was_deleted(self) -> None:
        if serving := self.world.store.adapters.serving("tiny"):
            assert self.learned[serving.id] <= self.known
            assert (self.world.folder.adapter(serving.id) / "adapter_model.safetensors").exists()

    def delete(self, delete: Callable[[], Deletion], gone: set[str]) -> None:
        receipt = self.suppressing(lambda: self.world.scheduler.forget(delete, self.world.clock.now), NotFound)
        assert (receipt is None) == (not gone & self.known)
        for learned in self.learned.values():
            if learned & gone:
                learned.add(_DELETED)  # for good: the same text that is added again has the same id
        self.known -= gone
        if receipt is not None:
            assert receipt.texts == len(gone)

    def running(self) -> str:
        assert self.world.runner.job_id is not None
        return self.world.runner.job_id

    def is_running(self) -> bool:
        return self.world.job(self.running()).state is JobState.RUNNING

    def suppressing(self, work: Callable[[], Deletion | object], *errors: type[Exception]) -> Deletion | None:
        try:
            done = work()
        except errors:
            return None
        return done if isinstance(done, Deletion) else None


TestDaemon = pytest.mark.smoke(Daemon.TestCase)
# An example is up to 40 steps, each with its invariants.
TestDaemon.settings = settings(max_examples=30, stateful_step_count=40)
