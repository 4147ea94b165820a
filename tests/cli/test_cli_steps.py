"""`pocketllm steps`, against a small real server and against the app, and the route it asks."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy
import pytest

from pocketllm.storage.step_log_export import export_step_log, read_export
from pocketllm.storage.tables import Job, JobState, Requester, Step
from tests.support.commands import Run
from tests.support.daemon_double import DaemonDouble
from tests.support.in_process_app import InProcessApp, assert_problem, in_process_app
from tests.support.tiny_models import tiny_model_folder
from tests.support.workers import NOW


def encoded_steps(steps: int) -> bytes:
    """An export whose losses fall from 4 by 1/64 a step."""
    job = Job(
        id="job-1",
        state=JobState.RUNNING,
        requested_by=Requester.OWNER,
        model="tiny",
        seed=7,
        settings={"rank": 2},
        total_steps=300,
        created_at=NOW,
    )
    rows = [
        Step(job_id=job.id, step=n, seed=7, scalars=[0.5], loss=4 - n / 64, learning_rate=0.5, tokens=9, seconds=1.0)
        for n in range(1, steps + 1)
    ]
    return export_step_log(job, rows)


@pytest.mark.parametrize("scalar", [0.1, 1e-30, -3.4028234663852886e38, 1 / 3])
def test_every_bit_of_a_scalar_comes_back(scalar: float) -> None:
    exact = float(numpy.float32(scalar))
    data = encoded_steps(1).replace(b"[0.5]", f"[{json.dumps(exact)}]".encode())
    assert numpy.float32(read_export(data).rows[0].scalars[0]).tobytes() == numpy.float32(scalar).tobytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"seed": 7, "probes"', b'"probes"'),
        lambda data: data.replace(b'"seed": 7, "probes"', b'"seed": 8, "probes"'),
        lambda data: data.replace(b'"probes": 1', b'"probes": 2'),
        lambda data: data[: data.rindex(b"{")],
        lambda data: data[:-9],
        lambda data: data.replace(b"[0.5]", b"[NaN]", 1),
        lambda data: data.replace(b"[0.5]", b"[]", 1),
        lambda data: data.replace(b'"step": 2', b'"step": 3'),
        lambda data: data + b'{"more": 1}\n',
    ],
)
def test_a_file_that_is_damaged_is_said_to_be(spoil: Callable[[bytes], bytes]) -> None:
    assert len(read_export(encoded_steps(3)).rows) == 3
    with pytest.raises(ValueError, match="xport"):
        read_export(spoil(encoded_steps(3)))


class TestCommand:
    def test_json(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        double.steps = encoded_steps(3)
        target = str(tmp_path / "x.steps")
        document = json.loads(run("steps", "job-1", target, "--json").stdout)
        assert document == {"job": "job-1", "steps": 3, "bytes": len(double.steps), "file": target}
        assert ("GET", "/jobs/job-1/steps", None) in double.requests

    def test_it_writes_the_file(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        double.steps = encoded_steps(100)
        target = tmp_path / "out" / "x.steps"
        target.parent.mkdir()
        result = run("steps", "job-1", str(target))
        assert result.stdout == f"Wrote {target}: 100 steps in {len(double.steps):,} bytes.\n"
        assert target.read_bytes() == double.steps
        assert list(target.parent.iterdir()) == [target]

    def test_a_file_that_is_there_is_replaced_by_force_only(
        self, run: Run, double: DaemonDouble, tmp_path: Path
    ) -> None:
        double.steps = encoded_steps(2)
        target = tmp_path / "x.steps"
        target.write_text("mine")
        result = run("steps", "job-1", str(target))
        assert result.exit_code == 1 and "--force" in result.stderr
        assert target.read_text() == "mine" and double.requests == []
        assert run("steps", "job-1", str(target), "--force").exit_code == 0
        assert target.read_bytes() == double.steps

    def test_places_where_no_file_can_be(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        assert "is a folder" in run("steps", "job-1", str(tmp_path), "--force").stderr
        assert "There is no folder" in run("steps", "job-1", str(tmp_path / "no" / "x")).stderr
        assert double.requests == []

    def test_a_job_that_is_not_there(self, run: Run, tmp_path: Path) -> None:
        result = run("steps", "a/b", str(tmp_path / "x"))
        assert result.exit_code == 1 and "There is no /jobs/a%2Fb/steps" in result.stderr
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("spoiled", [b"foreign", encoded_steps(3)[:-9]])
    def test_what_cannot_be_read_is_not_written(
        self, run: Run, double: DaemonDouble, tmp_path: Path, spoiled: bytes
    ) -> None:
        double.steps = spoiled
        result = run("steps", "job-1", str(tmp_path / "x"))
        assert result.exit_code == 1 and "The daemon's steps of job-1 cannot be read" in result.stderr
        assert not (tmp_path / "x").exists()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    tiny_model_folder(tmp_path / "data" / "models")
    with in_process_app(tmp_path / "data") as made:
        yield made


class TestRoute:
    def test_the_steps_made_so_far(self, api: InProcessApp) -> None:
        api.add("Wind west, glass rising.")
        identity = api.post("/jobs", json={"steps": 5, "seed": 7}).json()["id"]
        path = f"/jobs/{identity}/steps"
        assert "has not finished a step yet" in assert_problem(api.get(path), 409, "not_yet")["detail"]
        api.tick()
        step_log = api.services.store.step_log
        for number in (1, 2):
            step_log.append(
                Step(
                    job_id=identity,
                    step=number,
                    seed=7,
                    scalars=[0.5],
                    loss=3.0,
                    learning_rate=0.5,
                    tokens=9,
                    seconds=1,
                )
            )
        response = api.get(path)
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["content-disposition"] == f'attachment; filename="{identity}.steps"'
        found = read_export(response.content)
        assert (found.header["job"], found.header["total_steps"], len(found.rows)) == (identity, 5, 2)

        api.post(f"/jobs/{identity}/cancel")
        assert api.get(path).content == response.content

    def test_it_needs_the_token_and_a_job(self, api: InProcessApp) -> None:
        assert_problem(api.get("/jobs/job-none/steps", token=None), 401, "missing_token")
        assert "'job-none'" in assert_problem(api.get("/jobs/job-none/steps"), 404, "not_found")["detail"]

    @pytest.mark.parametrize(
        ("model", "started", "known"),
        [
            ("tiny", datetime(2100, 1, 1, tzinfo=UTC), True),
            ("tiny", datetime(2000, 1, 1, tzinfo=UTC), False),  # so the model was imported again later
            ("gone", datetime(2100, 1, 1, tzinfo=UTC), False),
        ],
    )
    def test_the_base_is_named_when_it_is_the_one_that_was_used(
        self, api: InProcessApp, model: str, started: datetime, known: bool
    ) -> None:
        store = api.services.store
        job = store.jobs.create(
            model=model, seed=7, total_steps=1, settings={}, requested_by=Requester.OWNER, immediate=True, now=NOW
        )
        store.jobs.start(job.id, now=started)
        row = Step(job_id=job.id, step=1, seed=7, scalars=[1], loss=3.0, learning_rate=0.5, tokens=9, seconds=1)
        store.step_log.append(row)
        found = read_export(api.get(f"/jobs/{job.id}/steps").content).header["base_sha256"]
        assert (found is not None) is known

    def test_what_a_worker_settled_on_is_shown(self, api: InProcessApp) -> None:
        api.add("Wind west, glass rising.")
        identity = api.post("/jobs").json()["id"]
        assert api.get(f"/jobs/{identity}").json()["plan"] is None
        api.services.store.jobs.set_plan(identity, {"method": "mezo", "batch": 2}, predicted_bytes=5)
        detail = api.get(f"/jobs/{identity}").json()
        assert (detail["plan"]["batch"], detail["predicted_bytes"], detail["mode"]) == (2, 5, "lora")
        assert api.get("/jobs").json()["data"][0]["predicted_bytes"] == 5
