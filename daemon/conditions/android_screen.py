"""Whether the screen is on, and for how long nobody has used the machine: the ways that a phone tells it.

Android sets a property whenever the display changes its state, which any app may read. Where a vendor has taken that
out, dumpsys tells it once the owner has granted two permissions by adb, and an automation app can tell us itself.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from pocketllm.daemon.conditions.poller import Answers, Background, Pace, ProbeFailed, run
from pocketllm.daemon.conditions.readings import Reading, Sensor, not_yet
from pocketllm.daemon.uptime import uptime

GETPROP, PROPERTY = "/system/bin/getprop", "debug.tracing.screen_state"
DUMPSYS = "/system/bin/dumpsys"
#: Of android.view.Display: OFF, and DOZE and DOZE_SUSPEND, in which only a clock may be lit. 0 is UNKNOWN.
_OFF = ("1", "3", "4")
_ON = ("2", "5", "6")
_WAKEFULNESS = re.compile(r"mWakefulness=(Awake|Asleep|Dozing|Dreaming)\b")
_TIMEOUT_SECONDS = 5.0
_IDLE_SECONDS, _TRAINING_SECONDS = 15.0, 3.0
#: What an automation app has said counts for so long: if it has died meanwhile, nothing more comes.
TOLD_FOR = timedelta(hours=12)
#: Android's JobScheduler calls a device idle after this time without use, where a vendor has not changed it; and runs
#: the job that tells us so every 15 minutes while it lasts.
STAMP_IDLE_SECONDS, STAMP_FOR = 31 * 60.0, timedelta(minutes=20)


def screen_property(output: str) -> bool:
    """Whether the screen is on, by the property. Raises ProbeFailed."""
    state = output.strip()
    if state in _OFF or state in _ON:
        return state in _ON
    raise ProbeFailed(f"{PROPERTY} is {state[:20]!r}" if state else f"this Android does not set {PROPERTY}")


def wakefulness(output: str) -> bool:
    """Whether the phone is awake, by `dumpsys power`. Raises ProbeFailed."""
    if found := _WAKEFULNESS.search(output):
        return found[1] == "Awake"
    raise ProbeFailed("dumpsys power does not say: grant android.permission.DUMP by adb, as docs/scheduling.md shows")


class AskedScreen:
    """The screen by a source that is asked."""

    def __init__(self, answers: Answers[bool], source: str) -> None:
        self._answers, self._source = answers, source

    @classmethod
    def by_command(cls, pace: Pace, command: Sequence[str], understand: Callable[[str], bool]) -> Self:
        """By asking a command now and then. understand: its output; raises ProbeFailed."""
        answers = Background(
            lambda: understand(run(command, timeout_seconds=_TIMEOUT_SECONDS)),
            pace,
            idle_seconds=_IDLE_SECONDS,
            training_seconds=_TRAINING_SECONDS,
        )
        return cls(answers, " ".join(command))

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        asked, source = self._answers.latest(now), self._source
        if asked is None:
            return not_yet("screen", None, source, now)
        return Reading(name="screen", value=asked.answer, unit=None, source=source, at=asked.at, reason=asked.problem)


def by_property(pace: Pace, getprop: str = GETPROP) -> AskedScreen:
    """The screen by the property that Android sets."""
    return AskedScreen.by_command(pace, (getprop, PROPERTY), screen_property)


def by_dumpsys(pace: Pace, dumpsys: str = DUMPSYS) -> AskedScreen:
    """The screen by dumpsys."""
    return AskedScreen.by_command(pace, (dumpsys, "power"), wakefulness)


@dataclass
class ToldScreen:
    """The screen by what an app of the owner's has told us last (Tasker, MacroDroid: events on and off)."""

    on: bool | None = None
    told_at: datetime | None = None

    def tell(self, on: bool, now: datetime) -> None:
        """The screen has gone on, or off."""
        self.on, self.told_at = on, now

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        known = self.told_at is not None and timedelta(0) <= now - self.told_at < TOLD_FOR
        return Reading(
            name="screen",
            value=self.on if known else None,
            unit=None,
            source="POST /status/screen",
            at=now if known else (self.told_at or now),
            reason=None if known else "no app has told us lately",
        )


@dataclass
class ScreenIdleness:
    """Seconds since the screen was on, as far as we have watched it, or as the system says.

    Of the time before the daemon was started nothing is known, but for the stamp: a file that Android's JobScheduler
    has us touch while it takes the phone for idle. The stamp can only lengthen what was watched: that idleness has
    ended, it never says.
    """

    screen: Sensor
    stamp: Path
    clock: Callable[[], float] = uptime
    _off_since: float | None = None
    _on_at: datetime | None = None

    def read(self, now: datetime) -> Reading:
        """Seconds."""
        screen = self.screen.read(now)
        if screen.value is None:
            self._off_since = None
            return Reading(name="idle", value=None, unit="s", source=screen.source, at=screen.at, reason=screen.reason)
        if screen.value:
            self._off_since, self._on_at = None, now
            return Reading(name="idle", value=0.0, unit="s", source=screen.source, at=screen.at)
        if self._off_since is None:
            self._off_since = self.clock()
        watched = max(0.0, self.clock() - self._off_since)
        stamped = self._stamped(now)
        if stamped > watched:
            return Reading(name="idle", value=stamped, unit="s", source=str(self.stamp), at=screen.at)
        return Reading(name="idle", value=watched, unit="s", source=screen.source, at=screen.at)

    def _stamped(self, now: datetime) -> float:
        """Seconds of idleness by the stamp; none where it is old, or the screen has been on since."""
        try:
            at = datetime.fromtimestamp(self.stamp.stat().st_mtime, now.tzinfo)
        except OSError:
            return 0.0
        age = now - at
        if not timedelta(0) <= age < STAMP_FOR or (self._on_at is not None and self._on_at >= at):
            return 0.0
        return STAMP_IDLE_SECONDS + age.total_seconds()
