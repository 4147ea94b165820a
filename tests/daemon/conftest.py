"""A data folder and its store; and a device, which has the tiny model, too."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.storage.store import Store
from tests.support.daemon.workers import Device, new_device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with new_device(tmp_path / "data") as made:
        yield made


@pytest.fixture
def device_fp32(tmp_path: Path) -> Iterator[Device]:
    with new_device(tmp_path / "data", dtype="float32") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A new one without a model."""
    made = DataFolder(tmp_path / "data")
    made.make()
    return made


@pytest.fixture
def store(folder: DataFolder) -> Iterator[Store]:
    with closing(Store.open(folder.database)) as opened:
        yield opened
