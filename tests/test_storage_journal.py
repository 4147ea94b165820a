"""The journal in a real database file: what was appended is read back, and progress is read off it."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from pocketllm.storage.journal import RECENT_STEPS, Progress
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Step
from tests.working import NOW, queue_job


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "pocketllm.db")
    yield store
    store.close()


@pytest.fixture
def job(store: Store) -> str:
    return queue_job(store).id


def append(
    store: Store, job: str, number: int, *, loss: float = 3.0, scalar: float = 0.5, seconds: float = 2.0
) -> None:
    row = Step(
        job_id=job, step=number, seed=7, scalar=scalar, loss=loss, learning_rate=1e-3, tokens=100, seconds=seconds
    )
    store.journal.append(row)


def evaluate(store: Store, job: str, *, step: int, losses: list[float], weights: list[int] | None = None) -> None:
    store.journal.evaluate(job, step=step, block_losses=losses, weights=weights or [1] * len(losses), now=NOW)


def test_steps_come_back_in_order(store: Store, job: str) -> None:
    for number in (1, 2, 3):
        append(store, job, number)
    assert [row.step for row in store.journal.steps(job)] == [1, 2, 3]
    assert store.journal.last_step(job) == 3


def test_before_the_first_step_there_is_nothing(store: Store, job: str) -> None:
    assert store.journal.steps(job) == []
    assert store.journal.last_step(job) == 0
    assert store.journal.evaluation(job, 0) is None


@pytest.mark.parametrize("scalar", [0.1, -1 / 3, 5e-324, 1.7976931348623157e308])
def test_a_scalar_comes_back_bit_for_bit(store: Store, job: str, scalar: float) -> None:
    append(store, job, 1, scalar=scalar)
    assert store.journal.steps(job)[0].scalar.hex() == scalar.hex()


def test_a_number_that_is_none_is_refused(store: Store, job: str) -> None:
    with pytest.raises(IntegrityError):
        append(store, job, 1, loss=math.nan)
    assert store.journal.last_step(job) == 0


def test_a_second_row_for_a_step_is_refused_and_the_first_stays(store: Store, job: str) -> None:
    append(store, job, 1, loss=3.0)
    with pytest.raises(IntegrityError):
        append(store, job, 1, loss=4.0)
    assert [row.loss for row in store.journal.steps(job)] == [3.0]


def test_a_row_of_a_job_that_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError):
        append(store, "job-none", 1)


def test_each_job_has_a_journal_of_its_own(store: Store, job: str) -> None:
    other = queue_job(store).id
    append(store, job, 1)
    append(store, other, 1)
    append(store, other, 2)
    assert (store.journal.last_step(job), store.journal.last_step(other)) == (1, 2)


def test_a_measurement_is_the_mean_by_weight(store: Store, job: str) -> None:
    evaluate(store, job, step=0, losses=[4.0, 2.0], weights=[3, 1])
    kept = store.journal.evaluation(job, 0)
    assert kept is not None
    assert (kept.loss, kept.block_losses, kept.at) == (3.5, [4.0, 2.0], NOW)


def test_a_measurement_with_a_weight_too_few_is_refused(store: Store, job: str) -> None:
    with pytest.raises(ValueError, match="shorter"):
        evaluate(store, job, step=0, losses=[4.0, 2.0], weights=[3])


def test_a_measurement_made_again_takes_the_place_of_the_first(store: Store, job: str) -> None:
    evaluate(store, job, step=4, losses=[4.0])
    evaluate(store, job, step=4, losses=[3.0])
    kept = store.journal.evaluation(job, 4)
    assert kept is not None and kept.loss == 3.0


def test_progress_of_a_job_that_has_not_begun_is_unknown(store: Store, job: str) -> None:
    assert store.journal.progress(job) == Progress(
        step=0,
        loss=None,
        tokens_per_second=None,
        seconds_per_step=None,
        held_out_loss_before=None,
        held_out_loss_now=None,
    )


def test_progress_is_the_mean_of_the_recent_steps(store: Store, job: str) -> None:
    append(store, job, 1, loss=1000.0, seconds=1000.0)
    for number in range(2, RECENT_STEPS + 2):
        append(store, job, number, loss=float(number % 2), seconds=4.0)
    progress = store.journal.progress(job)
    assert (progress.step, progress.loss) == (RECENT_STEPS + 1, 0.5)
    assert (progress.tokens_per_second, progress.seconds_per_step) == (25.0, 4.0)


def test_progress_holds_the_first_and_the_last_measurement(store: Store, job: str) -> None:
    for step, loss in ((8, 3.5), (0, 4.0), (4, 3.0)):
        evaluate(store, job, step=step, losses=[loss])
    progress = store.journal.progress(job)
    assert (progress.held_out_loss_before, progress.held_out_loss_now) == (4.0, 3.5)


def test_steps_that_took_no_time_have_no_speed(store: Store, job: str) -> None:
    append(store, job, 1, seconds=0.0)
    assert store.journal.progress(job).tokens_per_second is None
