"""The least time that the matrix products of a forward pass can take here.

A turn (turns.py) measures anew the best rate that a product of the sizes of the model's linear maps reaches, and
answers with the seconds of all of them, one forward pass of batch x tokens rows, at that rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.common import peers

_REPEATS = 3
#: The products whose rate is measured are of both signs of a probe: more rows are no slower a row.
_SIDES = 2
#: Where bf16 is emulated, fp32 is the faster one, and the rate that counts.
_DTYPES = (torch.bfloat16, torch.float32)


class Floor:
    """The matrix products of a model's linear maps, output head included."""

    def __init__(self, folder: Path, *, batch: int, tokens: int) -> None:
        weights = [m.weight for m in peers.build(folder).modules() if isinstance(m, torch.nn.Linear)]
        self._shapes = sorted({(len(weight), weight.shape[1]) for weight in weights})
        self._rows = batch * tokens
        self._operations = 2 * self._rows * sum(weight.numel() for weight in weights)

    def seconds(self) -> float:
        """Measure the rate, and return the seconds at it."""
        return self._operations / max(self._rate(*shape, dtype) for shape in self._shapes for dtype in _DTYPES)

    @torch.inference_mode()
    def _rate(self, out: int, width: int, dtype: torch.dtype) -> float:
        # Random numbers: with constants, whose bits hardly change, a processor draws less power and runs faster.
        rows = _SIDES * self._rows
        x, w = torch.randn(rows, width).to(dtype), torch.randn(out, width).to(dtype)
        y = torch.empty(rows, out, dtype=dtype)
        best = float("inf")
        for _ in range(_REPEATS):
            started = time.perf_counter()
            torch.mm(x, w.t(), out=y)
            best = min(best, time.perf_counter() - started)
        return 2 * rows * out * width / best


def prepare_step(folder: str, *, batch: int, tokens: int) -> Callable[[], dict[str, float]]:
    """Build the model, and return what answers a turn."""
    floor = Floor(Path(folder), batch=batch, tokens=tokens)
    return lambda: {"seconds": floor.seconds()}
