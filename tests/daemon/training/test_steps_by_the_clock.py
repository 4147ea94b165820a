"""A job whose steps fit the night: chosen once, from its first steps, and the same after a kill."""

import pytest

from pocketllm.daemon.scheduling.night import LEAST_WORTH, MIN_STEPS
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.storage.tables import JobState, Outcome, Requester
from tests.support.daemon.workers import NOW, Device, notes
from tests.support.models.learning import equal
from tests.support.models.taught_model import sample_notes
from tests.support.stored import serve, start_job

pytestmark = pytest.mark.smoke

AUTO = TrainingSettings(
    method="exact", batch=8, block_tokens=16, measure_every=8, memory_bytes=200_000_000, rehearsal=0.0
)


def test_a_first_job_is_short_in_a_long_night(device_fp32: Device) -> None:
    device_fp32.add(notes(100))
    job = device_fp32.run(AUTO)
    [message] = device_fp32.said(job, "planned")
    # While nothing is served, the rest is for another job.
    assert message.startswith(f"{LEAST_WORTH} steps of ") and f"the text is worth {LEAST_WORTH}," not in message
    assert job.chain_steps == LEAST_WORTH
    rates = [row.learning_rate for row in device_fp32.store.step_log.steps(job.id)]
    assert rates[-1] < 0.5 * max(rates)  # the schedule ends with the job


def test_a_long_night_makes_the_steps_that_the_text_is_worth(device_fp32: Device) -> None:
    device_fp32.add(notes(100))
    serve(device_fp32.store, device_fp32.run(AUTO.model_copy(update={"steps": 1})).adapter or "")
    job = device_fp32.run(AUTO)
    [message] = device_fp32.said(job, "planned")
    assert message.startswith(f"{job.chain_steps} steps of ") and f"the text is worth {job.chain_steps}," in message
    assert job.chain_steps > LEAST_WORTH and not job.unfinished


def test_a_short_night_ends_it_early_and_the_next_job_makes_what_is_left_and_starts_from_its_adapter(
    device_fp32: Device,
) -> None:
    device, store = device_fp32, device_fp32.store
    device.add(sample_notes())
    first = device.run(AUTO, seconds=0.0)
    assert first.chain_steps == MIN_STEPS and first.unfinished, first.outcome
    settings = AUTO.model_dump(mode="json")
    job = start_job(store, requested_by=Requester.THRESHOLD, total_steps=None, settings=settings)
    assert job.link == (1 if first.outcome is Outcome.LEARNED else 2)
    assert (job.chain_steps, job.parent) == (first.chain_steps, first.adapter)
    assert not store.jobs.get(first.id).unfinished
    second = device.run_here(job)
    assert f"the text is worth {second.chain_steps - first.chain_steps}," in device.said(job, "planned")[0]


def test_a_job_that_is_cut_short_ends_at_its_best_step(device_fp32: Device) -> None:
    device_fp32.add(notes(100))
    job = device_fp32.queue(AUTO)
    last = device_fp32.kill_at(job, 12)
    device_fp32.store.jobs.cut(job.id, step=last, message="", now=NOW)
    job = device_fp32.work(job)
    assert (job.state, job.chain_steps) == (JobState.SUCCEEDED, last)
    assert job.unfinished is (job.outcome in (Outcome.LEARNED, Outcome.TOO_LITTLE))


def test_a_kill_before_and_one_after_the_choice_change_nothing(device_fp32: Device) -> None:
    device = device_fp32
    device.add(notes(100))
    job = device.queue(AUTO)
    for step in (1, 14):
        device.kill_at(job, step)
    chosen = device.store.jobs.get(job.id).total_steps
    killed = device.work(job)
    assert len(device.said(job, "planned")) == 1 and killed.chain_steps == chosen
    undisturbed = device.run(AUTO)
    assert undisturbed.chain_steps == killed.chain_steps
    assert equal(device.adapter(killed), device.adapter(undisturbed))
