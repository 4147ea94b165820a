"""A data folder with the tiny model, and its store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.storage.store import Store
from tests.support.daemon.workers import data_folder


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return data_folder(tmp_path / "data")


@pytest.fixture
def store(folder: DataFolder) -> Iterator[Store]:
    opened = Store.open(folder.database)
    yield opened
    opened.close()
