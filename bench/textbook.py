"""MeZO as the paper lists it, dense and in float64: what the engine's trajectory is held against.

Algorithm 1 of arXiv 2305.17333. It shares with the engine the model's forward (transformers') and the numbers of z,
and nothing else: no streaming, no two-sided batch, no chunked loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

Array = NDArray[np.float64]
#: z of (seed, step, number of the tensor, its shape).
Noise = Callable[[int, int, int, tuple[int, ...]], Array]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to."""

    losses: list[tuple[float, float]]  #: L+ and L- of each step
    start: dict[str, Array]  #: the parameters before the first step
    parameters: dict[str, Array]  #: and after the last


def train(
    folder: Path,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    names: Sequence[str],
    noise: Noise,
    steps: int,
    seed: int,
    epsilon: float,
    rate: float,
) -> Run:
    """Train every parameter of the Hugging Face folder on one batch, (texts, tokens) int64 ids and their targets.

    names: the parameters in the order in which the noise counts them. Raises ValueError when they are not the
    model's.
    """
    disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, local_files_only=True)
    model.eval()
    parameters = dict(model.named_parameters())  # tied ones once
    if sorted(names) != sorted(parameters):
        raise ValueError(f"the parameters are {sorted(parameters)}, not {sorted(names)}")
    start = {name: _array(parameters[name]) for name in names}
    losses = []
    with torch.inference_mode():
        for step in range(1, steps + 1):
            z = {
                name: torch.from_numpy(noise(seed, step, number, tuple(parameters[name].shape)))
                for number, name in enumerate(names)
            }

            def move(distance: float, along: dict[str, torch.Tensor] = z) -> None:
                for name, direction in along.items():
                    parameters[name].add_(direction, alpha=distance)

            move(epsilon)
            loss_plus = _loss(model, inputs, targets)
            move(-2 * epsilon)
            loss_minus = _loss(model, inputs, targets)
            move(epsilon)
            move(-rate * (loss_plus - loss_minus) / (2 * epsilon))
            losses.append((loss_plus, loss_minus))
    return Run(losses=losses, start=start, parameters={name: _array(parameters[name]) for name in names})


def _loss(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    # Not by labels: transformers would round the logits to float32.
    logits = model(input_ids=inputs, use_cache=False).logits
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().copy()
