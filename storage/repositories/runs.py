"""Runs of workers: when and why each began and ended, and what it used; and idle windows, when one might have run."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from sqlmodel import Session, col, delete, or_, select, update

from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.repositories.step_log import last_step
from pocketllm.storage.tables import HeldBack, IdleWindow, RunWindow

#: For how long idle windows are kept, and what held jobs back.
_NIGHTS_FOR = timedelta(days=30)
_EVER = datetime.min.replace(tzinfo=UTC)


class RunWindowStore(Repository):
    """Every query about run windows."""

    def begin(self, job_id: str, *, because: str, now: datetime) -> int:
        """Open a window; its id."""
        window = RunWindow(job_id=job_id, began_at=now, seen_at=now, began_because=because)
        with self._database.write() as session:
            window.began_step = last_step(session, job_id)
            session.add(window)
            session.flush()
            assert window.id is not None
            return window.id

    def observe(self, window_id: int, *, cpu: float | None, now: datetime) -> None:
        """Note that the worker still runs. cpu: its CPU seconds."""
        with self._database.write() as session:
            _note(session, _open(session, window_id), cpu, now)

    def end(self, window_id: int, *, because: str, cpu: float | None, now: datetime) -> None:
        """Close a window."""
        with self._database.write() as session:
            window = _open(session, window_id)
            _note(session, window, cpu, now)
            window.ended_at, window.ended_because = now, because

    def close_left(self, *, because: str, now: datetime) -> None:
        """Close what a dead daemon has left open: windows where they were last seen."""
        windows = update(RunWindow).where(col(RunWindow.ended_at).is_(None))
        self._write(windows.values(ended_at=RunWindow.seen_at, ended_because=because))
        self.idle_ended(now)

    def idle_began(self, now: datetime) -> None:
        """The gate has opened."""
        with self._database.write() as session:
            session.exec(delete(IdleWindow).where(col(IdleWindow.ended_at) < now - _NIGHTS_FOR))
            session.add(IdleWindow(began_at=now))

    def idle_ended(self, now: datetime) -> None:
        """The gate has closed."""
        self._write(update(IdleWindow).where(col(IdleWindow.ended_at).is_(None)).values(ended_at=now))

    def idle_windows(self, since: datetime = _EVER) -> list[IdleWindow]:
        """Those that reach beyond this time, oldest first."""
        lasting = or_(col(IdleWindow.ended_at).is_(None), col(IdleWindow.ended_at) > since)
        return self._all(select(IdleWindow).where(lasting).order_by(col(IdleWindow.id)))

    def hold_back(self, seconds: Mapping[tuple[date, str], float]) -> None:
        """Add seconds for which blockers held a job back, by night and name."""
        with self._database.write() as session:
            for (night, name), more in seconds.items():
                session.exec(delete(HeldBack).where(col(HeldBack.night) < night - _NIGHTS_FOR))
                row = session.get(HeldBack, (night, name)) or HeldBack(night=night, name=name)
                row.seconds += more
                session.add(row)

    def held_back(self, since: date) -> list[HeldBack]:
        """What held jobs back in this night and later ones, the longest first."""
        return self._all(select(HeldBack).where(HeldBack.night >= since).order_by(col(HeldBack.seconds).desc()))

    def of_job(self, job_id: str) -> list[RunWindow]:
        """A job's windows, oldest first."""
        return self._all(select(RunWindow).where(RunWindow.job_id == job_id).order_by(col(RunWindow.id)))

    def since(self, start: datetime) -> list[RunWindow]:
        """The windows that reach beyond this time, oldest first."""
        lasting = or_(col(RunWindow.ended_at).is_(None), col(RunWindow.ended_at) > start)
        return self._all(select(RunWindow).where(lasting).order_by(col(RunWindow.id)))


def seconds_within(windows: Sequence[RunWindow], start: datetime, end: datetime) -> float:
    """For how long workers ran between two times."""
    return sum(
        max(0.0, (min(window.ended_at or window.seen_at, end) - max(window.began_at, start)).total_seconds())
        for window in windows
    )


def _open(session: Session, window_id: int) -> RunWindow:
    return session.exec(select(RunWindow).where(RunWindow.id == window_id)).one()


def _note(session: Session, window: RunWindow, cpu: float | None, now: datetime) -> None:
    window.seen_at = max(window.seen_at, now)  # a clock may have been set back
    window.steps = max(window.steps, last_step(session, window.job_id) - window.began_step)
    window.cpu_seconds = max(window.cpu_seconds, cpu or 0.0)
