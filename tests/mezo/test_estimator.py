"""The four proofs of the optimiser, and what it does at the edges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import inf, nan

import numpy as np
import pytest
import torch

from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import StepRecord
from pocketllm.engine.noise import Direction, Kind, Perturbation
from pocketllm.engine.planning.memory_model import points_of
from pocketllm.mezo.estimator import Losses, directions, probe, update

KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")
each_kind = pytest.mark.parametrize("kind", KINDS)
PROBES = (1, 2)
#: A central difference of sums of float64, over eps = 1e-3, and then rounded to float32 (2^-24).
SCALAR_TOLERANCE = 1e-7
#: theta is float64 here, so what the reference differs in is the rounding of the recorded scalars.
THETA_TOLERANCE = 1e-6
EPSILON = 1e-3


@dataclass
class Bowl:
    """theta of two tensors under the loss sum (theta - 1)^2, whose minimum is at 1."""

    dtype: torch.dtype = torch.float32
    tensors: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = [torch.full((3, 4), 2.0, dtype=self.dtype), torch.zeros(5, dtype=self.dtype)]

    def add_scaled(self, direction: Direction, distance: float) -> None:
        for number, tensor in enumerate(self.tensors):
            tensor.add_(direction.of(number, tensor.shape, tensor.dtype), alpha=distance)

    def z(self, direction: Direction) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """z written out, in the order of `vector`."""
        parts = [direction.of(i, t.shape, torch.float64).flatten() for i, t in enumerate(self.tensors)]
        return torch.cat(parts).numpy()

    @property
    def vector(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return torch.cat([tensor.double().flatten() for tensor in self.tensors]).numpy()

    def losses(self, points: Sequence[Perturbation]) -> list[float]:
        return [float(loss(self.vector + point.distance * self.z(point.direction))) for point in points]


def loss(vector: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.square(vector - 1).sum())


def same(one: Bowl, other: Bowl) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def descend(
    theta: Bowl, *, seed: int, steps: int, kind: Kind, probes: int = 1, learning_rate: float = 0.01
) -> list[StepRecord]:
    rows = []
    for step in range(1, steps + 1):
        seen = probe(theta.losses, directions(seed, step, probes, kind), epsilon=EPSILON)
        row = StepRecord(
            seed=seed, step=step, scalars=seen.scalars, loss=seen.loss, learning_rate=learning_rate, tokens=1
        )
        rows.append(row)
        update(theta, row, kind)
    return rows


@each_kind
@pytest.mark.parametrize("probes", PROBES)
def test_equals_a_dense_reference_built_from_the_same_z(probes: int, kind: Kind) -> None:
    """Algorithm 1 (n-SPSA) in float64, with z written out, walking in place as the paper does."""
    lr, steps = 0.01, 30
    theta = Bowl(torch.float64)
    dense = theta.vector.copy()
    rows = descend(theta, seed=3, steps=steps, kind=kind, probes=probes, learning_rate=lr)

    for step in range(1, steps + 1):
        gradients = []
        for number in range(probes):
            z = theta.z(Direction(seed=3, step=step, probe=number, kind=kind))
            dense += EPSILON * z
            plus = loss(dense)
            dense -= 2 * EPSILON * z
            minus = loss(dense)
            dense += EPSILON * z
            gradients.append((plus - minus) / (2 * EPSILON))
            assert rows[step - 1].scalars[number] == pytest.approx(gradients[-1], rel=1e-4, abs=1e-4)
        for number, g in enumerate(gradients):
            dense -= lr / probes * g * theta.z(Direction(seed=3, step=step, probe=number, kind=kind))
    assert theta.vector == pytest.approx(dense, rel=THETA_TOLERANCE)


@each_kind
def test_same_seed_gives_bitwise_the_same_parameters_and_another_seed_others(kind: Kind) -> None:
    for seed, probes in product((0, 1, 2**63 - 1, 2**63 + 5, 2**64 - 1), PROBES):
        one, two, other = Bowl(), Bowl(), Bowl()
        rows = [descend(theta, seed=seed, steps=20, kind=kind, probes=probes) for theta in (one, two)]
        descend(other, seed=seed ^ 1, steps=20, kind=kind, probes=probes)
        assert same(one, two) and not same(one, other), (seed, probes)
        assert rows[0] == rows[1], (seed, probes)


@pytest.mark.parametrize(("kind", "probes", "learning_rate"), [("rademacher", 1, 0.02), ("gaussian", 2, 0.01)])
def test_converges_on_a_quadratic(kind: Kind, probes: int, learning_rate: float) -> None:
    theta = Bowl()
    descend(theta, seed=0, steps=400, kind=kind, probes=probes, learning_rate=learning_rate)
    assert loss(theta.vector) < 1e-3 * loss(Bowl().vector)


@each_kind
def test_scalars_are_the_slopes_along_each_z(kind: Kind) -> None:
    """The central difference of a quadratic is exact."""
    theta = Bowl()
    along = directions(8, 1, 2, kind)
    seen = probe(theta.losses, along, epsilon=1e-2)
    slopes = [float(2 * (theta.vector - 1) @ theta.z(z)) for z in along]
    assert seen.scalars == pytest.approx(slopes, rel=SCALAR_TOLERANCE)
    assert seen.loss == pytest.approx(loss(theta.vector), rel=1e-3)


def test_several_directions_share_the_loss_at_theta() -> None:
    """Along signs the curvature of a bowl adds the same to each difference, and is gone with the mean."""
    theta = Bowl()
    along = directions(8, 1, 7, "rademacher")
    points: list[Perturbation] = []

    def losses(asked: Sequence[Perturbation]) -> Sequence[float]:
        points.extend(asked)
        return theta.losses(asked)

    seen = probe(losses, along, epsilon=1e-2)
    slopes = [float(2 * (theta.vector - 1) @ theta.z(z)) for z in along]
    mean = sum(slopes) / len(slopes)
    assert seen.scalars == pytest.approx([slope - mean for slope in slopes], rel=SCALAR_TOLERANCE, abs=1e-4)
    assert seen.loss == pytest.approx(loss(theta.vector), rel=1e-6)
    assert [point.distance for point in points] == [0.0] + [1e-2] * 7


def given(losses: Sequence[float]) -> Losses:
    """These losses at as many points."""

    def losses_at(points: Sequence[Perturbation]) -> Sequence[float]:
        assert len(points) == len(losses)
        return losses

    return losses_at


def test_a_loss_that_is_no_number_at_any_point_of_the_budgets_number_is_a_divergence() -> None:
    for probes, broken in product((1, 2, 3, 4, 16), (nan, inf, -inf)):
        points = points_of(probes)
        for place in range(points):
            losses = [2.0] * points
            losses[place] = broken
            with pytest.raises(TrainingDiverged, match=f"At step 7 the loss is {broken} at 1 of {points} points"):
                probe(given(losses), directions(1, 7, probes, "rademacher"), epsilon=1e-3)


def test_scalars_are_float32_exactly() -> None:
    """The step log keeps them so: a replayed update must see the very number that the run saw."""
    for plus, minus in ((1.1, 1.0), (3.3333333333333335, 2.718281828459045), (1e-12, 0.0)):
        (scalar,) = probe(given((plus, minus)), directions(1, 1, 1, "rademacher"), epsilon=1e-3).scalars
        assert type(scalar) is float
        assert scalar == float(np.float32(scalar))
        assert scalar == pytest.approx((plus - minus) / 2e-3, rel=2**-24)
