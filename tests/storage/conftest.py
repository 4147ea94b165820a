"""What the tests of the store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store in a new database file, `pocketllm.db`."""
    store = Store.open(tmp_path / "pocketllm.db")
    yield store
    store.close()
