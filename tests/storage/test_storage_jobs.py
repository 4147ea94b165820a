"""Jobs in a real database file: every move from state to state, what each writes down, and who wins a race."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.store import Store
from pocketllm.storage.tables import ADDED, BASE, OPEN_STATES, Job, JobState, Outcome
from tests.support.daemon.workers import NOW, new_job
from tests.support.stored import add_texts, new_texts, roll_back, served, start_job, succeed, words_of

QUEUED, RUNNING, PAUSED = OPEN_STATES
LATER = NOW + timedelta(hours=1)


def in_state(store: Store, state: JobState) -> Job:
    """A job that has come to a state on the usual way."""
    job = store.jobs.add(new_job()) if state in (QUEUED, JobState.CANCELLED) else start_job(store)
    match state:
        case JobState.PAUSED:
            store.jobs.pause(job.id, reasons=["dark"], now=NOW)
        case JobState.SUCCEEDED:
            succeed(store, job, "first")
        case JobState.FAILED:
            store.jobs.fail(job.id, error="broken", now=NOW)
        case JobState.CANCELLED:
            store.jobs.cancel(job.id, message="withdrawn", now=NOW)
    return store.jobs.get(job.id)


#: Every operation, the states in which it is allowed, and the state that it leads to.
Operation = Callable[[Store, str], Any]
OPERATIONS: dict[str, tuple[Operation, tuple[JobState, ...], JobState]] = {
    "start": (lambda store, job: store.jobs.start(job, now=LATER), (QUEUED, PAUSED), RUNNING),
    "pause": (lambda store, job: store.jobs.pause(job, reasons=["rain"], now=LATER), (RUNNING,), PAUSED),
    "cancel": (lambda store, job: store.jobs.cancel(job, message="no", now=LATER), OPEN_STATES, JobState.CANCELLED),
    "fail": (lambda store, job: store.jobs.fail(job, error="bang", now=LATER), OPEN_STATES, JobState.FAILED),
    "succeed": (lambda store, job: succeed(store, new_job(id=job), now=LATER), (RUNNING,), JobState.SUCCEEDED),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_move_is_made_where_it_is_allowed_and_else_changes_nothing(store: Store, name: str) -> None:
    operation, allowed, to = OPERATIONS[name]
    for state in JobState:
        add_texts(store, f"of a job that is {state}")
        job = in_state(store, state)
        before = everything(store, job.id)
        if state in allowed:
            operation(store, job.id)
            assert store.jobs.get(job.id).state is to
        else:
            with pytest.raises(WrongState, match=f"{job.id} is {state}; .* {' or '.join(allowed)}"):
                operation(store, job.id)
            assert everything(store, job.id) == before
    with pytest.raises(NotFound, match=r"'job-none'.*GET /jobs"):
        operation(store, "job-none")


def everything(store: Store, job_id: str) -> list[dict[str, Any]]:
    """All that an operation may change."""
    rows = [store.jobs.get(job_id), *store.jobs.events(job_id), *store.adapters.all()]
    return [row.model_dump() for row in [*rows, *store.texts.page(after=None, limit=9), *store.texts.of_job(job_id)]]


def test_the_first_start_fixes_the_texts_and_the_parent(store: Store) -> None:
    in_state(store, JobState.SUCCEEDED)  # whose adapter "first" is served
    add_texts(store, "one two", "three")
    job = store.jobs.add(new_job())
    started = store.jobs.start(job.id, now=NOW)
    assert (started.texts, started.words, started.parent, started.started_at) == (2, 3, "first", NOW)

    add_texts(store, "too late")
    store.jobs.pause(job.id, reasons=["dark"], now=NOW)
    roll_back(store)
    resumed = store.jobs.start(job.id, now=LATER)
    assert (resumed.texts, resumed.words, resumed.parent, resumed.started_at) == (2, 3, "first", NOW)
    assert (started.starts, resumed.starts) == (1, 2)
    assert words_of(store, job) == {"one two", "three"}
    kinds = [event.kind for event in store.jobs.events(job.id)]
    assert kinds == ["queued", "started", "compared with", "paused", "resumed"]


def test_open_jobs_come_running_first_then_the_owners_now_then_by_age(store: Store) -> None:
    def queue(minute: int, *, immediate: bool = False) -> str:
        return store.jobs.add(new_job(immediate=immediate, created_at=NOW + timedelta(minutes=minute))).id

    running, old, paused, young = queue(9), queue(1), queue(2), queue(3)
    now, later_now = queue(7, immediate=True), queue(8, immediate=True)
    store.jobs.start(paused, now=NOW)
    store.jobs.pause(paused, reasons=["dark"], now=NOW)
    store.jobs.start(running, now=NOW)
    store.jobs.cancel(queue(0), message="no", now=NOW)
    assert [job.id for job in store.jobs.open()] == [running, now, later_now, old, paused, young]


def test_only_a_waiting_job_is_explained_and_that_is_no_event(store: Store) -> None:
    for state in JobState:
        before = in_state(store, state)
        events = len(store.jobs.events(before.id))
        store.jobs.explain(before.id, ["rain"])
        after = store.jobs.get(before.id)
        assert after.reasons == (["rain"] if state in (QUEUED, PAUSED) else before.reasons)
        assert (after.state, len(store.jobs.events(before.id))) == (state, events)


def test_a_pause_keeps_its_reasons_and_the_crashes_until_told_otherwise(store: Store) -> None:
    job = in_state(store, RUNNING)
    store.jobs.pause(job.id, reasons=["code 1", "cold"], kind="crashed", attempts=2, not_before=LATER, now=NOW)
    crashed = store.jobs.get(job.id)
    assert (crashed.state, crashed.attempts, crashed.not_before) == (PAUSED, 2, LATER)
    assert crashed.reasons == ["code 1", "cold"]
    assert (store.jobs.events(job.id)[-1].kind, store.jobs.events(job.id)[-1].message) == ("crashed", "code 1; cold")
    for given, attempts in ((None, 2), (0, 0)):
        assert store.jobs.start(job.id, now=NOW).reasons == []
        store.jobs.pause(job.id, reasons=["dark"], attempts=given, now=NOW)
        assert store.jobs.get(job.id).attempts == attempts


def test_a_job_that_has_ended_waits_for_nothing(store: Store) -> None:
    for name, kind in (("cancel", "cancelled"), ("fail", "failed"), ("succeed", "succeeded")):
        job = in_state(store, RUNNING)
        store.jobs.pause(job.id, reasons=["bang"], attempts=1, not_before=LATER, now=NOW)
        if name == "succeed":
            store.jobs.start(job.id, now=NOW)
        OPERATIONS[name][0](store, job.id)
        ended = store.jobs.get(job.id)
        assert (ended.reasons, ended.not_before, ended.finished_at) == ([], None, LATER)
        assert ended.error == ("bang" if name == "fail" else None)
        assert store.jobs.events(job.id)[-1].kind == kind
        assert store.jobs.open() == []


def test_success_is_the_adapter_its_outcome_and_the_texts_learned(store: Store) -> None:
    add_texts(store, "one two")
    job = in_state(store, RUNNING)
    succeed(store, job, "a", now=LATER)
    ended = store.jobs.get(job.id)
    assert (ended.state, ended.adapter, ended.outcome) == (JobState.SUCCEEDED, "a", Outcome.LEARNED)
    assert store.texts.counts().new_words == 0
    assert store.jobs.events(job.id)[-1].message == "learned; adapter a is served"


def test_one_adapter_a_model_is_served(store: Store) -> None:
    for name, model, outcome, now_served in (
        ("first", "tiny", Outcome.LEARNED, ("first", None)),
        ("of another", "other", Outcome.LEARNED, ("first", "of another")),
        ("second", "tiny", Outcome.LEARNED, ("second", "of another")),
        ("worse", "tiny", Outcome.WORSE, ("second", "of another")),
    ):
        succeed(store, start_job(store, model=model), name, outcome=outcome)
        assert (served(store), served(store, "other")) == now_served


@pytest.mark.parametrize("outcome", [Outcome.LEARNED, Outcome.NO_PROOF])
def test_what_was_compared_with_something_else_is_kept_and_its_texts_stay_new(store: Store, outcome: Outcome) -> None:
    add_texts(store, "one two")
    slow = in_state(store, RUNNING)
    store.jobs.pause(slow.id, reasons=["the owner's 'now' comes first"], now=NOW)
    fast = in_state(store, RUNNING)
    succeed(store, fast, "fast")
    add_texts(store, "three")
    succeed(store, store.jobs.start(slow.id, now=NOW), "slow", outcome=outcome)
    assert served(store) == "fast"
    assert "adapter slow is kept, not served: the serving adapter changed" in store.jobs.events(slow.id)[-1].message
    assert (store.jobs.get(slow.id).adapter, store.texts.counts().new_words) == ("slow", 1)


def test_what_was_to_start_from_the_base_is_kept_beside_also_where_nothing_is_served(store: Store) -> None:
    job = start_job(store, tuning={}, start_from=BASE, texts=new_texts("one two"))
    succeed(store, job, "a")
    assert served(store) is None and store.texts.counts().new_words == 0
    assert "adapter a is kept, not served" in store.jobs.events(job.id)[-1].message


def test_the_database_itself_refuses_a_second_served_adapter(store: Store) -> None:
    job, database = in_state(store, JobState.SUCCEEDED), store._database
    values = f"VALUES ('raw', '{job.id}', 'tiny', :serving, 'learned', '2026-01-01')"
    insert = text(f"INSERT INTO adapter (id, job_id, model, serving, outcome, created_at) {values}")
    with pytest.raises(IntegrityError, match="UNIQUE"), database.write() as session:
        session.connection().execute(insert, {"serving": True})
    with database.write() as session:
        session.connection().execute(insert, {"serving": False})
    assert served(store) == "first"


def test_success_that_cannot_be_kept_whole_changes_nothing(store: Store) -> None:
    taken = in_state(store, JobState.SUCCEEDED)
    job = in_state(store, RUNNING)
    with pytest.raises(IntegrityError):
        succeed(store, job, "first")
    assert store.jobs.get(job.id).state is RUNNING
    assert store.adapters.get("first").job_id == taken.id and served(store) == "first"


def test_peak_memory_is_the_highest_of_all_workers(store: Store) -> None:
    job = store.jobs.add(new_job())
    for peak, highest in ((5, 5), (9, 9), (7, 9)):
        store.jobs.set_peak_memory(job.id, peak)
        assert store.jobs.get(job.id).peak_memory_bytes == highest


def test_events_are_a_jobs_own_and_oldest_first(store: Store) -> None:
    job, other = store.jobs.add(new_job()), store.jobs.add(new_job())
    for number in range(3):
        store.jobs.add_event(job.id, kind="preparing", message=f"pass {number}", now=LATER)
    store.jobs.add_event(other.id, kind="preparing", message="not mine", now=NOW)
    assert [event.message for event in store.jobs.events(job.id)] == ["queued by owner", "pass 0", "pass 1", "pass 2"]


def test_of_eight_threads_that_start_a_job_exactly_one_does(store: Store) -> None:
    add_texts(store, "one two")
    job, barrier = store.jobs.add(new_job()), threading.Barrier(8)

    def start(_number: int) -> bool:
        barrier.wait()
        try:
            store.jobs.start(job.id, now=NOW)
        except WrongState:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(start, range(8)))
    assert won.count(True) == 1
    assert store.jobs.get(job.id).starts == 1
    assert [event.kind for event in store.jobs.events(job.id)] == ["queued", "started", "compared with"]


def test_a_job_that_judges_an_adapter_from_elsewhere_is_not_in_the_way_of_one_that_learns(store: Store) -> None:
    judge = store.jobs.add(new_job(start_from=ADDED, immediate=False), request_key="adapter 1")
    assert store.jobs.is_known("adapter 1") and not store.jobs.is_known("adapter 2")
    own = store.jobs.add(new_job(), proceed=True)
    assert own.id != judge.id
    store.jobs.cancel(own.id, message="no", now=LATER)
    later = store.jobs.add(new_job(start_from=ADDED, created_at=LATER))
    store.jobs.fail(later.id, error="bang", now=LATER)
    last = store.jobs.last()
    assert last is not None and last.id == own.id
