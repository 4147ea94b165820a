"""MeZO that looks after itself: it goes back to its best when it learns nothing more, or when it diverges.

Now and then the loop (loop.py) looks at text that it does not learn from, and patience.py says what follows. Going
back is forgetting: the rows beyond the best are taken off the journal, and the run starts again from those that are
left, as it would after a kill, along the same directions with half the step size. So theta is at all times what the
start and the journal's rows make, bit for bit, and there is no other state than the rows and the watch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.estimator import Theta, Update, replay
from pocketllm.mezo.loop import BatchLosses, Plan, Row, train
from pocketllm.mezo.patience import Patience, Verdict, Watch

#: Random directions make their way by luck: that a look or two bring no new best says little. All looks are at the same
#: text, so that a loss which has risen by a tenth of the first one is no accident.
PATIENCE = Patience(looks=3, halvings=3, divergence=0.1)


class Keeper(Protocol):
    """Where a run's rows and its watch are kept, so that a run that is killed goes on from there."""

    def rows(self) -> Sequence[Update]:
        """All rows, from the first step."""
        ...

    def keep(self, row: Row) -> None:
        """Keep a new row."""
        ...

    def watch(self) -> Watch | None:
        """What was kept last; None before."""
        ...

    def keep_watch(self, watch: Watch) -> None:
        """Keep the watch."""
        ...

    def go_back(self, watch: Watch, *, step: int) -> None:
        """Forget the rows beyond the watch's best step and keep the watch: both or neither. step: where the run is."""
        ...

    def to_start(self, theta: Theta) -> None:
        """Make of theta, in place, what the run started from."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checks:
    """How a run is looked at."""

    loss: Callable[[], float]  #: of the text kept aside at theta, nats per token
    every: int  #: steps
    patience: Patience = PATIENCE


def train_guarded(
    losses: BatchLosses,
    theta: Theta,
    batch: Callable[[int], Blocks],
    plan: Plan,
    *,
    checks: Checks,
    keeper: Keeper,
    measure: Callable[[int], None],
    clock: Callable[[], float],
    remaining: Callable[[int], float] | None = None,
) -> Watch:
    """Train theta in place until `plan.steps` steps are done, or going on brings nothing; at the end it is the best.

    Goes on from what the keeper has: a run that was killed, however often, makes the rows of an undisturbed one.
    Returns the watch, whose best step is the last of the rows that are left. See `train` for the rest.
    Raises TrainingDiverged when the loss is no number to begin with.
    """
    watch = keeper.watch() or Watch()
    reached = -1  # the step that theta is after; -1 where that is not known yet

    def look(step: int) -> bool:
        nonlocal reached
        reached = step
        due = (step % checks.every == 0 and step < plan.steps) or watch.first_loss is None
        if not due or step <= watch.looked_at:
            return True
        if watch.look(step, checks.loss(), checks.patience) in (Verdict.GO_BACK, Verdict.END):
            keeper.go_back(watch, step=step)
            return False
        keeper.keep_watch(watch)
        return True

    while not watch.ended:
        keeper.to_start(theta)
        halvings = watch.halvings
        try:
            train(
                losses,
                theta,
                batch,
                replace(plan, step_size=plan.step_size * watch.share),
                done=keeper.rows(),
                keep=keeper.keep,
                measure=measure,
                clock=clock,
                remaining=remaining,
                look=look,
            )
        except TrainingDiverged:
            if watch.first_loss is None:
                raise
            watch.go_back(checks.patience)
            keeper.go_back(watch, step=reached)
            continue
        if watch.halvings == halvings:  # it came to its end by itself
            if watch.looked_at < reached:
                watch.look(reached, checks.loss(), checks.patience)
            watch.end()
            keeper.go_back(watch, step=reached)
    if reached != watch.best_step:
        keeper.to_start(theta)
        replay(theta, keeper.rows(), plan.noise)
    measure(watch.best_step)
    return watch
