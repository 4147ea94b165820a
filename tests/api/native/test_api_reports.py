"""Reports over HTTP: numbers for anybody, words for the owner alone, and neither before a job has ended."""

from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.evaluation.promotion import evaluate
from pocketllm.storage.tables import Report, Step
from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem
from tests.support.daemon.real_daemon import eventually, running
from tests.support.models.tiny_models import tiny_model_folder

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


def test_the_owner_sees_everything(api: InProcessApp) -> None:
    identity = learn(api)
    response = api.get(f"/jobs/{identity}/report")
    assert response.status_code == 200
    assert response.json() == {
        "job": identity,
        "verdict": VERDICT,
        "verbatim_recall": RECALL,
        "curve": CURVE,
        **CONTENT,
    }


def test_anybody_sees_the_numbers_alone(api: InProcessApp) -> None:
    identity = learn(api)
    response = api.get(f"/jobs/{identity}")
    assert response.json()["report"] == {"verdict": VERDICT, "verbatim_recall": RECALL}
    assert response.json()["curve"] == CURVE
    assert not any(secret in response.text for secret in SECRETS)


def test_numbers_without_a_leak_and_a_report_without_content(api: InProcessApp) -> None:
    identity = learn(api, None, verbatim_recall=None)
    document = api.get(f"/jobs/{identity}/report").json()
    assert (document["verbatim_recall"], document["words"], document["completions"]) == (None, None, None)
    assert document["verdict"] == VERDICT


def test_deleting_a_text_takes_the_words_from_the_report(api: InProcessApp) -> None:
    identity = learn(api)
    [text] = [one["id"] for one in api.get("/texts").json()["data"]]
    assert api.delete(f"/texts/{text}").status_code == 200
    document = api.get(f"/jobs/{identity}/report").json()
    assert (document["words"], document["completions"]) == (None, None)
    assert (document["verdict"], document["curve"]) == (VERDICT, CURVE)
    for file in api.services.folder.root.iterdir():
        if file.is_file():
            assert not any(secret.encode() in file.read_bytes() for secret in SECRETS)


def test_before_its_end_a_job_has_none(api: InProcessApp) -> None:
    identity = ask(api)
    detail = api.get(f"/jobs/{identity}").json()
    assert detail["report"] is None and detail["curve"] == {"held_out": [], "training": []}
    response = api.get(f"/jobs/{identity}/report")
    document = assert_problem(response, 409, "not_yet")
    assert "is queued" in document["detail"] and "Try again" in document["detail"]
    assert response.headers["retry-after"] and "x-should-retry" not in response.headers


def test_a_job_that_was_cancelled_will_never_have_one(api: InProcessApp) -> None:
    cancelled = ask(api)
    api.post(f"/jobs/{cancelled}/cancel")
    document = assert_problem(api.get(f"/jobs/{cancelled}/report"), 409, "wrong_state")
    assert "was cancelled" in document["detail"] and f"GET /jobs/{cancelled}" in document["detail"]


@pytest.mark.slow
def test_what_a_real_job_learned_is_for_the_owner_alone(tmp_path: Path) -> None:
    """The daemon, its worker, and texts that each hold a marker: only the closed route may repeat it."""
    tiny_model_folder(tmp_path / "models", dtype="float32")
    settings = {
        "MODEL": "tiny",
        "TRAINING__STEPS": "24",
        "TRAINING__METHOD": "exact",
        "TRAINING__BLOCK_TOKENS": "64",
        "TRAINING__MEASURE_EVERY": "8",
    }
    with running(tmp_path, **settings) as daemon:
        # Of the byte tokenizer a character is a token, so that each prompt has the marker.
        texts = [{"text": f"xyzzy {number}: wind west, glass rising.", "source": "notes"} for number in range(80)]
        daemon.client.post("/texts", json=texts)
        identity = daemon.start_job()
        daemon.wait_for_job(identity, "succeeded")
        for client, path in (
            (daemon.stranger, "/jobs"),
            (daemon.client, f"/jobs/{identity}"),
            (daemon.client, "/status"),
        ):
            response = client.get(path)
            assert response.status_code == 200 and "xyzzy" not in response.text
        assert "xyzzy" not in daemon.log + (tmp_path / "worker.log").read_text()
        assert daemon.stranger.get(f"/jobs/{identity}/report").status_code == 401
        path = f"/jobs/{identity}/report"
        eventually(lambda: daemon.status()["worker"]["job"] is None, "the end of the worker, which makes the report")
        report = daemon.client.get(path).json()
        assert report["verdict"] == daemon.job(identity)["report"]["verdict"]
        assert report["words"] and report["completions"]
        assert all(one["prompt"].startswith("xyzzy ") for one in report["completions"])

        known = daemon.client.get("/texts").json()["data"]
        daemon.client.delete(f"/texts/{known[0]['id']}")
        assert daemon.client.get(path).json()["completions"] is None
