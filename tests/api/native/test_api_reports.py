"""Reports over HTTP: numbers for anybody, words for the owner alone, and neither before a job has ended."""

from typing import Any

import pytest

from pocketllm.daemon.evaluation.promotion import evaluate
from pocketllm.storage.tables import Report, Step
from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem

VERDICT = evaluate([4.0, 5.0, 3.0], [3.5, 4.5, 2.5], [9, 9, 9]).to_json()
RECALL = {"places": 200, "base": 0.0, "personal": 0.125}
CONTENT: Document = {
    "words": [{"word": "xyzzy", "base": 0.001, "personal": 0.02}],
    "completions": [{"prompt": "plugh", "base": " the", "personal": " xyzzy"}],
    "tokens_per_word": 1.5,
}
CURVE = {
    "held_out": [{"step": 0, "held_out_loss": 4.0}, {"step": 2, "held_out_loss": 4.0}],
    "training": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 3.0}],
}
SECRETS = ("xyzzy", "plugh")


@pytest.fixture
def api(api: InProcessApp) -> InProcessApp:
    api.add("Wind west.")
    return api


def ask(api: InProcessApp) -> str:
    return str(api.post("/jobs", json={"steps": 2, "seed": 7}).json()["id"])


def learn(api: InProcessApp, content: Document | None = CONTENT, **numbers: Any) -> str:
    """A job that has succeeded, with a report."""
    identity = ask(api)
    api.tick()
    store = api.services.store
    for step in (1, 2):
        store.step_log.append(
            Step(job_id=identity, step=step, loss=3.0, seed=7, scalars=[0.5], learning_rate=0.5, tokens=9, seconds=1)
        )
        store.step_log.evaluate(identity, step=2 * step - 2, loss=4.0, block_losses={"one": 4.0}, now=api.clock.now)
    found = {"verdict": VERDICT, "verbatim_recall": RECALL} | numbers
    api.succeed(identity, f"of-{identity}", report=Report(job_id=identity, numbers=found, content=content))
    return identity


def test_the_report_is_everything_and_the_job_shows_the_numbers_alone(api: InProcessApp) -> None:
    identity = learn(api)
    numbers = {"verdict": VERDICT, "verbatim_recall": RECALL}
    response = api.get(f"/jobs/{identity}/report")
    assert response.status_code == 200
    assert response.json() == {"job": identity, "curve": CURVE, **numbers, **CONTENT}
    response = api.get(f"/jobs/{identity}")
    assert (response.json()["report"], response.json()["curve"]) == (numbers, CURVE)
    assert not any(secret in response.text for secret in SECRETS)


def test_numbers_without_a_leak_and_a_report_without_content(api: InProcessApp) -> None:
    identity = learn(api, None, verbatim_recall=None)
    document = api.get(f"/jobs/{identity}/report").json()
    assert (document["verbatim_recall"], document["words"], document["completions"]) == (None, None, None)
    assert document["verdict"] == VERDICT


def test_before_its_end_a_job_has_none_and_one_that_was_cancelled_never_will(api: InProcessApp) -> None:
    identity = ask(api)
    detail = api.get(f"/jobs/{identity}").json()
    assert detail["report"] is None and detail["curve"] == {"held_out": [], "training": []}
    response = api.get(f"/jobs/{identity}/report")
    document = assert_problem(response, 409, "not_yet")
    assert "is queued" in document["detail"] and "Try again" in document["detail"]
    assert response.headers["retry-after"] and "x-should-retry" not in response.headers
    api.post(f"/jobs/{identity}/cancel")
    document = assert_problem(api.get(f"/jobs/{identity}/report"), 409, "wrong_state")
    assert "was cancelled" in document["detail"] and f"GET /jobs/{identity}" in document["detail"]
