"""Real worker processes on a real database: killed, resumed, ended."""

from dataclasses import asdict

import pytest

from pocketllm.daemon.scheduling.planning import plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.storage.tables import JobState, Outcome
from tests.support.daemon.workers import TRAINING, Device, changed, notes
from tests.support.models.learning import equal
from tests.support.stored import succeed


@pytest.mark.slow
def test_a_paused_job_learns_the_same_bits_whatever_another_job_has_learned_meanwhile(device: Device) -> None:
    """Which texts are new to a job is fixed with them: else its batches would change under it."""
    device.add(notes(10))
    succeed(device.store, device.queue(), "earlier", outcome=Outcome.NO_PROOF)
    device.add([f"Paid the grocer {i} shillings." for i in range(30)], source="ledger")

    paused, other = (device.queue(seed=7, steps=12) for _ in range(2))
    assert 0 < device.kill_at(paused, 2) < 12
    other = device.work(other)  # which learns the same texts
    assert device.store.texts.counts().new_words == 0
    assert equal(device.adapter(device.work(paused)), device.adapter(other))


@pytest.mark.smoke
def test_a_finished_job_is_judged_and_its_texts_are_learned(device: Device) -> None:
    device.add(notes())
    job = device.work(device.queue())
    assert (job.state, job.texts) == (JobState.SUCCEEDED, 30)
    assert job.peak_memory_bytes and job.peak_memory_bytes > 50e6
    assert device.store.texts.counts().new_words == 0
    progress = device.store.step_log.progress(job.id)
    assert progress.step == TRAINING.steps
    assert progress.held_out_loss_before and progress.held_out_loss_now
    adapter = device.store.adapters.all()[0]
    assert adapter.id == job.adapter
    assert adapter.serving is (adapter.outcome is Outcome.LEARNED)


@pytest.mark.slow
def test_what_cannot_be_done_fails_the_job_with_a_sentence(device: Device) -> None:
    device.add(["tiny"])
    job = device.work(device.queue())
    assert job.state is JobState.FAILED
    assert job.error and "too few for training and evaluation" in job.error
    (device.folder.models / "tiny" / "pocketllm.json").unlink()
    assert "pocketllm models add" in (device.work(device.queue()).error or "")


@pytest.mark.slow
def test_a_job_beyond_its_memory_fails_with_a_sentence_instead_of_taking_it(device: Device) -> None:
    """Its plan is made to promise far too much: a row so long that what comes before its attention does not fit."""
    device.add(["word " * 2_000_000])
    job = device.queue(changed(memory_bytes=50_000_000))
    planned = plan_job(open_model_folder(device.folder.models / "tiny"), TrainingSettings.model_validate(job.settings))
    plan = asdict(planned.plan) | {"block_tokens": 4_000_000, "micro_batch": 2}
    device.store.jobs.update(job.id, plan=plan, method=plan["method"], predicted_bytes=0)
    job = device.work(job)
    assert job.state is JobState.FAILED
    assert "training.memory_bytes" in (job.error or "")


@pytest.mark.smoke
def test_ends_by_itself_when_the_daemon_is_gone(device: Device) -> None:
    device.add(notes())
    job = device.queue(steps=100_000)
    worker = device.start_worker(job)
    assert worker.stdin is not None and worker.stderr is not None
    worker.stdin.close()
    assert worker.wait(30) != 0
    worker.stderr.close()
    assert device.store.jobs.get(job.id).state is JobState.RUNNING  # which the next daemon turns into paused
