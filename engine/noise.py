"""The random direction z: a pure function of (seed, step, probe, tensor), so it is never stored (MeZO, section 2.1).

The bits come from Philox, a counter-based generator (Salmon et al., SC 2011) whose raw stream NumPy fixes across
platforms and versions. So the same step log gives the same weights on every device, and any part of a stream can be
generated without the parts before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Literal

import numpy as np
import torch

Kind = Literal["rademacher", "gaussian"]

#: Numbers of z per 64-bit word of the generator.
_PER_WORD = {"rademacher": 64, "gaussian": 2}
#: 64-bit words per value of the counter.
_WORDS_PER_COUNT = 4
#: The lane of the bits for stochastic rounding.
_ROUNDING_LANE = 2**63
ROUNDING_POOL = 2**20


def philox(seed: int, step: int, stream: int = 0, *, lane: int = 0, count: int = 0) -> np.random.Philox:
    """The generator of (seed, step, stream, lane), each below 2^64, starting at value `count` of its counter.

    Streams and lanes never overlap.
    """
    # As uint64 arrays: NumPy would convert a list with a number above 2^63 to floats.
    key, counter = np.array([seed, step], dtype=np.uint64), np.array([count, 0, lane, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


@lru_cache(maxsize=1)
def rounding_bits(seed: int, step: int, probe: int) -> torch.Tensor:
    """ROUNDING_POOL random 16-bit numbers, int32, for stochastic rounding of a step's update.

    All tensors share the pool. Weights a pool's length apart then round alike, but each without bias.
    """
    words = philox(seed, step, lane=_ROUNDING_LANE + probe).random_raw(ROUNDING_POOL // 4).astype("<u8", copy=False)
    return torch.from_numpy(words.view("<u2").astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One random direction in parameter space.

    rademacher: signs +1 and -1. Like a Gaussian z they have mean 0 and covariance I, which the estimator requires. All
    directions have the same length, so a step is less noisy, and the bits are cheap.
    gaussian: z ~ N(0, I), as in the paper.
    """

    seed: int
    step: int
    probe: int = 0  #: which of a step's directions
    kind: Kind = "rademacher"

    def of(self, tensor: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """z for the tensor of this number and shape."""
        return self._draw(tensor, 0, prod(shape), dtype).view(tuple(shape))

    def rows(
        self, tensor: int, shape: Sequence[int], start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Rows start to stop of z for a tensor of this shape: (stop - start, *shape[1:])."""
        width = prod(shape[1:])
        return self._draw(tensor, start * width, (stop - start) * width, dtype).view(stop - start, *shape[1:])

    def gather(
        self, tensor: int, shape: Sequence[int], rows: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """(n,) row numbers -> those rows of z, (n, *shape[1:])."""
        found = torch.empty((len(rows), *shape[1:]), dtype=dtype)
        for place, row in enumerate(rows.tolist()):
            found[place] = self.rows(tensor, shape, row, row + 1, dtype)[0]
        return found

    def _draw(self, tensor: int, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        per_count = _PER_WORD[self.kind] * _WORDS_PER_COUNT
        first, skipped = divmod(start, per_count)
        generator = philox(self.seed, self.step, tensor, lane=self.probe, count=first)
        words = generator.random_raw(-(-(skipped + count) // _PER_WORD[self.kind])).astype("<u8", copy=False)
        draw = _signs if self.kind == "rademacher" else _normals
        return draw(words, dtype)[skipped : skipped + count]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """theta + distance * z."""

    direction: Direction
    distance: float


def _signs(words: np.ndarray[tuple[int], np.dtype[np.uint64]], dtype: torch.dtype) -> torch.Tensor:
    """64 signs a word, lowest bit first: 1 is +1, 0 is -1."""
    codes = torch.from_numpy(words.view(np.uint8).astype(np.int32))
    return torch.index_select(_signs_of_bytes(dtype), 0, codes).view(-1)


@cache
def _signs_of_bytes(dtype: torch.dtype) -> torch.Tensor:
    """(256, 8): the signs of each byte. Looking them up is several times faster than shifting bits."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1).to(dtype)


def _normals(words: np.ndarray[tuple[int], np.dtype[np.uint64]], dtype: torch.dtype) -> torch.Tensor:
    """Two normal numbers per word, by the Box-Muller transform of its two halves, in float64."""
    uniforms = (words.view("<u4").reshape(-1, 2).astype(np.float64) + 0.5) / 2**32
    radius = np.sqrt(-2 * np.log(uniforms[:, 0]))
    angle = 2 * np.pi * uniforms[:, 1]
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return torch.from_numpy(pairs.reshape(-1)).to(dtype)
