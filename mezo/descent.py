"""From the guide's gradients to a step: momentum, and lengths that suit words seen once and words seen all the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

#: Rows of a large matrix that are worked on at a time.
_ROWS = 8192


@dataclass
class Descent:
    """Momentum over gradients, divided by their size; a B moves by about `length` times `rate` a step and number.

    A number's size is taken from its row (a word of the head, an output of a map) and from its matrix alike, by their
    geometric mean: by the row alone rare words would move as far as common ones on little evidence, by the matrix
    alone hardly at all. It takes one number a row to know that, where Adam (arXiv 1412.6980) keeps a second matrix.
    """

    momentum: dict[str, torch.Tensor]  #: path -> like B
    squares: dict[str, torch.Tensor]  #: path -> (rows, 1), running mean squares of the gradient's rows
    steps: int = 0  #: that were taken into account
    _sizes: dict[str, torch.Tensor] = field(default_factory=dict)

    FIRST, SECOND = 0.9, 0.99  # memory of the momentum, and of the squares

    @classmethod
    def over(cls, b: Mapping[str, torch.Tensor]) -> "Descent":
        """Nothing seen yet."""
        return cls(
            {path: torch.zeros_like(value) for path, value in b.items()},
            {path: torch.zeros(len(value), 1) for path, value in b.items()},
        )

    def see(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Take a step's gradients into account."""
        self.steps += 1
        for path, gradient in gradients.items():
            self.momentum[path].mul_(self.FIRST).add_(gradient, alpha=1 - self.FIRST)
            rows = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).square_().div_(gradient.shape[1])
            self.squares[path].mul_(self.SECOND).add_(rows, alpha=1 - self.SECOND)
        self._sizes = {path: self._size(squares) for path, squares in self.squares.items()}

    def move(self, b: Mapping[str, torch.Tensor], length: float) -> None:
        """One step downhill for these of the matrices, in place."""
        for path, value in b.items():
            value.addcdiv_(self.momentum[path], self._sizes[path], value=-length / self._unbiased)

    def slope(self, gradients: Mapping[str, torch.Tensor]) -> float:
        """How the loss changes along the step of length one, by these gradients: below zero, downhill."""
        total = 0.0
        for path, gradient in gradients.items():
            for start in range(0, len(gradient), _ROWS):
                rows = slice(start, start + _ROWS)
                total += float((gradient[rows] * self.rows(path, rows)).sum())
        return -total

    def along(self, lengths: Mapping[str, float]) -> "StepDirection":
        """The step that `move` would take of these paths alone, each by its length, as a direction to be probed."""
        return StepDirection(self, lengths)

    def rows(self, path: str, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows of the step of length one, uphill."""
        return self.momentum[path][rows] / self._sizes[path][rows] / self._unbiased

    @property
    def _unbiased(self) -> float:
        """What the momentum is of a mean, so shortly after the start."""
        return float(1 - self.FIRST**self.steps)

    def _size(self, squares: torch.Tensor) -> torch.Tensor:
        means = squares / (1 - self.SECOND**self.steps)
        return (means * means.mean()).sqrt_().sqrt_().clamp_(min=1e-30)


class _Known:
    """A z that is no noise (pocketllm.mezo.noise.Z); what differs is where its rows come from."""

    def gather(
        self, tensor: int, shape: Sequence[int], rows: slice | torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Its rows with these numbers: (n, *shape[1:])."""
        raise NotImplementedError

    def of(self, tensor: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """All of a matrix's z."""
        return self.gather(tensor, shape, slice(0, shape[0]), dtype)

    def rows(
        self, tensor: int, shape: Sequence[int], start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Some rows of z."""
        return self.gather(tensor, shape, slice(start, stop), dtype)


class StepDirection(_Known):
    """A step that is about to be taken."""

    def __init__(self, descent: Descent, lengths: Mapping[str, float]) -> None:
        self._descent, self._lengths = descent, lengths
        self._numbers = tuple(descent.momentum)

    def gather(
        self, tensor: int, shape: Sequence[int], rows: slice | torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Its rows with these numbers: (n, *shape[1:])."""
        path = self._numbers[tensor]
        if path not in self._lengths:
            return _nothing(rows, shape, dtype)
        return (self._descent.rows(path, rows) * -self._lengths[path]).to(dtype)


class GivenDirection(_Known):
    """Some matrices' z by their numbers; the others' is zero."""

    def __init__(self, z: Mapping[int, torch.Tensor]) -> None:
        self._z = z

    def gather(
        self, tensor: int, shape: Sequence[int], rows: slice | torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Its rows with these numbers: (n, *shape[1:])."""
        return self._z[tensor][rows].to(dtype) if tensor in self._z else _nothing(rows, shape, dtype)


def _nothing(rows: slice | torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    return torch.zeros(count, shape[1], dtype=dtype)
