"""Stress tests: in small forms, as `make nightly` runs them, and in full with --full, as `make stress` does.

Each module has LIMITS, as a bench has. In full its values go to bench/results/NAME.json.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.common.harness import RESULTS, parser
from bench.common.shapes import SMOLLM2, ensure
from pocketllm.daemon.child import CHILD_SETTINGS
from tests.support.stress.report import Report
from tests.support.stress.world import World


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the sizes are those that prove figures."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(autouse=True)
def _environment_of_a_bench(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes get what `harness.start` gives; where memory is measured, nothing watches them for other tests."""
    for name, value in CHILD_SETTINGS.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    if full:
        monkeypatch.delenv("PYTHONPATH")


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, full: bool, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """This module's."""
    name = request.module.__name__.rpartition("test_")[2]
    results = ["--results", str(RESULTS)] if full else ["--results", str(tmp_path_factory.mktemp("results")), "--quick"]
    return Report(name, request.module.LIMITS, parser(f"tests.stress.test_{name}", "").parse_args(results))


@pytest.fixture(scope="session")
def tiny_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama that reads bytes."""
    return ensure(tmp_path_factory.mktemp("models"), "llama-tiny", "bfloat16")


@pytest.fixture(scope="session")
def real_model(full: bool, tiny_shape: Path) -> Path:
    """SmolLM2-135M; in the small form the tiny one."""
    return ensure(tiny_shape.parent, SMOLLM2, "bfloat16") if full else tiny_shape


@pytest.fixture
def world(tiny_shape: Path, tmp_path: Path) -> Iterator[World]:
    """A data folder on which no daemon runs yet."""
    with World(folder=tmp_path / "data", model=tiny_shape) as made:
        yield made
