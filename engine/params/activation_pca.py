"""Initialises A with the principal components of each linear map's inputs (EVA, arXiv 2410.07170), for MeZO.

The rows of a random A are spread over all directions, most of which the text never uses. The principal components of
the activations (not centred: the mean, which acts as a bias, comes first) carry more of the gradient at the same
curvature, which limits a zeroth-order step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import sqrt

import numpy as np
import torch

from pocketllm.engine.data.batches import Batches
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.noise import philox
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.modules import StreamedLinear

#: Passes over the calibration blocks: subspace iterations.
PASSES = 3
#: Rows of activations to process at a time.
_ROWS = 256
#: Oversampling of the subspace iteration, which makes it converge faster.
_SPARE = 4


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
    search = _Search(model, paths, rank + _SPARE, seed)
    model.set_parameters(None)
    for number in range(PASSES):
        with search.collecting():
            for bucket in buckets:
                for part in bucket.split(micro_batch):
                    model.hidden(part)
        search.orthonormalize()
        on_pass(number + 1)
    a = {path: search.rows(path, rank) for path in paths}
    b = {path: torch.zeros(model.linears[path].out_features, rank) for path in paths}
    return Adapter(base=model.folder.manifest.name, alpha=float(rank), a=a, b=b)


class _Search:
    """A sketch for each distinct input; linear maps with the same input (queries, keys and values) share one."""

    def __init__(self, model: LanguageModel, paths: Sequence[str], width: int, seed: int) -> None:
        self._linears = {path: model.linears[path] for path in paths}
        self._width, self._seed = width, seed
        self._sketch_of: dict[str, _Sketch] = {}
        self._sizes = {path: _Size() for path in paths}
        self._last: tuple[torch.Tensor, _Sketch] | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the inputs and outputs of the linear maps meanwhile."""
        hooks = [linear.register_forward_hook(partial(self._update, path)) for path, linear in self._linears.items()]
        try:
            yield
        finally:
            self._last = None
            for hook in hooks:
                hook.remove()

    def orthonormalize(self) -> None:
        """End a pass."""
        for sketch in self._sketches():
            sketch.orthonormalize()

    def rows(self, path: str, rank: int) -> torch.Tensor:
        """The A of one linear map."""
        return self._sketch_of[path].rows(rank, self._sizes[path].root_mean_square)

    def _update(self, path: str, linear: StreamedLinear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """A forward hook."""
        (x,) = inputs
        if self._last is None or self._last[0] is not x:
            if path not in self._sketch_of:
                number = len(self._sketches())
                self._sketch_of[path] = _Sketch(linear.in_features, self._width, self._seed, number)
            self._last = (x, self._sketch_of[path])
            self._last[1].update(x)
        self._sketch_of[path] = self._last[1]
        self._sizes[path].update(output)

    def _sketches(self) -> list["_Sketch"]:
        return list(dict.fromkeys(self._sketch_of.values()))


class _Size:
    """The RMS of a linear map's outputs."""

    def __init__(self) -> None:
        self._square, self._count = 0.0, 0

    def update(self, output: torch.Tensor) -> None:
        """Add these outputs (..., out)."""
        # Some rows at a time: an fp32 copy of all would be as large as a step's activations.
        for rows in torch.split(output.flatten(0, -2), _ROWS):
            self._square += float(rows.float().square().sum())
            self._count += rows.numel()

    @property
    def root_mean_square(self) -> float:
        """Of all outputs so far."""
        return sqrt(self._square / self._count)


class _Sketch:
    """Subspace iteration on the covariance C of one input, by products C Q, without C itself."""

    def __init__(self, inputs: int, width: int, seed: int, number: int) -> None:
        size = (inputs, min(width, inputs))
        start = np.random.Generator(philox(seed, 0, number)).standard_normal(size, dtype=np.float32)
        self.q = torch.linalg.qr(torch.from_numpy(start)).Q  # (in, width), orthonormal
        self.reset()

    def reset(self) -> None:
        """Begin a pass."""
        self.product = torch.zeros_like(self.q)  # sum over tokens of x (x Q)
        self.tokens = 0

    def update(self, x: torch.Tensor) -> None:
        """Add these inputs (..., in)."""
        for rows in torch.split(x.flatten(0, -2), _ROWS):
            rows = rows.float()
            self.product += rows.t() @ (rows @ self.q)
            self.tokens += len(rows)

    def orthonormalize(self) -> None:
        """End a pass: Q becomes an orthonormal basis of C Q."""
        self.q, r = torch.linalg.qr(self.product / self.tokens)
        self.strength = r.diagonal().abs()  # estimates of C's largest eigenvalues
        self.reset()

    def rows(self, rank: int, output_rms: float) -> torch.Tensor:
        """(rank, in): the strongest components, scaled together to the size of the map's outputs."""
        order = self.strength.argsort(descending=True, stable=True)[:rank]
        scale = output_rms / self.strength[order].sum().clamp(min=1e-12).sqrt()
        rows: torch.Tensor = (self.q[:, order] * scale).t()
        if rows.shape[0] < rank:  # the input is narrower than the rank
            rows = torch.cat([rows, torch.zeros(rank - rows.shape[0], rows.shape[1])])
        return rows.contiguous()
