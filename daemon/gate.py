"""The gate: may a job run now? A pure function of readings, settings and time; it returns every blocker.

Unknown blocks, unless the settings say otherwise for that sensor. Two levels each, one to start and a lower one
to go on, so that nothing flaps around a threshold. The owner's 'now' overrides waiting for the charger, never
safety: too little memory, or a battery below its floor that is not being charged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pocketllm.daemon.sensors import Reading
from pocketllm.daemon.settings import GateSettings


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """One thing that keeps jobs from running."""

    name: str
    message: str
    value: bool | float | None = None
    threshold: float | None = None
    unit: str | None = None
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a job may run now, and everything that speaks against it."""

    blockers: tuple[Blocker, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.blockers

    @property
    def reasons(self) -> list[str]:
        """The blockers as sentences."""
        return [blocker.message for blocker in self.blockers]


def decide(
    readings: Sequence[Reading],
    settings: GateSettings,
    *,
    now: datetime,
    running: bool,
    immediate: bool,
    paused_at: datetime | None,
    before: Verdict,
) -> Verdict:
    """Decide.

    running: a job runs already, so the levels for going on apply. immediate: the owner said 'now'.
    paused_at: when the last pause began, None when there was none. before: the last verdict, from which a
    blocker that still stands takes its `since`.
    """
    by_name = {reading.name: reading for reading in readings}
    found = [
        *_power(by_name, settings, now, immediate),
        *_battery(by_name, settings, now, running, immediate),
        *_memory(by_name, settings, now, running),
        *_pause(settings, now, running, paused_at),
    ]
    since = {blocker.name: blocker.since for blocker in before.blockers}
    return Verdict(blockers=tuple(replace(blocker, since=since.get(blocker.name, blocker.since)) for blocker in found))


def _power(
    readings: Mapping[str, Reading], settings: GateSettings, now: datetime, immediate: bool
) -> Iterator[Blocker]:
    if not settings.require_power or immediate:
        return
    power = readings["power"]
    if power.unknown:
        yield from _blocked_by_unknown(power, settings, now)
    elif power.value is False:
        yield Blocker(name="power", message="not on external power", value=False, since=now)


def _battery(
    readings: Mapping[str, Reading], settings: GateSettings, now: datetime, running: bool, immediate: bool
) -> Iterator[Blocker]:
    battery, power = readings["battery"], readings["power"]
    if battery.absent or (immediate and power.value is True):
        return
    if battery.value is None:
        yield from _blocked_by_unknown(battery, settings, now)
        return
    level = settings.battery_stop_percent if running or immediate else settings.battery_start_percent
    if battery.value < level:
        message = f"battery {battery.value:.0f} % is under {level:.0f} %"
        yield Blocker(name="battery", message=message, value=battery.value, threshold=level, unit="%", since=now)


def _memory(readings: Mapping[str, Reading], settings: GateSettings, now: datetime, running: bool) -> Iterator[Blocker]:
    memory = readings["memory"]
    if memory.value is None:
        yield from _blocked_by_unknown(memory, settings, now)
        return
    level = settings.memory_stop_bytes if running else settings.memory_start_bytes
    if memory.value < level:
        message = f"{memory.value / 1e6:.0f} MB of memory available, under {level / 1e6:.0f} MB"
        yield Blocker(name="memory", message=message, value=memory.value, threshold=level, unit="bytes", since=now)


def _pause(settings: GateSettings, now: datetime, running: bool, paused_at: datetime | None) -> Iterator[Blocker]:
    if running or paused_at is None:
        return
    elapsed = (now - paused_at).total_seconds()
    # A clock that was set back must not prolong the pause.
    if 0 <= elapsed < settings.minimum_pause_seconds:
        left = settings.minimum_pause_seconds - elapsed
        yield Blocker(
            name="minimum pause",
            message=f"paused {elapsed:.0f} s ago; {left:.0f} s to wait",
            value=elapsed,
            threshold=settings.minimum_pause_seconds,
            unit="s",
            since=paused_at,
        )


def _blocked_by_unknown(reading: Reading, settings: GateSettings, now: datetime) -> Iterator[Blocker]:
    if reading.name not in settings.train_when_unknown:
        yield Blocker(name=reading.name, message=f"{reading.name} is unknown ({reading.reason})", since=now)
