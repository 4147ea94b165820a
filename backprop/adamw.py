"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) without weight decay, for tensors that are updated a few at a time.

torch.optim's would import torch's compiler, which takes as much memory as a layer's graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


@dataclass
class AdamW:
    """The moments of each parameter by its name, fp32."""

    means: dict[str, torch.Tensor] = field(default_factory=dict)
    squares: dict[str, torch.Tensor] = field(default_factory=dict)

    def update(
        self, parameters: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], *, step: int, rate: float
    ) -> None:
        """Move these parameters, in place. step: how many updates each has seen, this one included."""
        found = list(gradients.values())
        for name, gradient in gradients.items():
            if name not in self.means:
                self.means[name], self.squares[name] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        means, squares = [self.means[name] for name in gradients], [self.squares[name] for name in gradients]
        torch._foreach_lerp_(means, found, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, found, found, value=1 - BETA2)
        sizes = torch._foreach_div(squares, 1 - BETA2**step)
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, EPSILON)
        moved = [parameters[name] for name in gradients]
        torch._foreach_addcdiv_(moved, means, sizes, value=-rate / (1 - BETA1**step))
