"""What is sent again: a job is made once for each Idempotency-Key."""

import pytest

from tests.support.daemon.in_process_app import TOKEN, InProcessApp

KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


@pytest.fixture
def api(api: InProcessApp) -> InProcessApp:
    api.add("word " * 50)
    return api


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
