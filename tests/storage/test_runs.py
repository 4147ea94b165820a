"""Runs: run windows as the scheduler keeps them, sums of a day, and when the gate might open next."""

from datetime import datetime, timedelta

import pytest

from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.scheduling.runs import RunRecorder, midnight_of
from pocketllm.storage.repositories.runs import Observed, seconds_within
from pocketllm.storage.store import Store
from tests.support.daemon.workers import NOW, new_job


@pytest.fixture
def job(store: Store) -> str:
    return store.jobs.add(new_job()).id


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def seen(battery: float | None = None, celsius: float | None = None, watts: float | None = None) -> list[Reading]:
    return [
        Reading(name=name, value=value, unit=None, source="test", at=NOW)
        for name, value in (("battery", battery), ("temperature", celsius), ("battery power", watts))
    ]


def test_a_window_from_its_beginning_to_its_end(store: Store, job: str) -> None:
    runs = RunRecorder(store.runs)
    runs.begin(job, because="power, battery 80 %", readings=seen(80, 25), now=NOW)
    runs.observe(None, seen(79, 33), later(70))
    runs.observe(None, seen(78, 31), later(71))  # too soon to be written down
    runs.end(because="not on external power", cpu=55.5, readings=seen(77, 30), now=later(100))
    [window] = store.runs.of_job(job)
    assert (window.began_at, window.ended_at) == (NOW, later(100))
    assert (window.began_because, window.ended_because) == ("power, battery 80 %", "not on external power")
    assert (window.battery_began_percent, window.battery_ended_percent) == (80, 77)
    assert (window.hottest_battery_celsius, window.hottest_zone_celsius, window.cpu_seconds) == (33, None, 55.5)


def test_what_flowed_into_the_battery_and_out_of_it(store: Store, job: str) -> None:
    runs = RunRecorder(store.runs)
    runs.begin(job, because="requested to run now", readings=seen(watts=9), now=NOW)
    runs.observe(None, seen(watts=6), later(120))  # 6 W for two minutes
    runs.observe(None, seen(watts=-12), later(240))
    runs.observe(None, seen(), later(300))  # unknown
    assert store.runs.of_job(job)[0].battery_watt_hours == pytest.approx(6 / 30 - 12 / 30)
    runs.end(because="done", cpu=None, readings=seen(watts=60), now=later(300 + 3600))  # the machine slept
    assert store.runs.of_job(job)[0].battery_watt_hours == pytest.approx(-6 / 30 + 60 / 12)


def test_without_a_current_nothing_is_known_of_energy(store: Store, job: str) -> None:
    runs = RunRecorder(store.runs)
    runs.begin(job, because="requested to run now", readings=seen(80), now=NOW)
    runs.end(because="done", cpu=None, readings=seen(79), now=later(100))
    assert store.runs.of_job(job)[0].battery_watt_hours is None


def test_what_a_killed_daemon_left_open_ends_where_it_was_last_seen(store: Store, job: str) -> None:
    dead = RunRecorder(store.runs)
    dead.begin(job, because="requested to run now", readings=[], now=NOW)
    dead.observe(7.5, [], later(60))
    RunRecorder(store.runs).recover(later(9000))
    [window] = store.runs.of_job(job)
    assert (window.ended_at, window.ended_because) == (later(60), "the daemon was killed")
    assert window.cpu_seconds == 7.5


def test_the_seconds_of_a_day(store: Store, job: str) -> None:
    runs, midnight = RunRecorder(store.runs), midnight_of(NOW)
    for start, end in ((midnight - timedelta(hours=1), midnight + timedelta(hours=1)), (NOW, later(600))):
        runs.begin(job, because="", readings=[], now=start)
        runs.end(because="", cpu=None, readings=[], now=end)
    assert runs.seconds_since(midnight, later(900)) == 3600 + 600
    runs.begin(job, because="", readings=[], now=later(1000))
    assert runs.seconds_since(midnight, later(1300)) == 3600 + 600 + 300, "the one that lasts counts, too"


def test_windows_within_a_time(store: Store, job: str) -> None:
    window = store.runs.begin(job, because="", seen=Observed(), now=NOW)
    store.runs.end(window, because="", seen=Observed(), now=later(100))
    rows = store.runs.of_job(job)
    assert seconds_within(rows, later(50), later(500)) == 50
    assert seconds_within(rows, later(-50), later(30)) == 30
    assert seconds_within(rows, later(200), later(500)) == 0


def test_when_the_gate_opens_if_tonight_is_like_last_night(store: Store) -> None:
    runs = RunRecorder(store.runs)
    assert runs.expected_at(NOW) is None, "nothing is known yet"
    runs.gate(True, NOW)
    assert runs.expected_at(NOW) == NOW, "it is open"
    runs.gate(False, later(4 * 3600))
    runs.gate(True, later(5 * 3600))
    runs.gate(False, later(5 * 3600 + 60))  # a minute is no night
    assert runs.expected_at(later(12 * 3600)) == NOW + timedelta(days=1)
    halfway = NOW + timedelta(days=1, hours=2)
    assert runs.expected_at(halfway) == halfway, "late, as last night was: it may be any moment"
    assert runs.expected_at(NOW + timedelta(days=2)) is None


def test_an_opening_that_a_killed_daemon_left_is_closed(store: Store) -> None:
    RunRecorder(store.runs).gate(True, NOW)
    again = RunRecorder(store.runs)
    again.recover(later(3600))
    again.gate(True, later(3700))
    assert [(one.began_at, one.ended_at) for one in store.runs.idle_windows(NOW)] == [
        (NOW, later(3600)),
        (later(3700), None),
    ]
