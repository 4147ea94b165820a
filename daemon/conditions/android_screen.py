"""Whether the phone's screen is on, and for how long nobody has used it.

Android sets a property whenever the display changes its state, which any app may read. If a vendor has removed it,
dumpsys works after the owner has granted two permissions by adb, and an automation app can report it.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.poller import Background, Pace, Polled
from pocketllm.daemon.conditions.readings import Reading, Sensor
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.uptime import uptime

GETPROP, PROPERTY = "/system/bin/getprop", "debug.tracing.screen_state"
DUMPSYS = "/system/bin/dumpsys"
#: States of android.view.Display: OFF, DOZE and DOZE_SUSPEND (in which only a clock may be lit). 0 is UNKNOWN.
_OFF = ("1", "3", "4")
_ON = ("2", "5", "6")
_WAKEFULNESS = re.compile(r"mWakefulness=(Awake|Asleep|Dozing|Dreaming)\b")
#: How long an automation app's report counts: the app may have died meanwhile.
REPORT_VALID = timedelta(hours=12)
#: Android's JobScheduler considers a device idle after this time without use, by default, and runs our job, which
#: touches the stamp, every 15 minutes while it lasts.
STAMP_IDLE_SECONDS, STAMP_FOR = 31 * 60.0, timedelta(minutes=20)


def register_idle_hook() -> None:
    """Have JobScheduler run the idle hook that `service install` puts in place. May fail: the screen says enough."""
    hook = Path.home() / ".local/bin/pocketllm-idle-hook"
    if hook.is_file():
        with suppress(ChildFailed):
            run(["sh", str(hook), "--register"], timeout_seconds=30)


def screen_property(output: str) -> bool:
    """Whether the screen is on, by the property. Raises ChildFailed."""
    state = output.strip()
    if state in _OFF or state in _ON:
        return state in _ON
    raise ChildFailed(f"{PROPERTY} is {state[:20]!r}" if state else f"this Android does not set {PROPERTY}")


def wakefulness(output: str) -> bool:
    """Whether the phone is awake, by `dumpsys power`. Raises ChildFailed."""
    if found := _WAKEFULNESS.search(output):
        return found[1] == "Awake"
    raise ChildFailed("dumpsys power hides the state: grant android.permission.DUMP by adb (docs/phone.md)")


def polled_screen(pace: Pace, command: Sequence[str], parse: Callable[[str], bool]) -> Polled[bool]:
    """The screen by polling a command. parse: takes its output; raises ChildFailed."""
    return Polled("screen", None, " ".join(command), Background.of_command(command, parse, pace), bool)


@dataclass
class ReportedScreen:
    """The screen as an automation app last reported it (Tasker, MacroDroid)."""

    on: bool | None = None
    reported_at: datetime | None = None

    def report(self, on: bool, now: datetime) -> None:
        """The screen has gone on, or off."""
        self.on, self.reported_at = on, now

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        known = self.reported_at is not None and timedelta(0) <= now - self.reported_at < REPORT_VALID
        return Reading(
            name="screen",
            value=self.on if known else None,
            unit=None,
            source="POST /status/screen",
            at=now if known else (self.reported_at or now),
            reason=None if known else "no app has reported it recently",
        )


@dataclass
class ScreenIdleness:
    """Seconds since the screen was on, as observed, or by the stamp.

    The stamp is a file that we touch when Android's JobScheduler considers the phone idle. It can only lengthen the
    observed time, which begins with the daemon: it does not say when idleness ends.
    """

    screen: Sensor
    stamp: Path
    clock: Callable[[], float] = uptime
    _off_since: float | None = None
    _on_at: datetime | None = None

    def read(self, now: datetime) -> Reading:
        """Seconds."""
        screen = self.screen.read(now)
        idle = replace(screen, name="idle", value=None, unit="s")
        if screen.value is None:
            self._off_since = None
            return idle
        if screen.value:
            self._off_since, self._on_at = None, now
            return replace(idle, value=0.0)
        if self._off_since is None:
            self._off_since = self.clock()
        watched, stamped = max(0.0, self.clock() - self._off_since), self._stamped(now)
        return (
            replace(idle, value=stamped, source=str(self.stamp)) if stamped > watched else replace(idle, value=watched)
        )

    def _stamped(self, now: datetime) -> float:
        """Seconds of idleness by the stamp; 0 if it is old, or the screen has been on since."""
        try:
            at = datetime.fromtimestamp(self.stamp.stat().st_mtime, now.tzinfo)
        except OSError:
            return 0.0
        age = now - at
        if not timedelta(0) <= age < STAMP_FOR or (self._on_at is not None and self._on_at >= at):
            return 0.0
        return STAMP_IDLE_SECONDS + age.total_seconds()
