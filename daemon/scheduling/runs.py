"""Records the runs of workers, and the times at which the gate was open."""

from collections.abc import Callable, Set
from datetime import date, datetime, timedelta

from pocketllm.daemon.scheduling.night import SURE_NIGHT, UNKNOWN_NIGHT
from pocketllm.daemon.scheduling.nights import night_of
from pocketllm.daemon.uptime import local_time
from pocketllm.storage.repositories.runs import RunWindowStore, seconds_within

#: How often an open run is stored: the most that a kill of the daemon loses.
_EVERY = timedelta(minutes=1)
#: How long the cached sum of a day is used.
_SUM_FOR = timedelta(seconds=30)

_DAY = timedelta(days=1)
#: How many nights say what is usual, and the days that the forecast is made from.
_USUAL_NIGHTS, _DAYS = 14, 7
#: Shorter idle times are ignored.
_WORTHWHILE = timedelta(minutes=10)
#: The blockers while somebody uses the device.
_IN_USE = {"screen", "idle"}
#: What held a job back is stored when one blocker has that many seconds more: a write wears flash.
_HELD_SECONDS = 600.0


class RunRecorder:
    """Records runs, of which at most one is open, since there is one worker."""

    def __init__(self, store: RunWindowStore, local: Callable[[datetime], datetime] = local_time) -> None:
        """local: to local time."""
        self._store, self._local = store, local
        self._open: int | None = None
        self._allowed = False
        self._opened_at: datetime | None = None  #: when the gate has opened, while it is open
        self._written_at: datetime | None = None
        self._held: dict[tuple[date, str], float] = {}  #: seconds by night and blocker, not stored yet
        self._held_at: datetime | None = None
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
        return self._left_after(0.0)

    def night_left(self, now: datetime, *, surely: bool = False) -> float:
        """The seconds that are probably, or surely, left of this night.

        The lower quartile, or the least, of what was left in the last nights that lasted longer; where none did, as
        long again.
        """
        lasted = max(0.0, (now - self._opened_at).total_seconds()) if self._opened_at else 0.0
        return self._left_after(lasted, surely=surely)

    def _left_after(self, seconds: float, *, surely: bool = False) -> float:
        longest: dict[date, float] = {}
        for window in self._store.idle_windows():
            lasted = (window.ended_at or window.began_at) - window.began_at
            if lasted >= _WORTHWHILE:
                night = night_of(self._local(window.began_at))
                longest[night] = max(lasted.total_seconds(), longest.get(night, 0.0))
        last = [lasted for _, lasted in sorted(longest.items())[-_USUAL_NIGHTS:]]
        last = last or [SURE_NIGHT if surely else UNKNOWN_NIGHT]
        left = sorted(lasted - seconds for lasted in last if lasted > seconds)
        return left[0 if surely else len(left) // 4] if left else seconds

    def nights_of(self, job_id: str, now: datetime) -> int:
        """The number of nights before this one in which a job ran."""
        nights = {night_of(self._local(window.began_at)) for window in self._store.of_job(job_id)}
        return len(nights - {night_of(self._local(now))})

    def hold(self, names: Set[str], night: date, now: datetime) -> None:
        """Count the time since the last call for the blockers that keep a waiting job from running.

        While somebody uses the device, nothing else holds it back. A clock that jumps counts for little.
        """
        lasted = min(max(timedelta(0), now - (self._held_at or now)), _EVERY)
        self._held_at = now
        if names <= _IN_USE or not names & _IN_USE:
            for name in names:
                self._held[night, name] = self._held.get((night, name), 0.0) + lasted.total_seconds()
        if max(self._held.values(), default=0.0) >= _HELD_SECONDS:
            self._store.hold_back(self._held)
            self._held = {}

    def expected_at(self, now: datetime) -> datetime | None:
        """When a job can probably run next; None if the last days do not say.

        That is the first time from now on at which the gate was open on most of the last seven days, or of those known.
        """
        if self._allowed:
            return now
        windows = [
            (window.began_at, end)
            for window in self._store.idle_windows(now - _DAYS * _DAY)
            # The clock may have been set back since.
            if (end := min(window.ended_at or now, now)) - window.began_at >= _WORTHWHILE
        ]
        oldest = min((began for began, _ in windows), default=now)
        for at in sorted([now, *(now + (began - now) % _DAY for began, _ in windows)]):
            known = max(1, min(_DAYS, (at - oldest) // _DAY))
            before = [at - day * _DAY for day in range(1, known + 1)]
            if 2 * sum(any(began <= then < end for began, end in windows) for then in before) > known:
                return at
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
