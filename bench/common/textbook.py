"""MeZO as the paper lists it, dense and in float64: what the engine's trajectory is held against.

It shares with the engine the model's forward (transformers') and the numbers of z, and nothing else: no streaming, no
two-sided batch, no chunked loss.
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

from bench.common.peers import mezo_step

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
            z = [torch.from_numpy(noise(seed, step, number, one.shape)) for number, one in enumerate(start.values())]

            def perturb(distance: float, z: Sequence[torch.Tensor] = z) -> None:
                for name, direction in zip(names, z, strict=True):
                    parameters[name].add_(direction, alpha=distance)

            losses.append(mezo_step(perturb, lambda: _loss(model, inputs, targets), epsilon=epsilon, rate=rate))
    return Run(losses=losses, start=start, parameters={name: _array(parameters[name]) for name in names})


def _loss(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    # Not by labels: transformers would round the logits to float32.
    logits = model(input_ids=inputs, use_cache=False).logits
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().copy()
