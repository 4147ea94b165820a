"""Screen and idleness of a phone: by getprop, dumpsys, an app that tells us, and the job scheduler's stamp."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.android_screen import (
    PROPERTY,
    STAMP_IDLE_SECONDS,
    ReportedScreen,
    ScreenIdleness,
    polled_screen,
    screen_property,
    wakefulness,
)
from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import FirstKnown
from pocketllm.daemon.errors import ChildFailed
from tests.support.daemon.gate_world import answered
from tests.support.daemon.in_process_app import Clock, FixedSensor
from tests.support.daemon.workers import NOW
from tests.support.executables import answering, executable


def test_the_property() -> None:
    states = {"1": False, "2": True, "3": False, "4": False, "5": True, "6": True}
    assert {said: screen_property(f"{said}\n") for said in states} == states
    for said in ("", "0", "7", "on", "22"):
        with pytest.raises(ChildFailed):
            screen_property(said)


def test_dumpsys() -> None:
    states = {"Awake": True, "Asleep": False, "Dozing": False, "Dreaming": False}
    answers = {said: f"POWER MANAGER\n  mWakefulness={said}\n  mWakefulnessChanging=false\n" for said in states}
    assert {said: wakefulness(answer) for said, answer in answers.items()} == states


def test_dumpsys_without_the_permission() -> None:
    with pytest.raises(ChildFailed, match=r"android\.permission\.DUMP"):
        wakefulness("Permission Denial: can't dump PowerManager from pid=1, uid=2\n")


def test_a_real_getprop_is_asked_for_the_property(tmp_path: Path) -> None:
    getprop = executable(tmp_path, "getprop", '[ "$1" = debug.tracing.screen_state ] && echo 2')
    reading = answered([polled_screen(Pace(), (getprop, PROPERTY), screen_property)])["screen"]
    assert (reading.name, reading.value, reading.source) == ("screen", True, f"{getprop} debug.tracing.screen_state")


def test_the_first_that_knows_is_believed(tmp_path: Path) -> None:
    reported_screen = ReportedScreen()
    silent = polled_screen(Pace(), (answering(tmp_path, "getprop", "\n"), PROPERTY), screen_property)
    screen = FirstKnown([silent, reported_screen])
    reading = answered([screen])["screen"]
    assert reading.unknown and reading.reason and "does not set" in reading.reason
    reported_screen.report(True, NOW)
    assert screen.read(NOW).value is True
    reported_screen.report(False, NOW)
    assert (screen.read(NOW).value, screen.read(NOW).source) == (False, "POST /status/screen")


def test_what_was_told_long_ago_counts_no_more() -> None:
    reported_screen = ReportedScreen()
    assert reported_screen.read(NOW).unknown
    reported_screen.report(False, NOW)
    assert reported_screen.read(NOW + timedelta(hours=11)).value is False
    assert reported_screen.read(NOW + timedelta(hours=12)).unknown
    assert reported_screen.read(NOW - timedelta(hours=1)).unknown, "a clock that was set back"


@dataclass
class Phone:
    """Idleness with a screen that does what it is told, and a clock."""

    folder: Path
    screen: FixedSensor = field(default_factory=lambda: FixedSensor("screen", False))
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.started = self.clock.now
        self.sensor = ScreenIdleness(
            self.screen, self.folder / "stamp", lambda: (self.clock.now - self.started).total_seconds()
        )

    def after(self, seconds: float, on: bool | None) -> float | None:
        """How long it is idle, so much later, with the screen like this from then on."""
        self.clock.advance(seconds)
        self.screen.value, self.screen.reason = on, None if on is not None else "no answer"
        value = self.sensor.read(self.clock.now).value
        assert value is None or isinstance(value, float)
        return value

    def stamp(self) -> None:
        """The phone's job scheduler takes it for idle."""
        (self.folder / "stamp").touch()
        at = self.clock.now.timestamp()
        os.utime(self.folder / "stamp", (at, at))


#: Seconds that pass, the screen from then on, and for how long the phone is idle by then; or that it is taken for idle.
STAMPED = "the phone's job scheduler takes it for idle"
SCENES: dict[str, list[tuple[float, bool | None, float | None] | str]] = {
    "idleness is what was watched": [
        *((0, False, 0), (100, False, 100), (10, True, 0)),
        *((50, True, 0), (5, False, 0), (700, False, 700)),
    ],
    "what was not seen does not count": [(0, False, 0), (100, None, None), (1, False, 0), (9, False, 9)],
    "the stamp says what was before the daemon": [STAMPED, (60, False, STAMP_IDLE_SECONDS + 60)],
    "but not once it was used since": [STAMPED, (60, True, 0), (1, False, 0)],
    "an old stamp says nothing": [STAMPED, (20 * 60, False, 0)],
    "a stamp of the future says nothing": [(3600, None, None), STAMPED, (-1800, False, 0)],
    "the stamp never shortens what was watched": [(0, False, 0), (7200, False, 7200), STAMPED, (10, False, 7210)],
}


@pytest.mark.parametrize("scene", SCENES)
def test_idleness(tmp_path: Path, scene: str) -> None:
    phone = Phone(tmp_path)
    for step in SCENES[scene]:
        if isinstance(step, str):
            phone.stamp()
        else:
            seconds, on, idle = step
            assert phone.after(seconds, on) == idle
