"""A job whose steps fit the night: chosen once, from its first steps, and the same after a kill."""

from pathlib import Path

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.night import LEAST_WORTH, MIN_STEPS
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Outcome, Requester
from tests.support.daemon.workers import (
    NOW,
    data_folder,
    finish,
    kill_when,
    new_job,
    notes,
    queue_job,
    run_here,
    start_worker,
)
from tests.support.models.learning import equal
from tests.support.models.taught_model import sample_notes

AUTO = TrainingSettings(
    method="exact", batch=8, block_tokens=16, measure_every=8, memory_bytes=200_000_000, rehearsal=0.0
)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return data_folder(tmp_path / "data", dtype="float32")


def planned(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id) if event.kind == "planned"]


def test_a_long_night_makes_the_steps_that_the_text_is_worth(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(100), now=NOW)
    job = run_here(folder, store, queue_job(store, training=AUTO))
    [message] = planned(store, job)
    assert message.startswith(f"{job.chain_steps} steps of ") and f"the text is worth {job.chain_steps}," in message
    assert job.chain_steps > LEAST_WORTH and not job.unfinished
    rates = [row.learning_rate for row in store.step_log.steps(job.id)]
    assert rates[-1] < 0.5 * max(rates)  # the schedule ends with the job


def test_a_short_night_ends_it_early_and_says_that_more_is_to_be_won(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(100), now=NOW)
    job = run_here(folder, store, queue_job(store, training=AUTO), seconds=0.0)
    assert job.chain_steps == MIN_STEPS
    assert job.unfinished is (job.outcome in (Outcome.LEARNED, Outcome.TOO_LITTLE))


def test_a_following_job_makes_what_is_left_and_starts_from_its_adapter(folder: DataFolder, store: Store) -> None:
    store.texts.add([NewText(text=note, source="test") for note in sample_notes()], now=NOW)
    first = run_here(folder, store, queue_job(store, training=AUTO), seconds=0.0)
    assert first.unfinished, first.outcome
    settings = AUTO.model_dump(mode="json")
    queued = store.jobs.add(new_job(requested_by=Requester.THRESHOLD, total_steps=None, settings=settings))
    job = store.jobs.start(queued.id, now=NOW)
    assert job.link == (1 if first.outcome is Outcome.LEARNED else 2)
    assert (job.chain_steps, job.parent) == (first.chain_steps, first.adapter)
    assert not store.jobs.get(first.id).unfinished
    second = run_here(folder, store, job)
    assert f"the text is worth {second.chain_steps - first.chain_steps}," in planned(store, second)[0]


def test_a_job_that_is_cut_short_ends_at_its_best_step(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(100), now=NOW)
    job = queue_job(store, training=AUTO)
    kill_when(start_worker(folder, job), lambda: store.step_log.last_step(job.id) >= 12)
    last = store.step_log.last_step(job.id)
    store.jobs.cut(job.id, step=last, message="", now=NOW)
    finish(start_worker(folder, job))
    job = store.jobs.get(job.id)
    assert (job.state, job.chain_steps) == (JobState.SUCCEEDED, last)
    assert job.unfinished is (job.outcome in (Outcome.LEARNED, Outcome.TOO_LITTLE))


def test_a_kill_before_and_one_after_the_choice_change_nothing(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(100), now=NOW)
    job = queue_job(store, training=AUTO)
    kill_when(start_worker(folder, job), lambda: store.step_log.last_step(job.id) >= 1)
    kill_when(start_worker(folder, job), lambda: store.step_log.last_step(job.id) >= 14)
    chosen = store.jobs.get(job.id).total_steps
    finish(start_worker(folder, job))
    killed = store.jobs.get(job.id)
    assert len(planned(store, job)) == 1 and killed.chain_steps == chosen
    undisturbed = run_here(folder, store, queue_job(store, training=AUTO))
    assert undisturbed.chain_steps == killed.chain_steps
    assert killed.adapter and undisturbed.adapter
    assert equal(load_adapter(folder.adapter(killed.adapter)), load_adapter(folder.adapter(undisturbed.adapter)))
