"""The daemon's application in this process, which most tests of its HTTP interface ask."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.in_process_app import InProcessApp, in_process_app
from tests.support.models.tiny_models import tiny_model_folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `tiny`. Tests copy it and do not change it."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model_folder(folder)
    return folder


@pytest.fixture
def settings() -> dict[str, Any]:
    """The settings of `bare` and `api`. A module that wants others has a fixture of this name."""
    return {}


@pytest.fixture
def bare(tmp_path: Path, settings: dict[str, Any]) -> Iterator[InProcessApp]:
    """The application without a model."""
    with in_process_app(tmp_path / "data", **settings) as made:
        yield made


@pytest.fixture
def api(bare: InProcessApp, models: Path) -> InProcessApp:
    """The application with the model `tiny`."""
    shutil.copytree(models, bare.services.folder.models)
    return bare


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessApp]:
    """One application without a model for all tests of a module that disturb each other in nothing."""
    with in_process_app(tmp_path_factory.mktemp("shared") / "data") as made:
        yield made
