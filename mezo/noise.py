"""The random direction z: a pure function of (seed, step, tensor), so it is never stored (MeZO, section 2.1).

The bits come from Philox, a counter-based generator whose raw stream NumPy fixes across platforms and
versions: the same journal gives the same weights on a phone, a laptop, and ten years from now.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch


def philox(seed: int, step: int, stream: int = 0) -> np.random.Philox:
    """The counter-based generator of (seed, step, stream); each below 2^64. Streams never overlap."""
    return np.random.Philox(key=[seed, step], counter=[0, 0, 0, stream])


def rademacher(seed: int, step: int, tensor: int, shape: Sequence[int]) -> torch.Tensor:
    """Signs +1 and -1 with equal probability, fp32, of this shape: one bit of the generator each.

    Like a Gaussian z they have mean 0 and covariance I, which is all that the estimator needs; and every
    probe has the same length, so the step is less noisy and the bits are cheap.
    """
    count = prod(shape)
    words = philox(seed, step, tensor).random_raw(-(-count // 64)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1).view(tuple(shape))
