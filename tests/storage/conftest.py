"""What the tests of the store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.storage.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pocketllm.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store in a new database file."""
    store = Store.open(path)
    yield store
    store.close()
