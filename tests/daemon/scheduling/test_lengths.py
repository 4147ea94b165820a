"""How long jobs are, and how they go on from night to night."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.scheduling.night import (
    LEAST_WORTH,
    MAX_STEPS,
    MIN_STEPS,
    SURE_NIGHT,
    UNKNOWN_NIGHT,
    fitting,
    most_steps,
    worth,
)
from pocketllm.daemon.scheduling.runs import RunRecorder
from pocketllm.storage.store import Store
from pocketllm.storage.tables import CANDIDATE, Job, JobState, Outcome
from tests.support.daemon.in_process_app import NOON
from tests.support.daemon.scheduler_world import SchedulerWorld, scheduler_world
from tests.support.stored import roll_back, serve, words_of

HOUR = 3600.0


def test_a_text_is_worth_two_passes_within_limits() -> None:
    assert [worth(passes, "exact") for passes in (1, 20, 60, 1000)] == [LEAST_WORTH, LEAST_WORTH, 120, MAX_STEPS]
    assert worth(1, "mezo") == MAX_STEPS  # which learns little in a step


def test_a_night_fits_steps_with_what_comes_between_them_and_at_least_a_few() -> None:
    assert fitting(1100, 10) == 100
    assert fitting(1100, 10, made=3) == 103
    assert fitting(0, 10) == fitting(-5, 10, made=3) == MIN_STEPS


def nights(store: Store, *hours: float, first: int = 0) -> RunRecorder:
    """A recorder that has seen the gate open for these hours from 10 p.m. on, a night each; and for some minutes."""
    runs = RunRecorder(store.runs, lambda at: at)
    for number, long in enumerate(hours):
        evening = NOON + timedelta(days=first + number, hours=10)
        for start, end in ((evening, evening + timedelta(hours=long)), (evening - timedelta(minutes=9), evening)):
            runs.gate(True, start)
            runs.gate(False, end)
    return runs


class TestUsualNight:
    def test_it_is_the_lower_quartile_of_the_longest_times_of_the_last_fourteen_nights(self, store: Store) -> None:
        assert nights(store).usual_night() == UNKNOWN_NIGHT
        assert nights(store, 8).usual_night() == 8 * HOUR
        assert nights(store, 8, 2, 7, 9, 6, 7, 8, 5, first=1).usual_night() == 6 * HOUR
        assert nights(store, *[2.0] * 14, *[7.0] * 14, first=9).usual_night() == 7 * HOUR

    def test_a_night_that_is_interrupted_counts_by_its_longest_part(self, store: Store) -> None:
        runs, evening = nights(store), NOON + timedelta(hours=9)
        for start, end in ((0, 1), (1.5, 4.5), (5, 6)):
            runs.gate(True, evening + timedelta(hours=start))
            runs.gate(False, evening + timedelta(hours=end))
        assert runs.usual_night() == 3 * HOUR


def test_a_first_job_of_exact_gradients_is_short() -> None:
    assert most_steps("exact", first=True) == LEAST_WORTH
    assert most_steps("mezo", first=True) == most_steps("exact", first=False) == MAX_STEPS


class TestWhatIsLeftOfANight:
    def left_after(self, hours: float, runs: RunRecorder) -> float:
        evening = NOON + timedelta(days=20, hours=10)
        runs.gate(True, evening)
        return runs.night_left(evening + timedelta(hours=hours)) / HOUR

    def test_it_is_that_of_the_nights_that_lasted_longer(self, store: Store) -> None:
        runs = nights(store, 2, 5, 6, 7, 8)
        assert [self.left_after(hours, runs) for hours in (0, 3, 6.5, 7.5)] == [5, 3, 0.5, 0.5]

    def test_surely_left_is_the_least(self, store: Store) -> None:
        now = NOON + timedelta(days=20)
        assert nights(store).night_left(now, surely=True) == SURE_NIGHT
        assert nights(store, 8, 2, 7, 5).night_left(now, surely=True) == 2 * HOUR

    def test_a_night_that_outlasts_all_others_lasts_as_long_again(self, store: Store) -> None:
        assert self.left_after(9, nights(store, 5)) == 9

    def test_a_gate_that_was_never_shut_stays_open(self, store: Store) -> None:
        assert self.left_after(1, nights(store)) == UNKNOWN_NIGHT / HOUR - 1
        assert self.left_after(100, nights(store)) == 100
        assert RunRecorder(store.runs).night_left(NOON) == UNKNOWN_NIGHT


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SchedulerWorld]:
    """20 new words queue a job, whose steps fit the night."""
    with scheduler_world(tmp_path, steps="auto") as made:
        made.add(30)
        made.tick()
        yield made


def next_night(world: SchedulerWorld) -> Job:
    """A day passes in which the power is off; the running job."""
    world.unplug()
    world.plug_in(24 * HOUR)
    world.tick(60)
    [job] = world.store.jobs.open()
    assert job.state is JobState.RUNNING
    return job


def test_the_number_of_steps_is_open_and_the_worker_is_told_what_the_night_has_left(world: SchedulerWorld) -> None:
    job = world.only_job()
    assert (job.total_steps, job.state) == (None, JobState.RUNNING)
    assert world.runner.seconds == [pytest.approx(SURE_NIGHT)]  # while nothing is served


def test_a_job_that_two_nights_did_not_finish_ends_at_its_last_step_in_the_third(world: SchedulerWorld) -> None:
    job = world.only_job()
    world.step(job.id)
    assert next_night(world).total_steps is None
    world.step(job.id)
    assert next_night(world).total_steps == 2
    events = [event.message for event in world.store.jobs.events(job.id) if event.kind == "cut short"]
    assert events == ["ends after step 2, since 2 nights did not finish it; another job goes on"]
    next_night(world)  # killed before it could end: it is said once
    assert len([event for event in world.store.jobs.events(job.id) if event.kind == "cut short"]) == 1


def test_several_runs_in_a_night_are_one_night(world: SchedulerWorld) -> None:
    job = world.only_job()
    world.step(job.id)
    for _ in range(3):
        world.unplug()
        world.plug_in(120)
    assert world.job(job.id).state is JobState.RUNNING
    assert world.job(job.id).total_steps is None


def test_where_a_number_of_steps_was_set_the_job_is_not_cut_short(tmp_path: Path) -> None:
    with scheduler_world(tmp_path) as world:
        world.add(30)
        world.tick()
        for _ in range(4):
            world.step(world.only_job().id)
            assert next_night(world).total_steps == 30


class TestCandidate:
    def test_it_is_judged_again_in_a_later_night_with_newer_text(self, world: SchedulerWorld) -> None:
        first = world.only_job()
        world.finish(first.id, Outcome.TOO_LITTLE)
        world.add(1, "newer")
        world.tick()
        assert world.store.jobs.open() == []  # in the same night
        world.tick(12 * HOUR)
        [look] = world.store.jobs.open()
        assert (look.start_from, look.parent, look.state) == (CANDIDATE, f"of-{first.id}", JobState.RUNNING)
        row = world.store.adapters.get(f"of-{first.id}")
        world.store.jobs.succeed(look.id, adapter=row, publish=False, now=world.clock.now)
        world.worker_ends(0)
        world.tick(24 * HOUR)
        assert world.store.jobs.open() == []  # without newer text

    def test_a_look_waits_no_longer_than_its_candidate(self, world: SchedulerWorld) -> None:
        first = world.only_job()
        world.finish(first.id, Outcome.TOO_LITTLE)
        world.unplug()
        world.add(1, "newer")
        world.tick(12 * HOUR)
        [look] = world.store.jobs.open()
        serve(world.store, f"of-{first.id}", now=world.clock.now)
        world.plug_in()
        world.tick(60)
        assert world.job(look.id).state is JobState.CANCELLED

    def test_the_owner_who_cancels_a_look_ends_it_for_the_night(self, world: SchedulerWorld) -> None:
        world.finish(world.only_job().id, Outcome.TOO_LITTLE)
        world.add(1, "newer")
        world.tick(12 * HOUR)
        [look] = world.store.jobs.open()
        world.scheduler.cancel(look.id, world.clock.now)
        world.tick()
        assert world.store.jobs.open() == []


class TestFollowUp:
    def test_another_job_goes_on_with_the_same_text(self, world: SchedulerWorld) -> None:
        first = world.only_job()
        world.finish(first.id, chain_steps=25, unfinished=True)
        [job] = world.store.jobs.open()
        assert (job.link, job.chain_steps, job.parent) == (1, 25, f"of-{first.id}")
        assert words_of(world.store, job) == words_of(world.store, first)
        assert [text.learned_in for text in world.store.texts.of_job(job.id)] == [None]
        world.finish(job.id, chain_steps=40)
        assert world.store.jobs.open() == []

    def test_what_could_not_tell_yet_goes_on_without_newer_words(self, world: SchedulerWorld) -> None:
        first = world.only_job()
        world.finish(first.id, Outcome.TOO_LITTLE, chain_steps=25, unfinished=True)
        [job] = world.store.jobs.open()
        assert (job.link, job.parent) == (2, f"of-{first.id}")

    @pytest.mark.parametrize(("newer", "link"), [(10, 4), (19, 1)])
    def test_newer_words_have_all_steps_ahead(self, world: SchedulerWorld, newer: int, link: int) -> None:
        """A job is 20 new words; so many more than its chain began with are tested as a first job's are."""
        world.succeed(world.only_job().id, Outcome.TOO_LITTLE, chain_steps=25, unfinished=True)
        world.add(1, "newer")
        world.tick()
        [job] = world.store.jobs.open()
        world.succeed(job.id, Outcome.TOO_LITTLE, chain_steps=40)
        world.add(newer, "newest")
        world.tick(8 * 24 * HOUR)
        [look] = world.store.jobs.open()  # first: the job trains on the evidence
        assert (look.start_from, look.link) == (CANDIDATE, 3)
        row = world.store.adapters.get(str(look.parent))
        world.store.jobs.succeed(look.id, adapter=row, publish=False, now=world.clock.now)
        world.worker_ends(0)
        world.tick()
        [job] = world.store.jobs.open()
        assert (job.link, job.chain_steps) == (link, 0)

    @pytest.mark.parametrize("outcome", [Outcome.WORSE, Outcome.NO_PROOF])
    def test_what_added_nothing_does_not_go_on(self, world: SchedulerWorld, outcome: Outcome) -> None:
        world.finish(world.only_job().id, outcome, chain_steps=25, unfinished=True)
        assert world.store.jobs.open() == []

    def test_the_owner_who_cancels_it_ends_it(self, world: SchedulerWorld) -> None:
        world.finish(world.only_job().id, chain_steps=25, unfinished=True)
        [job] = world.store.jobs.open()
        world.scheduler.cancel(job.id, world.clock.now)
        world.tick()
        assert world.store.jobs.open() == []

    def test_after_a_rollback_nothing_goes_on(self, world: SchedulerWorld) -> None:
        world.succeed(world.only_job().id, chain_steps=25, unfinished=True)
        roll_back(world.store, now=world.clock.now)
        world.tick()
        assert world.store.jobs.open() == []
