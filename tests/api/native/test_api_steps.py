"""A job's steps as JSON lines, and the plan that its worker settled on."""

import json
from typing import Any

import numpy

from pocketllm.storage.tables import Step
from tests.support.daemon.in_process_app import InProcessApp, assert_problem

SCALARS = [0.1, 1e-30, -3.4028234663852886e38, 1 / 3]


def test_the_steps_made_so_far(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    identity = api.post("/jobs", json={"steps": 5, "seed": 7}).json()["id"]
    path = f"/jobs/{identity}/steps"
    assert "has not finished a step yet" in assert_problem(api.get(path), 409, "not_yet")["detail"]
    api.tick()
    row: dict[str, Any] = {"seed": 7, "scalars": [0.5], "loss": 3.0, "learning_rate": 0.5, "tokens": 9, "seconds": 1.0}
    for number in (1, 2):
        api.services.store.step_log.append(Step(job_id=identity, step=number, **row))
    response = api.get(path)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["content-disposition"] == f'attachment; filename="{identity}.steps"'
    assert [json.loads(line) for line in response.text.splitlines()] == [{"step": 1, **row}, {"step": 2, **row}]

    api.post(f"/jobs/{identity}/cancel")
    assert api.get(path).content == response.content


def test_every_bit_of_a_scalar_comes_back(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    identity = api.post("/jobs").json()["id"]
    api.tick()
    exact = [float(numpy.float32(scalar)) for scalar in SCALARS]
    row = Step(job_id=identity, step=1, seed=7, scalars=exact, loss=3.0, learning_rate=0.5, tokens=9, seconds=1)
    api.services.store.step_log.append(row)
    found = json.loads(api.get(f"/jobs/{identity}/steps").text)["scalars"]
    assert [float(numpy.float32(scalar)) for scalar in found] == exact


def test_what_a_worker_settled_on_is_shown(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    identity = api.post("/jobs").json()["id"]
    assert api.get(f"/jobs/{identity}").json()["plan"] is None
    api.services.store.jobs.update(identity, plan={"method": "mezo", "batch": 2}, predicted_bytes=5)
    detail = api.get(f"/jobs/{identity}").json()
    assert (detail["plan"]["batch"], detail["predicted_bytes"], detail["mode"]) == (2, 5, "lora")
    assert api.get("/jobs").json()["data"][0]["predicted_bytes"] == 5
