"""Polls slow sources in a background thread, so that readers never wait.

termux-battery-status usually takes a second, seven on some phones, and hangs where its app is missing or frozen.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Self, TypeVar

from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.readings import NOT_YET, Reading, Value
from pocketllm.daemon.errors import ChildFailed

Answer = TypeVar("Answer")

#: The waits after the first failures in a row; the last one from then on.
RETRY_SECONDS = (60.0, 120.0, 300.0, 900.0)


@dataclass
class Pace:
    """How often sources are polled: more often while a job runs."""

    training: bool = False
    asked_anew: datetime | None = None  #: polls that began before this are made again at once


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[Answer]):
    """A source's answer."""

    at: datetime  #: when the poll began
    answer: Answer | None
    problem: str | None  #: why there is no answer


class Background(Generic[Answer]):
    """Polls a slow source in its own thread; readers get the last answer at once.

    After failures the interval grows (RETRY_SECONDS).
    """

    def __init__(self, ask: Callable[[], Answer], pace: Pace, *, idle_seconds: float, training_seconds: float) -> None:
        """ask: raises ChildFailed. The intervals are between the starts of two polls."""
        self._ask, self._pace = ask, pace
        self._idle, self._training = timedelta(seconds=idle_seconds), timedelta(seconds=training_seconds)
        self._last: Asked[Answer] | None = None
        self._asked_at: datetime | None = None
        self._failures = 0
        self._thread: threading.Thread | None = None

    @classmethod
    def of_command(cls, command: Sequence[str], parse: Callable[[str], Answer], pace: Pace) -> Self:
        """Polls a command. parse: takes its output; raises ChildFailed."""
        return cls(lambda: parse(run(command, timeout_seconds=5.0)), pace, idle_seconds=15.0, training_seconds=3.0)

    def latest(self, now: datetime) -> Asked[Answer] | None:
        """The last answer; None before the first. Starts the next poll if it is due, without waiting for it."""
        last = self._last  # read first, so that it does not depend on how soon the new one comes
        if not self.busy and self._due(now):
            self._asked_at = now
            self._thread = threading.Thread(target=self._work, args=(now,), name="probe", daemon=True)
            self._thread.start()
        return last

    @property
    def busy(self) -> bool:
        """Whether a poll is running."""
        return self._thread is not None and self._thread.is_alive()

    def _due(self, now: datetime) -> bool:
        anew = self._pace.asked_anew
        if self._asked_at is None or (anew is not None and self._asked_at < anew):
            return True
        wait = self._training if self._pace.training else self._idle
        if self._failures:
            wait = max(wait, timedelta(seconds=RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]))
        return not timedelta(0) <= now - self._asked_at < wait  # a negative age means that the clock was set back

    def _work(self, at: datetime) -> None:
        try:
            self._last = Asked(at=at, answer=self._ask(), problem=None)
            self._failures = 0
        except ChildFailed as error:
            self._last = Asked(at=at, answer=None, problem=str(error))
            self._failures += 1


@dataclass(frozen=True)
class Polled(Generic[Answer]):
    """A sensor by the last answer of a source that is polled."""

    name: str
    unit: str | None
    source: str
    answers: Background[Answer]
    value: Callable[[Answer], Value]

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        asked = self.answers.latest(now) or Asked(at=now, answer=None, problem=NOT_YET)
        value = None if asked.answer is None else self.value(asked.answer)
        reason = None if value is not None else asked.problem or "not reported"
        return Reading(name=self.name, value=value, unit=self.unit, source=self.source, at=asked.at, reason=reason)
