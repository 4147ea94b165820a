import pytest
import torch

from pocketllm.mezo.noise import rademacher


def test_is_signs_with_mean_zero() -> None:
    z = rademacher(1, 1, 0, (200, 500))
    assert z.dtype == torch.float32
    assert set(z.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(z.mean())) < 0.02


def test_is_a_function_of_seed_step_and_tensor() -> None:
    one = rademacher(0, 1, 0, (64,))
    assert torch.equal(one, rademacher(0, 1, 0, (64,)))
    for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(one, rademacher(*other, (64,))), other


def test_stream_is_the_same_on_every_platform() -> None:
    # Written down once. If this ever fails, old journals replay to other weights.
    assert rademacher(0, 1, 0, (16,)).tolist() == [
        -1.0,
        1.0,
        1.0,
        -1.0,
        1.0,
        1.0,
        1.0,
        -1.0,
        1.0,
        -1.0,
        -1.0,
        -1.0,
        1.0,
        -1.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("shape", [(), (1,), (3, 21), (65,), (0,)])
def test_odd_sizes(shape: tuple[int, ...]) -> None:
    assert rademacher(7, 3, 2, shape).shape == shape


def test_tensors_are_uncorrelated() -> None:
    a, b = rademacher(5, 9, 0, (10_000,)), rademacher(5, 9, 1, (10_000,))
    assert abs(float((a * b).mean())) < 0.05
