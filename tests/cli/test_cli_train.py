"""`pocketllm train`: watching a job to its end, and not being able to."""

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pocketllm.cli.common import PLAIN_LINE_SECONDS, progress
from pocketllm.cli.jobs import FAILED_POLLS_ALLOWED, follow, job_display
from pocketllm.client import Client
from pocketllm.errors import CommandError
from pocketllm.home import Target, find_target
from tests.support.commands import WAIT_SECONDS, Run, child_environment, output, terminal
from tests.support.daemon_documents import JOB, RUNNING, SUCCEEDED
from tests.support.daemon_double import DaemonDouble

FAILED = RUNNING | {"state": "failed", "error": "The worker died three times."}
CANCELLED = RUNNING | {"state": "cancelled"}


class TestTrain:
    def test_follows_to_the_end(self, run: Run, double: DaemonDouble) -> None:
        result = run("train", "--steps", "40", "--seed", "0")
        assert result.exit_code == 0
        assert double.bodies("POST", "/jobs") == [{"steps": 40, "seed": 0}]
        assert "queued  step 0/40\nrunning  step 20/40" in result.stdout
        assert "3.5000 -> 3.2500 nats per token (-7.1 %)" in result.stdout
        assert "/data/adapters/adapter-1" in result.stdout

    @pytest.mark.parametrize(("ending", "words"), [(FAILED, "died three times"), (CANCELLED, "cancelled at step")])
    def test_other_endings_are_errors(self, run: Run, double: DaemonDouble, ending: dict[str, Any], words: str) -> None:
        double.script = [ending]
        result = run("train")
        assert result.exit_code == 1
        assert words in result.stdout

    def test_json_of_a_failed_job_is_still_the_job(self, run: Run, double: DaemonDouble) -> None:
        double.script = [FAILED]
        result = run("train", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["state"] == "failed"

    def test_without_following(self, run: Run, double: DaemonDouble) -> None:
        assert "Watch it with `pocketllm jobs job-1`" in run("train", "--no-follow").stdout
        assert len(double.requests) == 1

    def test_ctrl_c_stops_the_watching_and_not_the_job(self, double: DaemonDouble, home: Path) -> None:
        asked = threading.Event()
        double.script = []
        double.on_job_asked = asked.set
        child = subprocess.Popen(
            [sys.executable, "-m", "pocketllm", "train"],
            env=child_environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell may have started the tests with Ctrl-C ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            assert asked.wait(WAIT_SECONDS)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=WAIT_SECONDS)
        finally:
            child.kill()
        assert child.returncode == 130
        assert "Stopped watching. Job job-1 continues in the daemon." in stderr
        assert "pocketllm jobs cancel job-1" in stderr
        assert "Traceback" not in stderr
        assert double.jobs[0]["state"] == "queued"
        assert not [path for method, path, _ in double.requests if path.endswith("/cancel")]


def test_follow_survives_a_daemon_that_is_away_for_a_moment(double: DaemonDouble) -> None:
    seen: list[str] = []
    away = Client(Target(url="http://127.0.0.1:9", token=None))
    with away, pytest.raises(CommandError, match=r"Job job-1 continues when the daemon runs again"):
        follow(away, JOB, lambda job: seen.append(job["state"]), pause=lambda: None)
    assert len(seen) == FAILED_POLLS_ALLOWED + 1


def test_a_job_that_only_waits_is_given_up_with_its_reasons(double: DaemonDouble, home: Path) -> None:
    paused = JOB | {"state": "paused", "reasons": ["The device is hot (44 °C)."]}
    double.jobs, double.script = [dict(JOB)], [RUNNING, paused]
    with (
        Client(find_target(None, home)) as client,
        pytest.raises(CommandError, match=r"paused for 0 seconds: The device is hot"),
    ):
        follow(client, JOB, lambda job: None, stall_seconds=0, pause=lambda: None)


def test_a_job_is_followed_until_it_is_far_enough(double: DaemonDouble, home: Path) -> None:
    double.jobs, double.script = [dict(JOB)], [RUNNING, SUCCEEDED]
    with Client(find_target(None, home)) as client:
        job = follow(client, JOB, lambda job: None, enough=lambda job: job["step"] >= 1, pause=lambda: None)
    assert job["state"] == "running"


def test_plain_lines_come_at_new_stages_and_every_few_seconds_if_there_is_news() -> None:
    log, now = Console(file=io.StringIO(), width=100), 100.0
    with progress(log, clock=lambda: now) as report:
        report("queued", "step 0", 0, 40)
        report("queued", "step 1", 1, 40)
        report("running", "step 20", 20, 40)
        now += PLAIN_LINE_SECONDS / 2
        report("running", "step 21", 21, 40)
        now += PLAIN_LINE_SECONDS
        report("running", "step 20", 20, 40)
        report("running", "step 22", 22, 40)
        report("running", "step 23", 23, 40)
    assert output(log).splitlines() == ["step 0", "step 20", "step 22"]


def test_short_work_without_stages_says_nothing() -> None:
    log = Console(file=io.StringIO(), width=100)
    with progress(log) as report:
        report("", "Replayed 6 of 6 steps.", 6, 6)
    assert output(log) == ""


def test_a_terminal_gets_a_moving_bar() -> None:
    console = terminal()
    with job_display(console) as show:
        show(JOB | RUNNING | SUCCEEDED)
    assert "40/40" in output(console)
    assert "━" in output(console)
