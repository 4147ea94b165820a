"""A phone's life, simulated: what its owner, its charger and its sensors do. Everything follows from the seed.

The world knows the truth; what the sensors say of it passes through the real parsers, faults included.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketllm.daemon.settings import GateSettings

DAY, HOUR, MINUTE = 86_400.0, 3600.0, 60.0
#: A battery charges this fast, and loses this fast: percent an hour.
_CHARGING, _IN_USE, _AT_REST, _LEARNING = 30.0, 12.0, 1.0, 10.0
#: A weak charger gives this much; a limiter stops here.
_WEAK_CHARGING, _LIMIT = 4.0, 80.0
#: Degrees: the air at night, what charging, use and learning add; and how fast it follows.
_AIR, _BY_CHARGING, _BY_USE, _BY_LEARNING, _FOLLOWS_SECONDS = 22.0, 6.0, 5.0, 8.0, 20 * MINUTE
_HOT_AIR = 33.0
#: A glance that is shorter than a poll is not seen; screens stay on for longer.
_SHORTEST_USE = 16.0

_SPANS = (
    *("plugged", "weak", "limited", "screen_on", "hot", "low_memory", "full_disk"),
    *("silent", "lying", "blind", "suspended"),
)


@dataclass(frozen=True)
class Span:
    """A time in which something holds."""

    start: float
    end: float

    def holds(self, at: float) -> bool:
        """Its end is not in it."""
        return self.start <= at < self.end


@dataclass
class World:
    """Times are true seconds since the start. The state moves with `advance`."""

    seed: int
    days: int
    clock_is_set_daily: bool = False  #: by an hour and more, in the middle of what happens
    level: float = 70.0
    celsius: float = 25.0
    at: float = 0.0
    plugged: list[Span] = field(default_factory=list)
    weak: list[Span] = field(default_factory=list)  #: of the plugged spans
    limited: list[Span] = field(default_factory=list)
    screen_on: list[Span] = field(default_factory=list)
    hot: list[Span] = field(default_factory=list)
    low_memory: list[Span] = field(default_factory=list)
    full_disk: list[Span] = field(default_factory=list)
    silent: list[Span] = field(default_factory=list)  #: termux-battery-status hangs
    lying: list[Span] = field(default_factory=list)  #: it answers, with values that cannot be
    blind: list[Span] = field(default_factory=list)  #: the screen's property is empty
    reboots: list[float] = field(default_factory=list)
    jumps: list[tuple[float, float]] = field(default_factory=list)  #: when the wall clock is set, and by how much
    suspended: list[Span] = field(default_factory=list)  #: the processor sleeps, unless a wake lock is held

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        for day in range(self.days):
            self._live(day * DAY, rng)
        self._spans = {name: _disjoint(getattr(self, name)) for name in _SPANS}
        self._starts = {name: [span.start for span in spans] for name, spans in self._spans.items()}
        edges = {edge for spans in self._spans.values() for span in spans for edge in (span.start, span.end)}
        self.events = sorted(edges | set(self.reboots) | {at for at, _ in self.jumps})

    def _live(self, midnight: float, rng: random.Random) -> None:
        """One day and the night that follows it."""
        awake, asleep = midnight + rng.gauss(7, 0.7) * HOUR, midnight + rng.gauss(23, 0.8) * HOUR
        self._use_phone(awake, asleep, rng)
        if rng.random() < 0.9:  # else forgotten
            night = Span(asleep + rng.uniform(-20, 10) * MINUTE, midnight + DAY + rng.gauss(7, 0.7) * HOUR)
            self._plug(night, rng)
        if rng.random() < 0.4:  # at the desk
            start = midnight + rng.uniform(10, 16) * HOUR
            self._plug(Span(start, start + rng.uniform(0.2, 2.5) * HOUR), rng)
        if rng.random() < 0.3:  # a loose contact
            start = asleep + rng.uniform(0.5, 4) * HOUR
            for number in range(rng.randrange(2, 8)):
                self._unplug(Span(start + 40 * number, start + 40 * number + rng.uniform(1, 20)))
        for chance, spans, hours, length in (
            (0.08, self.hot, (10, 30), 6.0),
            (0.15, self.low_memory, (7, 30), 0.7),
            (0.02, self.full_disk, (0, 24), 20.0),
            (0.10, self.silent, (0, 24), 0.5),
            (0.10, self.lying, (0, 24), 0.3),
            (0.03, self.blind, (0, 24), 0.5),
        ):
            if rng.random() < chance:
                start = midnight + rng.uniform(*hours) * HOUR
                spans.append(Span(start, start + rng.uniform(0.1, 1.0) * length * HOUR))
        if rng.random() < 0.1:
            self.reboots.append(midnight + rng.uniform(0, 24) * HOUR)
        if rng.random() < 0.05:
            self.jumps.append((midnight + rng.uniform(0, 24) * HOUR, rng.choice((-3600.0, 3600.0, -90.0, 400.0))))
        if self.clock_is_set_daily:
            jumps = (-3600.0, 90.0, -7200.0, 3600.0, 3600.0)
            self.jumps += [(midnight + 4.7 * HOUR * number, jump) for number, jump in enumerate(jumps)]
        for _ in range(rng.randrange(6)):
            start = midnight + rng.uniform(0, 24) * HOUR
            self.suspended.append(Span(start, start + rng.uniform(1, 40) * MINUTE))

    def _use_phone(self, awake: float, asleep: float, rng: random.Random) -> None:
        at = awake
        while at < asleep:
            length = min(rng.expovariate(1 / (5 * MINUTE)), 50 * MINUTE) + _SHORTEST_USE
            self.screen_on.append(Span(at, at + length))
            at += length + rng.expovariate(1 / (25 * MINUTE))
        if rng.random() < 0.3:  # looks at the clock in the night
            start = asleep + rng.uniform(1, 6) * HOUR
            self.screen_on.append(Span(start, start + rng.uniform(_SHORTEST_USE, 120)))

    def _plug(self, span: Span, rng: random.Random) -> None:
        self.plugged.append(span)
        kind = rng.random()
        if kind < 0.12:
            self.weak.append(span)
        elif kind < 0.3:
            self.limited.append(span)

    def _unplug(self, hole: Span) -> None:
        """Take this much out of what is plugged."""
        for spans in (self.plugged, self.weak, self.limited):
            for span in [one for one in spans if one.start < hole.end and hole.start < one.end]:
                spans.remove(span)
                spans += [
                    part for part in (Span(span.start, hole.start), Span(hole.end, span.end)) if part.end > part.start
                ]

    def holds(self, name: str) -> bool:
        """Whether something holds now, by the name of its spans."""
        number = bisect_right(self._starts[name], self.at) - 1
        return number >= 0 and self._spans[name][number].holds(self.at)

    def spans_ending(self, name: str, at: float) -> Sequence[Span]:
        """The span that has ended last, if any."""
        number = bisect_right(self._starts[name], at) - 1
        return [span for span in self._spans[name][max(0, number) : number + 1] if span.end <= at]

    def advance(self, to: float, *, learning: bool) -> None:
        """Let time pass; nothing else may change on the way."""
        seconds = to - self.at
        plugged = self.holds("plugged")
        set_parameters = _IN_USE if self.holds("screen_on") else _AT_REST
        spent = set_parameters + (_LEARNING if learning else 0.0)
        if not plugged:
            gain = -spent
        elif self.holds("weak"):
            gain = _WEAK_CHARGING - spent
        elif self.holds("limited") and self.level >= _LIMIT:
            gain = 0.0
        else:
            gain = _CHARGING - spent
        self.level = min(100.0, max(1.0, self.level + gain * seconds / HOUR))
        target = _HOT_AIR if self.holds("hot") else _AIR
        target += _BY_CHARGING * (plugged and gain > 0) + _BY_USE * self.holds("screen_on") + _BY_LEARNING * learning
        share = min(1.0, seconds / _FOLLOWS_SECONDS)
        self.celsius += (target - self.celsius) * share
        self.at = to

    def battery_says(self) -> str | None:
        """What termux-battery-status prints; None: it hangs."""
        if self.holds("silent"):
            return None
        if self.holds("lying"):
            return json.dumps(
                {
                    "health": "GOOD",
                    "percentage": -1,
                    "plugged": "PLUGGED_-1",
                    "status": "UNKNOWN",
                    "temperature": -214748364.8,
                }
            )
        plugged = self.holds("plugged")
        losing = plugged and self.holds("weak")
        full = self.level >= (_LIMIT if self.holds("limited") else 100.0)
        status = "DISCHARGING" if not plugged else "NOT_CHARGING" if full else "CHARGING"
        return json.dumps(
            {
                "present": True,
                "health": "GOOD",
                "percentage": round(self.level),
                "plugged": ("PLUGGED_USB" if losing else "PLUGGED_AC") if plugged else "UNPLUGGED",
                "status": status,
                "temperature": round(self.celsius, 1),
            }
        )

    def screen_says(self) -> str:
        """What getprop prints."""
        return "" if self.holds("blind") else "2" if self.holds("screen_on") else "1"

    @property
    def memory_bytes(self) -> float:
        """MemAvailable."""
        return 100e6 if self.holds("low_memory") else 2.5e9

    @property
    def disk_bytes(self) -> float:
        """Room on the disk."""
        return 50e6 if self.holds("full_disk") else 9e9

    def violated(self, settings: GateSettings, idle_seconds: float) -> set[str]:
        """What truly forbids going on with a job, by the names of blockers."""
        return {
            name
            for name, true in {
                "power": not self.holds("plugged"),
                "battery": self.level < settings.battery_stop_percent - 0.5,  # it tells whole percents
                "temperature": self.celsius > settings.temperature_stop_celsius + 0.05,
                "screen": self.holds("screen_on"),
                "idle": idle_seconds < MINUTE * settings.idle_minutes,
                "memory": self.memory_bytes < settings.memory_stop_bytes,
                "disk": self.disk_bytes < settings.disk_stop_bytes,
            }.items()
            if true
        }

    def eligible(self, settings: GateSettings, idle_seconds: float) -> bool:
        """Whether a job might truly be started: all of the stricter conditions hold, and the charger is no weak one."""
        return (
            self.holds("plugged")
            and not self.holds("weak")
            and self.level >= settings.battery_start_percent
            and self.celsius <= settings.temperature_start_celsius
            and idle_seconds >= MINUTE * settings.idle_minutes
            and self.memory_bytes >= settings.memory_start_bytes
            and self.disk_bytes >= settings.disk_start_bytes
        )


def _disjoint(spans: Sequence[Span]) -> list[Span]:
    """The same times in order, none of them overlapping another."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged
