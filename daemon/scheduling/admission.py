"""Admission by memory: a job waits while it does not fit into memory beside the generator."""

from datetime import datetime

from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.storage.tables import Job

_MB = 1_000_000
GENERATOR = "generator"  #: the blocker's name
#: The generator's keep-alive in seconds while a job that the owner waits for needs its memory.
IMMEDIATE_KEEP_ALIVE = 20.0


def beside_generator(job: Job | None, used_bytes: int, total_bytes: int, now: datetime) -> Blocker | None:
    """The blocker while the generator runs and the job does not fit beside it; else None.

    used_bytes: memory of daemon and generator, without weights that the worker shares; 0 without a generator.
    """
    needed = (job and job.predicted_bytes) or 0
    if not used_bytes or not needed or used_bytes + needed <= total_bytes:
        return None
    message = (
        f"generator and daemon use {used_bytes // _MB} MB, and the job needs {needed // _MB} MB more; together they "
        f"may use {total_bytes // _MB} MB (setting total_memory_bytes)"
    )
    if job and job.immediate:
        message += f"; the generator is unloaded once nobody has used it for {IMMEDIATE_KEEP_ALIVE:g} s"
    return Blocker(
        name=GENERATOR,
        message=message,
        value=float(used_bytes + needed),
        threshold=float(total_bytes),
        unit="bytes",
        since=now,
    )
