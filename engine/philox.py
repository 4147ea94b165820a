"""Random bits as a pure function of (seed, step, stream, lane), the same on every device.

Philox is a counter-based generator (Salmon et al., SC 2011) whose raw stream NumPy fixes across platforms and versions.
Any part of a stream can be generated without the parts before it.
"""

from functools import lru_cache

import numpy as np
import torch

#: 64-bit words per value of the counter.
WORDS_PER_COUNT = 4
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
