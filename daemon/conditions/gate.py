"""The gate: can a job run now? A pure function of readings, settings and context, which returns every blocker.

An unknown reading blocks unless the settings allow it, and a reading that is too old is unknown. Thresholds come in
pairs, a strict one to start and a lax one to pause, so that a job does not flap. The owner's 'now' overrides waiting
(charger, idleness, hours), never safety (heat, memory, disk, a discharging battery below its minimum).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime, time, timedelta
from typing import get_args

from pocketllm.daemon.conditions.readings import HEALTHY, Reading, Value
from pocketllm.daemon.settings import GateSettings, Hours, Weekday

_WEEKDAYS: tuple[str, ...] = get_args(Weekday)  # from Monday on, as Python counts them
#: How far the clock may go back without making readings unknown: a time service corrects it by less.
_CLOCK_SLACK_SECONDS = 2.0
#: (reading, its setting with {} for "start" or "stop", message). A setting in bytes is a minimum, shown in MB; the
#: others are maxima.
_LIMITS = (
    ("temperature", "temperature_{}_celsius", "battery temperature {value:.0f} °C is above {level:.0f} °C"),
    ("heat", "heat_{}_celsius", "hottest thermal zone {value:.0f} °C is above {level:.0f} °C"),
    ("memory", "memory_{}_bytes", "available memory {value:.0f} MB is below {level:.0f} MB"),
    ("memory pressure", "pressure_{}_percent", "memory pressure {value:.0f} % is above {level:.0f} %"),
    ("disk", "disk_{}_bytes", "free disk space {value:.0f} MB is below {level:.0f} MB"),
)


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """A condition that does not hold."""

    name: str
    message: str
    value: Value = None
    threshold: float | None = None
    unit: str | None = None
    since: datetime
    until: datetime | None = None  #: when it ends by itself, where that is known


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a job can run now, and every blocker."""

    blockers: tuple[Blocker, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether there is no blocker."""
        return not self.blockers

    @property
    def reasons(self) -> list[str]:
        """The blockers as sentences."""
        return [blocker.message for blocker in self.blockers]


_NOTHING = Verdict()


@dataclass(frozen=True, kw_only=True)
class Charge:
    """The battery's level since a job started: a loss on the charger means that the charger is too weak."""

    at_start: float | None = None  #: percent when the job was started
    weak_at: float | None = None  #: percent when the charger was found too weak; None: it is not

    def after(self, readings: Mapping[str, Reading], settings: GateSettings, *, running: bool) -> "Charge":
        """The state after these readings. A charger is weak, too, if the plugged device discharges during a job. It
        counts as weak until the battery has regained what it lost, or the charger is unplugged.
        """
        power, plug, battery = (readings.get(name) for name in ("power", "plug", "battery"))
        level = battery.value if battery is not None and isinstance(battery.value, int | float) else None
        discharges = power is not None and power.value is False
        if discharges and (plug is None or plug.value in (None, "none")):
            return Charge(at_start=level if running else None)
        if level is None:
            return self if running else replace(self, at_start=None)
        weak_at = self.weak_at
        if weak_at is not None and level >= min(100.0, weak_at + settings.charge_loss_percent):
            weak_at = None
        if not running:
            return Charge(weak_at=weak_at)
        at_start = level if self.at_start is None else max(self.at_start, level)
        if discharges or at_start - level >= settings.charge_loss_percent:
            weak_at = level
        return Charge(at_start=at_start, weak_at=weak_at)


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """What the gate uses besides readings and settings."""

    now: datetime  #: aware
    local: datetime  #: the owner's local time
    running: bool = False  #: a job runs, so the thresholds to pause apply
    immediate: bool = False  #: the owner asked for 'now'
    paused_seconds: float | None = None  #: since the last pause, by the monotonic clock
    charge: Charge = Charge()
    used_today_seconds: float = 0.0  #: run time of jobs since the owner's midnight
    snoozed_until: datetime | None = None

    def blocker(
        self, name: str, message: str, value: Value = None, threshold: float | None = None, unit: str | None = None
    ) -> Blocker:
        """A blocker since now."""
        return Blocker(name=name, message=message, value=value, threshold=threshold, unit=unit, since=self.now)


def decide(
    readings: Sequence[Reading], settings: GateSettings, context: GateContext, before: Verdict = _NOTHING
) -> Verdict:
    """Evaluate every condition. before: the previous verdict, whose blockers keep their `since`."""
    by_name = {reading.name: _fresh(reading, settings, context.now) for reading in readings}
    safety = (_battery, _health, _limits)  # nobody overrides them
    found = [blocker for check in safety for blocker in check(by_name, settings, context)]
    if settings.run_mode == "never":
        found.insert(0, context.blocker("run mode", "the run mode is 'never'"))
    if settings.run_mode == "auto" and not context.immediate:
        found = [*_waiting(by_name, settings, context), *found]
    found += _pause(settings, context)
    since = {blocker.name: blocker.since for blocker in before.blockers}
    return Verdict(blockers=tuple(replace(blocker, since=since.get(blocker.name, blocker.since)) for blocker in found))


def hours_edges(settings: GateSettings, local: datetime) -> list[datetime]:
    """The times of this day and the next at which allowed hours begin or end, and midnight, when a weekday does."""
    edges = {time.min} | {edge for text in settings.hours for edge in astuple(Hours.parse(text))}
    days = [local.date(), local.date() + timedelta(days=1)]
    return [datetime.combine(day, edge, local.tzinfo) for day in days for edge in edges]


def _fresh(reading: Reading, settings: GateSettings, now: datetime) -> Reading:
    """The reading; unknown where it is too old, or from before the clock was set back."""
    age = (now - reading.at).total_seconds()
    if reading.value is None or -_CLOCK_SLACK_SECONDS <= age <= settings.stale_seconds:
        return reading
    reason = f"the last reading is {age:.0f} s old" if age > 0 else "the clock was set back since the last reading"
    return replace(reading, value=None, reason=reason)


def _waiting(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    """What the owner can override."""
    yield from _power(readings, settings, at)
    yield from _screen(readings, settings, at)
    yield from _hours(settings, at)
    if at.snoozed_until is not None and at.now < at.snoozed_until:
        until = at.snoozed_until.astimezone(at.local.tzinfo)
        message = f"snoozed until {until:%Y-%m-%d %H:%M}"
        yield replace(at.blocker("snooze", message), until=at.snoozed_until)
    if settings.minutes_per_day is not None and at.used_today_seconds >= 60 * settings.minutes_per_day:
        used = at.used_today_seconds / 60
        message = f"trained {used:.0f} of {settings.minutes_per_day:g} minutes today"
        yield at.blocker("minutes per day", message, used, settings.minutes_per_day, "min")


def _power(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    if not settings.require_power:
        return
    power, plug = readings["power"], readings.get("plug")
    if power.unknown:
        yield from _blocked_by_unknown(power, settings, at)
    elif power.value is False:
        yield at.blocker("power", "not on external power", False)
    elif plug is not None and isinstance(plug.value, str) and plug.value not in (*settings.power_sources, "none"):
        counting = ", ".join(settings.power_sources)
        message = f"power comes from {plug.value}; only {counting} counts (gate.power_sources)"
        yield at.blocker("plug", message, plug.value)
    if at.charge.weak_at is not None:
        needed = min(100.0, at.charge.weak_at + settings.charge_loss_percent)
        level = readings["battery"].value
        message = f"the charger is too weak; waiting for a battery level of {needed:.0f} %"
        yield at.blocker("charger", message, level if isinstance(level, float) else None, needed, "%")


def _screen(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    screen, idle = readings.get("screen"), readings.get("idle")
    if settings.require_screen_off and screen is not None and not screen.absent:
        if screen.value is None:
            yield from _blocked_by_unknown(screen, settings, at)
        elif screen.value:
            yield at.blocker("screen", "the screen is on", True)
    if settings.require_idle and idle is not None and not idle.absent:
        if not isinstance(idle.value, int | float):
            yield from _blocked_by_unknown(idle, settings, at)
        elif idle.value < 60 * settings.idle_minutes:
            message = f"idle for {idle.value / 60:.0f} of {settings.idle_minutes:g} minutes"
            yield at.blocker("idle", message, idle.value / 60, settings.idle_minutes, "min")


def _hours(settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    if settings.weekdays and _WEEKDAYS[at.local.weekday()] not in settings.weekdays:
        message = f"today is {_WEEKDAYS[at.local.weekday()]}; jobs run only on {', '.join(settings.weekdays)}"
        yield at.blocker("weekday", message)
    if settings.hours and not any(Hours.parse(text).hold(at.local.time()) for text in settings.hours):
        message = f"it is {at.local:%H:%M}, outside {', '.join(settings.hours)}"
        yield at.blocker("hours", message)


def _battery(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    battery, power = readings["battery"], readings["power"]
    forced = at.immediate or settings.run_mode == "always"
    if battery.absent or (forced and power.value is True):
        return
    if not isinstance(battery.value, int | float):
        yield from _blocked_by_unknown(battery, settings, at)
        return
    level = settings.battery_stop_percent if at.running or forced else settings.battery_start_percent
    if battery.value < level:
        message = f"battery {battery.value:.0f} % is below {level:.0f} %"
        yield at.blocker("battery", message, battery.value, level, "%")


def _health(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    """A battery without a health reading counts as healthy: many have none."""
    health = readings.get("health")
    if health is not None and isinstance(health.value, str) and health.value not in HEALTHY:
        message = f"the battery reports {health.value.replace('_', ' ')}"
        yield at.blocker("health", message, health.value)


def _limits(readings: Mapping[str, Reading], settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    """Readings beyond their thresholds."""
    for name, setting, text in _LIMITS:
        reading = readings.get(name)
        if reading is None or reading.absent:
            continue
        if not isinstance(reading.value, int | float):
            yield from _blocked_by_unknown(reading, settings, at)
            continue
        level: float = getattr(settings, setting.format("stop" if at.running else "start"))
        least = setting.endswith("_bytes")
        if not (reading.value >= level if least else reading.value <= level):  # so that NaN blocks
            per = 1e6 if least else 1.0
            message = text.format(value=reading.value / per, level=level / per)
            yield at.blocker(name, message, reading.value, level, "bytes" if least else reading.unit)


def _pause(settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    if at.running or at.paused_seconds is None or not 0 <= at.paused_seconds < settings.minimum_pause_seconds:
        return
    left = settings.minimum_pause_seconds - at.paused_seconds
    message = f"paused {at.paused_seconds:.0f} s ago; waiting {left:.0f} s more"
    blocker = at.blocker("minimum pause", message, at.paused_seconds, settings.minimum_pause_seconds, "s")
    yield replace(blocker, since=at.now - timedelta(seconds=at.paused_seconds))


def _blocked_by_unknown(reading: Reading, settings: GateSettings, at: GateContext) -> Iterator[Blocker]:
    if reading.name not in settings.train_when_unknown:
        yield at.blocker(reading.name, f"{reading.name} is unknown ({reading.reason})")
