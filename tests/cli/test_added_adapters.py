"""`pocketllm adapters add` and `watch`, and what a scan of a watched folder of adapters takes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from pocketllm.added_adapters import take_newest
from pocketllm.daemon.folder_scans import Scan, WatchedFolder
from pocketllm.daemon.settings import Settings
from pocketllm.engine.formats.lora_folder import BASE_SHA256, WEIGHTS_NAME
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.storage.store import Store
from pocketllm.storage.tables import ADDED, JobState
from tests.support.daemon.commands import commands
from tests.support.daemon.workers import data_folder
from tests.support.models.learning import equal


class Shared:
    """A data folder, and a folder that is in sync with another device."""

    def __init__(self, scratch: Path) -> None:
        self.data, self.root = data_folder(scratch / "data"), scratch / "shared"
        self.root.mkdir()
        self.store = Store.open(self.data.database)
        self.settings = Settings(data_dir=self.data.root, model="tiny")
        self.last = Scan(path=str(self.root), name="shared")
        self.now = datetime.now(UTC) + timedelta(minutes=1)

    def put(self, name: str, *, age_seconds: float = 0, base: str | None = None) -> Path:
        """An adapter of the tiny model. base: the hash of the weights that it says it is of."""
        model = open_model_folder(self.data.models / "tiny")
        q_proj = {path: shape for path, shape in read_shapes(model).linears.items() if path.endswith("q_proj")}
        a = {path: torch.randn(3, inputs) for path, (_, inputs) in q_proj.items()}
        b = {path: torch.randn(out, 3) for path, (out, _) in q_proj.items()}
        metadata = {BASE_SHA256: base or model.manifest.weights_sha256}
        Adapter(base="tiny", alpha=6.0, a=a, b=b, metadata=metadata).save(folder := self.root / name)
        at = self.now.timestamp() - age_seconds
        os.utime(folder / WEIGHTS_NAME, (at, at))
        return folder

    def scan(self) -> Scan:
        watched = WatchedFolder(path=str(self.root), name="shared", adapters=True)
        self.last = take_newest(watched, self.last, self.data, self.store, self.settings, now=self.now)
        return self.last

    def taken(self, number: int) -> list[Adapter]:
        """The adapters of the jobs, of which there are so many, the newest last."""
        jobs = self.store.jobs.page(after=None, limit=10)
        assert len(jobs) == number
        return [load_adapter(self.data.added / job.id) for job in reversed(jobs)]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with closing((made := Shared(tmp_path)).store):
        yield made


def test_the_newest_is_taken_once_and_waits_for_the_night(shared: Shared) -> None:
    shared.put("old", age_seconds=60)
    new = shared.put("new")
    for _ in range(2):
        assert shared.scan().problem is None
        [taken] = shared.taken(1)
        assert equal(taken, load_adapter(new))
    shutil.move(new, shared.root / "by another name")
    shared.scan()
    shared.taken(1)
    shared.now += timedelta(hours=1)
    newest = shared.put("newest")
    shared.scan()
    assert shared.taken(2)
    [job] = [
        job for job in shared.store.jobs.open() if equal(load_adapter(shared.data.added / job.id), load_adapter(newest))
    ]
    assert (job.state, job.immediate, job.method, job.settings["rank"]) == (JobState.QUEUED, False, ADDED, 3)


def test_what_is_not_whole_or_still_written_is_left_for_later(shared: Shared) -> None:
    whole, half = shared.put("whole", age_seconds=60), shared.put("half")
    weights = (half / WEIGHTS_NAME).rename(half / ".syncthing.adapter_model.safetensors.tmp")
    shared.scan()
    assert equal(shared.taken(1)[0], load_adapter(whole))
    weights.rename(half / WEIGHTS_NAME)
    shared.now = datetime.now(UTC)
    shared.scan()
    shared.taken(1)
    shared.now += timedelta(minutes=1)
    shared.scan()
    assert len(shared.taken(2)) == 2


def test_one_that_does_not_fit_is_said_and_the_next_is_taken(shared: Shared) -> None:
    shared.put("right", age_seconds=60)
    shared.put("wrong", base="0" * 64)
    assert "wrong was trained on other weights than those of tiny" in (shared.scan().problem or "")
    shared.taken(1)
    shutil.rmtree(shared.root)
    assert "cannot be read" in (shared.scan().problem or "")
    shared.root.mkdir()
    assert shared.scan().problem is None


def test_the_commands_add_watch_and_say_what_is_wrong(shared: Shared) -> None:
    run = commands(shared.data.root)
    folder = shared.put("it")
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    added = run.json("adapters", "add", str(folder), "--model", "tiny")
    job = shared.store.jobs.get(added["job"])
    assert (job.immediate, job.model, added["message"]) == (True, "tiny", "rank 3, of 2 linear maps")
    assert "Queued job-" in run("adapters", "add", str(folder), "--model", "tiny").stdout
    (folder / WEIGHTS_NAME).unlink()
    assert f"or no {WEIGHTS_NAME}." in run.refused("adapters", "add", str(folder), "--model", "tiny")
    run.refused("adapters", "add", str(folder), "--model", "other")
    watched = run.json("adapters", "watch", str(shared.root))
    assert [(one["path"], one["texts"], one["problem"]) for one in watched["data"]] == [(str(shared.root), 0, None)]
    assert str(shared.root.name) in run("folders").stdout
    run.said("folders", "remove", str(shared.root))
