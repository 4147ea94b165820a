"""What many tests need: a tiny real model, and a place that is not the developer's own."""

import os
from pathlib import Path

import pytest

# Before torch is imported: see pocketllm.daemon.children.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pocketllm.mezo.native import NativeModel, open_native
from tests.tiny_models import tiny_native


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    """A tiny imported model, in fp32 so that arithmetic can be compared closely."""
    return open_native(tiny_native(tmp_path_factory.mktemp("models"), dtype="float32"))


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    """The same in bf16, as models are imported by default."""
    return open_native(tiny_native(tmp_path_factory.mktemp("models")))


@pytest.fixture(autouse=True)
def _nothing_of_the_developers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the tests alone."""
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "no-config.toml"))
