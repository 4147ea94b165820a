"""NAdam: Adam (arXiv 1412.6980) with Nesterov momentum (Dozat, 2016), for tensors that are updated a few at a time.

A job is a few hundred steps; with Adam's usual momentum (beta1 0.9) updates lag ten steps behind the gradient.
The second moment is as quick: with beta2 0.99 a loss rose again at step 10, where the gradients had outgrown it
(docs/notes.md). torch.optim.NAdam would import torch's compiler (51 MB).
"""

from collections.abc import Mapping

import torch

BETA1, BETA2, EPSILON = 0.8, 0.95, 1e-8


class NAdam:
    """Updates parameters in place; has their two moments, by the names of the parameters."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self.means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def reset(self) -> None:
        """Forget all gradients."""
        torch._foreach_zero_([*self.means.values(), *self.squares.values()])

    def update(self, gradients: Mapping[str, torch.Tensor], *, step: int, rate: float) -> None:
        """Update the parameters that have gradients. step: the number of this update, from 1."""
        found = list(gradients.values())
        means, squares = [self.means[name] for name in gradients], [self.squares[name] for name in gradients]
        torch._foreach_lerp_(means, found, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, found, found, value=1 - BETA2)
        sizes = torch._foreach_div(squares, 1 - BETA2**step)
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, EPSILON)
        # Nesterov: the mean after another step with the same gradient.
        ahead = torch._foreach_mul(means, BETA1 / (1 - BETA1 ** (step + 1)))
        torch._foreach_add_(ahead, found, alpha=(1 - BETA1) / (1 - BETA1**step))
        updated = [self._parameters[name] for name in gradients]
        torch._foreach_addcdiv_(updated, ahead, sizes, value=-rate)
