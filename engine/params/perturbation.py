"""A perturbation of the trained parameters: theta + distance * z."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Z(Protocol):
    """A direction in parameter space, tensor by tensor."""

    def of(self, tensor: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """z for the tensor with this number and shape."""

    def rows(
        self, tensor: int, shape: Sequence[int], start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Rows start to stop of z: (stop - start, *shape[1:])."""

    def gather(
        self, tensor: int, shape: Sequence[int], rows: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """(n,) row numbers -> those rows of z, (n, *shape[1:])."""

    def rounding_bits(self) -> torch.Tensor:
        """engine.philox.ROUNDING_POOL random 16-bit numbers, int32, for stochastic rounding of an update along z."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """theta + distance * z."""

    direction: Z
    distance: float
