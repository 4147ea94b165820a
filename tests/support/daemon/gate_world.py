"""What the gate looks at, for its tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.gate import Charge, GateContext, Verdict, decide
from pocketllm.daemon.conditions.readings import Reading, Sensor, unanswered
from pocketllm.daemon.settings import GateSettings
from tests.support.daemon.real_daemon import eventually
from tests.support.daemon.workers import NOW

MB = 1_000_000


SETTINGS = GateSettings(
    battery_start_percent=40,
    battery_stop_percent=30,
    memory_start_bytes=700 * MB,
    memory_stop_bytes=150 * MB,
    minimum_pause_seconds=60,
)


def reading(name: str, value: bool | float | str | None, *, absent: bool = False, age: float = 0) -> Reading:
    reason = "no battery" if absent else "PermissionError" if value is None else None
    at = NOW - timedelta(seconds=age)
    return Reading(name=name, value=value, unit=None, source="test", at=at, reason=reason, absent=absent)


def answered(sensors: Sequence[Sensor]) -> dict[str, Reading]:
    """What sensors read once all commands that they ask have answered."""

    def look() -> dict[str, Reading] | None:
        found = [sensor.read(NOW) for sensor in sensors]
        return None if unanswered(found) else {reading.name: reading for reading in found}

    return eventually(look, "all answers", seconds=20)


@dataclass(frozen=True, kw_only=True)
class World:
    """All that the gate looks at; by default, everything is well."""

    power: bool | None = True
    battery: float | Reading | None = 80.0
    memory: float | None = 4000.0 * MB
    running: bool = False
    immediate: bool = False
    paused_seconds_ago: float | None = None
    settings: GateSettings = SETTINGS
    now: datetime = NOW
    before: Verdict = field(default_factory=Verdict)
    others: tuple[Reading, ...] = ()
    local: datetime | None = None
    charge: Charge = field(default_factory=Charge)
    used_today_minutes: float = 0
    snoozed_until: datetime | None = None

    def decide(self) -> Verdict:
        battery = self.battery if isinstance(self.battery, Reading) else reading("battery", self.battery)
        return decide(
            [reading("power", self.power), battery, reading("memory", self.memory), *self.others],
            self.settings,
            GateContext(
                now=self.now,
                local=self.local or self.now,
                running=self.running,
                immediate=self.immediate,
                paused_seconds=self.paused_seconds_ago,
                charge=self.charge,
                used_today_seconds=60 * self.used_today_minutes,
                snoozed_until=self.snoozed_until,
            ),
            self.before,
        )


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)
