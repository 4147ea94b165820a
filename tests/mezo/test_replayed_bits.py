"""A step log gives the same bits on every processor: what was written down here, an Arm core must come to, too."""

import hashlib

import numpy as np
import torch

from pocketllm.engine.method import StepRecord
from pocketllm.engine.params.lora import Adapter
from pocketllm.mezo.estimator import replay

#: The end of the run below, as x86-64 with AVX-512 has it.
EXPECTED = "0b1b939b6c66a97c172c64ee40b48becf2f40614d857537e77b148d5d2942cc7"


def test_a_step_log_gives_the_same_bits_on_every_processor() -> None:
    shapes = {"up": (515, 8), "down": (129, 8)}
    adapter = Adapter(
        base="any",
        alpha=16.0,
        a={name: torch.zeros(8, 64) for name in shapes},
        b={name: torch.arange(out * rank).reshape(out, rank) / 4096 for name, (out, rank) in shapes.items()},
    )
    generator = np.random.default_rng(7)
    records = [
        StepRecord(
            step=step,
            seed=int(generator.integers(2**31)),
            scalars=tuple((generator.integers(-1000, 1000, size=3) / 512).tolist()),
            loss=1.0,
            learning_rate=float(np.float32(3e-3 / step)),
            tokens=1,
        )
        for step in range(1, 41)
    ]
    replay(adapter, records)
    end = hashlib.sha256()
    for b in adapter.b.values():
        end.update(b.numpy().tobytes())
    assert end.hexdigest() == EXPECTED
