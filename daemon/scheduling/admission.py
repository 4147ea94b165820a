"""Room in memory for learning and generating at once: where it does not do for both, learning waits."""

from collections.abc import Callable
from datetime import datetime

from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.storage.tables import Job

NAME = "generator"
_MB = 1_000_000


class Room:
    """How much worker and generator may hold together."""

    def __init__(self, total_bytes: int, generator_bytes: Callable[[], int]) -> None:
        """generator_bytes: what the generator holds, beside weights that it shares with a worker; 0 while it is not
        there.
        """
        self._total, self._generator_bytes = total_bytes, generator_bytes

    def blocker(self, job: Job | None, now: datetime) -> Blocker | None:
        """What keeps a job from running while the generator is there; None when there is room for both."""
        held, wanted = self._generator_bytes(), (job and job.predicted_bytes) or 0
        if not held or not wanted or held + wanted <= self._total:
            return None
        message = (
            f"text is being generated: that holds {held // _MB} MB, the job would take {wanted // _MB} MB more, and "
            f"both together may take {self._total // _MB} MB (setting total_memory_bytes)"
        )
        return Blocker(
            name=NAME,
            message=message,
            value=float(held + wanted),
            threshold=float(self._total),
            unit="bytes",
            since=now,
        )
