"""What the daemon says of itself: health, status and models."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from pocketllm import __version__
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import CANDIDATE, Deletion, Outcome, Report
from tests.support.daemon.daemon_documents import STATUS
from tests.support.daemon.in_process_app import InProcessApp, assert_problem
from tests.support.models.tiny_models import edit_json, tiny_model_folder


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where config.toml is; there is none."""
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


def test_health(api: InProcessApp) -> None:
    response = api.get("/health", token=None)
    assert response.json() == {"status": "ok", "version": __version__, "pid": os.getpid()}
    assert response.text.endswith("\n}\n")


def test_the_status_of_a_daemon_at_rest(api: InProcessApp) -> None:
    api.tick(90)
    now = "2026-03-01T12:01:30Z"
    assert api.ask("GET", "/status") == {
        "version": __version__,
        "uptime_seconds": 90.0,
        "model": {
            "name": "tiny",
            "ready": True,
            "message": None,
            "adapter": None,
            "withdrawn": None,
            "candidate": None,
        },
        "training": {
            "allowed": True,
            "blockers": [],
            "run_mode": "auto",
            "snoozed_until": None,
            "expected_at": now,
            "last_night": "no job ran, and none was held back",
        },
        "readings": [
            {"name": name, "value": value, "unit": unit, "source": "test", "at": now, "reason": None, "absent": False}
            for name, value, unit in (("power", True, None), ("battery", 80.0, "%"), ("memory", 4e9, "bytes"))
        ],
        "worker": STATUS["worker"],
        "generator": STATUS["generator"] | {"backend_reason": "tiny was not imported from a GGUF file"},
        "texts": {"count": 0, "new_words": 0, "threshold_words": 1000, "waited_threshold_words": 400},
        "jobs": dict.fromkeys(("queued", "running", "paused", "succeeded", "failed", "cancelled"), 0),
        "open_job": None,
    }


def test_a_model_that_is_missing_or_broken_keeps_everything_waiting(api: InProcessApp) -> None:
    folder = api.services.folder.models / "tiny"
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    api.tick()
    model = api.ask("GET", "/status")["model"]
    assert not model["ready"]
    assert "model.safetensors" in model["message"] and "Import the model again" in model["message"]
    assert api.get("/models").json() == {"data": []}
    shutil.rmtree(folder)
    api.tick()
    document = api.ask("GET", "/status")
    assert not document["model"]["ready"] and "`pocketllm models add`" in document["model"]["message"]
    assert not document["training"]["allowed"] and document["training"]["blockers"][0]["name"] == "model"


def test_counts_and_the_worker(api: InProcessApp) -> None:
    api.add("one two three", "four five")
    first, second = (api.post("/jobs", json={"seed": seed}).json()["id"] for seed in range(2))
    api.post(f"/jobs/{second}/cancel")
    api.tick()
    document = api.ask("GET", "/status")
    assert document["texts"] == {"count": 2, "new_words": 5, "threshold_words": 1000, "waited_threshold_words": 400}
    assert document["worker"] == {"running": True, "pid": api.runner.pid, "job": first}
    assert {state: count for state, count in document["jobs"].items() if count} == {"running": 1, "cancelled": 1}


def test_the_models(api: InProcessApp) -> None:
    tiny_model_folder(api.services.folder.models, name="other", hidden=64)
    (api.services.folder.models / "unfinished").mkdir()
    tiny = api.services.folder.models / "tiny"
    edit_json(tiny / "pocketllm.json", license="apache-2.0", source="somewhere/tiny")
    other, mine = api.get("/models").json()["data"]
    assert mine == {
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "parameters": mine["parameters"],
        "weights_bytes": (tiny / "model.safetensors").stat().st_size,
        "license": "apache-2.0",
        "source": "somewhere/tiny",
        "default": True,
    }
    assert (other["name"], other["default"]) == ("other", False)
    assert other["parameters"] > mine["parameters"] > 0


def test_nobody_waits_for_the_scheduler(api: InProcessApp) -> None:
    """It may hold its lock for ten seconds, while a worker that it has killed waits for a device."""
    held, ended = Event(), Event()

    def delete() -> Deletion:
        held.set()
        ended.wait(60)
        raise NotFound("There was nothing to delete.")

    with ThreadPoolExecutor(2) as threads:
        holding = threads.submit(api.services.scheduler.forget, delete, api.clock.now)
        assert held.wait(60)
        try:
            for path in ("/status", "/health", "/jobs"):
                assert threads.submit(api.get, path).result(timeout=20).status_code == 200
        finally:
            ended.set()
        assert isinstance(holding.exception(), NotFound)


def test_the_last_nights(api: InProcessApp) -> None:
    api.power.value = False
    api.add("words " * 50)
    job = api.post("/jobs", json={"now": False}).json()["id"]
    for _ in range(31):
        api.tick(60)
    api.power.value = True
    api.tick(60)
    api.succeed(job, "adapter-1")
    tonight, *others = api.get("/nights").json()["data"]
    assert len(others) == 13
    [run], [held_back], [ended], [window] = (tonight[name] for name in ("runs", "held_back", "jobs", "open"))
    assert (run["job_id"], run["ended_because"]) == (job, "the job has ended: succeeded")
    assert (held_back["night"], held_back["name"], held_back["seconds"]) == (tonight["night"], "power", 1800.0)
    assert (ended["id"], ended["state"], ended["adapter"]) == (job, "succeeded", "adapter-1")
    assert window["began_at"] == run["began_at"]
    days = [night["night"] for night in api.get("/nights", params={"days": 30}).json()["data"]]
    assert len(set(days)) == 30 and days == sorted(days, reverse=True)


@pytest.mark.parametrize("settings", [{"training": {"steps": 40}}])
def test_a_candidate_is_named_until_it_is_served(api: InProcessApp) -> None:
    def judged(job: str, reduction: float, texts: int, outcome: Outcome = Outcome.TOO_LITTLE) -> str:
        overall = {"before": 3.5, "now": 3.5 - reduction, "reduction": reduction, "standard_error": 0.2, "texts": texts}
        report = Report(job_id=job, numbers={"verdict": {"overall": overall}})
        api.succeed(job, "candidate", outcome=outcome, report=report)
        return str(api.ask("GET", "/status")["model"]["candidate"])

    def judge_again() -> str:
        [job] = api.services.store.jobs.open()
        assert (job.method, job.total_steps, api.runner.job_id) == (CANDIDATE, None, job.id)
        return job.id

    api.add("one two three")
    job = api.post("/jobs").json()["id"]
    api.tick(60)
    waits = "0.31 nats per token better, not yet certain; judged again once newer text has come in"
    assert judged(job, 0.312, 12) == f"learned on 2026-03-01; 12 texts say {waits}"
    api.add("four five")
    api.clock.advance(13 * 3600)
    waits = waits.replace("once newer text has come in", "tonight")
    assert api.ask("GET", "/status")["model"]["candidate"] == f"learned last night; 12 texts say {waits}"
    api.tick()
    worse = "1 text says 0.20 nats per token worse, not yet certain; judged again once newer text has come in"
    assert judged(judge_again(), -0.2, 1) == f"judged last night; {worse}"
    api.add("six seven")
    api.tick(13 * 3600)
    api.post(f"/jobs/{judge_again()}/cancel")
    said = api.ask("GET", "/status")["model"]["candidate"]
    assert said == "cancelled on 2026-03-02; judged again once newer text has come in"
    api.add("eight nine")
    api.tick(13 * 3600)
    assert judged(judge_again(), 0.3, 30, Outcome.LEARNED) == "None"


def test_a_model_is_switched_and_back_and_each_has_its_adapter(api: InProcessApp, config: Path) -> None:
    tiny_model_folder(api.services.folder.models, name="other")
    api.learn("a")
    switched = api.post("/models/other/use")
    assert switched.json() == api.ask("GET", "/status")["model"]
    assert (switched.json()["name"], switched.json()["adapter"]) == ("other", None)
    assert config.read_text() == 'model = "other"\n'
    now = api.ask("GET", "/status")
    assert (now["model"]["name"], now["texts"]["new_words"]) == ("other", 3)
    assert [one["default"] for one in api.get("/models").json()["data"]] == [True, False]
    assert api.post("/jobs/plan").json()["model"] == api.post("/jobs").json()["model"] == "other"
    assert api.post("/models/tiny/use").json()["adapter"] == "a"
    assert config.read_text() == 'model = "tiny"\n' and api.ask("GET", "/status")["texts"]["new_words"] == 0


def test_a_model_is_not_switched_to_one_that_is_not_there_or_where_a_variable_names_it(
    api: InProcessApp, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("none", "%2E%2E", "tiny%2F"):
        assert api.post(f"/models/{name}/use").status_code == 404
    tiny_model_folder(api.services.folder.models, name="other")
    monkeypatch.setenv("POCKETLLM_MODEL", "tiny")
    refused = assert_problem(api.post("/models/other/use"), 409, "bad_settings")
    assert "variable POCKETLLM_MODEL" in refused["detail"]
    assert api.ask("GET", "/status")["model"]["name"] == "tiny" and not config.exists()
