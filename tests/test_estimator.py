"""The four proofs of the optimiser, and what it does at the edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pocketllm.mezo.estimator import Parameters, probe, replay, update
from pocketllm.mezo.noise import rademacher


@dataclass(frozen=True)
class Row:
    seed: int
    step: int
    scalar: float
    learning_rate: float


def quadratic(points: Sequence[Parameters]) -> list[float]:
    """sum (p - 1)^2, whose minimum is at 1."""
    return [sum(float((p.double() - 1).square().sum()) for p in point) for point in points]


def start() -> list[torch.Tensor]:
    return [torch.full((3, 4), 2.0), torch.zeros(5)]


def descend(theta: list[torch.Tensor], *, seed: int, steps: int, learning_rate: float) -> list[Row]:
    rows = []
    for step in range(1, steps + 1):
        seen = probe(quadratic, theta, seed=seed, step=step, epsilon=1e-3)
        rows.append(Row(seed=seed, step=step, scalar=seen.scalar, learning_rate=learning_rate))
        update(theta, rows[-1])
    return rows


def test_equals_a_dense_reference_built_from_the_same_signs() -> None:
    """Algorithm 1 in float64, with z written out, walking in place as the paper does."""
    eps, lr, steps = 1e-3, 0.01, 30
    theta = start()
    rows = descend(theta, seed=3, steps=steps, learning_rate=lr)

    dense = np.concatenate([p.numpy().ravel() for p in start()]).astype(np.float64)
    for step in range(1, steps + 1):
        z = np.concatenate([rademacher(3, step, i, p.shape).numpy().ravel() for i, p in enumerate(theta)])
        dense += eps * z
        plus = np.square(dense - 1).sum()
        dense -= 2 * eps * z
        minus = np.square(dense - 1).sum()
        dense += eps * z
        g = (plus - minus) / (2 * eps)
        assert rows[step - 1].scalar == pytest.approx(g, rel=1e-3, abs=1e-3)
        dense -= lr * g * z
    assert np.concatenate([p.numpy().ravel() for p in theta]) == pytest.approx(dense, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_same_seed_gives_bitwise_the_same_parameters(seed: int) -> None:
    one, two = start(), start()
    descend(one, seed=seed, steps=20, learning_rate=0.01)
    descend(two, seed=seed, steps=20, learning_rate=0.01)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_seed_zero_is_a_seed() -> None:
    zero, one = start(), start()
    descend(zero, seed=0, steps=5, learning_rate=0.01)
    descend(one, seed=1, steps=5, learning_rate=0.01)
    assert not torch.equal(zero[0], one[0])


def test_parameters_are_exactly_as_before_after_a_probe() -> None:
    theta = [torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    before = [p.clone() for p in theta]
    probe(quadratic, theta, seed=1, step=1, epsilon=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(theta, before, strict=True))


def test_converges_on_a_quadratic() -> None:
    theta = start()
    descend(theta, seed=0, steps=400, learning_rate=0.02)
    assert quadratic([theta])[0] < 1e-3 * quadratic([start()])[0]


def test_replay_of_the_rows_is_the_run() -> None:
    run = start()
    rows = descend(run, seed=4, steps=25, learning_rate=0.01)
    again = start()
    replay(again, rows)
    assert all(torch.equal(a, b) for a, b in zip(run, again, strict=True))


def test_scalar_is_the_slope_along_z() -> None:
    theta = start()
    seen = probe(quadratic, theta, seed=8, step=1, epsilon=1e-2)
    slope = sum(float((2 * (p - 1) * rademacher(8, 1, i, p.shape)).sum()) for i, p in enumerate(theta))
    assert seen.scalar == pytest.approx(slope, rel=1e-3)
    assert seen.loss == pytest.approx(quadratic([theta])[0], rel=1e-3)
