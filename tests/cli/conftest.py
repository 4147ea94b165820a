"""What the tests of the command line share: the real application on a port, and commands that find it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.engine.formats.model_folder import ModelFolder
from tests.support.daemon.commands import Run, commands
from tests.support.daemon.folder_world import World
from tests.support.daemon.served import Port, Served, open_port, serving


@pytest.fixture(scope="session")
def port() -> Iterator[Port]:
    """A port of this device, for one application after another."""
    with open_port() as opened:
        yield opened


@pytest.fixture
def served(port: Port, tmp_path: Path, tiny_bf16: ModelFolder) -> Iterator[Served]:
    """The real application with the model `tiny`, in place of the daemon."""
    with serving(tmp_path / "home", port) as running:
        running.api.services.folder.models.symlink_to(tiny_bf16.path.parent)
        yield running


@pytest.fixture
def home(served: Served) -> Path:
    """Its data folder, which says where it is."""
    return served.home


@pytest.fixture
def run(home: Path) -> Run:
    """Runs a command against it."""
    return commands(home)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A watched folder."""
    made = World(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def alone(tmp_path: Path) -> Run:
    """Runs a command where there is no daemon."""
    return commands(tmp_path / "nothing")
