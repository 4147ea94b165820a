"""Real worker processes on a real database: killed, resumed, ended."""

from dataclasses import asdict

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.planning import plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, JobState, Outcome
from tests.support.daemon.workers import NOW, TRAINING, finish, kill_at, notes, queue_job, start_worker
from tests.support.models.learning import equal


@pytest.mark.slow
def test_a_paused_job_learns_the_same_bits_whatever_another_job_has_learned_meanwhile(
    folder: DataFolder, store: Store
) -> None:
    """Which texts are new to a job is fixed with them: else its batches would change under it."""
    store.texts.add(notes(10), now=NOW)
    earlier = queue_job(store)
    row = Adapter(id="earlier", job_id=earlier.id, model="tiny", outcome=Outcome.NO_PROOF, created_at=NOW)
    store.jobs.succeed(earlier.id, adapter=row, publish=False, now=NOW)
    store.texts.add([NewText(text=f"Paid the grocer {i} shillings.", source="ledger") for i in range(30)], now=NOW)

    paused, other = (queue_job(store, seed=7, steps=12) for _ in range(2))
    assert 0 < kill_at(store, start_worker(folder, paused), paused, 2) < 12
    finish(start_worker(folder, other))  # which learns the same texts
    assert store.texts.counts().new_words == 0
    finish(start_worker(folder, paused))
    one, two = store.jobs.get(paused.id).adapter, store.jobs.get(other.id).adapter
    assert one and two and equal(load_adapter(folder.adapter(one)), load_adapter(folder.adapter(two)))


@pytest.mark.smoke
def test_a_finished_job_is_judged_and_its_texts_are_learned(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(), now=NOW)
    job = queue_job(store)
    finish(start_worker(folder, job))
    job = store.jobs.get(job.id)
    assert (job.state, job.texts) == (JobState.SUCCEEDED, 30)
    assert job.peak_memory_bytes and job.peak_memory_bytes > 50e6
    assert store.texts.counts().new_words == 0
    progress = store.step_log.progress(job.id)
    assert progress.step == TRAINING.steps
    assert progress.held_out_loss_before and progress.held_out_loss_now
    adapter = store.adapters.all()[0]
    assert adapter.id == job.adapter
    assert adapter.serving is (adapter.outcome is Outcome.LEARNED)


@pytest.mark.slow
def test_too_little_text_fails_the_job_with_a_sentence(folder: DataFolder, store: Store) -> None:
    store.texts.add([NewText(text="tiny", source="test")], now=NOW)
    job = queue_job(store)
    finish(start_worker(folder, job))
    job = store.jobs.get(job.id)
    assert job.state is JobState.FAILED
    assert job.error and "too few for training and evaluation" in job.error


@pytest.mark.slow
def test_a_missing_model_fails_the_job_with_a_sentence(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(), now=NOW)
    (folder.models / "tiny" / "pocketllm.json").unlink()
    job = queue_job(store)
    finish(start_worker(folder, job))
    assert "pocketllm models add" in (store.jobs.get(job.id).error or "")


@pytest.mark.slow
def test_a_job_beyond_its_memory_fails_with_a_sentence_instead_of_taking_it(folder: DataFolder, store: Store) -> None:
    """Its plan is made to promise far too much: a row so long that what comes before its attention does not fit."""
    store.texts.add([NewText(text="word " * 2_000_000, source="test")], now=NOW)
    job = queue_job(store, training=TRAINING.model_copy(update={"memory_bytes": 50_000_000}))
    planned = plan_job(open_model_folder(folder.models / "tiny"), TrainingSettings.model_validate(job.settings))
    plan = asdict(planned.plan) | {"block_tokens": 4_000_000, "micro_batch": 2}
    store.jobs.update(job.id, plan=plan, method=plan["method"], predicted_bytes=0)
    finish(start_worker(folder, job))
    job = store.jobs.get(job.id)
    assert job.state is JobState.FAILED
    assert "training.memory_bytes" in (job.error or "")


@pytest.mark.smoke
def test_ends_by_itself_when_the_daemon_is_gone(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(), now=NOW)
    job = queue_job(store, steps=100_000)
    worker = start_worker(folder, job)
    assert worker.stdin is not None and worker.stderr is not None
    worker.stdin.close()
    assert worker.wait(30) != 0
    worker.stderr.close()
    assert store.jobs.get(job.id).state is JobState.RUNNING  # which the next daemon turns into paused
