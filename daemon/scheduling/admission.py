"""What keeps a job from running besides the conditions: too little memory, an earlier end, the owner."""

from collections.abc import Callable
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.daemon.scheduling.attempts import LONGEST_RETRY
from pocketllm.storage.tables import Job, JobState

_MB = 1_000_000
#: The blockers' names. What is held back runs under no conditions.
GENERATOR, HELD_BACK = "generator", "held back"
#: The generator's keep-alive in seconds while a job that the owner waits for needs its memory.
IMMEDIATE_KEEP_ALIVE = 20.0
#: After a failed job, older text alone is tried again by itself only after this time.
_AFTER_FAILURE = timedelta(days=1)


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


def came_to_nothing(last: Job | None, now: datetime) -> Job | None:
    """The last job if its texts are left alone for now: they would fail again, or the owner has cancelled it."""
    if last is None or last.finished_at is None:
        return None
    recently = last.state is JobState.FAILED and timedelta(0) <= now - last.finished_at < _AFTER_FAILURE
    return last if recently or last.state is JobState.CANCELLED else None


def between_tries(job: Job, now: datetime) -> Blocker | None:
    """The blocker until the next try of a job whose worker did not come to its end; else None."""
    until = job.not_before
    if until is None or not timedelta(0) < until - now <= LONGEST_RETRY:  # longer: the clock was set back
        return None
    return Blocker(name=HELD_BACK, message=f"{job.id}: {'; '.join(job.reasons)}", since=now, until=until)


def paused_by_owner(job: Job, now: datetime) -> Blocker:
    """The blocker while the owner has paused all jobs, of which this is the first."""
    message = f"{job.id} is paused by the owner; `pocketllm train` resumes it"
    return Blocker(name=HELD_BACK, message=message, since=now)


def given_up(job: Job, now: datetime, local: Callable[[datetime], datetime]) -> Blocker:
    """The blocker of new text that a job has come to nothing on. local: to local time."""
    since = job.finished_at or now
    until = since + _AFTER_FAILURE if job.state is JobState.FAILED else None
    message = f"{job.id} {job.state}; `pocketllm train` retries its texts"
    message += f", or the daemon does from {local(until):%Y-%m-%d %H:%M}" if until else ""
    return Blocker(name=HELD_BACK, message=message, since=since, until=until)
