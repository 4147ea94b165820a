"""Jobs over HTTP: asked for, once for each Idempotency-Key, listed, explained while they wait, withdrawn."""

import re
from typing import Any

import pytest

from pocketllm.storage.tables import Step
from tests.support.daemon.in_process_app import TOKEN, Document, InProcessApp, assert_problem

KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


@pytest.fixture
def settings() -> Document:
    return {"training": {"steps": 30}}


@pytest.fixture
def api(api: InProcessApp) -> InProcessApp:
    """With one text of four words."""
    api.add("Wind west, glass rising.")
    return api


def step(api: InProcessApp, identity: str, number: int, **measured: Any) -> None:
    """Let the job make a step of 100 tokens."""
    of_mezo: Document = {"seed": 1, "scalars": [0.5], "learning_rate": 1e-3}
    api.services.store.step_log.append(Step(job_id=identity, step=number, tokens=100, **of_mezo, **measured))


def test_a_request_is_answered_with_the_queued_job(api: InProcessApp) -> None:
    response = api.post("/jobs", json={"steps": 50, "seed": 7})
    assert response.status_code == 202
    document = response.json()
    assert re.fullmatch(r"job-[0-9a-f]{12}", document["id"])
    assert response.headers["location"] == f"/jobs/{document['id']}"
    assert {name: value for name, value in document.items() if value} == {
        "id": document["id"],
        "state": "queued",
        "total_steps": 50,
        "predicted_bytes": document["predicted_bytes"],
        "model": "tiny",
        "method": "mezo",
        "mode": "lora",
        "seed": 7,
        "requested_by": "owner",
        "created_at": "2026-03-01T12:00:00Z",
    }
    detail = api.get(response.headers["location"]).json()
    assert {key: detail[key] for key in document} == document


def test_everything_is_optional(api: InProcessApp) -> None:
    json_header = {"content-type": "application/json; charset=utf-8"}
    bodies: list[Document] = [{}, {"json": {"steps": None, "seed": None}}]
    bodies += [{"content": content, "headers": json_header} for content in (b"", b"{}", b"null")]
    for body in bodies:
        response = api.post("/jobs", **body)
        assert response.status_code == 202, response.text
        document = response.json()
        assert document["total_steps"] == 30
        assert 0 <= document["seed"] < 2**31


def test_without_a_model_there_is_nothing_to_teach(bare: InProcessApp) -> None:
    bare.add("Wind west.")
    response = bare.post("/jobs")
    document = assert_problem(response, 503, "model_not_ready")
    assert "'tiny'" in document["detail"] and "`pocketllm models add`" in document["detail"]
    assert int(response.headers["retry-after"]) > 0
    assert bare.get("/jobs").json()["data"] == []


def test_a_job_shows_its_settings_and_what_happened_to_it(api: InProcessApp) -> None:
    identity = api.ask("POST", "/jobs", json={"steps": 5})["id"]
    api.tick(3)
    detail = api.ask("GET", f"/jobs/{identity}")
    assert detail["state"] == "running"
    assert detail["settings"] == api.services.settings.training.model_dump(mode="json") | {"steps": 5}
    assert detail["events"] == [
        {"at": "2026-03-01T12:00:00Z", "kind": "queued", "message": "queued by owner"},
        {"at": "2026-03-01T12:00:03Z", "kind": "started", "message": "a worker has started"},
        {"at": "2026-03-01T12:00:03Z", "kind": "compared with", "message": "the base model"},
    ]
    assert (detail["texts"], detail["words"]) == (1, 4)
    assert detail["started_at"] == "2026-03-01T12:00:03Z"


def test_what_a_worker_settled_on_is_shown(api: InProcessApp) -> None:
    identity = api.ask("POST", "/jobs")["id"]
    assert api.ask("GET", f"/jobs/{identity}")["plan"] is None
    api.services.store.jobs.update(identity, plan={"method": "mezo", "batch": 2}, predicted_bytes=5)
    detail = api.ask("GET", f"/jobs/{identity}")
    assert (detail["plan"]["batch"], detail["predicted_bytes"], detail["mode"]) == (2, 5, "lora")
    assert api.get("/jobs").json()["data"][0]["predicted_bytes"] == 5


def test_progress_is_read_off_the_step_log(api: InProcessApp) -> None:
    identity = api.ask("POST", "/jobs", json={"steps": 10})["id"]
    api.tick()
    for number, loss in ((1, 3.0), (2, 2.0)):
        step(api, identity, number, loss=loss, seconds=2.0)
    api.services.store.step_log.evaluate(
        identity, step=0, loss=3.5, block_losses={"one": 4.0, "other": 2.0}, now=api.clock.now
    )
    [listed] = api.get("/jobs").json()["data"]
    progress = {"step": 2, "loss": 2.5, "tokens_per_second": 50.0, "eta_seconds": 16.0, "held_out_loss_now": 3.5}
    assert {key: listed[key] for key in progress} == progress
    assert listed["held_out_loss_before"] == 3.5


def test_a_paused_job_says_what_is_left_of_it_in_nights_like_the_last_ones(api: InProcessApp) -> None:
    api.tick()
    api.tick(5 * 3600)  # nobody asked for anything: the gate was open
    identity = api.ask("POST", "/jobs", json={"steps": 10, "now": False})["id"]
    api.tick(60)
    step(api, identity, 1, loss=3.0, seconds=3600.0)
    running = api.ask("GET", f"/jobs/{identity}")
    assert (running["eta_seconds"], running["eta_nights"]) == (32400, None)
    api.power.value = False
    api.tick()
    api.clock.advance(12 * 3600)
    for document in (api.get("/jobs").json()["data"][0], api.get("/status").json()["open_job"]):
        assert (document["state"], document["eta_seconds"], document["eta_nights"]) == ("paused", 32400, 2)
    api.post(f"/jobs/{identity}/cancel")
    assert (api.ask("GET", f"/jobs/{identity}")["eta_seconds"], api.get("/status").json()["open_job"]) == (None, None)


def jobs(api: InProcessApp) -> int:
    return len(api.get("/jobs").json()["data"])


def test_a_job_that_is_asked_for_twice_is_one(api: InProcessApp) -> None:
    first = api.post("/jobs", json={"steps": 3}, headers=KEY)
    api.clock.advance(3600 * 48)
    again = api.post("/jobs", json={"steps": 3}, headers=KEY)
    assert (first.status_code, again.status_code, jobs(api)) == (202, 202, 1)
    assert again.json()["id"] == first.json()["id"] and again.headers["location"] == first.headers["location"]
    assert api.post("/jobs", json={"steps": 3}).status_code == 202 and jobs(api) == 2, "without a key it is another"
    assert api.post("/jobs", json={"steps": 3}, headers={"idempotency-key": "next"}).status_code == 202
    assert jobs(api) == 3


def test_every_key_of_a_job_that_is_gone_on_with_is_remembered(api: InProcessApp) -> None:
    first, second = ({"idempotency-key": key} for key in ("first", "second"))
    job = api.post("/jobs", json={"now": False}, headers=first).json()["id"]
    for headers in (second, second, first):
        assert api.post("/jobs", json={}, headers=headers).json()["id"] == job
    hastened = [event for event in api.get(f"/jobs/{job}").json()["events"] if event["kind"] == "hastened"]
    assert len(hastened) == 1
    api.post(f"/jobs/{job}/pause")
    api.post("/jobs", json={}, headers=second)
    assert api.get(f"/jobs/{job}").json()["paused_by_owner"], "a request that is sent again does not resume it"
    api.post(f"/jobs/{job}/cancel")
    for headers in (first, second):
        again = api.post("/jobs", json={}, headers=headers).json()
        assert (again["id"], again["state"], jobs(api)) == (job, "cancelled", 1)


def test_each_callers_keys_are_its_own(api: InProcessApp) -> None:
    for sent in (TOKEN, api.app_token("app", "admin")):
        assert api.post("/jobs", json={"steps": 3}, headers=KEY, token=sent).status_code == 202
    assert jobs(api) == 2
