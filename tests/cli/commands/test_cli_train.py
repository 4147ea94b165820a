"""`pocketllm train` and `report`: watching a job to its end, not being able to, and what it has learned."""

import io
import json
import signal
import sys
import threading

import pytest
from rich.console import Console

from pocketllm.cli.jobs import FAILED_POLLS_ALLOWED, follow
from pocketllm.cli.program import PLAIN_LINE_SECONDS, progress
from pocketllm.client import Client
from pocketllm.errors import CommandError
from pocketllm.home import Target, find_target
from tests.support.daemon.commands import WAIT_SECONDS, Run, interruptible, output
from tests.support.daemon.daemon_documents import JOB
from tests.support.daemon.served import Served


class TestTrain:
    @pytest.fixture(autouse=True)
    def _text(self, served: Served) -> None:
        """Something to learn."""
        served.api.add("Wind west, glass rising.")

    def test_follows_to_the_end(self, run: Run, served: Served) -> None:
        served.play(served.run, served.succeed)
        said = run.said("train", "--steps", "40", "--seed", "0")
        [job] = served.api.get("/jobs").json()["data"]
        assert (job["total_steps"], job["seed"]) == (40, 0)
        assert "queued  step 0/40\nrunning  step 20/40" in said
        assert "3.5000 -> 3.2500 (-7.1 %)" in said and job["adapter"] in said

    def test_other_endings_are_errors(self, run: Run, served: Served) -> None:
        def cancel() -> None:
            job_id = served.api.runner.job_id
            assert job_id is not None
            served.api.services.scheduler.cancel(job_id, served.api.clock.now)

        for ending, words in ((served.fail, "Out of memory."), (cancel, "150/300")):
            served.play(served.run, ending)
            result = run("train")
            assert result.exit_code == 1
            assert words in result.stdout
        served.play(served.run, served.fail)
        failed = run("train", "--json")
        assert (failed.exit_code, json.loads(failed.stdout)["state"]) == (1, "failed")

    def test_without_following(self, run: Run, served: Served) -> None:
        said = run("train", "--method", "mezo", "--steps", "9", "--no-follow").stdout
        [job] = served.api.get("/jobs").json()["data"]
        assert f"Watch it with `pocketllm jobs {job['id']}`" in said
        assert served.requests == ["POST /jobs"]
        asked = served.api.get(f"/jobs/{job['id']}").json()
        assert (asked["total_steps"], asked["settings"]["method"]) == (9, "mezo")

    def test_ctrl_c_stops_the_watching_and_not_the_job(self, served: Served) -> None:
        asked = threading.Event()
        served.play(asked.set)
        child = interruptible([sys.executable, "-m", "pocketllm", "train"], served.home)
        try:
            assert asked.wait(WAIT_SECONDS)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=WAIT_SECONDS)
        finally:
            child.kill()
        [job] = served.api.get("/jobs").json()["data"]
        assert child.returncode == 130
        assert f"Stopped watching. Job {job['id']} continues in the daemon." in stderr
        assert f"pocketllm jobs cancel {job['id']}" in stderr
        assert "Traceback" not in stderr
        assert job["state"] == "queued"


def test_follow_survives_a_daemon_that_is_away_for_a_moment() -> None:
    seen: list[str] = []
    away = Client(Target(url="http://127.0.0.1:9", token=None))
    with away, pytest.raises(CommandError, match=r"Job job-1 continues when the daemon runs again"):
        follow(away, JOB, lambda job: seen.append(job["state"]), pause=lambda: None)
    assert len(seen) == FAILED_POLLS_ALLOWED + 1


def test_a_job_that_waits_for_too_long_is_not_followed(served: Served) -> None:
    def heat() -> None:
        served.api.battery.value, served.api.power.value = 5.0, False
        served.api.tick()

    served.api.add("Wind west, glass rising.")
    job = served.api.post("/jobs", json={"steps": 40}).json()
    served.play(served.run, heat)
    states: list[str] = []
    with (
        Client(find_target(None, served.home)) as client,
        pytest.raises(CommandError, match=r"paused for 0 seconds: battery 5 % is below"),
    ):
        follow(client, job, lambda job: states.append(job["state"]), stall_seconds=0, pause=lambda: None)
    assert states == ["queued", "running"]


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
        report("", "Read 6 of 6 files.", 6, 6)
    assert output(log) == ""


def test_the_report_is_of_the_named_job_or_the_newest_that_has_one(run: Run, served: Served) -> None:
    assert "`pocketllm train`" in run.refused("report")
    jobs = [served.learn().replace("adapter-", "job-") for _ in range(2)]
    served.api.clock.advance(1)
    failed = served.api.post("/jobs", json={"steps": 2}).json()["id"]
    served.run()
    served.fail()
    for named, job in ((["report", jobs[0]], jobs[0]), (["report"], jobs[1])):
        said = run.said(*named)
        assert all(part in said for part in (job, "learned", "Wren")) and "\x1b" not in said
        assert run.json(*named) == served.api.get(f"/jobs/{job}/report").json()
    assert f"GET /jobs/{failed}/report" not in served.requests


def test_the_report_of_a_job_without_one(run: Run, served: Served) -> None:
    served.api.add("Wind west.")
    job = served.api.post("/jobs").json()["id"]
    served.run()
    assert "No job has a report yet" in run("report").stderr
    assert "Try again when it has ended" in run("report", job).stderr
    served.fail()
    assert "No job has a report yet" in run("report").stderr
    assert f"Job {job} failed, so there is no report" in run("report", job).stderr
    assert "There is no such route" in run("report", "a/b").stderr


def test_the_report_passes_on_another_refusal(run: Run, served: Served) -> None:
    served.learn()
    served.announce(token="wrong")
    assert "is invalid or has expired" in run("report").stderr
