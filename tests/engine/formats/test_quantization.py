"""Packing weights: what comes back is as near as the format allows, and nothing is lost twice."""

from itertools import product

import torch

from pocketllm.engine.formats.quantization import GROUPS, PACKINGS, pack, packable, unpack

LEVELS = {"int8": 254, "int4": 15}  # steps between the ends of a group's range
WEIGHTS = torch.randn(7, 192, generator=torch.Generator().manual_seed(0)) * 0.05


def again(rows: torch.Tensor, packing: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return unpack(pack(rows, packing), torch.empty(rows.shape, dtype=dtype))


def test_each_weight_comes_back_within_half_a_step() -> None:
    for packing in PACKINGS:
        groups = torch.unflatten(WEIGHTS, 1, (-1, GROUPS[packing]))
        span = 2 * groups.abs().amax(2) if packing == "int8" else groups.amax(2) - groups.amin(2)
        error = torch.unflatten(again(WEIGHTS, packing) - WEIGHTS, 1, (-1, GROUPS[packing])).abs().amax(2)
        # float16 scales and minima are good to 2^-11 of their size.
        assert (error <= 0.5 * span / LEVELS[packing] + 2**-11 * groups.abs().amax(2) * 2).all(), packing


def test_packing_twice_changes_nothing_more() -> None:
    for packing in PACKINGS:
        once = again(WEIGHTS, packing)
        assert torch.allclose(again(once, packing), once, rtol=0, atol=1e-6), packing


def test_unpacks_into_any_float() -> None:
    tolerances = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 3e-4, torch.float64: 1e-6}
    for packing, (dtype, tolerance) in product(PACKINGS, tolerances.items()):
        found = again(WEIGHTS, packing, dtype).float()
        assert torch.allclose(found, again(WEIGHTS, packing), rtol=0, atol=tolerance), (packing, dtype)


def test_a_group_of_equal_weights() -> None:
    for packing, value in product(PACKINGS, (0.0, 1e-7, 3.0, -3.0)):
        rows = torch.full((2, 64), value)
        assert torch.allclose(again(rows, packing), rows, rtol=2**-7, atol=2**-15), (packing, value)


def test_packable() -> None:
    assert packable((4, 64), "int8")
    assert packable((4, 64), "int4")
    assert not packable((4, 32), "int4")  # the two halves of a row would cut a group
    assert not packable((4, 96), "int8")
    assert not packable((64,), "int8")
    assert not packable((4, 0), "int8")
