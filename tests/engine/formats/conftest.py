"""What tests of imports need."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def changed(tmp_path: Path, llama: Path) -> Path:
    """A copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "changed"))


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    """Where to import to. Whatever a test does, no unfinished model may be left there."""
    yield tmp_path / "models"
    assert not list((tmp_path / "models").glob(".*"))
