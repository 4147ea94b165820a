"""The mean Jacobian of the layers above, measured by forward passes, against autograd's."""

import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.mezo.carrying import (
    LAYERS_AT_ONCE,
    load_carrying,
    lowest_guided,
    measure_carrying,
    save_carrying,
)
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.stream import find_stream
from tests.learning import imported, random_blocks, reference

#: A few words; how often they are looked at, with other noise each time, is what makes a measurement good.
TEXT = random_blocks(4, 12)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "carrying"


def model_of(root: Path, *, lanes: int = 1) -> LanguageModel:
    return LanguageModel(imported(root, "llama", "float32"), dtype=torch.float32, lanes=lanes)


def measured(model: LanguageModel, *, count: int = 1200, seed: int = 0) -> dict[int, torch.Tensor]:
    with torch.inference_mode():
        stream = find_stream(model.any_lane())
        blocks = TEXT.repeat(-(-count // len(TEXT)))[slice(0, count)]
        return measure_carrying(model, stream, blocks, seed=seed, blocks_at_once=40)


def exact_mean(root: Path) -> torch.Tensor:
    """E[d end / d entering] of the upper of two layers, of each token by itself, by autograd on transformers' model."""
    network: Any = reference(root, "llama").model
    ids = TEXT.inputs
    angles = network.rotary_emb(torch.zeros(1, 12, 64), torch.arange(12)[None])
    with torch.no_grad():
        entering = network.layers[0](network.embed_tokens(ids), position_embeddings=angles, attention_mask=None)
    entering = (entering[0] if isinstance(entering, tuple) else entering).requires_grad_(True)
    end = network.layers[1](entering, position_embeddings=angles, attention_mask=None)
    end = end[0] if isinstance(end, tuple) else end
    rows = []
    for number in range(end.shape[-1]):
        total = torch.zeros(end.shape[-1])
        for place in range(1, 12):
            (gradient,) = torch.autograd.grad(end[:, place, number].sum(), entering, retain_graph=True)
            total += gradient[:, place].sum(0)
        rows.append(total / (len(ids) * 11))
    return torch.stack(rows)


def test_it_is_the_mean_jacobian(root: Path) -> None:
    found, expected = measured(model_of(root))[1], exact_mean(root)
    identity = torch.eye(64)
    alike = torch.cosine_similarity((found - identity).flatten(), (expected - identity).flatten(), dim=0)
    assert alike > 0.7  # over a tenth of the stream a tiny random model curves a good deal
    assert (found - expected).norm() < (identity - expected).norm()


def test_few_tokens_say_little_and_are_trusted_little(root: Path) -> None:
    few, many = measured(model_of(root), count=80)[1], measured(model_of(root))[1]
    one, other = (measured(model_of(root), count=2, seed=seed) for seed in range(2))
    assert one == other == {}  # one part, nothing to compare it with
    assert (few - torch.eye(64)).norm() < (many - torch.eye(64)).norm() * 1.5


def test_the_same_each_time_and_in_any_number_of_lanes(root: Path) -> None:
    one = measured(model_of(root), count=80)
    assert all(torch.equal(one[layer], jacobian) for layer, jacobian in measured(model_of(root), count=80).items())
    two = measured(model_of(root, lanes=2), count=80)
    assert all(torch.allclose(one[layer], jacobian, atol=1e-3) for layer, jacobian in two.items())


def test_progress_is_told(root: Path) -> None:
    model, told = model_of(root), list[tuple[int, int]]()
    with torch.inference_mode():
        stream = find_stream(model.any_lane())
        measure_carrying(
            model, stream, random_blocks(6, 8), blocks_at_once=2, on_part=lambda done, of: told.append((done, of))
        )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("layers", "lowest"), [(2, 0), (3, 1), (12, 8), (24, 14), (30, 18), (32, 20)])
def test_about_two_fifths_of_the_layers_are_guided(layers: int, lowest: int) -> None:
    assert lowest_guided(layers) == lowest
    assert (layers - lowest) % LAYERS_AT_ONCE == 0


def test_it_comes_back_from_disk_in_half_precision_and_is_none_where_none_was_measured(tmp_path: Path) -> None:
    assert load_carrying(tmp_path) == {}
    jacobians = {28: torch.randn(8, 8), 29: torch.randn(8, 8)}
    save_carrying(tmp_path, jacobians)
    found = load_carrying(tmp_path)
    assert all(torch.equal(found[layer], jacobian.bfloat16()) for layer, jacobian in jacobians.items())
    assert [path.name for path in tmp_path.iterdir()] == ["carrying.safetensors"]
    assert not stat.S_IMODE((tmp_path / "carrying.safetensors").stat().st_mode) & 0o111
