"""`pocketllm report`, against the real application."""

from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served


def test_a_job_that_is_named_or_the_newest_that_has_a_report(run: Run, served: Served) -> None:
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


def test_a_job_without_a_report(run: Run, served: Served) -> None:
    served.api.add("Wind west.")
    job = served.api.post("/jobs").json()["id"]
    served.run()
    assert "No job has a report yet" in run("report").stderr
    assert "Try again when it has ended" in run("report", job).stderr
    served.fail()
    assert "No job has a report yet" in run("report").stderr
    assert f"Job {job} failed, so there is no report" in run("report", job).stderr
    assert "There is no such route" in run("report", "a/b").stderr


def test_another_refusal_is_told(run: Run, served: Served) -> None:
    served.learn()
    served.announce(token="wrong")
    assert "is invalid or has expired" in run("report").stderr
