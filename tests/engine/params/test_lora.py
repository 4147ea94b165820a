import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pocketllm.engine.errors import AdapterError
from pocketllm.engine.noise import Direction
from pocketllm.engine.params.lora import CONFIG_NAME, WEIGHTS_NAME, Adapter, load_adapter
from tests.support.models.learning import equal
from tests.support.models.tiny_models import edit_json


def adapter() -> Adapter:
    # Ten layers: 'layers.10' sorts before 'layers.2', but not in the model.
    paths = [f"model.layers.{i}.self_attn.q_proj" for i in range(11)]
    a = {path: torch.randn(2, 4) for path in paths}
    b = {path: torch.randn(6, 2) for path in paths}
    return Adapter(base="tiny", alpha=4.0, a=a, b=b)


def test_round_trip_is_exact_and_keeps_the_order(tmp_path: Path) -> None:
    saved = adapter()
    saved.save(tmp_path / "it")
    loaded = load_adapter(tmp_path / "it")
    assert equal(saved, loaded)
    assert list(loaded.a) == list(saved.a)
    assert (loaded.rank, loaded.alpha, loaded.scaling, loaded.base) == (2, 4.0, 2.0, "tiny")


def test_moves_b_alone_and_by_its_place_in_the_model() -> None:
    moved, before = adapter(), adapter()
    for path in before.a:
        moved.a[path].copy_(before.a[path])
        moved.b[path].copy_(before.b[path])
    direction = Direction(seed=2**64 - 1, step=3, probe=1, kind="gaussian")
    moved.add_scaled(direction, 0.25)
    for number, path in enumerate(before.a):
        assert torch.equal(moved.a[path], before.a[path])
        expected = torch.add(before.b[path], direction.of(number, (6, 2)), alpha=0.25)
        assert torch.equal(moved.b[path], expected)


def test_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    """safetensors' own writer puts the metadata in a random order."""
    saved = adapter()
    saved.metadata = {name: name for name in "abcdefgh"}
    contents = set()
    for number in range(3):
        saved.save(tmp_path / str(number))
        contents.add((tmp_path / str(number) / WEIGHTS_NAME).read_bytes())
    assert len(contents) == 1


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": shutil.rmtree,
    "truncated": lambda folder: os.truncate(folder / WEIGHTS_NAME, 500),
    "no modules": lambda folder: edit_json(folder / CONFIG_NAME, target_modules=[]),
    "foreign tensors": lambda folder: save_file({"x": torch.zeros(1)}, folder / WEIGHTS_NAME),
}


def test_broken_folders_are_refused_by_name(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for harm, break_it in HARMS.items():
        adapter().save(tmp_path / harm)
        break_it(tmp_path / harm)
        with subtests.test(harm), pytest.raises(AdapterError, match=harm):
            load_adapter(tmp_path / harm)
