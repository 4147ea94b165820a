"""`pocketllm report`, against a small real server."""

import json
from pathlib import Path

from tests.support.commands import Run
from tests.support.daemon_documents import JOB, REPORT, RUNNING, SUCCEEDED
from tests.support.daemon_double import DaemonDouble

DONE = JOB | RUNNING | SUCCEEDED


def jobs(*ids: str) -> list[dict[str, object]]:
    return [DONE | {"id": identity} for identity in ids]


def test_a_job_that_is_named(run: Run, double: DaemonDouble) -> None:
    result = run("report", "job-1")
    assert result.exit_code == 0, result.stderr
    assert "Job job-1: learned" in result.stdout and "Wren" in result.stdout
    assert "\x1b" not in result.stdout
    assert double.requests == [("GET", "/jobs/job-1/report", None)]


def test_the_newest_that_has_one(run: Run, double: DaemonDouble) -> None:
    failed = DONE | {"id": "job-9", "state": "failed"}
    double.jobs = [failed, *jobs("job-3", "job-2", "job-1")]
    double.reports = {name: REPORT | {"job": name} for name in ("job-9", "job-2", "job-1")}
    assert "Job job-2: learned" in run("report").stdout
    assert ("GET", "/jobs/job-9/report", None) not in double.requests


def test_json(run: Run, double: DaemonDouble) -> None:
    double.jobs = jobs("job-1")
    assert json.loads(run("report", "--json").stdout) == REPORT


def test_there_is_none(run: Run, double: DaemonDouble) -> None:
    result = run("report")
    assert result.exit_code == 1 and "`pocketllm train`" in result.stderr
    double.jobs, double.reports = jobs("job-1"), {}
    assert "No job has a report yet" in run("report").stderr
    assert "There is no /jobs/a%2Fb/report" in run("report", "a/b").stderr


def test_another_refusal_is_told(run: Run, double: DaemonDouble, home: Path) -> None:
    double.jobs = jobs("job-1")
    double.write_home(home, token="wrong")
    assert "A token is needed" in run("report").stderr
