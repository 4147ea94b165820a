"""Admission by memory: a job waits while it does not fit into memory beside the generator."""

from collections.abc import Callable
from datetime import datetime

from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.storage.tables import Job

NAME = "generator"
_MB = 1_000_000


class Admission:
    """Limits the memory of worker and generator together."""

    def __init__(self, total_bytes: int, generator_bytes: Callable[[], int]) -> None:
        """generator_bytes: memory of daemon and generator, without weights that the worker shares; 0 without one."""
        self._total, self._generator_bytes = total_bytes, generator_bytes

    def blocker(self, job: Job | None, now: datetime) -> Blocker | None:
        """The blocker while the generator runs and the job does not fit beside it; else None."""
        used, needed = self._generator_bytes(), (job and job.predicted_bytes) or 0
        if not used or not needed or used + needed <= self._total:
            return None
        message = (
            f"generator and daemon use {used // _MB} MB, and the job needs {needed // _MB} MB more; together they may "
            f"use {self._total // _MB} MB (setting total_memory_bytes)"
        )
        return Blocker(
            name=NAME,
            message=message,
            value=float(used + needed),
            threshold=float(self._total),
            unit="bytes",
            since=now,
        )
