"""Records the runs of workers, and the times at which the gate was open."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta

from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.scheduling.night import UNKNOWN_NIGHT
from pocketllm.daemon.uptime import local_time
from pocketllm.storage.repositories.runs import Observed, RunWindowStore, seconds_within

#: How often an open run is stored: the most that a kill of the daemon loses.
_EVERY = timedelta(minutes=1)
#: How long the cached sum of a day is used.
_SUM_FOR = timedelta(seconds=30)

_DAY, _HALF_A_DAY = timedelta(days=1), timedelta(hours=12)
#: How many nights say what is usual.
_USUAL_NIGHTS = 14
#: Shorter idle times are ignored.
_WORTHWHILE = timedelta(minutes=10)


class RunRecorder:
    """Records runs, of which at most one is open, since there is one worker."""

    def __init__(self, store: RunWindowStore, local: Callable[[datetime], datetime] = local_time) -> None:
        """local: to local time."""
        self._store, self._local = store, local
        self._open: int | None = None
        self._allowed = False
        self._opened_at: datetime | None = None  #: when the gate has opened, while it is open
        self._written_at: datetime | None = None
        self._sum: tuple[datetime, datetime, float] | None = None  #: day, time of the sum, seconds

    def recover(self, now: datetime) -> None:
        """Close the run that a dead daemon left open."""
        self._store.close_left(because="the daemon was killed", now=now)

    def gate(self, allowed: bool, now: datetime) -> None:
        """Record whether the gate is open, if that changed."""
        if allowed is not self._allowed:
            (self._store.idle_began if allowed else self._store.idle_ended)(now)
            self._opened_at = now if allowed else None
        self._allowed = allowed

    def usual_night(self) -> float:
        """The seconds of the usual night: of the last nights' longest times with an open gate, the lower quartile."""
        longest: dict[date, float] = {}
        for window in self._store.idle_windows():
            seconds = ((window.ended_at or window.began_at) - window.began_at).total_seconds()
            if timedelta(seconds=seconds) >= _WORTHWHILE:
                night = self._night(window.began_at)
                longest[night] = max(seconds, longest.get(night, 0.0))
        last = sorted(seconds for _, seconds in sorted(longest.items())[-_USUAL_NIGHTS:])
        return last[len(last) // 4] if last else UNKNOWN_NIGHT

    def open_for(self, now: datetime) -> float:
        """The seconds for which the gate has been open; 0 while it is shut."""
        return max(0.0, (now - self._opened_at).total_seconds()) if self._opened_at else 0.0

    def nights_of(self, job_id: str, now: datetime) -> int:
        """The number of nights before this one in which a job ran."""
        return len({self._night(window.began_at) for window in self._store.of_job(job_id)} - {self._night(now)})

    def _night(self, at: datetime) -> date:
        """The night that a time belongs to: from noon to noon, by the date on which it ends."""
        return (self._local(at) + _HALF_A_DAY).date()

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

    def begin(self, job_id: str, *, because: str, readings: Sequence[Reading], now: datetime) -> None:
        """A worker was started."""
        self._open = self._store.begin(job_id, because=because, seen=_observed(readings, None), now=now)
        self._written_at = now

    def observe(self, cpu: float | None, readings: Sequence[Reading], now: datetime) -> None:
        """The worker still runs; stored every _EVERY. cpu: its CPU seconds."""
        if self._open is None or self._written_at is None or timedelta(0) <= now - self._written_at < _EVERY:
            return
        self._store.observe(self._open, seen=_observed(readings, cpu), now=now)
        self._written_at = now

    def end(self, *, because: str, cpu: float | None, readings: Sequence[Reading], now: datetime) -> None:
        """The worker has ended. cpu: its CPU seconds."""
        if self._open is not None:
            self._store.end(self._open, because=because, seen=_observed(readings, cpu), now=now)
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


def _observed(readings: Sequence[Reading], cpu: float | None) -> Observed:
    by_name = {reading.name: reading for reading in readings}
    return Observed(
        cpu_seconds=cpu,
        battery_percent=_number(by_name, "battery"),
        battery_celsius=_number(by_name, "temperature"),
        battery_watts=_number(by_name, "battery power"),
        zone_celsius=_number(by_name, "heat"),
    )


def _number(readings: Mapping[str, Reading], name: str) -> float | None:
    value = readings[name].value if name in readings else None
    return float(value) if isinstance(value, int | float) else None
