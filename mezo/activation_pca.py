"""Initialises A with the principal components of each linear map's inputs (EVA, arXiv 2410.07170), for MeZO.

The rows of a random A are spread over all directions, most of which the text never uses. The principal components of
the activations (not centred: the mean, which acts as a bias, comes first) carry more of the gradient at the same
curvature, which limits a zeroth-order step.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import sqrt

import numpy as np
import torch
from torch import nn

from pocketllm.engine.data.batches import Batches
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.noise import philox
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.memory_model import SPARE_COLUMNS
from pocketllm.engine.streamed.model import LanguageModel

#: Passes over the calibration blocks: subspace iterations.
PASSES = 3
#: Rows of activations to process at a time.
_ROWS = 256


def adapter_along_activations(
    model: LanguageModel,
    buckets: Batches,
    *,
    targets: Sequence[str],
    rank: int,
    seed: int,
    micro_batch: int,
    on_pass: Callable[[int], None] = lambda _: None,
) -> Adapter:
    """A new adapter (B zero) whose A holds the principal components of the activations on `buckets`.

    Scaled so that for a typical input a B of size s changes each output by about s times the outputs' RMS: one step
    size then fits all layers. Deterministic in its arguments. micro_batch: blocks that pass through the layers
    together. on_pass: called with the number of each finished pass. Raises BadRequest when no linear map has such a
    name.
    """
    paths = [path for path in model.linears if path.rpartition(".")[2] in targets]
    if not paths:
        there = sorted({path.rpartition(".")[2] for path in model.linears})
        raise BadRequest(
            f"None of training.targets ({', '.join(targets)}) is a linear map of {model.folder.manifest.name}. Name "
            f"some of these: {', '.join(there)}."
        )
    sketches = {path: _Sketch(model.linears[path].in_features, rank + SPARE_COLUMNS, seed) for path in paths}
    model.set_parameters(None)
    for number in range(PASSES):
        with ExitStack() as hooks:
            for path, sketch in sketches.items():
                hooks.enter_context(model.linears[path].register_forward_hook(sketch.update))
            for bucket in buckets:
                for part in bucket.split(micro_batch):
                    model.hidden(part)
        for sketch in sketches.values():
            sketch.orthonormalize()
        on_pass(number + 1)
    a = {path: sketch.rows(rank) for path, sketch in sketches.items()}
    b = {path: torch.zeros(model.linears[path].out_features, rank) for path in paths}
    return Adapter(base=model.folder.manifest.name, alpha=float(rank), a=a, b=b)


class _Sketch:
    """Subspace iteration on the covariance C of a linear map's inputs, by products C Q, without C itself."""

    def __init__(self, inputs: int, width: int, seed: int) -> None:
        size = (inputs, min(width, inputs))
        start = np.random.Generator(philox(seed, 0)).standard_normal(size, dtype=np.float32)
        self._q = torch.linalg.qr(torch.from_numpy(start)).Q  # (in, width), orthonormal
        self._product = torch.zeros_like(self._q)  # sum over a pass's tokens of x (x Q)
        self._tokens = 0
        self._square, self._count = 0.0, 0  # of the outputs

    def update(self, _: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Add these inputs (..., in) and outputs (..., out): a forward hook."""
        (x,) = inputs
        # Some rows at a time: an fp32 copy of all would be as large as a step's activations.
        for rows, outputs in zip(x.flatten(0, -2).split(_ROWS), output.flatten(0, -2).split(_ROWS), strict=True):
            rows = rows.float()
            self._product += rows.t() @ (rows @ self._q)
            self._tokens += len(rows)
            self._square += float(outputs.float().square().sum())
            self._count += outputs.numel()

    def orthonormalize(self) -> None:
        """End a pass: Q becomes an orthonormal basis of C Q."""
        self._q, r = torch.linalg.qr(self._product / self._tokens)
        self._strength = r.diagonal().abs()  # estimates of C's largest eigenvalues
        self._product, self._tokens = torch.zeros_like(self._q), 0

    def rows(self, rank: int) -> torch.Tensor:
        """(rank, in): the strongest components, scaled together to the size of the map's outputs."""
        order = self._strength.argsort(descending=True, stable=True)[:rank]
        scale = sqrt(self._square / self._count) / self._strength[order].sum().clamp(min=1e-12).sqrt()
        rows: torch.Tensor = (self._q[:, order] * scale).t()
        if rows.shape[0] < rank:  # the input is narrower than the rank
            rows = torch.cat([rows, torch.zeros(rank - rows.shape[0], rows.shape[1])])
        return rows.contiguous()
