"""A job's steps, as the route gives them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.storage.tables import Step
from tests.support.in_process_app import InProcessApp, assert_problem, in_process_app
from tests.support.tiny_models import tiny_model_folder


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    tiny_model_folder(tmp_path / "data" / "models")
    with in_process_app(tmp_path / "data") as made:
        yield made


def test_the_steps_made_so_far(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    identity = api.post("/jobs", json={"steps": 5, "seed": 7}).json()["id"]
    path = f"/jobs/{identity}/steps"
    assert "has not finished a step yet" in assert_problem(api.get(path), 409, "not_yet")["detail"]
    api.tick()
    for number in (1, 2):
        row = Step(job_id=identity, step=number, seed=7, scalars=[0.5], loss=3, learning_rate=0.5, tokens=9, seconds=1)
        api.services.store.step_log.append(row)
    response = api.get(path)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["content-disposition"] == f'attachment; filename="{identity}.steps"'
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [(line["step"], line["scalars"]) for line in lines if "step" in line] == [(1, [0.5]), (2, [0.5])]
    api.post(f"/jobs/{identity}/cancel")
    assert api.get(path).content == response.content


def test_it_needs_the_token_and_a_job(api: InProcessApp) -> None:
    assert_problem(api.get("/jobs/job-none/steps", token=None), 401, "missing_token")
    assert "'job-none'" in assert_problem(api.get("/jobs/job-none/steps"), 404, "not_found")["detail"]


def test_what_a_worker_settled_on_is_shown(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    identity = api.post("/jobs").json()["id"]
    assert api.get(f"/jobs/{identity}").json()["plan"] is None
    api.services.store.jobs.set_plan(identity, {"method": "mezo", "batch": 2}, predicted_bytes=5)
    detail = api.get(f"/jobs/{identity}").json()
    assert (detail["plan"]["batch"], detail["predicted_bytes"], detail["mode"]) == (2, 5, "lora")
    assert api.get("/jobs").json()["data"][0]["predicted_bytes"] == 5
