"""A run's rows and its watch in the database: what a run that was killed, or has gone back, goes on from."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

from pocketllm.mezo.estimator import Theta
from pocketllm.mezo.loop import Row
from pocketllm.mezo.patience import Watch
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Step


class StoredRun:
    """pocketllm.mezo.guarded.Keeper of a job in the database."""

    def __init__(self, store: Store, job_id: str, to_start: Callable[[Theta], None]) -> None:
        """to_start: makes of theta, in place, what the job started from."""
        self._store, self._job_id, self._to_start = store, job_id, to_start

    def rows(self) -> list[Step]:
        """See Keeper."""
        return self._store.journal.steps(self._job_id)

    def keep(self, row: Row) -> None:
        """See Keeper."""
        self._store.journal.append(Step(job_id=self._job_id, **asdict(row)))

    def watch(self) -> Watch | None:
        """See Keeper."""
        document = self._store.jobs.get(self._job_id).watch
        return None if document is None else Watch.from_json(document)

    def keep_watch(self, watch: Watch) -> None:
        """See Keeper."""
        self._store.jobs.set_watch(self._job_id, watch.to_json())

    def go_back(self, watch: Watch, *, step: int) -> None:
        """See Keeper. An event says so, where there is something to forget."""
        self._store.journal.go_back(
            self._job_id,
            step=watch.best_step,
            watch=watch.to_json(),
            ended=watch.ended,
            message=_message(watch, step) if step > watch.best_step or not watch.ended else None,
            now=datetime.now(UTC),
        )

    def to_start(self, theta: Theta) -> None:
        """See Keeper."""
        self._to_start(theta)


def ended_early(watch: Watch, step: int) -> str:
    """What to tell of a run that patience has ended after this step."""
    return (
        f"after {step} steps nothing was learned any more that text kept aside bears out; going back to what stood "
        f"after step {watch.best_step}"
    )


def _message(watch: Watch, step: int) -> str:
    if watch.ended:
        return ended_early(watch, step)
    return (
        f"from step {step} to step {watch.best_step}, after which text kept aside had its lowest loss, "
        f"{watch.best_loss:.4g} nats per token; going on with {watch.share:g} of the step size"
    )
