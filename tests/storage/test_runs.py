"""Runs: run windows as the scheduler keeps them, sums of a day, and when the gate might open next."""

from datetime import datetime, timedelta

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
