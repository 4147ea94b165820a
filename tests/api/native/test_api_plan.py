"""POST /jobs/plan: what a job would take; and how a job is asked for with settings of its own."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.scheduling.planning import plan_job
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.planning.memory_model import MB
from tests.support.daemon.in_process_app import InProcessApp, assert_problem
from tests.support.models.tiny_models import tiny_model_folder

#: Enough for an adapter of the tiny model, too little for all of its weights.
ENOUGH, LITTLE = 200 * MB, 50 * MB
TRAINING = {"steps": 30, "memory_bytes": ENOUGH, "batch": 3, "new_words": 1000}


@pytest.fixture(scope="module")
def models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside `tiny` there is `packed`, whose weights are in 8 bits."""
    folder = shutil.copytree(models, tmp_path_factory.mktemp("plan") / "models")
    tiny_model_folder(folder, "packed", hidden=64, dtype="int8")
    return folder


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"training": TRAINING}


@pytest.fixture
def api(api: InProcessApp) -> InProcessApp:
    """With two texts of four words."""
    api.add("Wind west, glass rising.", "Two mugs of tea.")
    return api


def test_the_document(api: InProcessApp) -> None:
    document = api.ask("POST", "/jobs/plan")
    planned = plan_job(open_model_folder(api.services.folder.models / "tiny"), api.services.settings.training)
    assert document == {
        "model": "tiny",
        "mode": "lora",
        "method": "exact",
        "steps": 30,
        "nights": round(planned.nights, 2),
        "batch": 3,
        "block_tokens": 64,
        "probes": 1,
        "micro_batch": 3,
        "kept_layers": 2,
        "reductions": [],
        "predicted": asdict(planned.prediction),
        "alternatives": [
            {"method": one.method, "prediction": asdict(one.prediction) if one.prediction else None, "reason": None}
            for one in planned.alternatives
        ],
        "memory_limit_bytes": ENOUGH,
        "enough_text": {"enough": True, "texts": 2, "new_words": 8},
    }
    api.tick()
    assert api.get("/jobs").json()["data"] == [], "nothing is queued"


def test_a_job_is_what_was_planned(api: InProcessApp) -> None:
    requested = {"steps": 5, "batch": 2, "probes": 4, "mode": "lora", "method": "mezo"}
    foretold = api.ask("POST", "/jobs/plan", json=requested | {"seed": 1, "now": False})
    assert (foretold["steps"], foretold["batch"], foretold["probes"], foretold["micro_batch"]) == (5, 2, 4, 10)
    response = api.post("/jobs", json=requested)
    assert response.status_code == 202
    job = api.get(response.headers["location"]).json()
    assert job["predicted_bytes"] == foretold["predicted"]["peak_bytes"]
    assert (job["mode"], job["total_steps"]) == ("lora", 5)
    expected = {**api.services.settings.training.model_dump(mode="json"), "batch": 2, "probes": 4, "method": "mezo"}
    expected |= {"steps": 5}
    assert job["settings"] == expected


@pytest.mark.parametrize("settings", [{"training": TRAINING | {"memory_bytes": LITTLE}}])
def test_what_cannot_fit_is_refused_with_the_memory_that_would_do(api: InProcessApp) -> None:
    for path in ("/jobs", "/jobs/plan"):
        document = assert_problem(api.post(path, json={"mode": "full"}), 409, "does_not_fit")
        assert "training.memory_bytes allows 50 MB. Set it to 6" in document["detail"]
        assert "or train an adapter (mode lora)." in document["detail"]
    assert api.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("settings", [{"training": TRAINING, "model": "packed"}])
def test_what_cannot_be_trained_is_refused(api: InProcessApp) -> None:
    for path in ("/jobs", "/jobs/plan"):
        document = assert_problem(api.post(path, json={"mode": "full"}), 422, "bad_request")
        assert "packed is stored as int8" in document["detail"]
