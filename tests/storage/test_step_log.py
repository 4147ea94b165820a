"""The step log in a real database file: what was appended is read back, and progress is read off it."""

import math
from dataclasses import asdict
from itertools import count
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, StatementError

from pocketllm.storage.repositories.step_log import (
    BASE_STEP,
    CURVE_POINTS,
    RECENT_STEPS,
    Curve,
    HeldOutPoint,
    Progress,
    TrainingPoint,
)
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Evaluation
from tests.support.daemon.workers import NOW, new_step
from tests.support.stored import start_job


@pytest.fixture
def job(store: Store) -> str:
    return start_job(store).id


def append(store: Store, job: str, number: int, **given: Any) -> None:
    store.step_log.append(new_step(job, number, **given))


def evaluate(store: Store, job: str, *, step: int, losses: list[float], loss: float | None = None) -> None:
    by_key = {f"block {number}": loss for number, loss in enumerate(losses)}
    store.step_log.evaluate(job, step=step, loss=losses[0] if loss is None else loss, block_losses=by_key, now=NOW)


def test_steps_come_back_in_order_each_to_its_job(store: Store, job: str) -> None:
    other = start_job(store).id
    assert (store.step_log.steps(job), store.step_log.last_step(job)) == ([], 0)
    assert store.step_log.evaluation(job, 0) is None
    for number in (1, 2, 3):
        append(store, job, number)
    append(store, other, 1)
    assert [row.step for row in store.step_log.steps(job)] == [1, 2, 3]
    assert (store.step_log.last_step(job), store.step_log.last_step(other)) == (3, 1)


def test_scalars_come_back_bit_for_bit(store: Store, job: str) -> None:
    scalars = [sign * scalar for scalar in (0.1, 1 / 3, 5e-324, 1.7976931348623157e308) for sign in (1, -1)]
    append(store, job, 1, scalars=scalars)
    [row] = store.step_log.steps(job)
    assert [kept.hex() for kept in row.scalars] == [scalar.hex() for scalar in scalars]


def test_what_is_no_number_is_refused(store: Store, job: str) -> None:
    for scalars in ((), (math.nan,), (0.5, math.inf)):
        with pytest.raises(ValueError, match="Step 1 of job job-"):
            append(store, job, 1, scalars=scalars)
    with pytest.raises(IntegrityError):
        append(store, job, 1, loss=math.nan)
    assert store.step_log.steps(job) == []


def test_a_second_row_for_a_step_is_refused_and_the_first_stays(store: Store, job: str) -> None:
    append(store, job, 1, loss=3.0)
    with pytest.raises(IntegrityError):
        append(store, job, 1, loss=4.0)
    assert [row.loss for row in store.step_log.steps(job)] == [3.0]


def test_a_measurement_comes_back_and_one_made_again_takes_its_place(store: Store, job: str) -> None:
    evaluate(store, job, step=4, losses=[5.0])
    evaluate(store, job, step=4, losses=[4.0, 2.0], loss=3.5)
    kept = store.step_log.evaluation(job, 4)
    assert kept is not None
    assert (kept.loss, kept.block_losses, kept.at) == (3.5, {"block 0": 4.0, "block 1": 2.0}, NOW)


def test_progress_is_unknown_before_the_first_step_and_the_speed_of_one_that_took_no_time(
    store: Store, job: str
) -> None:
    unknown = asdict(store.step_log.progress(job))
    assert unknown.pop("step") == 0 and set(unknown.values()) == {None}
    append(store, job, 1, seconds=0.0)
    assert store.step_log.progress(job).tokens_per_second is None


def test_progress_is_the_mean_of_the_recent_steps_and_the_first_and_last_measurement(store: Store, job: str) -> None:
    append(store, job, 1, loss=1000.0, seconds=1000.0)
    for number in range(2, RECENT_STEPS + 2):
        append(store, job, number, loss=float(number % 2), seconds=4.0)
    for step, loss in ((8, 3.5), (0, 4.0), (4, 3.0)):
        evaluate(store, job, step=step, losses=[loss])
    assert store.step_log.progress(job) == Progress(
        step=RECENT_STEPS + 1,
        loss=0.5,
        tokens_per_second=25.0,
        seconds_per_step=4.0,
        held_out_loss_before=4.0,
        held_out_loss_now=3.5,
    )


class TestCurve:
    def test_before_the_first_step_it_is_empty(self, store: Store, job: str) -> None:
        assert store.step_log.curve(job) == store.step_log.curve("job-0") == Curve(held_out=[], training=[])

    def test_a_short_jobs_curve_has_every_step_and_no_measurement_of_the_base(self, store: Store, job: str) -> None:
        for step, loss in ((BASE_STEP, 5.0), (0, 4.0), (3, 2.5)):
            evaluate(store, job, step=step, losses=[loss])
        for step in range(1, 4):
            append(store, job, step, loss=4 - step / 2)
        curve = store.step_log.curve(job)
        assert curve.held_out == [HeldOutPoint(step=0, held_out_loss=4.0), HeldOutPoint(step=3, held_out_loss=2.5)]
        assert curve.training == [TrainingPoint(step=step, loss=4 - step / 2) for step in (1, 2, 3)]

    def test_a_worker_may_go_back_while_the_curve_is_read(self, store: Store, job: str) -> None:
        for number in (1, 2, 3):
            append(store, job, number)
        statements = count(1)

        def go_back(*_: object) -> None:
            if next(statements) == 3:  # after BEGIN, and the number of the last step
                store.step_log.go_back(job, step=1, early_stopping={}, ended=False, message=None, now=NOW)

        event.listen(store._database.engine, "before_cursor_execute", go_back)
        assert len(store.step_log.curve(job).training) == 3
        assert len(store.step_log.curve(job).training) == 1

    def test_a_long_jobs_curve_is_thinned(self, store: Store) -> None:
        long = start_job(store).id
        steps = 10 * CURVE_POINTS
        with store._database.write() as session:
            session.add_all(new_step(long, step, loss=step / 64) for step in range(1, steps + 1))
            for step in range(0, steps + 1, 2):
                session.add(Evaluation(job_id=long, step=step, loss=step / 64, block_losses={"one": step / 64}, at=NOW))
        curve = store.step_log.curve(long)
        assert len(curve.training) == CURVE_POINTS == len(curve.held_out)
        assert [point.step for point in curve.training] == list(range(10, steps + 1, 10))
        # The mean of the last five of ten.
        assert all(point.loss == round((point.step - 2) / 64, 4) for point in curve.training)
        assert (curve.held_out[0].step, curve.held_out[-1].step) == (0, steps)
        assert [point.step for point in curve.held_out] == sorted({point.step for point in curve.held_out})

    def test_around_the_limit(self, store: Store, job: str) -> None:
        for step in range(1, CURVE_POINTS + 2):
            append(store, job, step)
            if step >= CURVE_POINTS - 1:
                found = [point.step for point in store.step_log.curve(job).training]
                assert len(found) == min(step, CURVE_POINTS) and found[-1] == step and found == sorted(set(found))


class TestGoBack:
    """Rows, measurements and early stopping change together."""

    @pytest.fixture
    def filled(self, store: Store, job: str) -> str:
        for number in range(1, 6):
            append(store, job, number)
        for step in (-1, 0, 2, 4):
            evaluate(store, job, step=step, losses=[3.0])
        store.jobs.update(job, early_stopping={"best_step": 2})
        return job

    def test_forgets_what_is_behind_the_step(self, store: Store, filled: str) -> None:
        append(store, other := start_job(store).id, 5)
        stopping = {"best_step": 2, "halvings": 1}
        store.step_log.go_back(filled, step=2, early_stopping=stopping, ended=False, message="x", now=NOW)
        assert store.step_log.last_step(other) == 5, "other jobs keep theirs"
        assert [row.step for row in store.step_log.steps(filled)] == [1, 2]
        assert store.step_log.last_step(filled) == 2
        assert [step for step in range(-1, 6) if store.step_log.evaluation(filled, step)] == [-1, 0, 2]
        job = store.jobs.get(filled)
        assert (job.early_stopping, job.total_steps) == (stopping, 8)
        event = store.jobs.events(filled)[-1]
        assert (event.kind, event.message) == ("went back", "x")
        append(store, filled, 3)  # and on from there

    def test_may_end_the_job_there(self, store: Store, filled: str) -> None:
        store.step_log.go_back(filled, step=0, early_stopping={}, ended=True, message="x", now=NOW)
        assert store.step_log.steps(filled) == []
        assert store.jobs.get(filled).total_steps == 0
        assert store.jobs.events(filled)[-1].kind == "ended early"

    def test_without_a_message_there_is_no_event(self, store: Store, filled: str) -> None:
        before = store.jobs.events(filled)
        store.step_log.go_back(filled, step=5, early_stopping={}, ended=True, message=None, now=NOW)
        assert store.jobs.events(filled) == before
        assert store.step_log.last_step(filled) == 5

    def test_all_of_it_or_nothing(self, store: Store, filled: str) -> None:
        """Early stopping cannot be stored, so the rows stay."""
        with pytest.raises(StatementError):
            store.step_log.go_back(filled, step=2, early_stopping={"best": object()}, ended=True, message="x", now=NOW)
        assert store.step_log.last_step(filled) == 5
        assert store.step_log.evaluation(filled, 4) is not None
        job = store.jobs.get(filled)
        assert (job.early_stopping, job.total_steps) == ({"best_step": 2}, 8)
