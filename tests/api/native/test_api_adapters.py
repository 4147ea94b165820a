"""Adapters over HTTP: the list with its chains, going back, and what the next request for text is answered with."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Outcome
from tests.support.daemon.in_process_app import InProcessApp, assert_problem
from tests.support.daemon.real_daemon import running
from tests.support.models.learning import some_adapter
from tests.support.stored import start_job, succeed


def test_the_adapters_newest_first_each_with_its_parent(api: InProcessApp) -> None:
    api.learn("adapter-0", held_out_loss_before=3.5, held_out_loss_now=3.25)
    api.learn("adapter-1", outcome=Outcome.NO_PROOF)
    newest, oldest = api.get("/adapters").json()["data"]
    assert (newest["id"], newest["outcome"], newest["serving"]) == ("adapter-1", "no proof of learning", False)
    assert newest["parent"] == "adapter-0"
    assert oldest == {
        "id": "adapter-0",
        "job": api.get("/jobs").json()["data"][-1]["id"],
        "model": "tiny",
        "mode": "lora",
        "parent": None,
        "serving": True,
        "outcome": "learned",
        "held_out_loss_before": 3.5,
        "held_out_loss_now": 3.25,
        "folder": str(api.services.folder.root / "adapters" / "adapter-0"),
        "created_at": "2026-03-01T12:01:00Z",
    }


def test_back_to_the_base_and_forth_again(api: InProcessApp) -> None:
    api.learn("adapter-0")
    api.learn("adapter-1")
    assert api.ask("POST", "/adapters/rollback") == {
        "model": "tiny",
        "was": "adapter-1",
        "serving": "adapter-0",
        "skipped": [],
    }
    assert api.ask("POST", "/adapters/rollback", json={"model": "tiny"})["serving"] is None
    assert api.get("/status").json()["model"]["adapter"] is None
    refused = assert_problem(api.post("/adapters/rollback"), 409, "wrong_state")
    assert "the base model tiny is already served" in refused["detail"]
    again = api.post("/adapters/adapter-1/serve").json()
    assert (again["was"], again["serving"]) == (None, "adapter-1")


@pytest.mark.smoke
def test_the_next_request_for_text_is_answered_from_what_is_served_then(tmp_path: Path, models: Path) -> None:
    """The real daemon, with its generator running all the while."""
    folder = tmp_path / "data"
    with running(folder, MODEL="tiny") as daemon:
        shutil.copytree(models, folder / "models")
        adapter = some_adapter(LanguageModel(open_model_folder(folder / "models" / "tiny")), size=0.5)
        store = Store.open(folder / "pocketllm.db")
        adapter.save(folder / "adapters" / "adapter-1")
        succeed(store, start_job(store), "adapter-1")
        store.close()

        def generated() -> tuple[str | None, str]:
            requested = {"prompt": "The wind", "max_tokens": 24, "temperature": 0}
            answer = daemon.client.post("/generate", json=requested).json()
            return answer["adapter"], answer["text"]

        personal = generated()
        generator = daemon.status()["generator"]["pid"]
        assert daemon.client.post("/adapters/rollback").json()["serving"] is None
        base = generated()
        assert (personal[0], base[0]) == ("adapter-1", None)
        assert personal[1] != base[1]
        assert daemon.client.post("/adapters/adapter-1/serve").json()["serving"] == "adapter-1"
        assert generated() == personal
        assert daemon.status()["generator"]["pid"] == generator


def test_an_adapter_is_deleted_with_its_files(api: InProcessApp) -> None:
    api.learn("a1")
    api.learn("a2")
    folder = api.services.folder.adapter("a2")
    refused = api.delete("/adapters/a2")
    assert "pocketllm rollback" in assert_problem(refused, 409, "wrong_state")["detail"]
    assert "a2 started from a1" in assert_problem(api.delete("/adapters/a1"), 409, "wrong_state")["detail"]
    api.ask("POST", "/adapters/rollback")
    assert api.delete("/adapters/a2").status_code == 204
    assert not folder.exists()
    assert [one["id"] for one in api.get("/adapters").json()["data"]] == ["a1"]
    assert_problem(api.delete("/adapters/a2"), 404, "not_found")


def test_the_start_of_a_job_that_is_open_stays(api: InProcessApp) -> None:
    api.learn("a1")
    api.add("words for another")
    job = api.post("/jobs").json()["id"]
    api.tick(60)
    api.ask("POST", "/adapters/rollback")
    assert job in assert_problem(api.delete("/adapters/a1"), 409, "wrong_state")["detail"]
    api.post(f"/jobs/{job}/cancel")
    assert api.delete("/adapters/a1").status_code == 204


def test_an_adapter_leaves_as_a_tar_file(api: InProcessApp, tmp_path: Path) -> None:
    api.learn("a1")
    folder = api.services.folder.adapter("a1")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 5000)
    (folder / "empty").touch()
    response = api.get("/adapters/a1/export")
    assert response.headers["content-disposition"] == 'attachment; filename="a1.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out" / "a1").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert_problem(api.get("/adapters/a1/export"), 409, "wrong_state")
