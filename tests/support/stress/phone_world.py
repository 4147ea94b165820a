"""A phone's life, simulated: what its owner, its charger and its sensors do. Everything follows from the seed.

The world knows the truth; what the sensors say of it passes through the real parsers, faults included.
"""

import json
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from pocketllm.daemon.settings import GateSettings

DAY, HOUR, MINUTE = 86_400.0, 3600.0, 60.0
#: A battery charges this fast, and loses this fast: percent an hour.
CHARGING, IN_USE, AT_REST, LEARNING = 30.0, 12.0, 1.0, 10.0
#: A weak charger gives this much; a limiter stops here.
WEAK_CHARGING, LIMIT = 4.0, 80.0
#: Degrees: the air at night, what charging, use and learning add; and how fast it follows.
AIR, BY_CHARGING, BY_USE, BY_LEARNING, FOLLOWS_SECONDS = 22.0, 6.0, 5.0, 8.0, 20 * MINUTE
HOT_AIR = 33.0
#: A glance that is shorter than a poll is not seen; screens stay on for longer.
SHORTEST_USE = 16.0
#: What may hold for a time. Of the sensors: termux-battery-status hangs (silent) or answers what cannot be (lying), the
#: screen's property is empty (blind).
NAMES = ("plugged", "weak", "limited", "screen_on", "hot", "low_memory", "full_disk", "silent", "lying", "blind")
#: Name -> chance a day, the hours in which it may begin, and its longest time in hours.
CHANCES = {
    "hot": (0.08, (10, 30), 6.0),
    "low_memory": (0.15, (7, 30), 0.7),
    "full_disk": (0.02, (0, 24), 20.0),
    "silent": (0.10, (0, 24), 0.5),
    "lying": (0.10, (0, 24), 0.3),
    "blind": (0.03, (0, 24), 0.5),
}
NONSENSE = {
    "health": "GOOD",
    "percentage": -1,
    "plugged": "PLUGGED_-1",
    "status": "UNKNOWN",
    "temperature": -214748364.8,
}


class Span(NamedTuple):
    """A time in which something holds; its end is not in it."""

    start: float
    end: float


@dataclass
class PhoneWorld:
    """Times are true seconds since the start. The state moves with `advance`."""

    seed: int
    days: int
    level: float = 70.0
    celsius: float = 25.0
    at: float = 0.0

    def __post_init__(self) -> None:
        rng, self.spans = random.Random(self.seed), {name: list[Span]() for name in NAMES}
        for day in range(self.days):
            self._live(day * DAY, rng)
        self.spans = {name: disjoint(spans) for name, spans in self.spans.items()}
        self._starts = {name: [span.start for span in spans] for name, spans in self.spans.items()}
        self._events = sorted({edge for spans in self.spans.values() for span in spans for edge in span})

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
        for name, (chance, hours, length) in CHANCES.items():
            if rng.random() < chance:
                start = midnight + rng.uniform(*hours) * HOUR
                self.spans[name].append(Span(start, start + rng.uniform(0.1, 1.0) * length * HOUR))

    def _use_phone(self, awake: float, asleep: float, rng: random.Random) -> None:
        at = awake
        while at < asleep:
            length = min(rng.expovariate(1 / (5 * MINUTE)), 50 * MINUTE) + SHORTEST_USE
            self.spans["screen_on"].append(Span(at, at + length))
            at += length + rng.expovariate(1 / (25 * MINUTE))
        if rng.random() < 0.3:  # looks at the clock in the night
            start = asleep + rng.uniform(1, 6) * HOUR
            self.spans["screen_on"].append(Span(start, start + rng.uniform(SHORTEST_USE, 120)))

    def _plug(self, span: Span, rng: random.Random) -> None:
        self.spans["plugged"].append(span)
        kind = rng.random()
        if kind < 0.3:
            self.spans["weak" if kind < 0.12 else "limited"].append(span)

    def _unplug(self, hole: Span) -> None:
        """Take this much out of what is plugged."""
        for name in ("plugged", "weak", "limited"):
            spans = self.spans[name]
            for span in [one for one in spans if one.start < hole.end and hole.start < one.end]:
                spans.remove(span)
                parts = Span(span.start, hole.start), Span(hole.end, span.end)
                spans += [part for part in parts if part.end > part.start]

    @property
    def next_event(self) -> float:
        """When something changes next."""
        number = bisect_right(self._events, self.at)
        return self._events[number] if number < len(self._events) else inf

    def _last(self, name: str) -> Span | None:
        """The last span that has begun."""
        number = bisect_right(self._starts[name], self.at) - 1
        return self.spans[name][number] if number >= 0 else None

    def holds(self, name: str) -> bool:
        """Whether something holds now, by the name of its spans."""
        span = self._last(name)
        return span is not None and self.at < span.end

    def last_end(self, name: str, before: float) -> float:
        """When something has held last, if that is later than `before`; now, if it holds."""
        span = self._last(name)
        return before if span is None else max(before, min(self.at, span.end))

    def advance(self, to: float, *, learning: bool) -> None:
        """Let time pass; nothing else may change on the way."""
        seconds, plugged = to - self.at, self.holds("plugged")
        spent = (IN_USE if self.holds("screen_on") else AT_REST) + (LEARNING if learning else 0.0)
        given = 0.0 if not plugged else WEAK_CHARGING if self.holds("weak") else CHARGING
        gain = 0.0 if given == CHARGING and self.holds("limited") and self.level >= LIMIT else given - spent
        self.level = min(100.0, max(1.0, self.level + gain * seconds / HOUR))
        target = HOT_AIR if self.holds("hot") else AIR
        target += BY_CHARGING * (plugged and gain > 0) + BY_USE * self.holds("screen_on") + BY_LEARNING * learning
        self.celsius += (target - self.celsius) * min(1.0, seconds / FOLLOWS_SECONDS)
        self.at = to

    def battery_says(self) -> str | None:
        """What termux-battery-status prints; None: it hangs."""
        if self.holds("silent"):
            return None
        plugged, full = self.holds("plugged"), self.level >= (LIMIT if self.holds("limited") else 100.0)
        said = {
            "present": True,
            "health": "GOOD",
            "percentage": round(self.level),
            "plugged": ("PLUGGED_USB" if self.holds("weak") else "PLUGGED_AC") if plugged else "UNPLUGGED",
            "status": "DISCHARGING" if not plugged else "NOT_CHARGING" if full else "CHARGING",
            "temperature": round(self.celsius, 1),
        }
        return json.dumps(NONSENSE if self.holds("lying") else said)

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
        conditions = {
            "power": not self.holds("plugged"),
            "battery": self.level < settings.battery_stop_percent - 0.5,  # it tells whole percents
            "temperature": self.celsius > settings.temperature_stop_celsius + 0.05,
            "screen": self.holds("screen_on"),
            "idle": idle_seconds < MINUTE * settings.idle_minutes,
            "memory": self.memory_bytes < settings.memory_stop_bytes,
            "disk": self.disk_bytes < settings.disk_stop_bytes,
        }
        return {name for name, holds in conditions.items() if holds}

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


def disjoint(spans: Sequence[Span]) -> list[Span]:
    """The same times in order, none of them overlapping another."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged
