"""What people see: every state, and what stands there when nothing is known yet."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pocketllm.cli.job_views import (
    job_details,
    jobs_table,
    outcome,
    progress_line,
    quantity,
    status_panel,
)
from pocketllm.cli.report_view import answers_table
from pocketllm.cli.views import age_text, bytes_text, change_text, count_text, duration_text, loss_text, printable
from tests.support.daemon_documents import JOB, RUNNING, STATUS, SUCCEEDED
from tests.support.rendering import rendered

NOW = datetime(2026, 5, 1, 10, 3, tzinfo=UTC)
STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"]
PAUSED = JOB | RUNNING | {"state": "paused", "reasons": ["The device is hot (44 °C).", "Someone uses it."]}
FAILED = JOB | RUNNING | {"state": "failed", "error": "The worker ran out of memory; lower the sequence length."}
UNPROVEN = JOB | RUNNING | SUCCEEDED | {"outcome": "no proof of learning", "held_out_loss_now": 3.51}
DETAIL = JOB | {"settings": {}, "events": [], "runs": []}


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (412_000_000, "412.0 MB"), (2.5e9, "2.5 GB")],
)
def test_bytes(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(("count", "text"), [(None, "-"), (12, "12"), (134_515_008, "134.5M"), (1.1e9, "1.1B")])
def test_count(count: float | None, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3723, "1:02:03")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, "-"),
        ("2026-05-01T10:02:30Z", "30 s ago"),
        ("2026-05-01T09:51:00+00:00", "12 min ago"),
        ("2026-05-01T12:00:00+07:00", "5 h ago"),
        ("2026-04-01T00:00:00Z", "30 d ago"),
        ("2026-05-01T10:03:05Z", "0 s ago"),  # the clocks differ a little
    ],
)
def test_age(at: str | None, text: str) -> None:
    assert age_text(at, NOW) == text


def test_a_loss_of_zero_is_not_unknown() -> None:
    assert loss_text(0.0) == "0.0000"
    assert change_text({"held_out_loss_before": 1.0, "held_out_loss_now": 0.0}) == "1.0000 -> 0.0000"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07c\x9bd\ne\tf é") == "a[2Jbcd\ne\tf é"


def listed(*jobs: dict[str, Any], has_more: bool = False, width: int = 120) -> str:
    return rendered(jobs_table({"data": jobs, "has_more": has_more}, width=width, now=NOW), width)


def test_empty_list_of_jobs_says_how_to_get_one() -> None:
    text = listed()
    assert "pocketllm add" in text
    assert "pocketllm train" in text


@pytest.mark.parametrize("width", [45, 120])
@pytest.mark.parametrize("state", STATES)
def test_every_state_is_listed_at_every_width(state: str, width: int) -> None:
    text = listed(JOB | {"state": state}, width=width)
    assert state in text
    assert "job-1" in text
    assert "3 min ago" in text


def test_list_shows_the_numbers_and_that_there_is_more() -> None:
    text = listed(JOB | RUNNING, UNPROVEN, has_more=True)
    for part in ("20/40", "3.2500", "3.5000 -> 3.4000", "210 tok/s", "1:05", "412.0 MB", "no proof of learning"):
        assert part in text
    assert "--limit" in text


def test_a_narrow_list_leaves_out_what_is_less_important() -> None:
    text = listed(JOB | RUNNING, width=60)
    assert "3.4000" in text
    assert "tok/s" not in text


@pytest.mark.parametrize("state", STATES)
def test_progress_line_of_every_state(state: str) -> None:
    assert progress_line(JOB | {"state": state}).startswith(f"{state}  step 0/40")


def test_progress_line_before_the_first_step_says_what_takes_so_long() -> None:
    events = [{"at": "2026-05-01T10:00:05Z", "kind": "preparing", "message": "activation PCA: pass 1 of 3"}]
    assert progress_line(JOB | {"state": "running"}).endswith("before the first step")
    assert progress_line(JOB | {"state": "running", "events": events}).endswith("pass 1 of 3")
    assert "pass 1 of 3" not in progress_line(JOB | RUNNING | {"events": events})


def test_progress_line_of_a_running_job() -> None:
    expected = "running  step 20/40  loss 3.2500  held-out 3.5000 -> 3.4000  210 tok/s  1:05 left"
    assert progress_line(JOB | RUNNING) == expected


def test_progress_line_gives_the_reasons() -> None:
    assert progress_line(PAUSED).endswith("The device is hot (44 °C).; Someone uses it.")


def test_outcome_of_a_job_that_learned() -> None:
    text = rendered(outcome(JOB | RUNNING | SUCCEEDED, "/data/adapters/adapter-1"))
    for part in ("learned", "3.5000 -> 3.2500", "-7.1 %", "40 steps in 2:00", "412.0 MB", "/data/adapters/adapter-1"):
        assert part in text


def test_outcome_without_proof_says_so() -> None:
    text = rendered(outcome(UNPROVEN, None))
    assert "no proof of learning" in text
    assert "+0.3 %" in text
    assert "not served" in text


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (FAILED, ["failed", "ran out of memory", "20/40"]),
        (JOB | {"state": "cancelled"}, ["cancelled", "no reason was recorded"]),
    ],
)
def test_outcome_of_a_job_that_did_not_succeed(job: dict[str, Any], words: list[str]) -> None:
    text = rendered(outcome(job, None))
    assert all(word in text for word in words)


@pytest.mark.parametrize("state", STATES)
def test_details_of_every_state(state: str) -> None:
    assert state in rendered(job_details(DETAIL | {"state": state}, NOW))


def test_details_show_reasons_error_settings_and_events() -> None:
    event = {"at": "2026-05-01T10:00:05Z", "kind": "paused", "message": "The device [44] is hot."}
    job = DETAIL | PAUSED | {"error": "It broke.", "settings": {"learning_rate": 0.001}, "events": [event]}
    text = rendered(job_details(job, NOW))
    for part in ("The device is hot (44 °C).", "It broke.", "learning_rate", "0.001", "The device [44] is hot."):
        assert part in text


def test_a_sensor_that_the_machine_lacks_is_not_unknown() -> None:
    battery = {"name": "battery", "value": None, "unit": "%", "source": "x", "reason": "no battery", "absent": True}
    text = rendered(status_panel(STATUS | {"readings": [battery]}, NOW))
    assert "none: no battery" in text
    assert "unknown" not in text


def test_status_shows_each_blocker_with_its_numbers() -> None:
    text = rendered(status_panel(STATUS, NOW))
    assert "The battery is low. (31 %, limit 40 %), began 1 h ago" in text
    assert "unknown: no sensor" in text
    assert "new words; a job starts at 1,000" in text
    assert "2 succeeded, 1 failed" in text
    assert "tiny, ready" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(True, None, "yes"), (False, None, "no"), (31.25, "%", "31.25 %"), (2.423e10, "bytes", "24.2 GB"), (3, None, "3")],
)
def test_quantities_of_sensors(value: bool | float, unit: str | None, text: str) -> None:
    assert quantity(value, unit) == text


def test_status_of_a_busy_daemon() -> None:
    busy = STATUS | {
        "model": {"name": "tiny", "ready": True, "message": None, "adapter": "adapter-1"},
        "training": {"allowed": True, "blockers": []},
        "worker": {"running": True, "pid": 11, "job": "job-1"},
        "generator": {"running": True, "pid": 12, "unloads_in_seconds": 61, "backend": None},
        "texts": {"count": 3, "new_words": 1200, "threshold_words": 1000},
        "jobs": dict.fromkeys(STATUS["jobs"], 0),
    }
    text = rendered(status_panel(busy, NOW))
    for part in (
        "adapter-1",
        "job job-1, pid 11",
        "loaded, pid 12, unloads in 1:01",
        "3 stored, 1,200 new words; a job starts at 1,000",
        "none yet",
    ):
        assert part in text
    assert "blocked by" not in text


def test_a_status_says_what_the_owner_is_to_know_of_a_model_that_works() -> None:
    model = STATUS["model"] | {"message": "The database does not list the adapters in set-aside."}
    assert "ready. The database does not list" in rendered(status_panel(STATUS | {"model": model}, NOW), width=120)


def test_status_without_a_model_says_what_to_do() -> None:
    missing = STATUS | {
        "model": {"name": None, "ready": False, "message": "Run `pocketllm models add`.", "adapter": None}
    }
    assert "none: Run `pocketllm models add`." in rendered(status_panel(missing, NOW))


def test_answers_stand_side_by_side_without_control_characters() -> None:
    text = rendered(answers_table([{"prompt": "Fog.", "base": "Before it.", "personal": "After\x1b[2J it."}]))
    assert "Before it." in text
    assert "After[2J it." in text
