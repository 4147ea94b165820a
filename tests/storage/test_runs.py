"""Runs: run windows as the scheduler keeps them, sums of a day, and when the gate might open next."""

from datetime import date, datetime, timedelta

import pytest

from pocketllm.daemon.scheduling.runs import RunRecorder, midnight_of
from pocketllm.storage.repositories.runs import seconds_within
from pocketllm.storage.store import Store
from tests.support.daemon.workers import NOW, new_job


@pytest.fixture
def job(store: Store) -> str:
    return store.jobs.add(new_job()).id


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_window_from_its_beginning_to_its_end(store: Store, job: str) -> None:
    runs = RunRecorder(store.runs)
    runs.begin(job, because="power, battery 80 %", now=NOW)
    runs.observe(None, later(70))
    runs.observe(None, later(71))  # too soon to be written down
    runs.end(because="not on external power", cpu=55.5, now=later(100))
    [window] = store.runs.of_job(job)
    assert (window.began_at, window.ended_at) == (NOW, later(100))
    assert (window.began_because, window.ended_because) == ("power, battery 80 %", "not on external power")
    assert window.cpu_seconds == 55.5


def test_what_a_killed_daemon_left_open_ends_where_it_was_last_seen(store: Store, job: str) -> None:
    dead = RunRecorder(store.runs)
    dead.begin(job, because="requested to run now", now=NOW)
    dead.observe(7.5, later(60))
    RunRecorder(store.runs).recover(later(9000))
    [window] = store.runs.of_job(job)
    assert (window.ended_at, window.ended_because) == (later(60), "the daemon was killed")
    assert window.cpu_seconds == 7.5


def test_the_seconds_of_a_day(store: Store, job: str) -> None:
    runs, midnight = RunRecorder(store.runs), midnight_of(NOW)
    for start, end in ((midnight - timedelta(hours=1), midnight + timedelta(hours=1)), (NOW, later(600))):
        runs.begin(job, because="", now=start)
        runs.end(because="", cpu=None, now=end)
    assert runs.seconds_since(midnight, later(900)) == 3600 + 600
    runs.begin(job, because="", now=later(1000))
    assert runs.seconds_since(midnight, later(1300)) == 3600 + 600 + 300, "the one that lasts counts, too"


def test_windows_within_a_time(store: Store, job: str) -> None:
    window = store.runs.begin(job, because="", now=NOW)
    store.runs.end(window, because="", cpu=None, now=later(100))
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


def test_when_the_gate_opens_if_tonight_is_like_most_of_the_last_nights(store: Store) -> None:
    runs = RunRecorder(store.runs)
    for day, hours_late in enumerate((0, 1, 9, 0.5, 1, 0, 2)):
        runs.gate(True, later(3600 * (24 * day + hours_late)))
        runs.gate(False, later(3600 * (24 * day + hours_late + 4)))
    noon = NOW + timedelta(days=6, hours=18)
    assert runs.expected_at(noon) == NOW + timedelta(days=7, hours=1), "by then it was open on five of seven days"


HELD = [("power", 10 * 3600.0), ("battery", 3600.0)]


def held(store: Store, night: date) -> list[tuple[str, float]]:
    return [(row.name, row.seconds) for row in store.runs.held_back(night) if row.night == night]


def test_what_held_a_job_back_is_summed_by_night(store: Store) -> None:
    runs, night = RunRecorder(store.runs), NOW.date()
    for minute in range(601):
        runs.hold({"power"} | ({"battery"} if minute > 540 else set()), night, later(60 * minute))
    assert held(store, night) == HELD
    for minute in range(601, 700):
        runs.hold({"power", "idle"}, night, later(60 * minute))  # somebody uses the device
    assert held(store, night) == HELD
    for minute in range(700, 710):
        runs.hold({"idle", "screen"}, night + timedelta(days=1), later(60 * minute))
    assert sorted(held(store, night + timedelta(days=1))) == [("idle", 600.0), ("screen", 600.0)]
    assert held(store, night) == HELD


def test_a_clock_that_jumps_adds_a_minute_at_most(store: Store) -> None:
    runs, night = RunRecorder(store.runs), NOW.date()
    for seconds in (0, 540, 10 * 3600, -(10 * 3600), 0):
        runs.hold({"power"}, night, later(seconds))
    assert held(store, night) == []
    for minute in range(1, 8):
        runs.hold({"power"}, night, later(60 * minute))
    assert held(store, night) == [("power", (3 + 7) * 60)]


def test_what_held_jobs_back_is_kept_for_thirty_days(store: Store) -> None:
    night = NOW.date()
    store.runs.hold_back({(night, "power"): 60.0})
    store.runs.hold_back({(night + timedelta(days=30), "power"): 60.0})
    assert held(store, night) == [("power", 60.0)]
    store.runs.hold_back({(night + timedelta(days=31), "power"): 60.0})
    assert held(store, night) == []
