"""The gate over time: a charger that is too weak, and a level that swings."""

from pocketllm.daemon.conditions.gate import Charge, Verdict
from pocketllm.daemon.conditions.readings import Reading
from tests.support.daemon.gate_world import SETTINGS, World, later, reading


def seen(power: bool, level: float, plug: str | None = None) -> dict[str, Reading]:
    return {"power": reading("power", power), "battery": reading("battery", level), "plug": reading("plug", plug)}


def charge_after(*levels: float, running: bool = True, power: bool = True) -> Charge:
    charge = Charge()
    for level in levels:
        charge = charge.after(seen(power, level), SETTINGS, running=running)
    return charge


def test_a_charger_is_too_weak_when_the_battery_loses_charge_on_it() -> None:
    assert charge_after(80, 79, 78).weak_at is None
    assert charge_after(80, 79, 78, 77).weak_at == 77
    assert charge_after(80, 82, 80, 79).weak_at == 79  # from the highest level since the start
    assert charge_after(80, 77, running=False).weak_at is None  # not by our doing
    assert charge_after(80, 70, power=False).weak_at is None  # it is known to be off the charger


def test_a_weak_charger_stays_weak_until_what_was_lost_is_won_back() -> None:
    weak = charge_after(80, 77)
    assert weak.after(seen(True, 79.0), SETTINGS, running=False).weak_at == 77
    assert weak.after(seen(True, 80.0), SETTINGS, running=False).weak_at is None
    assert weak.after(seen(False, 77.0), SETTINGS, running=False).weak_at is None  # taken out: another may come


def test_a_device_that_discharges_on_the_charger_does_not_start_again_and_again() -> None:
    """Android says "discharging" while the worker runs, and "charging" as soon as it has stopped."""
    charge, verdict, running, starts, paused_at = Charge(), Verdict(), False, 0, None
    for second in range(0, 3600, 10):
        level = 60.0 - starts + second // 1800
        charge = charge.after(seen(not running, level, "usb"), SETTINGS, running=running)
        ago = None if paused_at is None else float(second - paused_at)
        verdict = World(
            power=not running, battery=level, running=running, paused_seconds_ago=ago, charge=charge, before=verdict
        ).decide()
        if verdict.allowed is not running:
            running, starts = verdict.allowed, starts + verdict.allowed
            paused_at = None if running else second
    assert starts == 1
    assert verdict.reasons == ["the charger is too weak; waiting for a battery level of 62 %"]


def test_a_weak_charger_that_is_unplugged_is_forgotten() -> None:
    discharging = seen(False, 60.0, "usb")
    weak = Charge(at_start=60).after(discharging, SETTINGS, running=True)
    assert weak.weak_at == weak.after(discharging, SETTINGS, running=False).weak_at == 60
    assert weak.after(seen(False, 60.0, "none"), SETTINGS, running=False).weak_at is None


def test_a_sawtooth_around_a_level_makes_one_change_a_minimum_pause() -> None:
    verdict, running, paused_at, changes = Verdict(), False, None, 0
    for second in range(3600):
        level = 35.0 + 8.0 * (second % 7 - 3) / 3  # 27 to 43: over both levels within seconds
        ago = None if paused_at is None else float(second - paused_at)
        verdict = World(
            battery=level, running=running, paused_seconds_ago=ago, now=later(second), before=verdict
        ).decide()
        if verdict.allowed is not running:
            changes, running = changes + 1, verdict.allowed
            paused_at = paused_at if running else second
    assert 2 <= changes <= 2 * (1 + 3600 / SETTINGS.minimum_pause_seconds)
