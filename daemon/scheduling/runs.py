"""Records the runs of workers, and the times at which the gate was open."""

from datetime import datetime, timedelta

from pocketllm.storage.repositories.runs import RunWindowStore, seconds_within

#: How often an open run is stored: the most that a kill of the daemon loses.
_EVERY = timedelta(minutes=1)
#: How long the cached sum of a day is used.
_SUM_FOR = timedelta(seconds=30)

_DAY = timedelta(days=1)
#: Shorter idle times are ignored.
_WORTHWHILE = timedelta(minutes=10)


class RunRecorder:
    """Records runs, of which at most one is open, since there is one worker."""

    def __init__(self, store: RunWindowStore) -> None:
        self._store = store
        self._open: int | None = None
        self._allowed = False
        self._written_at: datetime | None = None
        self._sum: tuple[datetime, datetime, float] | None = None  #: day, time of the sum, seconds

    def recover(self, now: datetime) -> None:
        """Close the run that a dead daemon left open."""
        self._store.close_left(because="the daemon was killed", now=now)

    def gate(self, allowed: bool, now: datetime) -> None:
        """Record whether the gate is open, if that changed."""
        if allowed is not self._allowed:
            (self._store.idle_began if allowed else self._store.idle_ended)(now)
        self._allowed = allowed

    def expected_at(self, now: datetime) -> datetime | None:
        """When a job can probably run next, judging by yesterday; None if nothing is known of it.

        That is the first time from now on at which the gate was open for a while a day before.
        """
        if self._allowed:
            return now
        for window in self._store.idle_windows(now - _DAY):
            end = min(window.ended_at or now, now)  # the clock may have been set back since
            if end - window.began_at >= _WORTHWHILE:
                return max(now, window.began_at + _DAY)
        return None

    def begin(self, job_id: str, *, because: str, now: datetime) -> None:
        """A worker was started."""
        self._open = self._store.begin(job_id, because=because, now=now)
        self._written_at = now

    def observe(self, cpu: float | None, now: datetime) -> None:
        """The worker still runs; stored every _EVERY. cpu: its CPU seconds."""
        if self._open is None or self._written_at is None or timedelta(0) <= now - self._written_at < _EVERY:
            return
        self._store.observe(self._open, cpu=cpu, now=now)
        self._written_at = now

    def end(self, *, because: str, cpu: float | None, now: datetime) -> None:
        """The worker has ended. cpu: its CPU seconds."""
        if self._open is not None:
            self._store.end(self._open, because=because, cpu=cpu, now=now)
        self._open = self._sum = None

    def seconds_since(self, midnight: datetime, now: datetime) -> float:
        """The seconds that workers have run since then."""
        if self._sum is None or self._sum[0] != midnight or not timedelta(0) <= now - self._sum[1] < _SUM_FOR:
            windows = self._store.since(midnight)
            for window in windows:
                if window.ended_at is None:
                    window.ended_at = now  # still running
            self._sum = (midnight, now, seconds_within(windows, midnight, now))
        return self._sum[2]


def midnight_of(local: datetime) -> datetime:
    """The start of the owner's day."""
    return local.replace(hour=0, minute=0, second=0, microsecond=0)
