"""The gate: a table of what opens and closes it, and what holds for any readings whatever."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pocketllm.daemon.conditions.gate import Charge, Verdict, hours_edges
from pocketllm.daemon.conditions.readings import Value
from pocketllm.daemon.settings import GateSettings
from tests.support.daemon.gate_world import MB, SETTINGS, World, later, reading
from tests.support.daemon.in_process_app import NOON
from tests.support.daemon.workers import NOW

NO_BATTERY = reading("battery", None, absent=True)
ON_BATTERY = "not on external power"


def settings(**changed: Any) -> GateSettings:
    return SETTINGS.model_copy(update=changed)


def seen(name: str, value: Value, **world: Any) -> World:
    """A world in which one more sensor reads this."""
    return World(others=(reading(name, value),), **world)


def at(hour: int, minute: int = 0, **world: Any) -> World:
    """A world at this time of the owner's clock, where jobs run at night."""
    return World(settings=settings(hours=("22:00-07:00",)), local=NOW.replace(hour=hour, minute=minute), **world)


def unknown(*names: str) -> list[str]:
    return [f"{name} is unknown (PermissionError)" for name in names]


def though_unknown(*names: str) -> GateSettings:
    """Settings that let a job run though these are unknown."""
    return settings(train_when_unknown=names)


def low(percent: int, level: int) -> list[str]:
    return [f"battery {percent} % is below {level} %"]


def short(megabytes: int, level: int) -> list[str]:
    return [f"available memory {megabytes} MB is below {level} MB"]


def warm(celsius: str, level: int) -> list[str]:
    return [f"battery temperature {celsius} °C is above {level} °C"]


ROWS: dict[str, tuple[World, list[str]]] = {
    "all is well": (World(), []),
    "a desktop": (World(battery=NO_BATTERY), []),
    # Power.
    "charger out": (World(power=False), [ON_BATTERY]),
    "charger out while running": (World(power=False, running=True), [ON_BATTERY]),
    "charger out, and 'now'": (World(power=False, immediate=True), []),
    "charger out, where the owner does not mind": (World(power=False, settings=settings(require_power=False)), []),
    "power unknown": (World(power=None), unknown("power")),
    "power unknown while running": (World(power=None, running=True), unknown("power")),
    "power unknown, and 'now'": (World(power=None, immediate=True), []),
    "power unknown, which is allowed": (World(power=None, settings=though_unknown("power")), []),
    "power unknown, where another may be": (
        World(power=None, settings=though_unknown("battery", "memory")),
        unknown("power"),
    ),
    # Battery: 40 to start, 30 to go on.
    "battery at the level to start": (World(battery=40.0), []),
    "battery under the level to start": (World(battery=39.0), low(39, 40)),
    "battery under the level to start while running": (World(battery=39.0, running=True), []),
    "battery at the level to go on": (World(battery=30.0, running=True), []),
    "battery under the level to go on": (World(battery=29.0, running=True), low(29, 30)),
    "low battery, 'now', charging": (World(battery=5.0, immediate=True), []),
    "low battery, 'now', not charging": (World(battery=29.0, immediate=True, power=False), low(29, 30)),
    "low battery, 'now', perhaps charging": (World(battery=29.0, immediate=True, power=None), low(29, 30)),
    "middling battery, 'now', not charging": (World(battery=31.0, immediate=True, power=False), []),
    "battery unknown": (World(battery=None), unknown("battery")),
    "battery unknown, 'now', charging": (World(battery=None, immediate=True), []),
    "battery unknown, 'now', not charging": (World(battery=None, immediate=True, power=False), unknown("battery")),
    "battery unknown, which is allowed": (World(battery=None, settings=though_unknown("battery")), []),
    # Memory: 700 MB to start, 150 MB to go on.
    "memory at the level to start": (World(memory=700.0 * MB), []),
    "memory under the level to start": (World(memory=699.0 * MB), short(699, 700)),
    "memory under the level to start while running": (World(memory=699.0 * MB, running=True), []),
    "memory under the level to go on": (World(memory=149.0 * MB, running=True), short(149, 150)),
    "little memory, and 'now'": (World(memory=699.0 * MB, immediate=True), short(699, 700)),
    "memory unknown": (World(memory=None), unknown("memory")),
    "memory unknown, and 'now'": (World(memory=None, immediate=True), unknown("memory")),
    "memory unknown, which is allowed": (World(memory=None, settings=though_unknown("memory")), []),
    # The minimum pause.
    "paused just now": (World(paused_seconds_ago=0), ["paused 0 s ago; waiting 60 s more"]),
    "paused a while ago": (World(paused_seconds_ago=45), ["paused 45 s ago; waiting 15 s more"]),
    "paused long enough ago": (World(paused_seconds_ago=60), []),
    "paused later than now: the clock was set back": (World(paused_seconds_ago=-5), []),
    "paused just now, and running again": (World(paused_seconds_ago=1, running=True), []),
    "no minimum pause": (World(paused_seconds_ago=0, settings=settings(minimum_pause_seconds=0)), []),
    # What the power comes from.
    "a plug that counts": (seen("plug", "usb"), []),
    "a plug that does not count": (
        seen("plug", "wireless", settings=settings(power_sources=("ac", "usb"))),
        ["power comes from wireless; only ac, usb counts (gate.power_sources)"],
    ),
    "a plug that nobody knows": (seen("plug", None), []),
    # A charger that is too weak.
    "charge lost on the charger": (
        World(charge=Charge(weak_at=60), battery=61.0),
        ["the charger is too weak; waiting for a battery level of 63 %"],
    ),
    "charge lost on the charger, and 'now'": (World(charge=Charge(weak_at=60), immediate=True), []),
    # Heat: 38 to start, 42 to go on; the machine's 70 and 90.
    "battery warm to start": (seen("temperature", 39.0), warm("39", 38)),
    "battery warm while running": (seen("temperature", 39.0, running=True), []),
    "battery hot while running": (seen("temperature", 43.0, running=True), warm("43", 42)),
    "battery hot, and 'now'": (seen("temperature", 43.0, running=True, immediate=True), warm("43", 42)),
    "battery's temperature unknown": (seen("temperature", None), unknown("temperature")),
    "battery's temperature unknown, which is allowed": (
        seen("temperature", None, settings=though_unknown("temperature")),
        [],
    ),
    "no thermometer": (World(others=(reading("temperature", None, absent=True),)), []),
    "a temperature that is no number": (seen("temperature", float("nan")), warm("nan", 38)),
    "a hot processor": (seen("heat", 71.0), ["hottest thermal zone 71 °C is above 70 °C"]),
    "a battery that is ill": (seen("health", "over_voltage"), ["the battery reports over voltage"]),
    "a battery that is well": (seen("health", "good"), []),
    "a battery that is charged more slowly": (seen("health", "warm"), []),
    "a battery that does not say": (seen("health", None), []),
    # Whether somebody uses it.
    "screen on": (seen("screen", True), ["the screen is on"]),
    "screen on, and 'now'": (seen("screen", True, immediate=True), []),
    "screen on, where the owner does not mind": (seen("screen", True, settings=settings(require_screen_off=False)), []),
    "screen unknown": (seen("screen", None), unknown("screen")),
    "in use a while ago": (seen("idle", 300.0), ["idle for 5 of 10 minutes"]),
    "in use long ago": (seen("idle", 600.0), []),
    "nobody there to use it": (World(others=(reading("idle", None, absent=True),)), []),
    # When.
    "outside the hours": (at(12, 30), ["it is 12:30, outside 22:00-07:00"]),
    "within the hours, past midnight": (at(6, 59), []),
    "at the end of the hours": (at(7), ["it is 07:00, outside 22:00-07:00"]),
    "outside the hours, and 'now'": (at(12, 30, immediate=True), []),
    "snoozed": (
        World(snoozed_until=NOW + timedelta(hours=1), local=NOW),
        [f"snoozed until {NOW + timedelta(hours=1):%Y-%m-%d %H:%M}"],
    ),
    "snoozed once": (World(snoozed_until=NOW - timedelta(hours=1)), []),
    "enough for today": (
        World(used_today_minutes=60, settings=settings(minutes_per_day=60)),
        ["trained 60 of 60 minutes today"],
    ),
    "not yet enough for today": (World(used_today_minutes=59, settings=settings(minutes_per_day=60)), []),
    # Room.
    "a full disk": (seen("disk", 1e6), ["free disk space 1 MB is below 1000 MB"]),
    "memory is short though there is some": (
        seen("memory pressure", 50.0, running=True),
        ["memory pressure 50 % is above 40 %"],
    ),
    # How the owner wants it.
    "never": (World(settings=settings(run_mode="never"), immediate=True), ["the run mode is 'never'"]),
    "always": (seen("screen", True, settings=settings(run_mode="always"), power=False), []),
    "always, but not below the floor": (
        World(settings=settings(run_mode="always"), power=False, battery=29.0),
        low(29, 30),
    ),
    # Old readings.
    "a stale reading": (
        World(others=(reading("temperature", 20.0, age=181),)),
        ["temperature is unknown (the last reading is 181 s old)"],
    ),
    "a reading that is not stale yet": (World(others=(reading("temperature", 20.0, age=179),)), []),
    # All at once.
    "all is ill": (
        World(power=False, battery=5.0, memory=1.0 * MB, paused_seconds_ago=1),
        [ON_BATTERY, *low(5, 40), *short(1, 700), "paused 1 s ago; waiting 59 s more"],
    ),
    "all is unknown": (World(power=None, battery=None, memory=None), unknown("power", "battery", "memory")),
}


def test_verdicts() -> None:
    found = {row: world.decide().reasons for row, (world, _) in ROWS.items()}
    assert found == {row: reasons for row, (_, reasons) in ROWS.items()}


def test_a_blocker_says_what_it_is_and_where_the_level_is() -> None:
    [blocker] = World(battery=31.0).decide().blockers
    assert (blocker.name, blocker.value, blocker.threshold, blocker.unit) == ("battery", 31.0, 40, "%")
    [blocker] = World(memory=5.0 * MB).decide().blockers
    assert (blocker.name, blocker.value, blocker.threshold, blocker.unit) == ("memory", 5 * MB, 700 * MB, "bytes")
    [blocker] = World(power=False).decide().blockers
    assert (blocker.name, blocker.value, blocker.threshold) == ("power", False, None)


def since(verdict: Verdict) -> dict[str, datetime]:
    return {blocker.name: blocker.since for blocker in verdict.blockers}


def test_since_stays_while_a_blocker_stands_and_is_new_after_it_went() -> None:
    verdict = World(power=False).decide()
    assert since(verdict) == {"power": NOW}
    verdict = World(power=False, battery=5.0, now=later(10), before=verdict).decide()
    assert since(verdict) == {"power": NOW, "battery": later(10)}
    verdict = World(battery=4.0, now=later(20), before=verdict).decide()
    assert since(verdict) == {"battery": later(10)}
    verdict = World(power=False, battery=4.0, now=later(30), before=verdict).decide()
    assert since(verdict) == {"power": later(30), "battery": later(10)}


def test_a_minimum_pause_stands_since_the_pause_began() -> None:
    verdict = World(paused_seconds_ago=2, now=later(2)).decide()
    assert since(verdict) == {"minimum pause": NOW}
    assert since(World(paused_seconds_ago=4, now=later(4), before=verdict).decide()) == {"minimum pause": NOW}


PERCENT = st.floats(0, 100)
BYTES = st.floats(0, 4e9)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any world that settings and sensors allow."""
    battery_stop, battery_start = sorted((draw(PERCENT), draw(PERCENT)))
    memory_stop, memory_start = sorted((draw(st.integers(0, 4 * 10**9)), draw(st.integers(0, 4 * 10**9))))
    return World(
        power=draw(st.sampled_from([True, False, None])),
        battery=draw(st.none() | st.just(NO_BATTERY) | PERCENT),
        memory=draw(st.none() | BYTES),
        running=draw(st.booleans()),
        immediate=draw(st.booleans()),
        paused_seconds_ago=draw(st.none() | st.floats(-1000, 1000)),
        settings=GateSettings(
            require_power=draw(st.booleans()),
            battery_start_percent=battery_start,
            battery_stop_percent=battery_stop,
            memory_start_bytes=memory_start,
            memory_stop_bytes=memory_stop,
            minimum_pause_seconds=draw(st.floats(0, 1000)),
            train_when_unknown=tuple(draw(st.sets(st.sampled_from(["power", "battery", "memory"])))),
        ),
    )


@given(worlds())
def test_each_blocker_is_named_once_and_says_why_and_since_when(world: World) -> None:
    verdict = world.decide()
    names = [blocker.name for blocker in verdict.blockers]
    assert len(set(names)) == len(names)
    assert all(blocker.message and blocker.since <= world.now for blocker in verdict.blockers)
    assert world.decide() == verdict


@given(worlds(), st.floats(0, 1), st.floats(0, 1))
def test_a_running_job_is_not_blocked_by_a_level_between_stop_and_start(world: World, b: float, m: float) -> None:
    limits = world.settings
    battery = between(limits.battery_stop_percent, limits.battery_start_percent, b)
    memory = between(limits.memory_stop_bytes, limits.memory_start_bytes, m)
    verdict = replace(world, running=True, battery=battery, memory=memory).decide()
    assert {blocker.name for blocker in verdict.blockers} <= {"power"}


def between(low: float, high: float, share: float) -> float:
    return min(high, low + (high - low) * share)


@given(worlds())
def test_a_value_under_stop_blocks_whether_running_or_not(world: World) -> None:
    names = {blocker.name for blocker in world.decide().blockers}
    if world.memory is not None and world.memory < world.settings.memory_stop_bytes:
        assert "memory" in names
    charging_now = world.immediate and world.power
    if isinstance(world.battery, float) and world.battery < world.settings.battery_stop_percent and not charging_now:
        assert "battery" in names


@given(worlds())
def test_what_may_start_may_go_on(world: World) -> None:
    if replace(world, running=False).decide().allowed:
        assert replace(world, running=True).decide().allowed


@given(worlds())
def test_what_is_unknown_blocks_unless_it_is_allowed(world: World) -> None:
    blind = replace(world, memory=None)
    blocked = any(blocker.name == "memory" for blocker in blind.decide().blockers)
    assert blocked is ("memory" not in world.settings.train_when_unknown)


def test_allowed_hours_and_midnight_are_by_the_owners_clock() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=2)))
    edges = hours_edges(settings(hours=("22:00-07:00",)), local)
    found = {at.astimezone(UTC).strftime("%d %H:%M") for at in edges if at > NOON}
    assert found == {"01 20:00", "01 22:00", "02 05:00", "02 20:00"}
    assert len([at for at in hours_edges(SETTINGS, local) if at > NOON]) == 1, "midnight alone"
