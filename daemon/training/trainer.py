"""The training loop of both methods: batches, steps, validation, roll-back, checkpoints.

The validation loss is checked at intervals, and early_stopping.py decides what follows. A roll-back deletes the records
beyond the best step and restores the method to it, as after a kill. The step log, the checkpoints and early stopping
are a run's whole state; so a run that is killed, however often, ends with the same bits as an undisturbed one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun
from pocketllm.daemon.training.early_stopping import EarlyStopping, Verdict
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import Method

#: Since flash wears: the bytes of checkpoints that a run writes at its checks, at most, and in a second besides.
CHECKPOINT_BYTES, CHECKPOINT_RATE = 10**9, 10**9 / 3600
#: The time between checkpoints, at least.
CHECKPOINT_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's parts besides its method and its store."""

    steps: int  #: at most
    batch: Callable[[int], Batch]  #: of a step (from 1); a pure function
    remaining: Callable[[int], float]  #: the remaining part of the run at a step, from 1 to 0; 0 ends it
    validation_loss: Callable[[], float]  #: at the current parameters, nats per token
    validated_on: str  #: a digest of the validation split
    check_every: int  #: steps
    measure: Callable[[int], None]  #: called every `measure_every` steps, at the start and at the end
    measure_every: int
    clock: Callable[[], float]  #: monotonic seconds
    checkpoint_bytes: int = CHECKPOINT_BYTES

    def ends_at(self, step: int) -> bool:
        """Whether this is the last step."""
        return step >= self.steps or self.remaining(step + 1) <= 0


def train(method: Method, store: StoredRun, run: Run) -> EarlyStopping:
    """Train to the end of the run or until early stopping ends it. Leaves the method at its best step.

    Raises TrainingDiverged if the first validation loss is not finite.
    """
    stopping = store.early_stopping() or EarlyStopping()
    recorded = len(store.records())
    step = _resume(method, store, stopping)
    size = sum(tensor.nbytes for tensor in method.state().values())
    run = replace(run, check_every=max(run.check_every, ceil(run.steps * size / run.checkpoint_bytes)))
    pause = max(CHECKPOINT_SECONDS, size / CHECKPOINT_RATE)
    halfway = (step + recorded + 1) // 2  # to where a kill came: so a job gets on, however often it is killed
    if stopping.validated_on != run.validated_on and not stopping.ended:
        stopping.begin(run.validated_on)
    verdict = _check(step, method, store, run, stopping)
    saved, seconds = run.clock(), 0.0  #: of the step so far
    while True:
        if verdict is Verdict.GO_BACK:
            store.go_back(stopping, step=step)
            recorded = stopping.best_step
            if step != recorded or not stopping.ended:
                step = _resume(method, store, stopping)
        if stopping.ended:
            break
        if step % run.measure_every == 0:
            run.measure(step)
        if run.ends_at(step):
            if stopping.looked_at < step and stopping.check(step, run.validation_loss()) is Verdict.NEW_BEST:
                _save(step, method, store, stopping)
            verdict = stopping.end()
            continue
        started = run.clock()
        try:
            record = method.step(step + 1, run.batch(step + 1), remaining=run.remaining(step + 1), share=stopping.share)
        except TrainingDiverged:
            _resume(method, store, stopping)
            verdict = stopping.go_back()
            continue
        seconds += run.clock() - started
        if record is None:
            verdict = Verdict.GO_ON
            if run.clock() - saved >= pause:
                _save(step, method, store, stopping)
                saved = run.clock()
            continue
        step += 1
        if step > recorded:
            store.append(record, seconds=seconds)
            recorded = step
        seconds = 0.0
        verdict = _check(step, method, store, run, stopping)
        late = run.clock() - saved >= pause
        if verdict is Verdict.GO_ON and not run.ends_at(step) and (late or step == halfway):
            _save(step, method, store, stopping)
        if verdict is Verdict.NEW_BEST or late:
            saved = run.clock()
    run.measure(stopping.best_step)
    return stopping


def _resume(method: Method, store: StoredRun, stopping: EarlyStopping) -> int:
    """Restore the method to where its run was; returns the step."""
    if not method.state():
        records = store.records()
        method.restore({}, records)
        return len(records)
    found = store.load(stopping)
    # Without a checkpoint it starts again, and produces the same records.
    method.restore({} if found is None else found.state, ())
    return 0 if found is None else found.step


def _check(step: int, method: Method, store: StoredRun, run: Run, stopping: EarlyStopping) -> Verdict:
    """Check the validation loss if it is due."""
    due = (step % run.check_every == 0 and not run.ends_at(step)) or stopping.first_loss is None
    if not due or step <= stopping.looked_at:
        return Verdict.GO_ON
    verdict = stopping.check(step, run.validation_loss())
    if verdict is Verdict.NEW_BEST:
        _save(step, method, store, stopping)  # before the early stopping that refers to it
    if verdict in (Verdict.NEW_BEST, Verdict.GO_ON):
        store.keep(stopping)
    return verdict


def _save(step: int, method: Method, store: StoredRun, stopping: EarlyStopping) -> None:
    if step and (state := method.state()):
        store.save(Checkpoint(step=step, state=state), stopping)
