"""The state of a forward pass, shared by all modules of a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from pocketllm.engine.noise import Direction, Perturbation


class Scratch:
    """A reusable buffer for one dense weight at a time."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the next call."""
        needed = dtype.itemsize * torch.Size(shape).numel()
        if self._bytes.numel() < needed:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # free the old buffer first
            self._bytes = torch.empty(needed, dtype=torch.uint8)
        return self._bytes[:needed].view(dtype).view(tuple(shape))


@dataclass
class ForwardContext:
    """The compute dtype, the perturbations, and the buffers of a forward pass."""

    dtype: torch.dtype  #: the compute dtype of the layers
    perturbations: Sequence[Perturbation] = ()  #: one for each part of the batch; empty: theta itself
    rows: int = 0  #: blocks in the batch, over all parts; used only with perturbations
    release: bool = False  #: release a weight's pages after use
    decoding: bool = False  #: a few tokens behind a cache: see decoding.py
    scratch: Scratch = field(default_factory=Scratch)
    perturbed_scratch: list[Scratch] = field(default_factory=list)  #: one weight at each perturbation

    def groups(self) -> Iterator[tuple[Direction, list[Perturbation]]]:
        """The perturbations grouped by direction, so that each z is generated once."""
        for direction, perturbations in groupby(self.perturbations, key=lambda perturbation: perturbation.direction):
            yield direction, list(perturbations)
