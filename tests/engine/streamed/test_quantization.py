"""Packing weights: what comes back is as near as the format allows, and nothing is lost twice."""

import pytest
import torch

from pocketllm.engine.streamed.quantization import GROUPS, PACKINGS, pack, packable, packed_parts, unpack

LEVELS = {"int8": 254, "int4": 15}  # steps between the ends of a group's range


def weights(rows: int = 7, columns: int = 192, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def again(rows: torch.Tensor, packing: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return unpack(pack(rows, packing), torch.empty(rows.shape, dtype=dtype))


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_weight_comes_back_within_half_a_step(packing: str) -> None:
    rows = weights()
    groups = torch.unflatten(rows, 1, (-1, GROUPS[packing]))
    span = 2 * groups.abs().amax(2) if packing == "int8" else groups.amax(2) - groups.amin(2)
    error = torch.unflatten(again(rows, packing) - rows, 1, (-1, GROUPS[packing])).abs().amax(2)
    # float16 scales and minima are good to 2^-11 of their size.
    assert (error <= 0.5 * span / LEVELS[packing] + 2**-11 * groups.abs().amax(2) * 2).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_twice_changes_nothing_more(packing: str) -> None:
    once = again(weights(), packing)
    assert torch.allclose(again(once, packing), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_unpacks_into_any_float(packing: str, dtype: torch.dtype) -> None:
    rows = weights()
    tolerance = {torch.bfloat16: 3e-3, torch.float16: 3e-4}.get(dtype, 1e-6)
    assert torch.allclose(again(rows, packing, dtype).float(), again(rows, packing), rtol=0, atol=tolerance)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("value", [0.0, 1e-7, 3.0, -3.0])
def test_a_group_of_equal_weights(packing: str, value: float) -> None:
    rows = torch.full((2, 64), value)
    assert torch.allclose(again(rows, packing), rows, rtol=2**-7, atol=2**-15)


@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_are_what_is_announced(packing: str) -> None:
    parts = pack(weights(5, 128), packing)
    announced = packed_parts("w", (5, 128), packing)
    assert [("w" + suffix, tuple(p.shape), p.dtype) for suffix, p in parts.items()] == announced


@pytest.mark.parametrize(
    ("shape", "packing", "yes"),
    [
        ((4, 64), "int8", True),
        ((4, 64), "int4", True),
        ((4, 32), "int4", False),  # the two halves of a row would cut a group
        ((4, 96), "int8", False),
        ((64,), "int8", False),
        ((4, 0), "int8", False),
    ],
)
def test_packable(shape: tuple[int, ...], packing: str, yes: bool) -> None:
    assert packable(shape, packing) is yes
