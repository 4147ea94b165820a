"""Where the frozen A looks: along the directions in which a layer's inputs really vary.

A random A spreads its few rows over all directions, most of which the text never uses. The principal directions
of the activations (uncentred, so the mean, which acts as a bias, comes first) carry more of the gradient at the
same curvature, which is what a zeroth-order step is limited by.
"""

from collections.abc import Callable, Sequence

import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.model import LanguageModel, LowRankLinear
from pocketllm.mezo.noise import rademacher

#: Passes over the calibration blocks. Each sharpens the directions by a power of the covariance.
PASSES = 3
#: Extra directions carried along while iterating, so that the wanted ones converge quickly.
_SPARE = 4


def adapter_along_activations(
    model: LanguageModel,
    blocks: Blocks,
    *,
    targets: Sequence[str],
    rank: int,
    seed: int,
    on_pass: Callable[[int], None] = lambda _: None,
) -> Adapter:
    """A fresh adapter (B zero, so it changes nothing yet) whose A follows the activations on `blocks`.

    Scaled so that, for a typical input, a B of size s changes each output by about s of the outputs' root mean
    square: one step size then fits all layers. Deterministic in its arguments.
    """
    paths = [path for path in model.linears if path.rpartition(".")[2] in targets]
    sketches = {path: _Sketch(model.linears[path], rank + _SPARE, seed, i) for i, path in enumerate(paths)}
    model.use(None)
    for number in range(PASSES):
        hooks = [model.linears[path].base.register_forward_hook(sketch.see) for path, sketch in sketches.items()]
        try:
            for part in blocks.split(4):
                model.hidden(part.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for sketch in sketches.values():
            sketch.turn()
        on_pass(number + 1)
    a = {path: sketch.rows(rank) for path, sketch in sketches.items()}
    b = {path: torch.zeros(model.linears[path].base.out_features, rank) for path in paths}
    return Adapter(base=model.native.manifest.name, alpha=float(rank), a=a, b=b)


class _Sketch:
    """Subspace iteration on one layer's input covariance C, by products C Q alone: never C itself."""

    def __init__(self, linear: LowRankLinear, width: int, seed: int, number: int) -> None:
        inputs = linear.base.in_features
        start = rademacher(seed, 0, number, (inputs, min(width, inputs)))
        self.q = torch.linalg.qr(start).Q  # (in, width), orthonormal
        self.reset()

    def reset(self) -> None:
        """Forget what was seen in this pass."""
        self.product = torch.zeros_like(self.q)  # sum over tokens of x (x Q)
        self.tokens = 0
        self.output_square = 0.0

    def see(self, _linear: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """A forward hook."""
        x = inputs[0].flatten(0, -2).float()
        self.product += x.t() @ (x @ self.q)
        self.tokens += len(x)
        self.output_square += float(output.float().pow(2).mean()) * len(x)

    def turn(self) -> None:
        """End of a pass: Q becomes an orthonormal basis of C Q."""
        self.q, r = torch.linalg.qr(self.product / self.tokens)
        self.strength = r.diagonal().abs()  # estimates of C's largest eigenvalues
        self.output_rms = (self.output_square / self.tokens) ** 0.5
        self.reset()

    def rows(self, rank: int) -> torch.Tensor:
        """(rank, in): the strongest directions, scaled to the size of the layer's outputs.

        The directions keep their relative strength: where the inputs hardly vary, neither does A x.
        """
        order = self.strength.argsort(descending=True, stable=True)[:rank]
        scale = self.output_rms / self.strength[order].sum().clamp(min=1e-12).sqrt()
        rows: torch.Tensor = (self.q[:, order] * scale).t()
        if rows.shape[0] < rank:  # the layer is narrower than the rank asked for
            rows = torch.cat([rows, torch.zeros(rank - rows.shape[0], rows.shape[1])])
        return rows.contiguous()
