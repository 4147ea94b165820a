"""A job's learning done again from its steps: the same adapter bit for bit, and what is told when it is not."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pocketllm.daemon.errors import CannotReplay
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.tools.replay import rebuild, replays
from pocketllm.engine.errors import AdapterError, ModelNotFound
from pocketllm.engine.formats.model_folder import MANIFEST_NAME, WEIGHTS_NAME, open_model_folder
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.errors import NotFound
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job
from tests.support.daemon.commands import Run, commands
from tests.support.daemon.replayable_jobs import STEPS, learn, training
from tests.support.daemon.workers import NOW, changed, data_folder, finish, notes, queue_job, start_worker
from tests.support.models.tiny_models import tiny_model_folder

pytestmark = pytest.mark.slow

LORA, FULL = training(), training(mode="full", step_size=1e-3)
B_OF_THE_FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def job(folder: DataFolder, store: Store) -> Job:
    return learn(folder, store, LORA)


def made(folder: DataFolder, job: Job) -> Path:
    """The folder of what a job has made."""
    assert job.adapter
    return folder.adapter(job.adapter)


def change(path: Path, name: str, value: float) -> None:
    """Set the first number of a stored tensor."""
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})


def contents_of(path: Path) -> dict[str, Any]:
    """What is in the files of a folder, but for a manifest, which holds the folder's name."""
    found: dict[str, Any] = {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST_NAME}
    for name in [name for name in found if name.endswith(".safetensors")]:
        with safe_open(path / name, "pt") as file:  # whose header is in no certain order
            found[name] = file.metadata(), {key: file.get_tensor(key).tolist() for key in file.keys()}  # noqa: SIM118
    return found


class TestRebuild:
    @pytest.mark.parametrize(
        "settings",
        [LORA, training(noise="gaussian", probes=2), training(mode="full", noise="gaussian", probes=2, step_size=1e-3)],
        ids=["lora", "lora, gaussian", "full, gaussian"],
    )
    def test_what_comes_out_is_what_was_stored(self, folder: DataFolder, store: Store, settings: Any) -> None:
        job = learn(folder, store, settings)
        steps: list[tuple[int, int]] = []
        found = rebuild(folder, store, job.id, on_row=lambda done, of: steps.append((done, of)))
        assert found.identical and found.differing == () and found.max_difference == 0
        assert (found.job, found.adapter, found.mode, found.rows) == (job.id, job.adapter, settings.mode, STEPS)
        assert steps == [(done, STEPS) for done in range(1, STEPS + 1)]
        assert found.seconds > 0
        assert found.tensors == len(load_file(next(made(folder, job).glob("*model.safetensors"))))

    def test_all_of_them_are_checked_in_one_go(self, folder: DataFolder, store: Store) -> None:
        jobs = [learn(folder, store, LORA), learn(folder, store, FULL)]
        assert {check.name for check in replays(folder, store)} == {f"steps of {job.id}" for job in jobs}
        assert all(check.problem is None for check in replays(folder, store))
        weights = made(folder, jobs[0]) / "adapter_model.safetensors"
        change(weights, next(name for name in load_file(weights) if "lora_B" in name), 5.0)
        assert sum(check.problem is not None for check in replays(folder, store)) == 1

    def test_something_was_learned_at_all(self, folder: DataFolder, job: Job) -> None:
        assert all(b.abs().max() > 0 for b in load_adapter(made(folder, job)).b.values())

    def test_all_weights_in_other_dtypes(self, tmp_path: Path) -> None:
        for dtype in ("float32", "float16"):
            folder = data_folder(tmp_path / dtype, dtype=dtype)
            store = Store.open(folder.database)
            assert rebuild(folder, store, learn(folder, store, FULL).id).identical, dtype
            store.close()

    def test_a_job_that_went_on_from_another(self, folder: DataFolder, store: Store) -> None:
        for settings in (LORA, FULL):
            first = learn(folder, store, settings)
            second = learn(folder, store, settings, seed=9, parent=first.adapter)
            assert rebuild(folder, store, second.id).identical, settings.mode
            shutil.rmtree(made(folder, first))
            with pytest.raises((AdapterError, ModelNotFound), match=str(first.adapter)):
                rebuild(folder, store, second.id)

    def test_a_single_number_that_differs_is_found(self, folder: DataFolder, store: Store, job: Job) -> None:
        for value, difference in ((5.0, pytest.approx(5.0, abs=0.2)), (float("nan"), None)):
            change(made(folder, job) / "adapter_model.safetensors", B_OF_THE_FIRST, value)
            found = rebuild(folder, store, job.id)
            assert not found.identical
            assert found.differing == ("model.layers.0.self_attn.q_proj.B",)
            assert found.max_difference == difference

    def test_a_weight_that_differs_in_its_last_bit_is_found(self, folder: DataFolder, store: Store) -> None:
        job = learn(folder, store, FULL)
        path = made(folder, job) / WEIGHTS_NAME
        tensors = load_file(path)
        tensors["model.norm.weight"].view(torch.int16)[3] += 1
        save_file(tensors, path, metadata={"format": "pt"})
        manifest = made(folder, job) / "pocketllm.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights_bytes": path.stat().st_size}))
        found = rebuild(folder, store, job.id)
        assert found.differing == ("model.norm.weight",)
        assert found.max_difference is not None and 0 < found.max_difference < 0.05

    def test_the_sign_of_zero_is_a_bit_too(self, folder: DataFolder, store: Store) -> None:
        job = learn(folder, store, training(step_size=1e-300))  # zero in the step log's float32
        assert rebuild(folder, store, job.id).identical
        change(made(folder, job) / "adapter_model.safetensors", B_OF_THE_FIRST, -0.0)
        found = rebuild(folder, store, job.id)
        assert (len(found.differing), found.max_difference) == (1, 0.0)

    def test_what_is_written_is_what_was_stored(self, folder: DataFolder, store: Store, tmp_path: Path) -> None:
        for settings in (LORA, FULL):
            job = learn(folder, store, settings)
            again = tmp_path / f"again-{settings.mode}"
            rebuild(folder, store, job.id, output=again)
            assert contents_of(again) == contents_of(made(folder, job)), settings.mode
        assert open_model_folder(again, verify=True).manifest.name == "again-full"

    def test_where_nothing_can_be_written(self, folder: DataFolder, store: Store, tmp_path: Path) -> None:
        lora, full = learn(folder, store, LORA), learn(folder, store, FULL)
        (tmp_path / "there").mkdir()
        for name, job, reason in (
            ("there", lora, "exists"),
            ("nowhere/x", lora, "There is no folder"),
            ("Weights", full, "is not a valid model name"),
        ):
            with pytest.raises(CannotReplay, match=reason):
                rebuild(folder, store, job.id, output=tmp_path / name)

    def test_steps_that_are_missing(self, folder: DataFolder, store: Store, job: Job) -> None:
        with closing(sqlite3.connect(folder.database)) as database:
            database.execute(f"DELETE FROM step WHERE step = {STEPS}")
            database.commit()
        with pytest.raises(CannotReplay, match="holds 5 of the 6 steps"):
            rebuild(folder, store, job.id)

    def test_jobs_that_have_made_nothing(self, folder: DataFolder, store: Store) -> None:
        job = queue_job(store)
        with pytest.raises(CannotReplay, match=f"{job.id} is running. Wait until it has ended"):
            rebuild(folder, store, job.id)
        store.jobs.fail(job.id, error="no", now=NOW)
        with pytest.raises(CannotReplay, match=f"{job.id} failed without an adapter"):
            rebuild(folder, store, job.id)
        with pytest.raises(NotFound, match="job-none"):
            rebuild(folder, store, "job-none")

    def test_an_adapter_that_is_gone_or_of_another_model(self, folder: DataFolder, store: Store, job: Job) -> None:
        path = made(folder, job) / "adapter_model.safetensors"
        tensors = load_file(path)
        parent = learn(folder, store, LORA, parent=job.adapter)
        tensors[B_OF_THE_FIRST] = tensors[B_OF_THE_FIRST][1:].clone()
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(CannotReplay, match="other tensors than what the job started from"):
            rebuild(folder, store, parent.id)
        shutil.rmtree(path.parent)
        with pytest.raises(CannotReplay, match=r"is no longer in"):
            rebuild(folder, store, job.id)

    def test_a_model_that_was_exchanged_is_told(self, folder: DataFolder, store: Store) -> None:
        job = learn(folder, store, FULL)
        path = folder.models / "tiny" / MANIFEST_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": "2026-01-01T00:00:00Z"}))
        assert not rebuild(folder, store, job.id).base_is_newer
        shutil.rmtree(folder.models / "tiny")
        tiny_model_folder(folder.models, seed=5)
        found = rebuild(folder, store, job.id)
        assert found.base_is_newer and not found.identical
        result = commands(folder.root)("replay", job.id)
        assert result.exit_code == 1
        assert "imported after the job started" in " ".join(result.stdout.split())


class TestCommand:
    """`pocketllm replay`, without a daemon."""

    @pytest.fixture
    def run(self, folder: DataFolder) -> Run:
        return commands(folder.root)

    def test_the_same(self, run: Run, job: Job) -> None:
        result = run("replay", job.id)
        assert result.exit_code == 0, result.stderr
        assert "6 steps in " in result.stdout and "all 16 tensors are bit-identical" in result.stdout

    def test_json_and_a_folder(self, run: Run, job: Job, folder: DataFolder, tmp_path: Path) -> None:
        target = tmp_path / "again"
        result = run("replay", job.id, "--output", str(target), "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["seconds"] > 0
        assert document | {"seconds": 0} == {
            "job": job.id,
            "adapter": job.adapter,
            "mode": "lora",
            "rows": STEPS,
            "seconds": 0,
            "tensors": 16,
            "differing": [],
            "max_difference": 0.0,
            "base_is_newer": False,
            "identical": True,
            "output": str(target),
        }
        assert contents_of(target) == contents_of(made(folder, job))

    def test_a_difference(self, run: Run, job: Job, folder: DataFolder) -> None:
        change(made(folder, job) / "adapter_model.safetensors", B_OF_THE_FIRST, 5.0)
        result = run("replay", job.id)
        assert result.exit_code == 1
        assert "1 of 16 tensors differ, by " in result.stdout
        assert "the first is model.layers.0.self_attn.q_proj.B" in result.stdout
        result = run("replay", job.id, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["identical"] is False

    def test_what_cannot_be_done_is_no_difference(self, run: Run, job: Job, tmp_path: Path) -> None:
        for arguments, words in (
            (("job-none",), "There is no job 'job-none'"),
            ((job.id, "--output", str(tmp_path)), "exists. Give"),
            ((job.id, "--data-dir", str(tmp_path / "empty")), "There is no database"),
            ((), "Missing argument"),
        ):
            result = run("replay", *arguments)
            assert result.exit_code == 2, result.stderr
            assert words in result.stderr and result.stdout == ""

    def test_an_older_database_is_left_as_it_is(self, run: Run, job: Job, store: Store, folder: DataFolder) -> None:
        store.close()
        with sqlite3.connect(folder.database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0000'")
        connection.close()
        before = folder.database.read_bytes()
        result = run("replay", job.id)
        assert result.exit_code == 2
        assert "was written by another version of PocketLLM" in result.stderr
        assert folder.database.read_bytes() == before


@pytest.mark.parametrize("mode", [pytest.param("lora", marks=pytest.mark.smoke), "full"])
def test_what_a_real_worker_made(folder: DataFolder, store: Store, mode: str) -> None:
    store.texts.add(notes(), now=NOW)
    job = queue_job(store, training=changed(mode=mode, probes=2, epsilon=1e-3, step_size=1e-3))
    finish(start_worker(folder, job))
    assert rebuild(folder, store, job.id).identical
