"""Random bits as a pure function of (seed, step, stream, lane): the same on every device, and never stored.

Philox is a counter-based generator (Salmon et al., SC 2011) whose raw stream NumPy fixes across platforms and versions.
Being a counter, it gives any part of a stream without the parts before it.
"""

from functools import lru_cache

import numpy as np
import torch

#: Words that one value of the counter gives.
WORDS_PER_COUNT = 4
#: Random bits for stochastic rounding come from a stream of their own.
_ROUNDING_LANE = 2**63
ROUNDING_POOL = 2**20


def philox(seed: int, step: int, stream: int = 0, *, lane: int = 0, count: int = 0) -> np.random.Philox:
    """The counter-based generator of (seed, step, stream, lane), from its `count`-th four words on.

    Each is below 2^64. Streams and lanes never overlap.
    """
    # As arrays of this type: NumPy takes a list with one number above 2^63 in it for floats, and rounds.
    key, counter = np.array([seed, step], dtype=np.uint64), np.array([count, 0, lane, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


@lru_cache(maxsize=1)
def rounding_bits(seed: int, step: int, probe: int) -> torch.Tensor:
    """ROUNDING_POOL random 16-bit numbers, int32, for rounding the weights of a step's update.

    A pool for all tensors: rounding is unbiased for each weight, which is what counts; that weights a pool's
    length apart round alike does no harm.
    """
    words = philox(seed, step, lane=_ROUNDING_LANE + probe).random_raw(ROUNDING_POOL // 4).astype("<u8", copy=False)
    return torch.from_numpy(words.view("<u2").astype(np.int32))
