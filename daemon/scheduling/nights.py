"""Nights: from noon to noon of the owner's time, what ran, what ended, when a job could run, and what held it back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pocketllm.storage.store import Store
from pocketllm.storage.tables import HeldBack, IdleWindow, Job, JobState, Outcome, RunWindow

_DAY = timedelta(days=1)
#: Blockers in words; the others go by their names.
_WORDS = {"power": "the charger was not connected", "screen": "the screen was on", "idle": "the device was in use"}
#: Blockers of a shorter time are not told.
_WORTH_TELLING_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class NightJob:
    """A job that ended in a night."""

    id: str
    state: JobState
    outcome: Outcome | None
    step: int
    held_out_loss_before: float | None  #: nats per token
    held_out_loss_now: float | None
    ended_because: str  #: and whether its adapter is served
    adapter: str | None


@dataclass(frozen=True, kw_only=True)
class Night:
    """From noon to noon. Windows and runs that reach into it are whole."""

    night: date  #: on which it ends
    open: list[IdleWindow]  #: when the gate was open
    open_seconds: float  #: of this night alone
    runs: list[RunWindow]
    held_back: list[HeldBack]  #: the longest first
    jobs: list[NightJob]


def night_of(local: datetime) -> date:
    """The night that a local time belongs to."""
    return (local + _DAY / 2).date()


class Nights:
    """The last nights, as the store has them."""

    def __init__(self, store: Store, local: Callable[[datetime], datetime]) -> None:
        """local: to local time."""
        self._store, self._local = store, local

    def recent(self, now: datetime, *, days: int) -> list[Night]:
        """The last nights, the present one first."""
        tonight = night_of(self._local(now))
        noon = self._noon(now) + (tonight - self._local(now).date())
        runs, first = self._store.runs, noon - days * _DAY
        windows, ran, held = runs.idle_windows(first), runs.since(first), runs.held_back(night_of(first))
        ended = [(job.finished_at or now, self._ended(job)) for job in self._store.jobs.ended_since(first)]

        def night(stop: datetime) -> Night:
            start, name = stop - _DAY, stop.date()
            return Night(
                night=name,
                open=[one for one in windows if one.began_at < stop and (one.ended_at or now) > start],
                open_seconds=_open_seconds(windows, stop, now),
                runs=[one for one in ran if one.began_at < stop and (one.ended_at or now) > start],
                held_back=[row for row in held if row.night == name],
                jobs=[job for at, job in ended if start <= at < stop],
            )

        return [night(noon - number * _DAY) for number in range(days)]

    def last(self, now: datetime) -> str:
        """The night that ends, or ended, today, in a sentence without the owner's words."""
        [night] = [one for one in self.recent(now, days=2) if one.night == self._local(now).date()]
        parts = []
        if night.runs:
            last, steps = night.runs[-1], sum(run.steps for run in night.runs)
            until = f"to {self._local(last.ended_at):%H:%M} ({last.ended_because})" if last.ended_at else "until now"
            parts.append(f"ran from {self._local(night.runs[0].began_at):%H:%M} {until}, {steps} steps")
        for job in night.jobs:
            before, after = job.held_out_loss_before, job.held_out_loss_now
            loss = "" if before is None or after is None else f", held-out loss {before:.2f} to {after:.2f}"
            parts.append(f"{job.id} {job.outcome or job.state}{loss}")
        held = [one for one in night.held_back if one.seconds >= _WORTH_TELLING_SECONDS]
        parts += [f"{_WORDS.get(one.name, one.name)} ({_hours(one.seconds)})" for one in held[:3]]
        return "; ".join(parts) or "no job ran, and none was held back"

    def candidate(self, now: datetime) -> str | None:
        """The adapter that waits for evidence, in a sentence without the owner's words; None where none waits."""
        look = self._store.jobs.last_look()
        if look is None or look.finished_at is None:
            return None
        done, ended = "judged" if look.judges else "learned", self._local(look.finished_at)
        at = "last night" if night_of(ended) == self._local(now).date() else f"on {ended.date()}"
        parts = [f"{done if look.outcome else look.state} {at}"]
        report = self._store.reports.find(look.id)
        overall = report.numbers["verdict"]["overall"] if report else {}
        if texts := overall.get("texts"):  # an older report does not say
            say, than = "text says" if texts == 1 else "texts say", "worse" if overall["reduction"] < 0 else "better"
            parts.append(f"{texts} {say} {abs(overall['reduction']):.2f} nats per token {than}, not yet certain")
        newer = self._store.texts.counts(beside=look.id).new_words > 0
        parts.append("judged again " + ("tonight" if newer else "once newer text has come in"))
        return "; ".join(parts)

    def _noon(self, now: datetime) -> datetime:
        return self._local(now).replace(hour=12, minute=0, second=0, microsecond=0)

    def _ended(self, job: Job) -> NightJob:
        progress = self._store.step_log.progress(job.id)
        said = [event.message for event in self._store.jobs.events(job.id) if event.kind in ("ended early", job.state)]
        return NightJob(
            **job.model_dump(include={"id", "state", "outcome", "adapter"}),
            step=progress.step,
            held_out_loss_before=progress.held_out_loss_before,
            held_out_loss_now=progress.held_out_loss_now,
            ended_because="; ".join(said),
        )


def _open_seconds(windows: Sequence[IdleWindow], noon: datetime, now: datetime) -> float:
    """For how long the gate was open in the night before a noon."""
    times = (min(one.ended_at or now, noon) - max(one.began_at, noon - _DAY) for one in windows)
    return sum(max(0.0, time.total_seconds()) for time in times)


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
