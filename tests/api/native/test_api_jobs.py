"""Jobs over HTTP: asked for, listed, explained while they wait, withdrawn."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketllm.storage.tables import Adapter, Outcome, Step
from tests.support.in_process_app import Document, InProcessApp, assert_problem, in_process_app
from tests.support.tiny_models import tiny_model_folder
from tests.support.workers import write_adapter_files

WORDS_WANTED = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one model, `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model_folder(folder)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[InProcessApp]:
    """No model, no text."""
    with in_process_app(tmp_path / "data", training={"new_words": WORDS_WANTED, "steps": 30}) as made:
        yield made


@pytest.fixture
def api(bare: InProcessApp, models: Path) -> InProcessApp:
    """A model, and one text of four words."""
    bare.services.folder.models.symlink_to(models)
    bare.add("Wind west, glass rising.")
    return bare


def ask(api: InProcessApp, **requested: Any) -> Document:
    response = api.post("/jobs", json=requested)
    assert response.status_code == 202, response.text
    job: Document = response.json()
    return job


def job(api: InProcessApp, identity: str) -> Document:
    """The job as anybody sees it."""
    document: Document = api.get(f"/jobs/{identity}").json()
    return document


def kinds(document: Document) -> list[str]:
    return [event["kind"] for event in document["events"]]


def test_a_request_is_answered_with_the_queued_job(api: InProcessApp) -> None:
    response = api.post("/jobs", json={"steps": 50, "seed": 7})
    assert response.status_code == 202
    document = response.json()
    assert re.fullmatch(r"job-[0-9a-f]{12}", document["id"])
    assert response.headers["location"] == f"/jobs/{document['id']}"
    assert document == {
        "id": document["id"],
        "state": "queued",
        "reasons": [],
        "paused_by_owner": False,
        "step": 0,
        "total_steps": 50,
        "loss": None,
        "held_out_loss_before": None,
        "held_out_loss_now": None,
        "outcome": None,
        "tokens_per_second": None,
        "eta_seconds": None,
        "predicted_bytes": document["predicted_bytes"],
        "peak_memory_bytes": None,
        "model": "tiny",
        "method": "mezo",
        "mode": "lora",
        "seed": 7,
        "texts": None,
        "words": None,
        "requested_by": "owner",
        "adapter": None,
        "attempts": 0,
        "error": None,
        "created_at": "2026-03-01T12:00:00Z",
        "started_at": None,
        "finished_at": None,
    }
    detail = api.get(response.headers["location"]).json()
    assert {key: detail[key] for key in document} == document


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"content": b"", "headers": {"content-type": "application/json"}},
        {"content": b"{}", "headers": {"content-type": "application/json; charset=utf-8"}},
        {"content": b"null", "headers": {"content-type": "application/json"}},
        {"json": {"steps": None, "seed": None}},
    ],
    ids=["no body", "an empty body", "an empty object", "null", "nulls"],
)
def test_everything_is_optional(api: InProcessApp, body: dict[str, Any]) -> None:
    response = api.post("/jobs", **body)
    assert response.status_code == 202, response.text
    document = response.json()
    assert document["total_steps"] == 30
    assert 0 <= document["seed"] < 2**31


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize(("steps", "seed"), [(1, 0), (1_000_000, 2**53 - 1)])
def test_the_limits_themselves_are_allowed(api: InProcessApp, steps: int, seed: int, now: bool) -> None:
    document = ask(api, steps=steps, seed=seed, now=now)
    assert (document["total_steps"], document["seed"]) == (steps, seed)
    assert job(api, document["id"])["seed"] == seed


@pytest.mark.parametrize(
    ("requested", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": -1}, "steps"),
        ({"steps": 1_000_001}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"steps": [1]}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"seed": 10**300}, "seed"),
        ({"now": "perhaps"}, "now"),
        ({"now": None}, "now"),
        ({"step": 5}, "step"),
        ({"model": "other"}, "model"),
        ([], None),
        ("now", None),
        (5, None),
    ],
)
def test_a_faulty_wish(api: InProcessApp, requested: Any, param: str | None) -> None:
    document = assert_problem(api.post("/jobs", json=requested), 422, "invalid_value")
    assert document["error"]["param"] == param
    assert document["detail"].startswith(f"{param or 'body'}: ")
    assert api.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"steps": ', 422, "invalid_value"),
        (b'{"steps": \xff}', 422, "invalid_value"),
        (b'{"\\ud800": 1}', 422, "invalid_value"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 422, "invalid_value"),
        (b"[" * 100_000, 422, "invalid_value"),
    ],
    ids=["half an object", "not UTF-8", "half of a surrogate pair", "a number without end", "deep"],
)
def test_a_body_that_cannot_be_read(api: InProcessApp, content: bytes, status: int, code: str) -> None:
    response = api.post("/jobs", content=content, headers={"content-type": "application/json"})
    assert assert_problem(response, status, code)["error"]["param"] is None
    assert api.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_only_json_is_taken(api: InProcessApp, kind: str) -> None:
    for content in (b'{"steps": 5}', b""):
        response = api.post("/jobs", content=content, headers={"content-type": kind})
        document = assert_problem(response, 415, "unsupported_media_type")
        assert kind.partition(";")[0] in document["detail"] and "application/json" in document["detail"]
    document = assert_problem(api.post("/jobs", content=b'{"steps": 5}'), 415, "unsupported_media_type")
    assert "missing" in document["detail"]
    assert api.get("/jobs").json()["data"] == []


def test_without_text_there_is_nothing_to_learn(bare: InProcessApp, models: Path) -> None:
    bare.services.folder.models.symlink_to(models)
    document = assert_problem(bare.post("/jobs"), 409, "nothing_to_learn")
    assert "POST /texts" in document["detail"]
    assert bare.get("/jobs").json()["data"] == []


def test_without_a_model_there_is_nothing_to_teach(bare: InProcessApp) -> None:
    bare.add("Wind west.")
    response = bare.post("/jobs")
    document = assert_problem(response, 503, "model_not_ready")
    assert "'tiny'" in document["detail"] and "`pocketllm models add`" in document["detail"]
    assert int(response.headers["retry-after"]) > 0
    assert bare.get("/jobs").json()["data"] == []


def test_the_empty_list(bare: InProcessApp) -> None:
    assert bare.get("/jobs").text == '{\n  "data": [],\n  "has_more": false,\n  "next": null\n}\n'


def test_the_list_is_pretty_and_ends_with_a_newline(api: InProcessApp) -> None:
    ask(api, steps=5)
    text = api.get("/jobs").text
    assert text.startswith('{\n  "data": [\n    {\n      "id": "job-')
    assert text.endswith("\n}\n")


def page(api: InProcessApp, **query: Any) -> tuple[list[int], str | None]:
    """The seeds of a page's jobs, and its `next`."""
    answer = api.get("/jobs", params=query).json()
    assert answer["has_more"] is (answer["next"] is not None)
    return [item["seed"] for item in answer["data"]], answer["next"]


def test_paging_newest_first(api: InProcessApp) -> None:
    for seed in range(5):
        ask(api, seed=seed)
        api.clock.advance(1)
    assert page(api) == ([4, 3, 2, 1, 0], None)
    first, after = page(api, limit=2)
    second, then = page(api, limit=2, after=after)
    third, end = page(api, limit=2, after=then)
    assert (first, second, third, end) == ([4, 3], [2, 1], [0], None)
    assert page(api, limit=5)[1] is None


@pytest.mark.parametrize("limit", ["0", "201", "x"])
def test_a_limit_out_of_range(api: InProcessApp, limit: str) -> None:
    document = assert_problem(api.get("/jobs", params={"limit": limit}), 422, "invalid_value")
    assert document["error"]["param"] == "limit"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/jobs/job-none"), ("POST", "/jobs/job-none/cancel"), ("GET", "/jobs?after=job-none")]
)
def test_an_unknown_id(api: InProcessApp, method: str, path: str) -> None:
    ask(api)
    document = assert_problem(api.request(method, path), 404, "not_found")
    assert "'job-none'" in document["detail"] and "GET /jobs" in document["detail"]


def test_a_job_shows_its_settings_and_what_happened_to_it(api: InProcessApp) -> None:
    identity = ask(api, steps=5)["id"]
    api.tick(3)
    detail = job(api, identity)
    assert detail["state"] == "running"
    assert detail["settings"] == api.services.settings.training.model_dump(mode="json")
    assert detail["events"] == [
        {"at": "2026-03-01T12:00:00Z", "kind": "queued", "message": "queued by owner"},
        {"at": "2026-03-01T12:00:03Z", "kind": "started", "message": "a worker has started"},
        {"at": "2026-03-01T12:00:03Z", "kind": "compared with", "message": "the base model"},
    ]
    assert (detail["texts"], detail["words"]) == (1, 4)
    assert detail["started_at"] == "2026-03-01T12:00:03Z"


def test_progress_is_read_off_the_step_log(api: InProcessApp) -> None:
    identity = ask(api, steps=10)["id"]
    api.tick()
    step_log = api.services.store.step_log
    for step, loss in ((1, 3.0), (2, 2.0)):
        row = Step(
            job_id=identity, step=step, loss=loss, seed=1, scalars=[0.5], learning_rate=1e-3, tokens=100, seconds=2.0
        )
        step_log.append(row)
    step_log.evaluate(identity, step=0, block_losses={"one": 4.0, "other": 2.0}, weights=[3, 1], now=api.clock.now)
    [listed] = api.get("/jobs").json()["data"]
    progress = {"step": 2, "loss": 2.5, "tokens_per_second": 50.0, "eta_seconds": 16.0, "held_out_loss_now": 3.5}
    assert {key: listed[key] for key in progress} == progress
    assert listed["held_out_loss_before"] == 3.5


def test_a_queued_job_can_be_withdrawn_once(api: InProcessApp) -> None:
    identity = ask(api)["id"]
    api.clock.advance(60)
    response = api.post(f"/jobs/{identity}/cancel")
    assert response.status_code == 200
    assert response.json()["state"] == "cancelled"
    assert response.json()["finished_at"] == "2026-03-01T12:01:00Z"
    assert kinds(job(api, identity)) == ["queued", "cancelled"]

    document = assert_problem(api.post(f"/jobs/{identity}/cancel"), 409, "wrong_state")
    assert "is cancelled" in document["detail"]
    api.tick()
    assert api.runner.started == []


def test_a_running_job_is_withdrawn_with_its_worker(api: InProcessApp) -> None:
    identity = ask(api)["id"]
    api.tick()
    assert api.runner.job_id == identity
    assert api.post(f"/jobs/{identity}/cancel").json()["state"] == "cancelled"
    assert api.runner.killed == [identity]
    api.tick()
    assert api.runner.started == [identity]


def test_a_finished_job_cannot_be_withdrawn(api: InProcessApp) -> None:
    identity = ask(api)["id"]
    api.tick()
    adapter = Adapter(id="adapter-1", job_id=identity, model="tiny", outcome=Outcome.LEARNED, created_at=api.clock.now)
    write_adapter_files(api.services.folder.adapter("adapter-1"))
    api.services.store.jobs.succeed(identity, adapter=adapter, publish=True, now=api.clock.now)
    api.runner.ends(0)
    api.tick()
    document = assert_problem(api.post(f"/jobs/{identity}/cancel"), 409, "wrong_state")
    assert "is succeeded" in document["detail"]
    detail = job(api, identity)
    assert (detail["state"], detail["outcome"], detail["adapter"]) == ("succeeded", "learned", "adapter-1")
    assert api.get("/status").json()["model"]["adapter"] == "adapter-1"


@pytest.mark.parametrize(
    ("now", "reasons"),
    [
        (False, ["not on external power", "battery 20 % is below 40 %"]),
        # 'Now' does not wait for the charger, but it does not drain the battery either.
        (True, ["battery 20 % is below 30 %"]),
    ],
)
def test_a_job_that_waits_says_why(api: InProcessApp, now: bool, reasons: list[str]) -> None:
    api.power.value, api.battery.value = False, 20.0
    identity = ask(api, now=now)["id"]
    api.tick()
    document = job(api, identity)
    assert (document["state"], document["reasons"]) == ("queued", reasons)
    assert api.get("/jobs").json()["data"][0]["reasons"] == reasons

    api.power.value, api.battery.value = True, 90.0
    api.tick()
    document = job(api, identity)
    assert (document["state"], document["reasons"]) == ("running", [])


def test_a_job_that_is_interrupted_says_why_and_goes_on(api: InProcessApp) -> None:
    identity = ask(api, now=False)["id"]
    api.tick()
    api.power.value = False
    api.tick()
    document = job(api, identity)
    assert (document["state"], document["reasons"]) == ("paused", ["not on external power"])
    assert api.runner.killed == [identity]

    api.power.value = True
    api.tick()
    assert "paused 2 s ago" in job(api, identity)["reasons"][0]
    api.tick(60)
    document = job(api, identity)
    assert (document["state"], document["reasons"]) == ("running", [])
    assert kinds(document) == ["queued", "started", "compared with", "paused", "resumed"]


def test_a_crash_is_told_and_tried_again(api: InProcessApp) -> None:
    identity = ask(api)["id"]
    api.tick()
    api.runner.ends(1, "MemoryError")
    api.tick()
    assert ((document := job(api, identity))["state"], document["attempts"]) == ("paused", 1)
    assert document["reasons"][0].startswith("the worker exited with code 1: MemoryError; next try at 12:00:")
    assert api.get("/status").json()["training"]["blockers"][0]["until"] == "2026-03-01T12:00:19Z"
    for _ in range(3):
        api.tick(600)
        api.runner.ends(1, "MemoryError")
        api.tick()
    document = job(api, identity)
    assert document["state"] == "failed"
    assert "MemoryError; gave up after 4 crashes" in document["error"]
    assert_problem(api.post(f"/jobs/{identity}/cancel"), 409, "wrong_state")


def test_enough_new_words_queue_a_job(api: InProcessApp) -> None:
    api.add(" ".join(["word"] * (WORDS_WANTED - 5)))
    api.tick()
    assert api.get("/jobs").json()["data"] == []

    api.add("enough")
    api.tick()
    [document] = api.get("/jobs").json()["data"]
    assert (document["requested_by"], document["state"]) == ("threshold", "running")
    assert (document["texts"], document["words"]) == (3, WORDS_WANTED)
    assert kinds(job(api, document["id"])) == ["queued", "started", "compared with"]

    for _ in range(3):
        api.tick()
    assert len(api.get("/jobs").json()["data"]) == 1


def test_a_job_of_the_threshold_waits_for_the_charger(api: InProcessApp) -> None:
    api.power.value = False
    api.add(" ".join(["word"] * WORDS_WANTED))
    api.tick()
    [document] = api.get("/jobs").json()["data"]
    assert (document["state"], document["reasons"]) == ("queued", ["not on external power"])


def test_jobs_hold_nothing_of_the_texts(api: InProcessApp) -> None:
    api.add("xyzzy is my secret")
    identity = ask(api)["id"]
    api.tick()
    for path in ("/jobs", f"/jobs/{identity}", "/status"):
        assert "xyzzy" not in api.get(path).text
