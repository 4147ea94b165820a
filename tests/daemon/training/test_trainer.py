"""The training loop on plain functions of B, in place of a language model, with methods of both kinds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from math import isfinite, nan
from pathlib import Path

import pytest
import torch

from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun
from pocketllm.daemon.training.early_stopping import MAX_HALVINGS, PATIENCE, EarlyStopping
from pocketllm.daemon.training.trainer import CHECKPOINT_BYTES, CHECKPOINT_SECONDS, Run, train
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.method import Method, StepRecord
from pocketllm.engine.params.lora import Adapter
from pocketllm.mezo.estimator import replay
from pocketllm.mezo.method import MeZOPlan
from pocketllm.storage.store import Store
from tests.support.daemon.training_parts import BLOCK, GOAL, Function, Momentum, distance, mezo_on
from tests.support.daemon.workers import queue_job

STEPS, EVERY = 30, 3
PLAN = MeZOPlan(seed=1, epsilon=1e-2, step_size=0.1)

Make = Callable[[torch.Tensor, Function], Method]


class Recorded(StoredRun):
    """A job's run that remembers what it went back over."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.job_id = store, queue_job(store, steps=STEPS).id
        self.folder = folder / self.job_id
        super().__init__(store, self.job_id, self.folder)
        self.went_back: list[tuple[int, int]] = []  #: from which step, to which
        self.forgotten: list[Sequence[StepRecord]] = []

    @property
    def stopping(self) -> EarlyStopping:
        return self.early_stopping() or EarlyStopping()

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        self.forgotten.append(self.records()[stopping.best_step :])
        super().go_back(stopping, step=step)
        self.went_back.append((step, stopping.best_step))


Runs = Callable[[], Recorded]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    with closing(Store.open(tmp_path / "pocketllm.db")) as store:
        yield lambda: Recorded(store, tmp_path / "runs")


def mezo(b: torch.Tensor, loss: Function = distance) -> Method:
    return mezo_on(Adapter(base="x", alpha=1.0, a={"one": torch.ones(2, 3)}, b={"one": b}), loss, plan=PLAN)


def momentum(b: torch.Tensor, loss: Function = distance) -> Method:
    return Momentum(b, loss=loss)


every_method = pytest.mark.parametrize("make", [mezo, momentum])


def rising(b: torch.Tensor) -> float:
    """A check that everything but the start makes worse."""
    return 1 + 0.01 * float(b.double().abs().sum())


def run(
    memory: StoredRun,
    make: Make = mezo,
    *,
    loss: Function = distance,
    check: Function = distance,
    steps: int = STEPS,
    every: int = EVERY,
    clock: Callable[[], float] = lambda: 0.0,
    remaining: Callable[[int], float] | None = None,
    validated_on: str = "",
) -> tuple[torch.Tensor, EarlyStopping, list[int]]:
    """B at the end, early stopping, and after which steps was measured."""
    b, measured = torch.zeros(4, 2), list[int]()
    stopping = train(
        make(b, loss),
        memory,
        Run(
            steps=steps,
            batch=lambda _step: BLOCK,
            remaining=remaining or (lambda step: 1 - (step - 1) / steps),
            validation_loss=lambda: check(b),
            validated_on=validated_on,
            check_every=every,
            measure=measured.append,
            measure_every=10,
            clock=clock,
        ),
    )
    assert stopping.ended and stopping == memory.early_stopping()
    assert stopping.best_step == len(memory.records()) == measured[-1]
    if make is mezo:
        again = Adapter(base="x", alpha=1.0, a={"one": torch.ones(2, 3)}, b={"one": torch.zeros(4, 2)})
        replay(again, memory.records())
        assert torch.equal(b, again.b["one"]), "B is what the start and the records make"
    return b, stopping, measured


@every_method
def test_a_run_that_goes_well_is_left_alone(make: Make, runs: Runs) -> None:
    memory = runs()
    b, stopping, measured = run(memory, make)
    assert distance(b) < 0.3 * GOAL**2
    assert (len(memory.records()), stopping.halvings, stopping.best_step) == (STEPS, 0, STEPS)
    assert sorted(set(measured)) == [0, 10, 20, 30]
    assert memory.went_back == [(STEPS, STEPS)]


@every_method
def test_what_brings_nothing_goes_the_same_way_at_half_the_rate_until_it_ends(make: Make, runs: Runs) -> None:
    memory = runs()
    b, stopping, _ = run(memory, make, check=rising)
    assert not b.count_nonzero()
    assert (stopping.halvings, stopping.best_step, memory.records()) == (MAX_HALVINGS + 1, 0, [])
    assert memory.went_back == [(EVERY * PATIENCE, 0)] * (MAX_HALVINGS + 1)
    firsts = [records[0] for records in memory.forgotten]
    assert {record.step for record in firsts} == {1}
    assert {record.scalars for record in firsts} == {firsts[0].scalars}
    rate = firsts[0].learning_rate
    assert [record.learning_rate for record in firsts] == pytest.approx([rate, rate / 2, rate / 4, rate / 8])


@every_method
def test_a_loss_that_is_no_number_leads_back_and_halves(make: Make, runs: Runs) -> None:
    """Beyond a distance from the start the loss is torn."""

    def torn(b: torch.Tensor) -> float:
        return nan if float(b.abs().max()) > 0.25 else distance(b)

    memory = runs()
    b, stopping, _ = run(memory, make, loss=torn, check=torn)
    assert stopping.halvings > 0
    assert distance(b) < GOAL**2
    assert all(isfinite(record.loss) for record in memory.records())


@every_method
def test_the_best_is_left_where_the_last_step_is_not(make: Make, runs: Runs) -> None:
    """The check is best when B has come 0.2 far."""
    memory = runs()
    b, stopping, _ = run(memory, make, check=lambda b: 9 + abs(float(b.mean()) - 0.2), every=2)
    assert stopping.best_step > 0
    assert abs(float(b.mean()) - 0.2) == pytest.approx(stopping.best_loss - 9, abs=1e-6)
    assert memory.went_back[-1][1] == stopping.best_step
    assert any(start > stopping.best_step for start, _ in memory.went_back)


@every_method
def test_where_nothing_of_the_run_lies_ahead_it_is_checked_once_more(make: Make, runs: Runs) -> None:
    memory = runs()
    _, stopping, _ = run(memory, make, remaining=lambda step: 1 - (step - 1) / 7)
    assert stopping.best_step == 7


class Cut(Exception):
    """In place of a kill."""


class CutRun(StoredRun):
    """A run whose process is killed in front of, or right behind, a number of writes."""

    def __init__(self, of: Recorded, *, at: int, behind: bool) -> None:
        super().__init__(of.store, of.job_id, of.folder)
        self.writes, self._at, self._behind = 0, at, behind

    def append(self, record: StepRecord, *, seconds: float) -> None:
        self._cut(lambda: super(CutRun, self).append(record, seconds=seconds))

    def keep(self, stopping: EarlyStopping) -> None:
        self._cut(lambda: super(CutRun, self).keep(stopping))

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        self._cut(lambda: super(CutRun, self).go_back(stopping, step=step))

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        self._cut(lambda: super(CutRun, self).save(checkpoint, stopping))

    def _cut(self, write: Callable[[], None]) -> None:
        self.writes += 1
        if self.writes == self._at and not self._behind:
            raise Cut
        write()
        if self.writes == self._at:
            raise Cut


@pytest.mark.smoke
@every_method
def test_killed_at_any_write_it_ends_like_an_undisturbed_run_bit_for_bit(make: Make, runs: Runs) -> None:
    """MeZO's run ends early; the other goes back once, and writes checkpoints between its checks, too."""

    def start(memory: StoredRun) -> tuple[torch.Tensor, EarlyStopping, list[int]]:
        def check(b: torch.Tensor) -> float:
            return 9 + abs(float(b.mean()) - 0.1)

        return run(memory, make, check=check, steps=12, every=2, clock=ticks(CHECKPOINT_SECONDS / 3))

    undisturbed = CutRun(runs(), at=0, behind=False)
    expected, stopping, _ = start(undisturbed)
    assert stopping.halvings == (MAX_HALVINGS + 1 if make is mezo else 1)
    for at in range(1, undisturbed.writes + 1):
        for behind in (False, True):
            memory = runs()
            with suppress(Cut):
                start(CutRun(memory, at=at, behind=behind))
            b, again, _ = start(memory)
            assert torch.equal(b, expected) and again == stopping, (at, behind)
            assert memory.records() == undisturbed.records(), (at, behind)


def ticks(seconds: float) -> Callable[[], float]:
    """A clock that goes on by so much each time it is read."""
    times = count()
    return lambda: next(times) * seconds


@every_method
def test_where_the_validation_text_has_changed_its_losses_are_not_compared(make: Make, runs: Runs) -> None:
    """What was best on a text that is gone may be impossible on what is left."""
    memory, seen = runs(), count()

    def cut(b: torch.Tensor) -> float:
        if next(seen) == 4:
            raise Cut
        return distance(b) - 100

    with pytest.raises(Cut):
        run(memory, make, check=cut, validated_on="all")
    assert memory.stopping.best_loss < 0
    at = len(memory.records())
    _, stopping, _ = run(memory, make, validated_on="some")
    assert stopping.validated_on == "some"
    assert 0 <= stopping.best_loss < 1 and stopping.best_step > at


def test_a_checkpoint_bounds_what_is_done_again(runs: Runs) -> None:
    """Checks are rare, so that only time makes checkpoints; records that are there are not written twice."""
    for tick, most in ((0.0, STEPS - 1), (CHECKPOINT_SECONDS / 4, 4)):
        memory, made = runs(), list[Momentum]()

        def cutting(b: torch.Tensor, memory: Recorded = memory) -> float:
            if len(memory.records()) == STEPS - 1:
                raise Cut
            return distance(b)

        with pytest.raises(Cut):
            run(memory, momentum, loss=cutting, every=STEPS, clock=ticks(tick))
        records = memory.records()

        def keeping(b: torch.Tensor, loss: Function, made: list[Momentum] = made) -> Method:
            made.append(Momentum(b, loss=loss))
            return made[-1]

        run(memory, keeping, every=STEPS, clock=ticks(tick))
        taken = made[0].taken
        assert taken == list(range(taken[0], STEPS + 1))
        assert len(taken) - 1 <= most
        assert memory.records()[: STEPS - 1] == records


def test_a_kill_in_the_middle_of_a_step_costs_no_more_than_a_part_of_it(runs: Runs) -> None:
    """Each process is killed after one part, and a step has three."""

    class Parts(Momentum):
        part = 0

        def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord | None:
            if next(left, None) is None:
                raise Cut
            done.append(number)
            self.part = (self.part + 1) % 3
            return None if self.part else super().step(number, batch, remaining=remaining, share=share)

        def state(self) -> dict[str, torch.Tensor]:
            return super().state() | {"part": torch.tensor(self.part)}

        def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
            super().restore(state, records)
            self.part = int(state.get("part", 0))

    memory, whole, done, left = runs(), runs(), list[int](), iter(range(4))  # of the first step nothing is stored yet
    found = None
    while found is None:
        with suppress(Cut):
            found = run(memory, lambda b, loss: Parts(b, loss=loss), clock=ticks(CHECKPOINT_SECONDS))
        left = iter(range(1))
    assert torch.equal(found[0], run(whole, momentum)[0])
    assert all(done.count(step) == 3 for step in range(2, 20))


@every_method
def test_a_step_that_has_changed_something_before_it_diverged_leaves_no_trace(make: Make, runs: Runs) -> None:
    """Exact gradients update the upper layers before those of a lower one may turn out to be no numbers.

    Here it is the step after the best one, after which the run ends.
    """

    def torn(b: torch.Tensor) -> float:
        if len(memory.records()) < 2 * EVERY:
            return distance(b)
        b.add_(1)
        return nan

    memory, whole = runs(), runs()
    b, stopping, _ = run(memory, make, loss=torn)
    expected, *_ = run(whole, make, steps=2 * EVERY, remaining=lambda step: 1 - (step - 1) / STEPS)
    assert stopping.best_step == 2 * EVERY and stopping.halvings == MAX_HALVINGS + 1
    assert torch.equal(b, expected)


@pytest.mark.parametrize(
    ("tick", "expected"),
    [
        # A gigabyte at the checks of the whole run: each best one.
        (20, [4, 8, 12, 16, 20, 24, 28, 32]),
        # And a gigabyte in an hour: a step takes 7 minutes or more.
        (400, list(range(1, 33))),
    ],
)
def test_large_checkpoints_are_rare(tick: float, expected: list[int], runs: Runs, tmp_path: Path) -> None:
    """Of 32 steps, with several looks at the clock each; a checkpoint has a ninth of a gigabyte."""

    class Sized(Momentum):
        def state(self) -> dict[str, torch.Tensor]:
            return super().state() | {"sized": torch.empty(CHECKPOINT_BYTES // 36, device="meta")}

    class Counting(StoredRun):
        def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
            state = {name: tensor for name, tensor in checkpoint.state.items() if name != "sized"}
            super().save(replace(checkpoint, state=state), stopping)
            saved.append(checkpoint.step)

    memory, saved = runs(), list[int]()
    run(
        Counting(memory.store, memory.job_id, tmp_path / "counted"),
        lambda b, loss: Sized(b, loss=loss),
        steps=32,
        clock=ticks(tick),
    )
    assert saved == expected


def test_a_job_gets_on_that_is_killed_more_often_than_it_writes_checkpoints(runs: Runs) -> None:
    """Each process is killed after so many steps, and a checkpoint is due after 300 of them."""
    left: Iterator[int] = iter(())

    def cutting(b: torch.Tensor) -> float:
        if next(left, None) is None:
            raise Cut
        return distance(b)

    for life in (1, 2, 5):
        memory, lives = runs(), 0
        while not memory.stopping.ended:
            left, lives = iter(range(life)), lives + 1
            assert lives < 8 * STEPS
            with suppress(Cut):
                run(memory, momentum, loss=cutting, every=300)
        assert memory.stopping.best_step == STEPS, life


def test_seconds_are_those_of_the_step_by_the_clock_that_is_handed_in(runs: Runs) -> None:
    memory = runs()
    run(memory, steps=4, clock=ticks(0.5))
    assert {row.seconds for row in memory.store.step_log.steps(memory.job_id)} == {0.5}
