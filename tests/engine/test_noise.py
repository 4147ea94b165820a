"""The noise is a function of numbers alone, the same everywhere, and each stream has its own."""

import pytest
import torch

from pocketllm.engine.noise import ROUNDING_POOL, Direction, Kind, philox, rounding_bits

KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")
each_kind = pytest.mark.parametrize("kind", KINDS)
#: Around the numbers that a signed integer, and a float64, can no longer hold.
LARGE_SEEDS = (2**53 + 1, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 2, 2**64 - 1)
#: Standard errors that a statistic may be off: one run in 15 000 of another stream would be.
SIGMAS = 4.0


def z(
    seed: int, step: int, tensor: int, shape: tuple[int, ...], *, probe: int = 0, kind: Kind = "rademacher"
) -> torch.Tensor:
    return Direction(seed=seed, step=step, probe=probe, kind=kind).of(tensor, shape)


def test_is_signs_with_mean_zero() -> None:
    signs = z(1, 1, 0, (200, 500))
    assert signs.dtype == torch.float32
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < SIGMAS / 100_000**0.5


def test_normals_have_the_moments_of_a_normal_distribution() -> None:
    n = 400_000
    x = z(1, 1, 0, (n,), kind="gaussian").double()
    assert abs(float(x.mean())) < SIGMAS * (1 / n) ** 0.5
    assert abs(float(x.square().mean()) - 1) < SIGMAS * (2 / n) ** 0.5
    assert abs(float(x.pow(3).mean())) < SIGMAS * (15 / n) ** 0.5
    assert abs(float(x.pow(4).mean()) - 3) < SIGMAS * (96 / n) ** 0.5
    # The tail: one number in 370 is beyond three.
    assert abs(float((x.abs() > 3).double().mean()) - 0.0026998) < SIGMAS * (0.0027 / n) ** 0.5


def test_neighbouring_normals_are_independent() -> None:
    """Each pair comes from one word."""
    n = 200_000
    pairs = z(2, 1, 0, (n, 2), kind="gaussian").double()
    for power in (1, 2):
        moved = pairs.pow(power) - pairs.pow(power).mean(0)
        correlation = float((moved[:, 0] * moved[:, 1]).mean() / moved.square().mean())
        assert abs(correlation) < SIGMAS / n**0.5, power


@each_kind
def test_large_numbers_are_not_rounded_together(kind: Kind) -> None:
    """NumPy makes floats of a list with a number above 2^63 in it: seeds next to each other would then be one."""
    numbers = {number for large in LARGE_SEEDS for number in (large, large - 1, large - 2)}
    assert len({tuple(z(number, 3, 0, (64,), kind=kind).tolist()) for number in numbers}) == len(numbers)
    assert len({tuple(z(3, number, 0, (64,), kind=kind).tolist()) for number in numbers}) == len(numbers)


def test_streams_lanes_and_counts_are_apart() -> None:
    """Every part of the counter and of the key counts, large or small, and none takes another's place."""
    seen = set()
    values = (0, 1, 2**62, 2**63 - 1, 2**63 + 5, 2**64 - 1)
    for value in values:
        for place in range(5):
            seed, step, stream, lane, count = (value if i == place else 7 for i in range(5))
            seen.add(tuple(philox(seed, step, stream, lane=lane, count=count).random_raw(2).tolist()))
    assert len(seen) == 5 * len(values)


def test_streams_are_the_same_on_every_platform() -> None:
    # Written down once. If this ever fails, old step logs replay to other weights.
    signs = "-++-+++-+---+-++"
    assert z(0, 1, 0, (16,)).tolist() == [1.0 if sign == "+" else -1.0 for sign in signs]
    large = Direction(seed=2**64 - 1, step=2, probe=3).of(4, (16,))
    assert large.tolist() == [1.0 if sign == "+" else -1.0 for sign in "-+-+--+-+++-+-++"]
    assert rounding_bits(0, 1, 0)[:4].tolist() == [18309, 50569, 41360, 45889]
    # Normals to the last digits of a logarithm and a sine, which no standard fixes.
    normals = Direction(seed=0, step=1, kind="gaussian").of(0, (4,), torch.float64)
    assert normals.tolist() == pytest.approx(
        [0.08700533729423879, -0.20690208559037568, 0.013028422341347554, -1.5573458535213174], rel=1e-12
    )


@each_kind
def test_odd_sizes(kind: Kind) -> None:
    """A tensor is a stretch of its stream: a longer one begins the same."""
    longer = z(7, 3, 2, (200,), kind=kind)
    shapes: list[tuple[int, ...]] = [(), (1,), (3, 21), (65,), (0,), (4, 0), (2, 3, 5)]
    for shape in shapes:
        drawn = z(7, 3, 2, shape, kind=kind)
        assert drawn.shape == shape
        assert torch.equal(longer[: drawn.numel()], drawn.flatten()), shape


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_the_wholes(kind: Kind, dtype: torch.dtype) -> None:
    direction = Direction(seed=11, step=12, probe=1, kind=kind)
    shapes: list[tuple[int, ...]] = [(40, 1), (40, 7), (9, 255), (9, 256), (9, 257), (5, 3, 11), (300,)]
    for shape in shapes:
        whole = direction.of(3, shape, dtype)
        assert whole.dtype == dtype
        for start in range(0, shape[0], 4):
            for stop in (start, start + 1, min(start + 5, shape[0]), shape[0]):
                found = direction.rows(3, shape, start, stop, dtype)
                assert torch.equal(found, whole[start:stop]), (shape, start, stop)
        chosen = torch.tensor([shape[0] - 1, 0, 2, 2])
        assert torch.equal(direction.gather(3, shape, chosen, dtype), whole[chosen]), shape
        assert direction.gather(3, shape, chosen[:0], dtype).shape == (0, *shape[1:])


@each_kind
def test_other_dtypes_round_the_same_numbers(kind: Kind) -> None:
    direction = Direction(seed=1, step=2, kind=kind)
    exact = direction.of(0, (99,), torch.float64)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(direction.of(0, (99,), dtype), exact.to(dtype)), dtype


@each_kind
def test_tensors_steps_and_probes_are_uncorrelated(kind: Kind) -> None:
    n = 10_000
    drawn = [z(5, 9, 0, (n,), kind=kind), z(5, 9, 1, (n,), kind=kind)]
    drawn += [z(5, 10, 0, (n,), kind=kind), z(5, 9, 0, (n,), probe=1, kind=kind)]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(float((a * b).mean())) < SIGMAS / n**0.5


def test_rounding_bits_are_even_and_of_their_own_stream() -> None:
    bits = rounding_bits(1, 2, 0)
    assert bits.shape == (ROUNDING_POOL,)
    assert (int(bits.min()), int(bits.max())) == (0, 2**16 - 1)
    # A uniform number's mean and variance.
    shares = bits.double() / 2**16
    assert abs(float(shares.mean()) - 0.5) < SIGMAS * (1 / 12 / ROUNDING_POOL) ** 0.5
    assert abs(float(shares.var()) - 1 / 12) < SIGMAS * (1 / 180 / ROUNDING_POOL) ** 0.5
    for seed, step, probe in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert not torch.equal(bits, rounding_bits(seed, step, probe))
    low = z(1, 2, 0, (ROUNDING_POOL,))
    assert abs(float(((bits & 1) * 2 - 1).float().dot(low) / ROUNDING_POOL)) < SIGMAS / ROUNDING_POOL**0.5
