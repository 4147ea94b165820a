"""NAdam: Adam (arXiv 1412.6980) with Nesterov momentum (Dozat, 2016).

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
        for name, gradient in gradients.items():
            mean = self.means[name].lerp_(gradient, 1 - BETA1)
            square = self.squares[name].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            size = square.div(1 - BETA2**step).sqrt_().add_(EPSILON)
            # Nesterov: the mean after another step with the same gradient.
            ahead = mean.mul(BETA1 / (1 - BETA1 ** (step + 1)))
            ahead.add_(gradient, alpha=(1 - BETA1) / (1 - BETA1**step))
            self._parameters[name].addcdiv_(ahead, size, value=-rate)
