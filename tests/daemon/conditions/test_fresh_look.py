"""A fresh look: what it asks, and how long it holds the wake lock."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from pocketllm.daemon.conditions.fresh_look import LONGEST_SECONDS, FreshLook
from pocketllm.daemon.conditions.poller import Background, Pace
from pocketllm.daemon.conditions.readings import NOT_YET, Missing, Reading
from pocketllm.daemon.conditions.wake_lock import WakeLock
from tests.support.daemon.real_daemon import eventually
from tests.support.daemon.workers import NOW


@dataclass
class Phone:
    """A source that is polled once an hour, a clock, and a look at it."""

    pace: Pace = field(default_factory=Pace)
    seconds: float = 0.0
    asked: int = 0

    def __post_init__(self) -> None:
        self.source = Background(self.ask, self.pace, idle_seconds=3600, training_seconds=3600)
        self.look = FreshLook(WakeLock(), self.pace, lambda: self.seconds)

    def ask(self) -> str:
        self.asked += 1
        return "55"

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether it is under way, and whether the lock is held."""
        return self.look.under_way, self.look.wake_lock.in_use

    def tick(self) -> None:
        """Read the sensor, as a tick of the daemon's does."""
        asked = self.source.latest(self.now)
        at = asked.at if asked else self.now
        reading = Reading(name="battery", value=55.0, unit="%", source="here", at=at)
        self.look.settle([reading if asked else Missing("battery", "%", "here", NOT_YET).read(self.now)])


@pytest.fixture
def phone() -> Iterator[Phone]:
    made = Phone()
    made.tick()
    eventually(lambda: not made.source.busy, "an answer")
    made.seconds = 600
    made.tick()
    assert made.asked == 1
    yield made


def test_it_asks_anew_and_holds_the_lock_until_a_tick_has_seen_the_answers(phone: Phone) -> None:
    phone.look.begin(phone.now)
    assert phone.state == (True, True)
    phone.tick()
    assert phone.state == (True, True), "the answer is ten minutes old"
    eventually(lambda: not phone.source.busy, "an answer")
    phone.tick()
    assert (phone.asked, *phone.state) == (2, False, False)
    phone.tick()
    assert phone.asked == 2, "polled once an hour again"


def test_beginning_twice_takes_the_lock_once(phone: Phone) -> None:
    phone.look.begin(phone.now)
    phone.seconds += 1
    phone.look.begin(phone.now)
    phone.tick()
    eventually(lambda: not phone.source.busy, "an answer")
    phone.tick()
    assert phone.state == (False, False)


def test_what_does_not_answer_is_not_waited_for(phone: Phone) -> None:
    phone.look.begin(phone.now)
    phone.seconds += LONGEST_SECONDS
    phone.tick()
    assert phone.state == (False, False)
